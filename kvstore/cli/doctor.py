"""`kvstore doctor`: what would hurt, and what to do about it.

Two groups of checks. Those of the cluster compare what its nodes say of themselves and each other;
those of this machine measure what a node in ``--dir`` would get from it, so that they are of use
before there is a cluster. Every check ends as ok, warn or bad; a bad one costs availability or
safety now, a warning will when something else happens. Whatever is not ok says what to do.

Limits are round figures with a reason, not measurements: each stands with its constant.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from struct import unpack
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import click
import psutil

from kvstore.cli.admin import (
    Answer,
    Snapshot,
    ask_http,
    ask_routes,
    ask_slots,
    members_in,
    take_snapshot,
)
from kvstore.cli.cluster import human_bytes
from kvstore.cli.output import cluster_options, output_option, print_columns, print_json
from kvstore.errors import Unavailable
from kvstore.wire.protocol import Routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvstore.node.view import SlotStatus

State = Literal["ok", "warn", "bad"]

FSYNC_SAMPLES: Final = 32
FSYNC_BYTES: Final = 4_096
FSYNC_MS_WARN: Final = 10.0
"""A write waits for one sync on two nodes; at 10 ms that is all a client notices of the store."""
FSYNC_MS_BAD: Final = 50.0

OPEN_FILES_WARN: Final = 4_096
"""The engine's files, a connection per client, and room for both to grow."""

DISK_FREE_SHARE_WARN: Final = 0.05
DISK_FREE_BYTES_WARN: Final = 2**30
"""Compaction writes a file anew before it drops the old ones."""

MEMORY_BYTES_WARN: Final = 512 * 2**20
"""A node with 10 million keys stays below this."""

CLOCK_OFFSET_S_WARN: Final = 2.0
"""Only expiry reads the clock; the measurement itself is good to about a second."""

NODES_MIN: Final = 3
"""The least that survives the loss of one."""


class Check(NamedTuple):
    """One finding; ``advice`` is empty when it is ok."""

    name: str
    state: State
    found: str
    advice: str = ""


@click.command()
@cluster_options
@output_option
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="the current one",
    help="Where a node of this machine keeps its data.",
)
def doctor(url: str, timeout: float, output: str, directory: Path) -> int:
    """Find what would hurt, and what to do about it; -o name lists only what is not ok.

    Ends with status 1 if something is bad, 0 otherwise.
    """
    groups = {"cluster": asyncio.run(_cluster(url, timeout)), "machine": list(machine(directory))}
    if output == "json":
        print_json(
            [{"group": name} | one._asdict() for name, checks in groups.items() for one in checks]
        )
    elif output == "name":
        for one in (one for checks in groups.values() for one in checks if one.state != "ok"):
            click.echo(one.name)
    else:
        rows = [(one.state, one.name, one.found) for checks in groups.values() for one in checks]
        print_columns(["state", "check", "found"], rows)
        advice = [one for checks in groups.values() for one in checks if one.advice]
        if advice:
            click.echo()
        for one in advice:
            click.echo(f"{one.name}: {one.advice}")
    return int(any(one.state == "bad" for checks in groups.values() for one in checks))


async def _cluster(url: str, timeout: float) -> list[Check]:
    try:
        snapshot = await take_snapshot(url, timeout)
    except Unavailable as error:
        nobody = "start the nodes (kvstore serve, kvstore up), or name the right ones with --url"
        return [Check("cluster", "bad", f"nobody answers: {error}", nobody)]
    addresses = [node.address for node in snapshot.nodes]
    http_addresses = [node.http_address for node in snapshot.nodes]
    # Clocks are compared by answers of one moment, not by those that took the snapshot.
    told, dated = await asyncio.gather(
        ask_routes(addresses, timeout), ask_http(http_addresses, "/health/live", timeout)
    )
    answering = [
        address for address, one in zip(http_addresses, dated, strict=True) if not one.error
    ]
    slots = await ask_slots(answering, snapshot.routes.slot_count, timeout)
    tables = [told[address] for address in addresses]
    return list(cluster_checks(snapshot, tables, dated, slots))


def cluster_checks(
    snapshot: Snapshot,
    tables: list[Routes | str],
    dated: list[Answer],
    slots: list[SlotStatus],
) -> Iterator[Check]:
    """All checks of a cluster that answers.

    Args:
        snapshot: What its nodes tell over HTTP.
        tables: By node: its routing table, or why its client port gave none.
        dated: By node: an answer over HTTP, for its clock.
        slots: Those whose members are known.
    """
    yield from _reachable(snapshot, tables)
    yield _states(snapshot)
    yield from _troubles(snapshot)
    yield _versions(snapshot)
    yield _clocks(snapshot, dated)
    yield _primaries(snapshot, tables)
    yield _quorums(snapshot, tables, slots)
    yield _copies(snapshot, slots)


