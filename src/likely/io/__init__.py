"""Files: JSON lines that resume, files that are whole or not there, digests."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.io.checkout import find_checkout as find_checkout
    from likely.io.hashes import cache_dir as cache_dir
    from likely.io.hashes import file_sha256 as file_sha256
    from likely.io.hashes import fingerprint as fingerprint
    from likely.io.hashes import folder_sha256 as folder_sha256
    from likely.io.jsonl import Line as Line
    from likely.io.jsonl import Results as Results
    from likely.io.jsonl import read_checked as read_checked
    from likely.io.jsonl import read_lines as read_lines
    from likely.io.kept import KeptValues as KeptValues
    from likely.io.linear_regex import LinearRegex as LinearRegex
    from likely.io.whole_file import replacing as replacing
    from likely.io.whole_file import write_whole_file as write_whole_file

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
