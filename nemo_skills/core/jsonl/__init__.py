"""Row files: streaming reading, a crash-safe journal of results, atomic replacement."""

from nemo_skills.core.jsonl._atomic import atomic_output, check_space, disk_errors, write_file
from nemo_skills.core.jsonl._index import Match
from nemo_skills.core.jsonl._inputs import FileStamp, InputFiles
from nemo_skills.core.jsonl._journal import Journal, Repair, Written
from nemo_skills.core.jsonl._keys import KeyTable, row_check, row_checks, row_key
from nemo_skills.core.jsonl._lock import open_locked
from nemo_skills.core.jsonl._reader import (
    BadRowError,
    Block,
    Line,
    check_input,
    count_rows,
    iter_blocks,
    iter_lines,
    parse_row,
)
from nemo_skills.core.jsonl._shards import Shards
from nemo_skills.core.jsonl._splice import add_fields

__all__ = [
    "BadRowError",
    "Block",
    "FileStamp",
    "InputFiles",
    "Journal",
    "KeyTable",
    "Line",
    "Match",
    "Repair",
    "Shards",
    "Written",
    "add_fields",
    "atomic_output",
    "check_input",
    "check_space",
    "count_rows",
    "disk_errors",
    "iter_blocks",
    "iter_lines",
    "open_locked",
    "parse_row",
    "row_check",
    "row_checks",
    "row_key",
    "write_file",
]
