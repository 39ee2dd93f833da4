"""Packs that are not full, found by the room they have left."""

from collections import defaultdict
from typing import NamedTuple

_WORD = 512
"""Bits looked at together; two levels of them reach up to packs of a quarter of a million tokens."""


class Group(NamedTuple):
    """Packs filled in the same way."""

    room: int
    """Tokens that fit into each of them."""
    packs: int
    filling: int
    """What is in them, as a number that whoever fills them understands; -1 is nothing."""
    place: int
    """When the first of them was opened; the others were opened right behind."""


class BestFit:
    """Gives the packs that a sequence fills best: groups by room, and a bit for each room that has any."""

    def __init__(self, capacity: int) -> None:
        self._groups: defaultdict[int, list[Group]] = defaultdict(list)
        self._bits = [0] * (capacity // _WORD + 1)
        self._words = 0
        """A bit for each word of `_bits` that is not 0."""

    def put(self, group: Group) -> None:
        """Add a group."""
        self._groups[group.room].append(group)
        word, bit = divmod(group.room, _WORD)
        self._bits[word] |= 1 << bit
        self._words |= 1 << word

    def take(self, length: int) -> Group | None:
        """Take out a group with the least room of those that have enough."""
        word, bit = divmod(length, _WORD)
        found = self._bits[word] >> bit << bit if word < len(self._bits) else 0
        if not found:
            above = self._words >> (word + 1) << (word + 1)
            if not above:
                return None
            word = _lowest(above)
            found = self._bits[word]
        room = word * _WORD + _lowest(found)
        groups = self._groups[room]
        group = groups.pop()
        if not groups:
            self._bits[word] ^= 1 << (room % _WORD)
            if not self._bits[word]:
                self._words ^= 1 << word
        return group


class _MaxTree:
    """Numbers of which the first that is large enough is found fast."""

    def __init__(self, size: int) -> None:
        self._leaves = 1 << max(size - 1, 0).bit_length()
        self._most = [0] * (2 * self._leaves)

    def set(self, place: int, value: int) -> None:
        most, node = self._most, place + self._leaves
        most[node] = value
        while node > 1:
            other = most[node ^ 1]
            node >>= 1
            above = value if value > other else other
            if most[node] == above:
                return
            most[node] = value = above

    def first(self, least: int) -> int | None:
        """Return the first place with a value of `least` or more."""
        most, node, leaves = self._most, 1, self._leaves
        if most[1] < least:
            return None
        while node < leaves:
            node *= 2
            if most[node] < least:
                node += 1
        return node - leaves

    def value(self, place: int) -> int:
        return self._most[place + self._leaves]


class FirstFit:
    """Gives the packs that were opened first: groups by place, and a tree of the room each has."""

    def __init__(self, most_packs: int) -> None:
        self._groups: dict[int, Group] = {}
        self._rooms = _MaxTree(most_packs)

    def put(self, group: Group) -> None:
        """Add a group."""
        self._groups[group.place] = group
        self._rooms.set(group.place, group.room)

    def take(self, length: int) -> Group | None:
        """Take out the first group with enough room."""
        place = self._rooms.first(length)
        if place is None:
            return None
        self._rooms.set(place, 0)
        return self._groups.pop(place)


class RoomTree:
    """Packs in the order of their opening."""

    def __init__(self, most_packs: int, capacity: int) -> None:
        self._rooms = _MaxTree(most_packs)
        self._capacity = capacity
        self._opened = 0

    def place(self, length: int) -> int:
        """Put a sequence into the first pack with enough room, and return which one that is."""
        pack = self._rooms.first(length)
        if pack is None:
            pack = self._opened
            self._opened += 1
            self._rooms.set(pack, self._capacity - length)
        else:
            self._rooms.set(pack, self._rooms.value(pack) - length)
        return pack


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
