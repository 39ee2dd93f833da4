"""Final answers, found in what benchmarks' authors wrote."""

import re

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*")
_UNIT = re.compile(r"\s*\([^()]*\)\s*$")


def last_boxed(text: str) -> str | None:
    r"""Return what the last complete `\boxed{...}` of a solution holds, or None."""
    for start in reversed([found.end() for found in _BOXED.finditer(text)]):
        if not text[start:].strip(" $"):
            continue
        if text[start] != "{":
            return text[start:].partition("$")[0].split()[0].rstrip(".,")
        end = _closing(text, start)
        if end is not None:
            return text[start + 1 : end].strip()
    return None


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for position in range(start, len(text)):
        escaped = position > 0 and text[position - 1] == "\\"
        if text[position] == "{" and not escaped:
            depth += 1
        elif text[position] == "}" and not escaped:
            depth -= 1
            if not depth:
                return position
    return None


def plain_number(text: str) -> str:
    """Return a whole number without leading zeros, decimals or commas; any other text as it is."""
    plain = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else text
    if re.fullmatch(r"-?\d+(\.0*)?", plain):
        return str(int(plain.partition(".")[0]))
    return plain


def without_unit(text: str) -> str:
    """Return an answer without the unit in brackets behind it: `9 (apples)` is 9."""
    return _UNIT.sub("", text)
