"""Values as JSON, without loss.

MessagePack holds more than JSON does. What JSON lacks is written as an object with one member
whose name begins with ``$``; the same objects are understood in what is put:

==============================  ===================================================
``{"$bytes": "3q2+7w=="}``      bytes, base64
``{"$datetime": "2024-…Z"}``    a moment, RFC 3339, microseconds
``{"$float": "nan"}``           ``nan``, ``inf`` or ``-inf``
``{"$ext": [7, "AA=="]}``       a MessagePack extension of another program
``{"$map": [[1, "one"]]}``      a map with keys that are no texts, as pairs
==============================  ===================================================

A map that happens to look like one of these is written as ``$map``, so that reading gives back
what was written, always. What comes in is strict: numbers must fit (64-bit integers, finite
floats), a name may occur once in an object, NaN is no JSON. A wrong guess there would change data
silently.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgpack

from kvstore.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["dump_json", "load_json"]

_MARKS: Final = ("$bytes", "$datetime", "$float", "$ext", "$map")
_FLOATS: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def dump_json(value: Any) -> bytes:
    """The JSON of any value that a record can hold; compact, UTF-8."""
    text = json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def load_json(body: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        BadRequest: no JSON, or JSON that cannot be stored without a change; the message says where.
    """
    try:
        return json.loads(
            body.decode("utf-8-sig" if body.startswith(b"\xef\xbb\xbf") else "utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise BadRequest(f"the JSON is no UTF-8: byte {error.start} is wrong") from None
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"no JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise BadRequest("the JSON is nested too deep") from None


def _plain(value: Any) -> Any:
    """What `json` can write, for a value that `kvstore.values` unpacked."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return {"$datetime": value.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    if isinstance(value, msgpack.ExtType):
        return {"$ext": [value.code, base64.b64encode(value.data).decode()]}
    assert isinstance(value, dict), type(value)
    if not all(isinstance(key, str) for key in value) or _is_marked(value):
        return {"$map": [[_plain(key), _plain(item)] for key, item in value.items()]}
    return {key: _plain(item) for key, item in value.items()}


def _is_marked(value: dict[Any, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _MARKS


def _object(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise BadRequest(f"the name {twice!r:.80} occurs twice in one object")
    if not _is_marked(value):
        return value
    ((mark, content),) = value.items()
    try:
        return _READERS[mark](content)
    except (TypeError, ValueError, KeyError, OverflowError, binascii.Error):
        raise BadRequest(f"{mark!r} stands before what it cannot mean: {content!r:.80}") from None


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else 2**64
    if -(2**63) <= value < 2**64:
        return value
    raise BadRequest(f"the number {text:.40} does not fit into 64 bits: send it as a string")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadRequest(f"the number {text:.40} is beyond a 64-bit float: send it as a string")
    return value


def _constant(text: str) -> Any:
    raise BadRequest(f'{text} is no JSON: send {{"$float": "{text.lower()}"}} or null')


def _bytes(content: Any) -> bytes:
    return base64.b64decode(content, validate=True)


def _datetime(content: Any) -> datetime:
    moment = datetime.fromisoformat(content)
    if moment.tzinfo is None:
        raise ValueError("a moment needs its time zone")
    return moment.astimezone(UTC)


def _ext(content: Any) -> msgpack.ExtType:
    code, data = content
    return msgpack.ExtType(code, _bytes(data))


def _map(content: Any) -> dict[Any, Any]:
    value = dict(_pairs(content))
    if len(value) != len(content):
        raise ValueError("a key occurs twice")
    return value


def _pairs(content: Any) -> list[list[Any]]:
    if isinstance(content, list) and all(isinstance(p, list) and len(p) == 2 for p in content):
        return content
    raise ValueError("a list of pairs is needed")


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$bytes": _bytes,
    "$datetime": _datetime,
    "$float": _FLOATS.__getitem__,
    "$ext": _ext,
    "$map": _map,
}
assert set(_READERS) == set(_MARKS)
