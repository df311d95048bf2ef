"""A node's settings: from flags, then the environment, then a TOML file; validated once, here.

The environment's names are ``KVSTORE_`` and the setting in capitals (``KVSTORE_DATA_DIR``); a file
has the settings as top-level keys. Whatever is wrong is said with where it came from and what is
allowed.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from cluster.limits import (
    ADDRESS_BYTES_MAX,
    NAME_BYTES_MAX,
    NODE_WEIGHT_DEFAULT,
    NODE_WEIGHT_MAX,
    NODE_WEIGHT_MIN,
    REPLICAS_DEFAULT,
    REPLICAS_MAX,
    SLOT_COUNT_DEFAULT,
    SLOT_COUNT_MAX,
)
from kvstore.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["NodeSettings", "load_settings", "parse_size"]

PORT_DEFAULT: Final = 7401
HTTP_PORT_DEFAULT: Final = 8401
CACHE_BYTES_DEFAULT: Final = 64 * 1_048_576

_OTHERS: Final = {"KVSTORE_URL", "KVSTORE_TOKEN", "KVSTORE_TIMEOUT", "KVSTORE_CONFIG"}
"""Variables of that prefix that are not a node's settings."""

_UNITS: Final = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set on one node. An empty name or address takes its default."""

    name: str = ""
    """Unique in the cluster; by default ``node-<port>``."""
    host: str = "127.0.0.1"
    """Where the peer and client port listens."""
    port: int = PORT_DEFAULT
    http_host: str = ""
    """Where the HTTP port listens; by default as ``host``."""
    http_port: int = HTTP_PORT_DEFAULT
    advertised_address: str = ""
    """``host:port`` under which others reach this node; by default host and port."""
    advertised_http_address: str = ""
    data_dir: str = "kvdata"
    cluster: str = "ringkv"
    """The cluster's name; a node refuses peers of another."""
    founders: tuple[str, ...] = ()
    """Addresses that found the cluster together, the same list on each; none = a cluster of one."""
    zone: str = ""
    """What fails together (a rack, a host); replicas are spread over zones."""
    weight: float = NODE_WEIGHT_DEFAULT
    """Share of the load relative to the other nodes."""
    replicas: int = REPLICAS_DEFAULT
    slot_count: int = SLOT_COUNT_DEFAULT
    """Fixed when the cluster is founded, as is ``replicas`` for now."""
    durability: Literal["disk", "os"] = "disk"
    """"disk" acknowledges after an fsync; "os" after the write, and a power cut may lose it."""
    engine: Literal["rocksdb", "memory"] = "rocksdb"
    cache_bytes: int = CACHE_BYTES_DEFAULT
    insecure: bool = False
    """Allow ports beyond loopback although there is no authentication yet."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = "auto"


def load_settings(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None
) -> NodeSettings:
    """Settings from their three sources; a flag of None was not given.

    Raises:
        SetupError: a value cannot be used, or a name is unknown; says which, from where, and why.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value in _from_file(file).items():
        values[name], sources[name] = value, f"{name!r} in {file}"
    for name, value in _from_environment(environ).items():
        values[name], sources[name] = value, f"KVSTORE_{name.upper()}"
    for name, value in flags.items():
        if value is not None:
            values[name], sources[name] = value, f"--{name.replace('_', '-')}"
    settings = _with_defaults(_converted(values, sources))
    for name, fault in _faults(settings):
        raise SetupError(f"{sources.get(name, name)}: {fault}")
    return settings


