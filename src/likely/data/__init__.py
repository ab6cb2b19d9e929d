"""Data sets by name, from a folder outside the package: their records, and files that are what the manifest says."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.data.datasets import data_root as data_root
    from likely.data.datasets import find_path as find_path
    from likely.data.datasets import find_set as find_set
    from likely.data.datasets import list_sets as list_sets
    from likely.data.datasets import load_arrays as load_arrays
    from likely.data.datasets import load_records as load_records
    from likely.data.datasets import read_rows as read_rows
    from likely.data.manifest import DataFile as DataFile
    from likely.data.manifest import DataSet as DataSet

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
