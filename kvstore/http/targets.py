"""From the request line's target to a path and a query, decoded exactly once.

A key may hold any byte: slashes, ``..``, ``//``, ``%2F``. So nothing here treats it as a path, and
the target is taken as it stood on the wire, before any library tidied it up: dots are not
resolved, slashes not merged, ``%2e`` is a dot that was meant. Percent-decoding happens once, here;
an invalid escape is an error, because a guess would store the value under another key.

In the query ``+`` is a space, as every form encoder has it (WHATWG URL, "application/x-www-form-
urlencoded"); in a key it is a plus. A parameter that is unknown or given twice is an error: a
mistyped ``tll=60`` must not store a value for ever.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from kvstore.http.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["KV_PREFIX", "Query", "decode_percent", "split_target"]

KV_PREFIX: Final = "/v1/kv/"
"""What stands before a key; the rest of the path is the key, percent-encoded."""

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE: Final = re.compile(r"https?://[^/?]*", re.IGNORECASE)


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request target, both still encoded.

    The absolute form that proxies use loses its scheme and authority (RFC 9112, 3.2.2).

    Raises:
        ProblemError: it holds a fragment, which no client sends on the wire.
    """
    if "#" in target:
        raise ProblemError("bad-http", "A '#' in the request line must be written as %23.")
    if not target.startswith("/"):
        target = _ABSOLUTE.sub("", target, count=1)
        if not target or target.startswith("?"):
            target = f"/{target}"
    path, _, query = target.partition("?")
    return path, query


def decode_percent(text: str, what: str, slug: str) -> bytes:
    """The bytes of a percent-encoded text; raw bytes beyond ASCII stand for themselves.

    Raises:
        ProblemError: ``slug``, an escape is not two hexadecimal digits.
    """
    bad = _BAD_ESCAPE.search(text)
    if bad is not None:
        at = bad.start()
        raise ProblemError(
            slug, f"{what} holds {text[at : at + 3]!r}, which is no escape: write '%' as %25."
        )
    return unquote_to_bytes(text.encode("utf-8", "surrogateescape"))


class Query:
    """The parameters of a request.

    Args:
        text: The encoded query.
        known: The names that this resource knows.

    Raises:
        ProblemError: an unknown or repeated name, or a wrong escape.
    """

    def __init__(self, text: str, known: Collection[str]) -> None:
        self._values: dict[str, bytes] = {}
        for part in text.split("&") if text else ():
            if not part:
                continue
            raw_name, _, raw_value = part.replace("+", " ").partition("=")
            name = decode_percent(raw_name, "The query", "bad-parameter").decode(errors="replace")
            if name not in known:
                allowed = ", ".join(sorted(known)) or "none"
                raise ProblemError(
                    "bad-parameter", f"{name!r:.80} is no parameter here (known: {allowed})."
                )
            if name in self._values:
                raise ProblemError("bad-parameter", f"{name!r} is given twice.")
            self._values[name] = decode_percent(raw_value, f"{name!r}", "bad-parameter")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def raw(self, name: str) -> bytes | None:
        """The bytes of a parameter, None if it is not given."""
        return self._values.get(name)

    def text(self, name: str, default: str = "") -> str:
        """A parameter as text.

        Raises:
            ProblemError: it is no UTF-8.
        """
        value = self._values.get(name)
        if value is None:
            return default
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ProblemError("bad-parameter", f"{name!r} is no UTF-8.") from None

    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        """A parameter as a whole number.

        Raises:
            ProblemError: it is none, or out of bounds.
        """
        if name not in self._values:
            return default
        text = self.text(name).strip()
        if re.fullmatch(r"[+-]?[0-9]{1,20}", text, re.ASCII) and least <= int(text) <= most:
            return int(text)
        raise ProblemError(
            "bad-parameter",
            f"{name!r} is {text!r:.40}; it must be a whole number from {least} to {most}.",
        )

    def seconds(self, name: str, default: float, *, most: float) -> float:
        """A parameter as a time in seconds, over 0, decimals allowed.

        Raises:
            ProblemError: it is none, or out of bounds.
        """
        if name not in self._values:
            return default
        text = self.text(name)
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text, re.ASCII) and 0 < float(text) <= most:
            return float(text)
        raise ProblemError(
            "bad-parameter",
            f"{name!r} is {text!r:.40}; it must be a number of seconds over 0, up to {most:g}.",
        )

    def choice(self, name: str, default: str, allowed: Collection[str]) -> str:
        """A parameter that must be one of a few words.

        Raises:
            ProblemError: it is another.
        """
        text = self.text(name, default)
        if text in allowed:
            return text
        raise ProblemError(
            "bad-parameter", f"{name!r} is {text!r:.40}; it must be one of {', '.join(allowed)}."
        )
