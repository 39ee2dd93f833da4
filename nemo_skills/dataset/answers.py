"""Final answers, found in what benchmarks' authors wrote."""

import re

_UNIT = re.compile(r"\s*\([^()]*\)\s*$")


def plain_number(text: str) -> str:
    """Return a whole number without leading zeros, decimals or commas; any other text as it is."""
    plain = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else text
    if re.fullmatch(r"-?\d+(\.0*)?", plain):
        return str(int(plain.partition(".")[0]))
    return plain


def without_unit(text: str) -> str:
    """Return an answer without the unit in brackets behind it: `9 (apples)` is 9."""
    return _UNIT.sub("", text)
