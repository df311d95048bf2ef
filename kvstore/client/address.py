"""Where the cluster is: ``kv://host:port,host:port/?timeout=5``, or ``KVSTORE_URL``.

Parsed here and not by `urllib.parse.urlsplit`, whose ``port`` raises on a list of hosts. Any node
will do as a seed; the rest is learned from it.
"""

from __future__ import annotations

import math
import os
from ipaddress import IPv6Address
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from kvstore.errors import BadRequest

PORT_DEFAULT: Final = 7401
TIMEOUT_SECONDS_DEFAULT: Final = 5.0
CONNECT_TIMEOUT_SECONDS_DEFAULT: Final = 2.0
URL_VARIABLE: Final = "KVSTORE_URL"
_SCHEME: Final = "kv://"


class Target(NamedTuple):
    """A parsed URL; times in seconds."""

    seeds: list[str]
    timeout: float
    connect_timeout: float


def parse_url(
    url: str | None, *, timeout: float | None = None, connect_timeout: float | None = None
) -> Target:
    """Seeds and timeouts; arguments win over the URL, the URL over the defaults.

    Args:
        url: None takes ``KVSTORE_URL``, and without it the first node of a local cluster.
        timeout: Seconds for a whole call.
        connect_timeout: Seconds for making one connection.

    Raises:
        BadRequest: the URL is none of this form; the message names the part.

    >>> parse_url("kv://db1,db2:7500,[::1]/?timeout=2").seeds
    ['db1:7401', 'db2:7500', '[::1]:7401']
    """
    if url is None:
        url = os.environ.get(URL_VARIABLE) or f"{_SCHEME}127.0.0.1:{PORT_DEFAULT}"
    if not url.startswith(_SCHEME):
        raise BadRequest(f"{url!r} is no address: write kv://host:port,host:port")
    rest, _, query = url[len(_SCHEME) :].partition("?")
    hosts, _, path = rest.partition("/")
    if path:
        raise BadRequest(f"{url!r} has a path ({path!r}), which means nothing here")
    seeds = [_seed(host.strip(), url) for host in hosts.split(",")]
    settings = {"timeout": timeout, "connect_timeout": connect_timeout}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in settings:
            raise BadRequest(f"{url!r} sets {name!r}; known are {', '.join(settings)}")
        if settings[name] is None:
            settings[name] = _number(text, name)
    return Target(
        list(dict.fromkeys(seeds)),
        check_seconds(settings["timeout"], TIMEOUT_SECONDS_DEFAULT, "timeout"),
        check_seconds(
            settings["connect_timeout"], CONNECT_TIMEOUT_SECONDS_DEFAULT, "connect_timeout"
        ),
    )


def check_seconds(value: float | None, default: float, name: str) -> float:
    """A timeout that will end, or BadRequest; None is the default."""
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadRequest(f"{name} is a finite number of seconds above 0, not {value!r}")
    return float(value)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[ipv6]:port``, checked before.

    >>> split_address("[::1]:7401")
    ('::1', 7401)
    """
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _seed(text: str, url: str) -> str:
    host, port = text, str(PORT_DEFAULT)
    if not text.endswith("]") and ":" in text:
        host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not host.isprintable() or "@" in host or (":" in host) != bracketed:
        raise BadRequest(f"{text!r} in {url!r} is no host:port (IPv6 needs brackets: [::1]:7401)")
    try:
        if bracketed:
            IPv6Address(host[1:-1])
        host.strip("[]").encode("idna")  # as a resolver will
    except ValueError as error:
        raise BadRequest(f"{host!r} in {url!r} is no host: {error}") from None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65_536):
        raise BadRequest(f"the port {port!r} of {text!r} in {url!r} is no number from 1 to 65535")
    return f"{host}:{int(port)}"


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadRequest(f"{name}={text!r} in the address is no number of seconds") from None
