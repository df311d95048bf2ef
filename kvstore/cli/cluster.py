"""`kvstore status`, `members` and `slots`: what the nodes say of themselves and of each other.

All three show what there is when some nodes are silent; that a node did not answer is part of the
picture (a dash in its row, a line among the problems). Programs take ``-o json``, which has plain
bytes and milliseconds where the columns have units for people.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import time
from collections import Counter, defaultdict
from struct import unpack
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click
import msgspec

from kvstore.cli.admin import (
    Snapshot,
    ask_http,
    ballot_order,
    by_name,
    learn_routes,
    members_in,
    slots_in,
    take_snapshot,
)
from kvstore.cli.output import (
    cluster_options,
    output_option,
    print_columns,
    print_json,
    print_rows,
)
from kvstore.errors import BadRequest, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.node.view import MemberStatus, SlotStatus
    from kvstore.wire.protocol import Routes

WATCH_INTERVAL_S: Final = 1.0
_STATUS_COLUMNS: Final = (
    *("name", "state", "zone", "address", "http", "led", "held", "keys", "disk", "memory"),
    *("uptime", "in_flight"),
)
_STATUS_WIDE: Final = (*_STATUS_COLUMNS, "reads", "writes", "fsync", "version", "id")
_MEMBER_COLUMNS: Final = (
    *("name", "id", "state", "since", "address", "http_address", "zone", "led", "held"),
)


@click.command()
@cluster_options
@output_option
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
def status(url: str, timeout: float, output: str, watch: bool) -> None:
    """The cluster on one screen, and what is wrong with it."""

    def once() -> None:
        _print_status(asyncio.run(take_snapshot(url, timeout)), output)

    if watch:
        _repeat(once)
    else:
        once()


@click.command()
@cluster_options
@output_option
@click.option("--from", "viewer", metavar="NODE", help="As this node alone sees it.")
def members(url: str, timeout: float, output: str, viewer: str | None) -> None:
    """Which nodes are in, and how they are.

    States are those that most nodes report of a node; SINCE is the time in this state.
    """
    found = asyncio.run(_view_of(url, timeout, viewer) if viewer else _members(url, timeout))
    if output == "json":
        print_json([_builtins(member) for member in found])
        return
    print_rows(output, _MEMBER_COLUMNS, [_member_row(member) for member in found])


@click.command()
@cluster_options
@output_option
@click.argument("key", required=False)
def slots(url: str, timeout: float, output: str, key: str | None) -> None:
    """Where KEY lives; without KEY, how many slots each node is primary of."""
    if key is not None:
        found = asyncio.run(_slot_of(url, timeout, key))
        if output == "json":
            print_json(_builtins(found))
            return
        columns = ["slot", "primary", "members", "ballot", "sequence", "role", "committed"]
        names = ",".join(found.members + [f"{name}(learning)" for name in found.learners])
        row = [found.slot, found.primary, names, found.ballot, found.sequence, found.role]
        print_rows(output, columns, [[*row, found.committed]], wide=columns[-2:])
        return
    routes = asyncio.run(learn_routes(url, timeout))
    rows = [
        (name, count, f"{100 * count / routes.slot_count:.1f}%")
        for name, count in slots_by_primary(routes).items()
    ]
    print_rows(output, ["primary", "slots", "share"], rows)


def slots_by_primary(routes: Routes) -> dict[str, int]:
    """Each node's name with the number of its slots; ``""`` has those without a known primary."""
    counts = Counter(unpack(f">{routes.slot_count}H", routes.primaries))
    index = {node.id: at for at, node in enumerate(routes.nodes)}
    found = {node.name: counts[index[node.id]] for node in by_name(routes.nodes)}
    missing = routes.slot_count - sum(found.values())
    return found | {"": missing} if missing else found