def _reachable(snapshot: Snapshot, tables: list[Routes | str]) -> Iterator[Check]:
    for node, table, figures in zip(snapshot.nodes, tables, snapshot.figures, strict=True):
        faults = [] if isinstance(table, Routes) else [f"client port: {table}"]
        faults += [f"HTTP port: {figures.error}"] if figures.error else []
        name = f"{node.name} reachable"
        if faults:
            advice = (
                f"is it running, and are {node.address} and {node.http_address or 'its HTTP port'} "
                "open from here? Its log says why it stopped"
            )
            yield Check(name, "bad", "; ".join(faults), advice)
        else:
            yield Check(name, "ok", f"{node.address}, {node.http_address}")


def _states(snapshot: Snapshot) -> Check:
    odd: dict[str, list[str]] = {}
    for viewer, view in zip(snapshot.nodes, snapshot.views, strict=True):
        for member in members_in(view):
            if member.state != "alive":
                odd.setdefault(f"{member.name} is {member.state}", []).append(viewer.name)
    if not odd:
        return Check("states by gossip", "ok", f"all {len(snapshot.nodes)} alive")
    found = "; ".join(f"{text} (says {', '.join(names)})" for text, names in odd.items())
    advice = (
        "start the node again; if it runs and only some nodes say so, look at the network between"
    )
    dead = any(text.endswith(" is dead") for text in odd)
    return Check("states by gossip", "bad" if dead else "warn", found, advice)


def _troubles(snapshot: Snapshot) -> Iterator[Check]:
    for at, node in enumerate(snapshot.nodes):
        told = snapshot.status(at)
        if told is not None and not told.ready:
            advice = "it serves once its slots have primaries; that takes a majority of each slot"
            yield Check(f"{node.name} ready", "bad", told.not_ready_reason or "starting", advice)
        if told is not None and told.syncs_total and told.sync_ms_mean > FSYNC_MS_WARN:
            state: State = "bad" if told.sync_ms_mean > FSYNC_MS_BAD else "warn"
            found = f"{told.sync_ms_mean:.1f} ms on average"
            yield Check(f"{node.name} fsync", state, found, _SLOW_DISK)


def _versions(snapshot: Snapshot) -> Check:
    told = [snapshot.status(at) for at in range(len(snapshot.nodes))]
    versions = Counter(one.version for one in told if one is not None)
    unreadable = [
        node.name
        for node, one, answer in zip(snapshot.nodes, told, snapshot.figures, strict=True)
        if one is None and not answer.error
    ]
    if unreadable:
        found = f"{', '.join(unreadable)}: figures in a form that this release does not know"
        return Check("versions", "warn", found, "bring all nodes and this command to one release")
    if not versions:
        return Check("versions", "warn", "no node tells its version", "mend the HTTP ports first")
    found = ", ".join(f"{version} on {count}" for version, count in sorted(versions.items()))
    if len(versions) > 1:
        advice = "finish the upgrade: mixed releases are for the time of a rolling restart"
        return Check("versions", "warn", found, advice)
    return Check("versions", "ok", found)


def _clocks(snapshot: Snapshot, dated: list[Answer]) -> Check:
    offsets = {
        node.name: answer.clock_offset_s
        for node, answer in zip(snapshot.nodes, dated, strict=True)
        if answer.clock_offset_s is not None
    }
    if len(offsets) < 2:
        return Check("clocks", "ok", "fewer than two nodes to compare")
    slow = min(offsets, key=lambda name: offsets[name])
    fast = max(offsets, key=lambda name: offsets[name])
    apart_s = offsets[fast] - offsets[slow]
    if apart_s > CLOCK_OFFSET_S_WARN:
        found = f"{fast} is {apart_s:.0f} s ahead of {slow}"
        advice = "run a time service (chrony, systemd-timesyncd) on all nodes: keys expire by it"
        return Check("clocks", "warn", found, advice)
    return Check("clocks", "ok", f"at most {CLOCK_OFFSET_S_WARN:g} s apart")


def _primaries(snapshot: Snapshot, tables: list[Routes | str]) -> Check:
    count = snapshot.routes.slot_count
    without = set(range(count))
    for table in [snapshot.routes, *tables]:
        if isinstance(table, Routes) and table.slot_count == count:
            indices = unpack(f">{count}H", table.primaries)
            without = {slot for slot in without if indices[slot] >= len(table.nodes)}
    if not without:
        return Check("primaries", "ok", f"each of {count} slots has one")
    some = ", ".join(map(str, sorted(without)[:5]))
    found = f"{len(without)} of {count} slots have none that a node knows (slots {some}, ...)"
    advice = "their keys cannot be written: start the nodes that are down, two of three are needed"
    return Check("primaries", "bad", found, advice)


