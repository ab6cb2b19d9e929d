"""Files of weights: GGUF and safetensors read with suspicion, written in pieces, and what one is in the other."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.formats.families import FAMILIES as FAMILIES
    from likely.formats.families import config_from_header as config_from_header
    from likely.formats.families import metadata_from_config as metadata_from_config
    from likely.formats.folder import read_folder as read_folder
    from likely.formats.folder import read_json as read_json
    from likely.formats.gguf import GgufHeader as GgufHeader
    from likely.formats.gguf import read_header as read_header
    from likely.formats.safetensors_file import read_entries as read_entries
    from likely.formats.weights import Weight as Weight
    from likely.formats.weights import weights_of_gguf as weights_of_gguf
    from likely.formats.writing import GgufWriter as GgufWriter
    from likely.formats.writing import write_safetensors_header as write_safetensors_header

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
