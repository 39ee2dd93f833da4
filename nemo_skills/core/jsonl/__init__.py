"""Row files: streaming reading, a crash-safe journal of results, atomic replacement."""

from nemo_skills.core.jsonl._atomic import atomic_output, disk_errors, write_file
from nemo_skills.core.jsonl._journal import Journal, Repair
from nemo_skills.core.jsonl._reader import (
    BadRowError,
    Line,
    check_input,
    count_rows,
    iter_lines,
    parse_row,
    row_check,
)
from nemo_skills.core.jsonl._shards import Shards
from nemo_skills.core.jsonl._splice import add_fields

__all__ = [
    "BadRowError",
    "Journal",
    "Line",
    "Repair",
    "Shards",
    "add_fields",
    "atomic_output",
    "check_input",
    "count_rows",
    "disk_errors",
    "iter_lines",
    "parse_row",
    "row_check",
    "write_file",
]