def _quorums(snapshot: Snapshot, tables: list[Routes | str], slots: list[SlotStatus]) -> Check:
    up = {
        node.name
        for node, table in zip(snapshot.nodes, tables, strict=True)
        if isinstance(table, Routes)
    }
    short = [slot for slot in slots if 2 * len(up.intersection(slot.members)) <= len(slot.members)]
    count = snapshot.routes.slot_count
    if short:
        missing = sorted({name for slot in short for name in slot.members} - up)
        found = f"{len(short)} of {count} slots wait for a majority of their members"
        return Check("quorums", "bad", found, f"start again any of {', '.join(missing)}")
    if len(slots) < count:
        found = f"not known for {count - len(slots)} of {count} slots"
        return Check("quorums", "warn", found, "their members are silent: see above")
    return Check("quorums", "ok", f"a majority of members of each of {count} slots answers")


def _copies(snapshot: Snapshot, slots: list[SlotStatus]) -> Check:
    nodes = len(snapshot.nodes)
    if nodes < NODES_MIN:
        advice = "without three nodes the loss of one stops the store, or loses what it held"
        return Check("copies", "warn", f"{nodes} node(s)", advice)
    least = min((len(slot.members) for slot in slots), default=0)
    if least < NODES_MIN:
        few = sum(len(slot.members) < NODES_MIN for slot in slots)
        found = f"{few} slots have fewer than {NODES_MIN}, the least {least}"
        return Check("copies", "warn", found, "found the cluster with --replicas 3 or more")
    return Check("copies", "ok", f"at least {least} of each slot, on {nodes} nodes")


_SLOW_DISK: Final = (
    "every write waits for it: use a local SSD, not a network or overlay file system, and keep "
    "other writers off it"
)


def machine(directory: Path) -> Iterator[Check]:
    """What a node in ``directory`` would get from this machine."""
    yield fsync_check(directory)
    yield open_files_check(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield disk_check(directory)
    yield memory_check(psutil.virtual_memory().available)


def fsync_check(directory: Path) -> Check:
    """The median time of a small write that is made durable."""
    try:
        median_ms = _fsync_ms_median(_existing(directory))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        advice = "name a directory with --dir that the node's user may write to"
        return Check("fsync", "bad", f"cannot write in {directory}: {reason}", advice)
    found = f"{median_ms:.1f} ms for {FSYNC_BYTES} bytes (median of {FSYNC_SAMPLES})"
    if median_ms > FSYNC_MS_WARN:
        return Check("fsync", "bad" if median_ms > FSYNC_MS_BAD else "warn", found, _SLOW_DISK)
    return Check("fsync", "ok", found)


def open_files_check(limit: int) -> Check:
    """The limit that a node started from this shell would have."""
    if limit == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    if limit < OPEN_FILES_WARN:
        advice = "raise it where the node is started: ulimit -n 65536, LimitNOFILE= in systemd"
        return Check("open files", "warn", f"at most {limit}", advice)
    return Check("open files", "ok", f"at most {limit}")


def disk_check(directory: Path) -> Check:
    """Free space where the data is."""
    try:
        usage = shutil.disk_usage(_existing(directory))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        return Check("disk", "bad", f"cannot look at {directory}: {reason}", "name another --dir")
    share = usage.free / usage.total if usage.total else 0.0
    found = f"{human_bytes(usage.free)} free of {human_bytes(usage.total)} ({100 * share:.0f}%)"
    if share < DISK_FREE_SHARE_WARN or usage.free < DISK_FREE_BYTES_WARN:
        advice = "make room, or move the data: below --disk-reserve-bytes writes are refused"
        return Check("disk", "warn", found, advice)
    return Check("disk", "ok", found)


def memory_check(available_bytes: int) -> Check:
    """Memory that a node could take now."""
    found = f"{human_bytes(available_bytes)} available"
    if available_bytes < MEMORY_BYTES_WARN:
        advice = "a node that swaps looks dead to the others: free memory or lower --cache-bytes"
        return Check("memory", "warn", found, advice)
    return Check("memory", "ok", found)


def _existing(directory: Path) -> Path:
    """The directory, or its nearest parent that exists: where `serve` would make it."""
    directory = directory.absolute()
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def _fsync_ms_median(directory: Path) -> float:
    taken = []
    with tempfile.TemporaryFile(dir=directory, prefix=".kvstore-doctor-", buffering=0) as file:
        block = os.urandom(FSYNC_BYTES)
        for _ in range(FSYNC_SAMPLES):
            begin = time.perf_counter()
            file.write(block)
            os.fsync(file.fileno())
            taken.append(1_000 * (time.perf_counter() - begin))
    return statistics.median(taken)
