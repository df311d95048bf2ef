"""How each setting is read: from what somebody wrote to a value, or why it is none.

A reader takes whatever a flag, the environment or a TOML file gave, and raises a ValueError that
says what is allowed; where it stood is added by `kvstore.settings`.
"""

from __future__ import annotations

import ipaddress
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.limits import (
    NAME_BYTES_MAX,
    NODE_WEIGHT_MAX,
    NODE_WEIGHT_MIN,
    SLOT_COUNT_MAX,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}$)([a-z0-9_-]{1,63}\.)*(?=[0-9-]*[a-z_])[a-z0-9_-]{1,63}"
)
"""Labels between dots; the last has a letter, so that no half-written IPv4 address passes."""

_TRUTHS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def is_everywhere(host: str) -> bool:
    """Whether a host stands for every interface of this machine."""
    ip = ip_address(host)
    return ip is not None and ip.is_unspecified


def ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is, None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def join_address(host: str, port: int) -> str:
    """Host and port in the one form in which addresses are compared."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError("it is a text")
    return value


def parse_name(value: object) -> str:
    """A name of a node, a cluster or a zone."""
    text = parse_text(value)
    if not text or not text.isprintable() or " " in text or len(text.encode()) > NAME_BYTES_MAX:
        raise ValueError(f"a name has 1 to {NAME_BYTES_MAX} bytes, printable and without spaces")
    return text


def parse_zone(value: object) -> str:
    """A name, or nothing."""
    return "" if value == "" else parse_name(value)


def parse_path(value: object) -> Path:
    """The path of a directory."""
    if not (isinstance(value, str | Path) and str(value)) or "\0" in str(value):
        raise ValueError("it is the path of a directory")
    return Path(value)


def parse_host(value: object) -> str:
    """An IP address in its short form, or a host name in small letters."""
    host = parse_text(value).lower()
    ip = ip_address(host)
    if "%" in host or (ip is None and not _HOST_NAME.fullmatch(host)):
        raise ValueError("a host is an IP address (no brackets, no interface) or a host name")
    return host if ip is None else str(ip)


def whole_number(value: object, low: int, high: int, what: str) -> int:
    """A whole number within bounds; ``what`` names it in the error."""
    text = str(value)  # of True it is no digits
    if isinstance(value, int | str) and re.fullmatch("[0-9]{1,10}", text):
        number = int(text)
        if low <= number <= high:
            return number
    raise ValueError(f"{what} is a whole number from {low} to {high}")


parse_port: Final = partial(whole_number, low=1, high=65_535, what="a port")


def parse_address(value: object) -> str:
    """``host:port``."""
    host, colon, port = parse_text(value).strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host) != bracketed:
        raise ValueError("an address is host:port; IPv6 needs brackets: [::1]:7401")
    parsed = parse_host(host[1:-1] if bracketed else host)
    if is_everywhere(parsed):
        raise ValueError(f"{parsed} means everywhere, which is no address that others can call")
    return join_address(parsed, parse_port(port))


def parse_addresses(value: object) -> tuple[str, ...]:
    """Several of them, as a list or between commas."""
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    if not isinstance(value, list | tuple):
        raise ValueError("it is a list of addresses: host:port,host:port")
    addresses = tuple(parse_address(address) for address in value)
    if len(set(addresses)) != len(addresses):
        raise ValueError("each address stands in the list once")
    return addresses


def parse_slot_count(value: object) -> int:
    """A power of two."""
    count = whole_number(value, 1, SLOT_COUNT_MAX, "the number of slots")
    if count & (count - 1):
        raise ValueError(f"the number of slots is a power of two from 1 to {SLOT_COUNT_MAX}")
    return count


def parse_weight(value: object) -> float:
    """A share relative to others."""
    allowed = f"a weight is a number from {NODE_WEIGHT_MIN} to {NODE_WEIGHT_MAX}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(allowed)
    try:
        weight = float(value)
    except (ValueError, OverflowError):
        raise ValueError(allowed) from None
    if not NODE_WEIGHT_MIN <= weight <= NODE_WEIGHT_MAX:  # also refuses NaN
        raise ValueError(allowed)
    return weight


def parse_truth(value: object) -> bool:
    """True or false, in the usual spellings."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise ValueError("it is true or false")


def one_of(*choices: str) -> Callable[[object], str]:
    """A reader for one of these words."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError(f"it is one of {', '.join(choices)}")

    return parse
