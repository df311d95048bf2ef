"""Conditions and ranges (RFC 9110, sections 8.8.3, 13 and 14), as pure functions of header texts.

An ETag is the record's version: ``"1.2f.9"`` for the value as it was put or as JSON, with
``-msgpack`` behind the version for the MessagePack form, because a strong validator may not name
two different bodies. A write's condition accepts either. A tag that is weak, or that this server
cannot have given, matches nothing under strong comparison; it is not an error.

What a resource does not support is refused (501), never ignored: an ignored condition overwrites
somebody's work. There is no modification time, hence no `If-Modified-Since`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.errors import BadRequest
from kvstore.http.problems import ProblemError
from kvstore.values import version_from_text, version_to_text

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = [
    "CONDITION_HEADERS",
    "MSGPACK_SUFFIX",
    "EntityTags",
    "etag_of",
    "parse_range",
    "parse_tags",
    "refuse_unsupported",
]

CONDITION_HEADERS: Final = (
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "If-Range",
)
"""All that HTTP has."""

TAGS_MAX: Final = 32
"""Entity tags in one header; each costs a write at most one attempt."""

MSGPACK_SUFFIX: Final = "-msgpack"

_TAG: Final = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"\s*(?:,|$)')
_RANGE: Final = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class EntityTags:
    """A parsed `If-Match` or `If-None-Match`.

    Attributes:
        anything: It was ``*``.
        tags: The opaque texts of the strong tags.
        weak: Those of the weak ones.
    """

    anything: bool
    tags: frozenset[str]
    weak: frozenset[str]

    def versions(self) -> list[bytes]:
        """The versions that strong tags of any form name, each once, in a stable order."""
        found = set()
        for tag in self.tags:
            try:
                found.add(version_from_text(tag.removesuffix(MSGPACK_SUFFIX)))
            except BadRequest:
                continue
        return sorted(found)

    def matches(self, etag: str, *, weakly: bool) -> bool:
        """Whether an existing representation with this ETag is named."""
        opaque = etag.strip('"')
        return self.anything or opaque in self.tags or (weakly and opaque in self.weak)


def etag_of(version: bytes, *, as_msgpack: bool = False) -> str:
    """The strong ETag of a representation."""
    return f'"{version_to_text(version)}{MSGPACK_SUFFIX if as_msgpack else ""}"'


def parse_tags(name: str, text: str) -> EntityTags:
    """The list of a condition header.

    Raises:
        ProblemError: not ``*`` and not a list of entity tags.
    """
    if text.strip() == "*":
        return EntityTags(anything=True, tags=frozenset(), weak=frozenset())
    at = 0
    strong: set[str] = set()
    weak: set[str] = set()
    while at < len(text):
        found = _TAG.match(text, at)
        if found is None:
            break
        (weak if found[1] else strong).add(found[2])
        at = found.end()
    if at < len(text) or not (strong or weak) or text.rstrip().endswith(","):
        raise ProblemError(
            "bad-header",
            f"{name} is {text!r:.120}; it must be * or ETags in quotes, separated by commas.",
        )
    if len(strong) + len(weak) > TAGS_MAX:
        raise ProblemError("bad-header", f"{name} holds more than {TAGS_MAX} ETags.")
    return EntityTags(anything=False, tags=frozenset(strong), weak=frozenset(weak))


def refuse_unsupported(headers: Mapping[str, str], supported: Collection[str]) -> None:
    """Refuse the condition headers that a resource does not support.

    Raises:
        ProblemError: 501, naming the header.
    """
    for name in CONDITION_HEADERS:
        if name in headers and name not in supported:
            can = ", ".join(supported) or "none"
            raise ProblemError(
                "condition-not-supported",
                f"{name} is not supported for this method here (supported: {can}). "
                "Nothing was done.",
            )


def parse_range(text: str, size: int) -> slice | None:
    """The part of a body of ``size`` bytes that `Range` asks for; None = all of it.

    Another unit than bytes must be ignored (RFC 9110, 14.2). One range at a time is served;
    several, a wrong one, or one outside of the body is 416.

    Raises:
        ProblemError: 416 with the size.
    """
    unit, _, spec = text.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    found = _RANGE.fullmatch(spec.strip())
    if found is not None:
        first, last = found.groups()
        if first and int(first) < size and (not last or int(first) <= int(last)):
            return slice(int(first), min(int(last) + 1, size) if last else size)
        if not first and last and int(last) > 0 and size > 0:
            return slice(max(size - int(last), 0), size)
    raise ProblemError(
        "range-not-satisfiable",
        f"Range is {text!r:.80}; the value has {size} bytes, and one range is served at a time.",
        headers={"Content-Range": f"bytes */{size}"},
    )