def parse_size(text: str) -> int:
    """Bytes: a number with an optional unit, ``64MiB``.

    Raises:
        ValueError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with KiB, MiB or GiB")
    return int(found[1]) * _UNITS[found[2].lower()]


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = tomllib.loads(file.read_text())
    except OSError as error:
        raise SetupError(f"cannot read the settings file {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"the settings file {file} is not TOML: {error}") from error
    _refuse_unknown({name: f"{name!r} in {file}" for name in values})
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    mine = {n: v for n, v in environ.items() if n.startswith("KVSTORE_") and n not in _OTHERS}
    mine.pop("KVSTORE_SETTINGS_FILE", None)
    _refuse_unknown({name.removeprefix("KVSTORE_").lower(): name for name in mine})
    return {name.removeprefix("KVSTORE_").lower(): value for name, value in mine.items()}


def _refuse_unknown(sources: Mapping[str, str]) -> None:
    known = NodeSettings.__struct_fields__
    for name, source in sources.items():
        if name not in known:
            raise SetupError(f"{source} is not a setting of a node; there are {', '.join(known)}")


def _converted(values: dict[str, Any], sources: Mapping[str, str]) -> NodeSettings:
    """Each value as its field's type; texts from the environment are read leniently."""
    types = {field.name: field.type for field in msgspec.structs.fields(NodeSettings)}
    for name, value in values.items():
        try:
            if name == "founders" and isinstance(value, str):
                value = [part.strip() for part in value.split(",") if part.strip()]
            elif name == "cache_bytes" and isinstance(value, str):
                value = parse_size(value)
            values[name] = msgspec.convert(value, types[name], strict=not isinstance(value, str))
        except (msgspec.ValidationError, ValueError) as error:
            raise SetupError(f"{sources[name]}: {value!r} cannot be used: {error}") from error
    return NodeSettings(**values)


def _with_defaults(given: NodeSettings) -> NodeSettings:
    http_host = given.http_host or given.host
    return msgspec.structs.replace(
        given,
        name=given.name or f"node-{given.port}",
        http_host=http_host,
        advertised_address=given.advertised_address or join_address(given.host, given.port),
        advertised_http_address=given.advertised_http_address
        or join_address(http_host, given.http_port),
    )


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _faults(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    """What is wrong, as setting and reason."""
    yield from _place_faults(settings)
    yield from _founder_faults(settings)
    yield from _exposure_faults(settings)
    for name in ("name", "cluster", "zone"):
        text = getattr(settings, name)
        if (not text and name != "zone") or len(text.encode()) > NAME_BYTES_MAX:
            yield name, f"must have 1 to {NAME_BYTES_MAX} bytes"
        elif not text.isprintable() or " " in text:
            yield name, f"{text!r} has spaces or characters that cannot be printed"
    if not NODE_WEIGHT_MIN <= settings.weight <= NODE_WEIGHT_MAX:
        yield "weight", f"must be from {NODE_WEIGHT_MIN} to {NODE_WEIGHT_MAX}"
    if not 1 <= settings.replicas <= REPLICAS_MAX:
        yield "replicas", f"must be from 1 to {REPLICAS_MAX}"
    slots = settings.slot_count
    if not 1 <= slots <= SLOT_COUNT_MAX or slots & (slots - 1):
        yield "slot_count", f"must be a power of two, at most {SLOT_COUNT_MAX}"
    if settings.cache_bytes < 0:
        yield "cache_bytes", "cannot be negative"


def _place_faults(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    for name in ("port", "http_port"):
        if not 1 <= getattr(settings, name) <= 65_535:
            yield name, "a port is a number from 1 to 65535"
    if settings.port == settings.http_port:
        yield "http_port", f"port {settings.port} is the peer and client port already"
    if not settings.data_dir:
        yield "data_dir", "must name a directory"
    for name in ("advertised_address", "advertised_http_address"):
        for fault in _address_faults(getattr(settings, name)):
            yield name, fault


def _founder_faults(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    founders, mine = settings.founders, settings.advertised_address
    for address in founders:
        for fault in _address_faults(address):
            yield "founders", fault
    if len(set(founders)) != len(founders):
        yield "founders", "an address is listed twice"
    if founders and mine not in founders:
        yield (
            "founders",
            f"the list {', '.join(founders)} lacks this node's own address {mine}: all founders "
            "are started with one and the same list",
        )


def _address_faults(address: str) -> list[str]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65_535:
        return [f"{address!r} is not host:port"]
    if len(address.encode()) > ADDRESS_BYTES_MAX:
        return [f"an address has at most {ADDRESS_BYTES_MAX} bytes"]
    if host in ("0.0.0.0", "[::]"):
        return [f"{address!r} is no place that others can reach: give the address that they use"]
    return []


def _exposure_faults(settings: NodeSettings) -> Iterator[tuple[str, str]]:
    for name in ("host", "http_host"):
        host = getattr(settings, name)
        if not settings.insecure and not _is_loopback(host):
            yield (
                name,
                f"{host} can be reached from other machines, and there is no authentication yet: "
                "whoever reaches the port can read and write everything. Listen on 127.0.0.1, or "
                "say --insecure if the network itself is closed",
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
