"""How a number must relate to a limit."""

from typing import Literal

Relation = Literal["less than", "at least"]


def holds(number: int, relation: str, limit: int) -> bool:
    """Whether `number` is `less than`, or `at least`, the limit.

    Raises:
        TypeError: the relation is another one.
    """
    if relation == "less than":
        return number < limit
    if relation == "at least":
        return number >= limit
    raise TypeError(f"relation '{relation}' is neither 'less than' nor 'at least'")
