"""A node's settings: read from four places, checked once, believed from then on.

Each setting has one name, and three spellings of it: ``--http-port``, ``KVSTORE_HTTP_PORT`` and
``http_port`` in a TOML file. A flag wins over the environment, the environment over the settings
file, the file over the ``[serve]`` table of the command line's configuration file. Whatever is
wrong is refused with the place where it stands and with what would be right; a name that nobody
knows is wrong too, because a misspelt setting that is passed over is found out in production. An
environment variable that is set to nothing counts as not set.

What depends on other settings (the node's name, where others reach it) is worked out here, so that
a `NodeSettings` has no blanks. Addresses are brought into one form (small letters, short IPv6),
because founders recognise each other by comparing them as text.

There is no authentication yet: a node listens beyond loopback only if ``insecure`` says so.
"""

from __future__ import annotations

import difflib
import tomllib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from cluster.limits import (
    NODE_WEIGHT_DEFAULT,
    REPLICAS_DEFAULT,
    REPLICAS_MAX,
    SLOT_COUNT_DEFAULT,
)
from cluster.scrub import BYTES_PER_S_DEFAULT
from kvstore.errors import SetupError
from kvstore.setting_values import (
    ip_address,
    is_everywhere,
    join_address,
    one_of,
    parse_address,
    parse_addresses,
    parse_host,
    parse_name,
    parse_path,
    parse_port,
    parse_slot_count,
    parse_truth,
    parse_weight,
    parse_zone,
    whole_number,
)
from kvstore.sizes import (
    CACHE_BYTES_DEFAULT,
    DISK_RESERVE_BYTES_DEFAULT,
    parse_cache,
    parse_pace,
    parse_reserve,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NodeSettings", "load_settings"]

HOST_DEFAULT: Final = "127.0.0.1"
PORT_DEFAULT: Final = 7401
HTTP_PORT_DEFAULT: Final = 8401

_VARIABLE_PREFIX: Final = "KVSTORE_"
_OTHER_VARIABLES: Final = tuple(
    f"{_VARIABLE_PREFIX}{name}" for name in ("CONFIG", "SETTINGS_FILE", "TIMEOUT", "TOKEN", "URL")
)
"""Variables of this prefix that mean something, but are no setting of a node."""


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one node runs with. Made by `load_settings`, which checks it."""

    name: str
    """For people: in lists, logs and metrics. Unique in the cluster."""
    host: str = HOST_DEFAULT
    """Where the node listens for peers and clients."""
    port: int = PORT_DEFAULT
    http_host: str
    """Where it listens for HTTP."""
    http_port: int = HTTP_PORT_DEFAULT
    advertised_address: str
    """``host:port`` under which peers and clients reach it."""
    advertised_http_address: str
    data_dir: Path = Path("kvdata")
    cluster: str = "ringkv"
    """A name that all nodes of the cluster share, so that strangers notice each other."""
    founders: tuple[str, ...] = ()
    """Advertised addresses of the nodes that found the cluster; none: this node on its own."""
    join: tuple[str, ...] = ()
    """Addresses of members of a cluster: a fresh disk asks one of them to be taken in."""
    replace: str = ""
    """The member whose place this node takes when it joins."""
    zone: str = ""
    """Replicas of a slot are spread over zones; empty: none."""
    weight: float = NODE_WEIGHT_DEFAULT
    """The node's share of the slots relative to others'."""
    replicas: int = REPLICAS_DEFAULT
    """Copies of each slot; fixed when the cluster is founded."""
    slot_count: int = SLOT_COUNT_DEFAULT
    """Fixed when the cluster is founded."""
    durability: Literal["disk", "os"] = "disk"
    """A write is acknowledged once it is on disk, or once the operating system has it."""
    engine: Literal["rocksdb", "memory"] = "rocksdb"
    cache_bytes: int = CACHE_BYTES_DEFAULT
    """The engine's block cache and write buffers together."""
    disk_reserve_bytes: int = DISK_RESERVE_BYTES_DEFAULT
    """With less than this free on its disk the node takes no more writes but deletes."""
    scrub_bytes_per_s: int = BYTES_PER_S_DEFAULT
    """How fast copies are compared in the background; 0: only where damage was met."""
    insecure: bool = False
    """Listen beyond loopback although nothing asks callers who they are."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"


class _Given(NamedTuple):
    """A value as somebody wrote it."""

    value: object
    source: str


def load_settings(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    file: Path | None,
    *,
    configured: Mapping[str, Any] | None = None,
) -> NodeSettings:
    """The settings of a node; what nobody gives has its default.

    Args:
        flags: By name of setting; None is a flag that was not given.
        environ: The environment, of which only ``KVSTORE_...`` is looked at.
        file: A TOML file of settings.
        configured: The configuration file's ``[serve]`` table.

    Raises:
        SetupError: a value is not allowed, a name is not known, or the file cannot be read; the
            message says where it stands and what is allowed.
    """
    given: dict[str, _Given] = {}
    for name, value in (configured or {}).items():
        given[_known(name, "[serve] of the configuration file")] = _Given(
            value, f"{name} in [serve] of the configuration file"
        )
    if file is not None:
        for name, value in _read_file(file).items():
            given[_known(name, f"file {file}")] = _Given(value, f"{name} in file {file}")
    for variable, text in environ.items():
        if variable.startswith(_VARIABLE_PREFIX) and variable not in _OTHER_VARIABLES and text:
            given[_known_variable(variable)] = _Given(text, f"environment {variable}")
    for name, value in flags.items():
        if value is not None:
            given[_known(name, "flags")] = _Given(value, f"flag {_flag(name)}")
    values = {name: _parse(name, entry) for name, entry in given.items()}
    return _complete(values, {name: entry.source for name, entry in given.items()})


def _read_file(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(f"cannot read the settings file {file}: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, no TOML, or a number that Python refuses to read
        raise SetupError(f"the settings file {file} is not TOML: {error}") from error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _known(name: str, where: str) -> str:
    if name in _PARSERS:
        return name
    raise SetupError(f"{where}: there is no setting {name!r}{_nearest(name, list(_PARSERS))}")


def _known_variable(variable: str) -> str:
    name = variable.removeprefix(_VARIABLE_PREFIX).lower()
    if name in _PARSERS and variable.isupper():
        return name
    known = [*(f"{_VARIABLE_PREFIX}{name.upper()}" for name in _PARSERS), *_OTHER_VARIABLES]
    near = _nearest(variable, known, cutoff=0.85)  # the prefix alone is a good part of a likeness
    raise SetupError(f"environment {variable}: there is no such setting{near}")


def _nearest(name: str, known: list[str], cutoff: float = 0.6) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _parse(name: str, given: _Given) -> Any:
    try:
        return _PARSERS[name](given.value)
    except ValueError as error:
        raise SetupError(f"{given.source}: {given.value!r} is not allowed: {error}") from error


def _complete(values: dict[str, Any], sources: Mapping[str, str]) -> NodeSettings:
    """Fill in what follows from other settings, then check what hangs together."""
    host = values.get("host", HOST_DEFAULT)
    port = values.get("port", PORT_DEFAULT)
    http_host = values.setdefault("http_host", host)
    http_port = values.get("http_port", HTTP_PORT_DEFAULT)
    values.setdefault("name", f"node-{port}")
    if not values.get("insecure", False):
        _check_loopback("host", host, sources)
        _check_loopback("http_host", http_host, sources)
    if (host, port) == (http_host, http_port):
        raise SetupError(f"--port and --http-port are both {port}: each door needs its own")
    if "advertised_address" not in values:
        values["advertised_address"] = _advertise("advertised_address", host, port)
    if "advertised_http_address" not in values:
        if is_everywhere(host) and is_everywhere(http_host):
            http_host = values["advertised_address"].rpartition(":")[0].strip("[]")
        values["advertised_http_address"] = _advertise(
            "advertised_http_address", http_host, http_port
        )
    settings = NodeSettings(**values)
    if settings.founders and settings.advertised_address not in settings.founders:
        raise SetupError(
            f"{sources['founders']}: {', '.join(settings.founders)} lacks this node's own address "
            f"{settings.advertised_address} (--advertised-address): all founders are started with "
            "one and the same list"
        )
    if settings.founders and settings.join:
        raise SetupError(
            f"{sources['join']}: a node founds a cluster (--founders) or joins one, never both"
        )
    if settings.replace and not settings.join:
        raise SetupError(f"{sources['replace']}: to take a node's place, join its cluster (--join)")
    return settings


def _check_loopback(name: str, host: str, sources: Mapping[str, str]) -> None:
    ip = ip_address(host)
    # Any other name counts as open: what it resolves to may change any day.
    if host != "localhost" and not (ip is not None and ip.is_loopback):
        raise SetupError(
            f"{sources[name]}: {host} is reachable from other machines, and authentication does "
            "not exist yet: whoever reaches the port may read and write everything. Listen on "
            "127.0.0.1, or add --insecure if the network is yours alone"
        )


def _advertise(name: str, host: str, port: int) -> str:
    if is_everywhere(host):
        raise SetupError(
            f"the node listens on {host}, which is everywhere and no address that others can call: "
            f"say where they reach it with {_flag(name)} HOST:PORT"
        )
    return join_address(host, port)


_PARSERS: Final[dict[str, Callable[[object], Any]]] = {
    "name": parse_name,
    "host": parse_host,
    "port": parse_port,
    "http_host": parse_host,
    "http_port": parse_port,
    "advertised_address": parse_address,
    "advertised_http_address": parse_address,
    "data_dir": parse_path,
    "cluster": parse_name,
    "founders": parse_addresses,
    "join": parse_addresses,
    "replace": parse_zone,
    "zone": parse_zone,
    "weight": parse_weight,
    "replicas": partial(whole_number, low=1, high=REPLICAS_MAX, what="the number of replicas"),
    "slot_count": parse_slot_count,
    "durability": one_of("disk", "os"),
    "engine": one_of("rocksdb", "memory"),
    "cache_bytes": parse_cache,
    "disk_reserve_bytes": parse_reserve,
    "scrub_bytes_per_s": parse_pace,
    "insecure": parse_truth,
    "log_level": one_of("debug", "info", "warning", "error"),
    "log_format": one_of("auto", "text", "json"),
}
"""Each setting's reading of what was written; a ValueError says what is allowed."""

assert tuple(_PARSERS) == NodeSettings.__struct_fields__
