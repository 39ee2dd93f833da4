"""Adding fields to a row without touching what is there."""

import json
from collections.abc import Mapping
from typing import Any

import orjson


def add_fields(raw: bytes, row: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """Return the row `raw` (parsed: `row`) with `fields` appended, or replaced where they exist.

    The row's own text is kept as it is, so big integers, number formats and escapes survive unchanged. Only a
    row that already has one of the fields is written anew.
    """
    if row.keys().isdisjoint(fields):
        head = raw[:-1].rstrip()
        added = orjson.dumps(fields)[1:]
        return head + added if head == b"{" or added == b"}" else head + b"," + added
    # the standard library keeps integers of any size, which orjson does not
    kept = {key: value for key, value in json.loads(raw).items() if key not in fields}
    return json.dumps({**kept, **fields}, ensure_ascii=False, separators=(",", ":")).encode()
