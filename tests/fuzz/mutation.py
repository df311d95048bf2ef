"""Valid examples made wrong, from a seed.

Random bytes die at the first check of a parser. So inputs begin as something valid and are changed
a little, mostly once or twice: *trees* (the values inside of MessagePack or JSON) keep their outer
form while a part becomes another type, a huge number, a long or deep thing, is lost or doubled;
*texts* and *bytes* lose, gain, swap and repeat pieces, some of them from a small dictionary of what
parsers stumble over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

LENGTH_MAX: Final = 65_536
"""Of an input, about: what is unbounded shows with less."""

NUMBERS: Final = (
    *(0, 1, -1, 2, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63), 16_384, 256, 257),
)
ODD: Final[tuple[Any, ...]] = (
    *(None, True, False, 0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 1e308),
    *("", "x", "\0", "{tag}k", "\u20ac", "a" * 300, b"", b"*", b"\xff" * 20, bytes(20), bytes(200)),
    *([], {}, [[]], [None] * 40, {"": None}, {1: 2}, [1, 2, 3]),
    *(msgpack.ExtType(5, b"x"), msgpack.Timestamp(2**33, 1)),
)
TEXTS: Final = (
    *("%", "%2", "%00", "%ff", "%2F", "+", "&", "=", "&&", "#", "?", "/", "//", "..", "\\", ";"),
    *('"', "'", ",", "*", 'W/"', '""', "-", "--", ".", "bytes=", "q=", "charset=", "\0", "\t"),
    *("\r\n", "\n", " ", "\u20ac", "\ud800", "\U0001f600", "9" * 40, "-1", "1e999", "nan", "0x"),
    *("inf", "true", "null", "{", "}", "[", "]", '{"$bytes":1}', '{"$map":[[1]]}', ":", "a" * 300),
    *('{"$datetime":"9999-99"}', '{"$ext":[300,"AA=="]}', '{"$float":"x"}', "\ufeff", "١٢٣", "²"),
)
HEADS: Final = tuple(bytes([head]) for head in (*range(0x80, 0xA8, 4), *range(0xC0, 0xE0)))
"""Beginnings of MessagePack items: containers and lengths among them."""

DEEP: Final = (b"\x91" * 2_000, b"\x81\xa1k" * 700, b"[" * 3_000, b'{"a":' * 900)


class Mutator:
    """Changes things; everything comes from one generator."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def few(self) -> int:
        """How many changes: mostly one or two, sometimes none."""
        return self.rng.choice((0, 1, 1, 1, 2, 2, 3, 8))

    # -- bytes -------------------------------------------------------------------------------

    def raw(self, data: bytes) -> bytes:
        """The bytes with a few changes."""
        for _ in range(self.few()):
            data = self.rng.choice(_BYTE_CHANGES)(self, data)
        return data[:LENGTH_MAX]

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self.rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self.rng.randrange(8)]) + data[at + 1 :]

    def _set(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data) + 1)
        return data[:at] + bytes([self.rng.choice((0, 1, 0x7F, 0x80, 0xFF))]) + data[at + 1 :]

    def _truncate(self, data: bytes) -> bytes:
        return data[: self.rng.randrange(len(data) + 1)]

    def _lose(self, data: bytes) -> bytes:
        first, end = sorted(self.rng.choices(range(len(data) + 1), k=2))
        return data[:first] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        first, end = sorted(self.rng.choices(range(len(data) + 1), k=2))
        times = self.rng.choice((1, 2, 50))
        return data[:end] + data[first:end][:1_000] * times + data[end:]

    def _insert(self, data: bytes) -> bytes:
        at = self.rng.randrange(len(data) + 1)
        piece: bytes = self.rng.choice(
            (*HEADS, *DEEP, self.rng.randbytes(self.rng.randrange(1, 9)))
        )
        return data[:at] + piece + data[at:]

    def _number(self, data: bytes) -> bytes:
        """A length or number of some width."""
        at, width = self.rng.randrange(len(data) + 1), self.rng.choice((1, 2, 4, 8))
        number = self.rng.choice(NUMBERS) % (1 << 8 * width)
        return data[:at] + number.to_bytes(width, "big") + data[at + width :]

    # -- texts -------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        """The text with a few changes."""
        for _ in range(self.few()):
            text = text[:LENGTH_MAX]
            first, end = sorted(self.rng.choices(range(len(text) + 1), k=2))
            match self.rng.randrange(5):
                case 0:
                    text = text[:first] + self.rng.choice(TEXTS) + text[first:]
                case 1:
                    text = text[:first] + self.rng.choice(TEXTS) + text[end:]
                case 2:
                    text = text[:first] + text[end:]
                case 3:
                    text = text[:end] + text[first:end] * self.rng.choice((1, 3, 40)) + text[end:]
                case _:
                    text = text[:first] + chr(self.rng.choice((*range(128), 0x660))) + text[end:]
        return text[:LENGTH_MAX]

    # -- trees -------------------------------------------------------------------------------

    def tree(self, value: Any) -> Any:
        """What MessagePack or JSON holds, with a few parts changed; the original stays."""
        for _ in range(self.few()):
            value = self._part(value, self.rng.randrange(6))
        return value

    def _part(self, value: Any, depth: int) -> Any:
        """A copy with one part changed, at most so many levels down."""
        if depth > 0 and value and isinstance(value, list | tuple):
            at = self.rng.randrange(len(value))
            return [*value[:at], self._part(value[at], depth - 1), *value[at + 1 :]]
        if depth > 0 and value and isinstance(value, dict):
            key = self.rng.choice(list(value))
            return {**value, key: self._part(value[key], depth - 1)}
        return self._replaced(value)

    def _replaced(self, value: Any) -> Any:
        rng = self.rng
        if rng.random() < 0.3:
            return rng.choice(ODD)
        match value:
            case bool():
                return not value
            case int():
                return rng.choice((value + 1, value - 1, rng.choice(NUMBERS), -value))
            case float():
                return rng.choice((value * 2, math.nan, math.inf, 0.0, -value, 7))
            case str():
                return self.text(value)
            case bytes():
                return self.raw(value)
            case list() | tuple():
                return self._list(list(value))
            case dict():
                return self._dict(dict(value))
            case _:
                return rng.choice(NUMBERS)

    def _list(self, items: list[Any]) -> list[Any]:
        match self.rng.randrange(4):
            case 0 if items:
                items.pop(self.rng.randrange(len(items)))
            case 1:
                items.insert(self.rng.randrange(len(items) + 1), self.rng.choice(ODD))
            case 2:
                items = items * self.rng.choice((2, 40))
            case _:
                self.rng.shuffle(items)
        return items[:2_000]

    def _dict(self, items: dict[Any, Any]) -> dict[Any, Any]:
        match self.rng.randrange(3):
            case 0 if items:
                del items[self.rng.choice(list(items))]
            case 1:
                items[self.rng.choice(("", "x", 1, b"k", None, "op", "key"))] = self.rng.choice(ODD)
            case _ if items:
                items[self.rng.choice(list(items))] = self.rng.choice(ODD)
            case _:
                pass
        return items

    def packed(self, value: Any) -> bytes:
        """MessagePack of a changed tree; sometimes its bytes are changed as well."""
        try:
            data: bytes = msgpack.packb(self.tree(value))
        except (ValueError, OverflowError, TypeError):  # half a surrogate pair, a huge number
            data = msgpack.packb(value)
        return self.raw(data) if self.rng.random() < 0.3 else data

    def pick(self, examples: Sequence[Any]) -> Any:
        """One of the examples."""
        return self.rng.choice(examples)


_BYTE_CHANGES: Final[tuple[Callable[[Mutator, bytes], bytes], ...]] = (
    Mutator._flip,
    Mutator._set,
    Mutator._truncate,
    Mutator._lose,
    Mutator._repeat,
    Mutator._insert,
    Mutator._number,
)
