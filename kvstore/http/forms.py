"""Which bytes stand for a value, in a request and in an answer.

Two kinds of value meet here. A *raw* value is bytes with a content type; it comes back exactly as
it was put, whatever `Accept` says. A *structured* value was put as JSON or MessagePack (or by a
Python client) and is one MessagePack object in the record; it is given as JSON, or as MessagePack
if `Accept` prefers that. In the record the difference is the type of the MessagePack object: bytes
are raw.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from cluster.limits import CONTENT_TYPE_BYTES_MAX
from kvstore.errors import BadRequest, CorruptValue, ValueTooLarge
from kvstore.http.problems import ProblemError
from kvstore.json_values import dump_json, load_json
from kvstore.values import pack_value, unpack_value

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "JSON",
    "MSGPACK",
    "RAW",
    "Form",
    "dump",
    "load",
    "negotiate",
    "raw_bytes",
    "stored_form",
    "structured_type",
]

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
RAW: Final = "application/octet-stream"

_MSGPACK_NAMES: Final = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")
_TYPE: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
_QUALITY: Final = re.compile(r"(0(\.[0-9]{0,3})?|1(\.0{0,3})?)", re.ASCII)


_BIN_LENGTH_BYTES: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""MessagePack's three heads of a byte string and the size of the length behind them."""


class Form(NamedTuple):
    """What a record stores: MessagePack, and a content type if it is raw."""

    packed: bytes
    content_type: str


def structured_type(header: str) -> str | None:
    """`JSON` or `MSGPACK` if a content type stands for a structured value, None if it is raw.

    Raises:
        ProblemError: no content type, too long, or JSON in another encoding than UTF-8.
    """
    if not header:
        return None
    name, _, parameters = header.partition(";")
    name = name.strip().lower()
    if (
        len(header) > CONTENT_TYPE_BYTES_MAX
        or not _PRINTABLE.fullmatch(header)
        or not _TYPE.fullmatch(name)
    ):
        raise ProblemError(
            "bad-header",
            f"Content-Type is {header!r:.80}; it must be like text/plain, in at most "
            f"{CONTENT_TYPE_BYTES_MAX} ASCII characters.",
        )
    if name in _MSGPACK_NAMES:
        return MSGPACK
    if name != JSON:
        return None
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]*)", parameters, re.IGNORECASE)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise ProblemError("unsupported-media-type", "JSON must be sent as UTF-8.")
    return JSON


def load(form: str, body: bytes) -> Any:
    """What a JSON or MessagePack body means.

    Raises:
        BadRequest: it is none.
    """
    if form == JSON:
        return load_json(body)
    try:
        return unpack_value(body)
    except CorruptValue as error:
        raise BadRequest(f"the body is no MessagePack value: {error.__cause__}") from None


def raw_bytes(packed: bytes) -> bytes | None:
    """The bytes of a raw value, None if the value is structured; looks at the first byte only."""
    length_bytes = _BIN_LENGTH_BYTES.get(packed[0]) if packed else None
    return None if length_bytes is None else packed[1 + length_bytes :]


def dump(form: str, value: Any) -> bytes:
    """A value that this server made, as JSON or MessagePack; not limited in size."""
    if form == JSON:
        return dump_json(value)
    packed: bytes = msgpack.packb(value, datetime=True)
    return packed


def stored_form(header: str, body: bytes) -> Form:
    """What a PUT with this content type and body stores.

    Raises:
        ProblemError: the type or the value is wrong, or the value too large.
    """
    form = structured_type(header)
    try:
        if form is None:
            return Form(pack_value(body), header or RAW)
        return Form(pack_value(load(form, body)), "")
    except ValueTooLarge as error:
        raise ProblemError("too-large", f"{error}.") from None
    except BadRequest as error:
        raise ProblemError("bad-value", f"{error}.") from None


def negotiate(headers: Mapping[str, str]) -> str:
    """`JSON` or `MSGPACK`, by `Accept`; JSON where both are as welcome.

    Raises:
        ProblemError: 406, neither is.
    """
    accept = headers.get("Accept")
    if accept is None or accept in ("*/*", JSON):
        return JSON
    quality = {form: _quality(accept, names) for form, names in _FORMS.items()}
    best = max(quality, key=lambda form: quality[form])
    if quality[best] > 0:
        return best
    raise ProblemError(
        "not-acceptable", f"Accept is {accept!r:.80}; this can be had as {JSON} or {MSGPACK}."
    )


_FORMS: Final[dict[str, tuple[str, ...]]] = {JSON: (JSON,), MSGPACK: _MSGPACK_NAMES}


def _quality(accept: str, names: tuple[str, ...]) -> float:
    """The weight of a media type: the most specific range that fits decides (RFC 9110, 12.5.1)."""
    found: tuple[int, float] = (0, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        fits = 3 if name in names else {"application/*": 2, "*/*": 1}.get(name, 0)
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                weight = float(parameter[2:]) if _QUALITY.fullmatch(parameter[2:]) else 0.0
        if fits:
            found = max(found, (fits, weight))
    return found[1]