def human_bytes(count: float) -> str:
    """Bytes with a binary unit and no space, so that a column stays one word.

    >>> human_bytes(1536), human_bytes(12)
    ('1.5KiB', '12B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f}B" if unit == "B" else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}TiB"


def problems_of(snapshot: Snapshot) -> list[str]:
    """What is wrong, each once, with the nodes that say so."""
    reporters: defaultdict[str, list[str]] = defaultdict(list)
    found = []
    for at, node in enumerate(snapshot.nodes):
        told = snapshot.status(at)
        if told is not None:
            for problem in told.problems:
                reporters[problem].append(node.name)
        elif snapshot.figures[at].error:
            found.append(f"{node.name} does not tell its figures: {snapshot.figures[at].error}")
        else:
            found.append(f"{node.name} tells its figures in a form that this release does not know")
    return found + [f"{text} (says {', '.join(names)})" for text, names in reporters.items()]


def _print_status(snapshot: Snapshot, output: str) -> None:
    members_ = snapshot.members()
    problems = problems_of(snapshot)
    routes = snapshot.routes
    if output == "json":
        nodes = []
        for at, member in enumerate(members_):
            told = snapshot.status(at)
            figures = _builtins(told) if told is not None else None
            nodes.append(_builtins(member) | {"figures": figures})
        print_json(
            {
                "cluster": routes.cluster_name,
                "cluster_id": routes.cluster_id,
                "epoch": routes.epoch,
                "slot_count": routes.slot_count,
                "nodes": nodes,
                "problems": problems,
            }
        )
        return
    if output == "name":
        for member in members_:
            click.echo(member.name)
        return
    click.echo(
        f"cluster {routes.cluster_name}  id {routes.cluster_id}  epoch {routes.epoch}  "
        f"slots {routes.slot_count}"
    )
    click.echo()
    rows = [_status_row(snapshot, at, member) for at, member in enumerate(members_)]
    columns = _STATUS_WIDE if output == "wide" else _STATUS_COLUMNS
    print_columns(columns, [row[: len(columns)] for row in rows])
    click.echo()
    moving = sum(s.slots_moving for at in range(len(members_)) if (s := snapshot.status(at)))
    if moving:
        click.echo(f"{moving} slots are on their way (kvstore rebalance shows them)")
    click.echo("problems:" if problems else "no problems")
    for problem in problems:
        click.echo(f"  {problem}")


def _state(member: MemberStatus) -> str:
    if member.away:
        return "away"
    return "leaving" if member.leaving and member.state == "alive" else member.state


def _member_row(member: MemberStatus) -> list[object]:
    return [
        member.name,
        _hex(member.id),
        _state(member),
        _time(member.since_ms),
        member.address,
        member.http_address,
        member.zone,
        member.slots_led,
        member.slots_held,
    ]


def _status_row(snapshot: Snapshot, at: int, member: MemberStatus) -> list[object]:
    row: list[object] = [
        member.name,
        _state(member),
        member.zone,
        member.address,
        member.http_address,
    ]
    told = snapshot.status(at)
    if told is None:
        return row + [""] * (len(_STATUS_WIDE) - len(row) - 1) + [_hex(member.id)]
    return [
        *row,
        told.slots_led,
        told.slots_held,
        f"~{told.keys_estimate}",
        human_bytes(told.disk_bytes),
        human_bytes(told.memory_bytes),
        _time(told.uptime_ms),
        told.requests_in_flight,
        told.reads_total,
        told.writes_total,
        f"{told.sync_ms_mean:.1f}ms",
        told.version,
        _hex(member.id),
    ]


def _repeat(once: Callable[[], None]) -> None:
    """Show it every second: in place on a terminal, one after the other elsewhere."""
    with contextlib.suppress(KeyboardInterrupt):
        if not sys.stdout.isatty():
            while True:
                click.echo(_captured(once))
                time.sleep(WATCH_INTERVAL_S)
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False, screen=True) as live:
            while True:
                live.update(Text(_captured(once), no_wrap=True, overflow="crop"), refresh=True)
                time.sleep(WATCH_INTERVAL_S)


def _captured(once: Callable[[], None]) -> str:
    """What is shown, or why there is nothing to show just now: a watch outlives an outage."""
    screen = io.StringIO()
    try:
        with contextlib.redirect_stdout(screen):
            once()
    except Unavailable as error:
        return f"{error}\n"
    return screen.getvalue()


async def _members(url: str, timeout: float) -> list[MemberStatus]:
    return (await take_snapshot(url, timeout)).members()


async def _view_of(url: str, timeout: float, viewer: str) -> list[MemberStatus]:
    routes = await learn_routes(url, timeout)
    for node in routes.nodes:
        if viewer in (node.name, node.address, node.http_address, _hex(node.id)):
            (answer,) = await ask_http([node.http_address], "/v1/cluster", timeout)
            if answer.error:
                raise Unavailable(f"{node.name} does not answer: {answer.error}")
            return by_name(members_in(answer))
    names = ", ".join(node.name for node in routes.nodes)
    raise BadRequest(f"no node is named {viewer!r}; there are {names}")


async def _slot_of(url: str, timeout: float, key: str) -> SlotStatus:
    """A slot as its primary tells it, or else the member that knows the newest primary."""
    if not key:
        raise BadRequest("an empty key lives nowhere: a key has at least one byte")
    routes = await learn_routes(url, timeout)
    addresses = [node.http_address for node in routes.nodes]
    target = f"/v1/cluster/slots?key={quote(key, safe='')}"
    answers = await ask_http(addresses, target, timeout)
    told = [found for answer in answers for found in slots_in(answer)]
    if told:
        return max(told, key=ballot_order)
    for answer in answers:
        if answer.status == 400:
            raise BadRequest(answer.error)
    raise Unavailable(
        "no node answers over HTTP; tried " + "; ".join(answer.error for answer in answers)
    )


def _time(ms: int) -> str:
    """A time in its two largest units.

    >>> _time(5_000), _time(7_384_000), _time(90_000_000)
    ('5s', '2h3m', '1d1h')
    """
    seconds = max(0, ms) // 1_000
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m"
    return f"{hours // 24}d{hours % 24}h"


def _hex(node: int) -> str:
    return f"{node:012x}"


def _builtins(struct: msgspec.Struct) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(struct)
    return found
