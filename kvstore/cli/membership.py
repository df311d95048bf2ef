"""`kvstore leave`, `can-stop` and `rebalance`: who is in, and where the slots are.

A change goes to any node and is answered when it is committed. What follows takes its time, and
goes on whether or not somebody watches: to interrupt a command takes nothing back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from cluster.membership import Leave, Pace, Patience, Remove, Replicate, Rezone, Weigh
from kvstore.cli.admin import ask_http, by_name, learn_routes, post_http
from kvstore.cli.cluster import human_bytes
from kvstore.cli.moves import Progress, moves_of, take_moves
from kvstore.cli.output import (
    ExitStatus,
    cluster_options,
    output_option,
    print_columns,
    print_json,
    print_rows,
)
from kvstore.cli.quorums import slots_lost, slots_naming, slots_stopped, survey, worst_pairs
from kvstore.errors import BadRequest, OutcomeUnknown, Unavailable
from kvstore.node.operator_view import (
    OperatorChange,
    PlannedChange,
    PlanStatus,
    TopologyStatus,
)
from kvstore.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvstore.cli.quorums import Survey

LOOK_INTERVAL_S: Final = 1.0
LOOKS_PER_SURVEY: Final = 5
"""Whether a dead node is needed by anybody is asked less often: it costs all nodes more."""
RATE_MAX: Final = 1 << 40

PAIRS_SHOWN_MAX: Final = 20


@click.command()
@cluster_options
@click.argument("node")
@click.option("--force", is_flag=True, help="Although there would be too few nodes for the copies.")
@click.option("--plan", "plan_only", is_flag=True, help="Show what would move, and change nothing.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is drained.")
def leave(
    url: str, timeout: float, node: str, force: bool, plan_only: bool, no_wait: bool
) -> ExitStatus:
    """Let NODE leave: its slots move to the others, then it may be switched off.

    A dead node leaves too: its slots are copied from the others. --force is for leaving with fewer
    nodes than copies; each key then has a copy less until a node joins.
    """
    change = Leave(node, force)
    if plan_only:
        show_plan(asyncio.run(ask_plan(url, change, timeout)), "table")
        return ExitStatus.OK
    topology = asyncio.run(send_change(url, change, timeout))
    names = (n.name for n in topology.nodes if node in (f"{n.id:012x}", n.address, n.http_address))
    name = next(names, node)
    click.echo(f"{name} leaves (epoch {topology.epoch})", err=True)
    if not no_wait:
        asyncio.run(_wait_drained(url, name, timeout))
        click.echo(f"{name} is out of the cluster and holds nothing: it may be switched off")
    return ExitStatus.OK


async def _wait_drained(url: str, name: str, timeout: float) -> None:
    """Until it has taken itself out; one that is dead is taken out when no slot names it."""
    routes = await learn_routes(url, timeout)
    addresses = [node.http_address for node in routes.nodes]
    looks = 0
    with Progress(f"{name} leaves") as progress:
        while True:
            told = await ask_http(addresses, "/v1/cluster/topology", timeout)
            known = [answer.document for answer in told if not answer.error]
            newest = max(known, key=lambda document: document["epoch"], default=None)
            if newest is not None and all(node["name"] != name for node in newest["nodes"]):
                return
            if looks % LOOKS_PER_SURVEY == 0:
                found = await survey(url, timeout)
                for node in found.nodes:
                    is_gone = node.name == name and node.state == "dead"
                    if is_gone and not found.unled and not slots_naming(found, node.id):
                        await send_change(url, Remove(name), timeout)
            progress.show(await moves_of(addresses, timeout))
            await asyncio.sleep(LOOK_INTERVAL_S)
            looks += 1


@click.command(name="can-stop")
@cluster_options
@output_option
@click.option(
    "--pairs", is_flag=True, help="Also any two nodes, or zones, that stop slots together."
)
@click.argument("node", required=False)
def can_stop(url: str, timeout: float, output: str, pairs: bool, node: str | None) -> ExitStatus:
    """May NODE be stopped now without losing a quorum anywhere? Exit status 0: yes, 1: no.

    Without NODE: what stopping each node, or losing each zone, would cost. A pair is listed with
    the slots that stop only if both fail, the worst 20 of each kind; -o json has all.
    """
    found = asyncio.run(survey(url, timeout))
    stopped = slots_stopped(found)
    if node is None:
        rows = [list(row) for row in _losses(found)]
        if pairs:
            two = worst_pairs(found)
            shown = len(two) if output == "json" else PAIRS_SHOWN_MAX
            for kind in ("zones", "nodes"):
                rows += [list(row) for row in [r for r in two if r[1] == kind][:shown]]
        print_rows(output, ["loss", "kind", "slots_lost"], rows)
        if stopped:
            click.echo(f"{stopped} slots have no quorum or no primary already", err=True)
        return ExitStatus.OK
    id_of = {n.name: n.id for n in by_name(found.nodes)}
    if node not in id_of:
        raise BadRequest(f"no node is named {node!r}; there are {', '.join(id_of)}")
    lost = slots_lost(found, {id_of[node]})
    if output == "json":
        print_json({"node": node, "can_stop": not lost and not stopped, "slots_lost": lost})
    elif not lost and not stopped:
        click.echo(f"yes: every slot keeps a quorum without {node}")
    elif lost:
        click.echo(f"no: {lost} slots would have no quorum without {node}")
    else:
        click.echo(f"no: {stopped} slots have no quorum or no primary already; see kvstore doctor")
    return ExitStatus.OK if not lost and not stopped else ExitStatus.NOT_FOUND


def _losses(found: Survey) -> list[tuple[str, str, int]]:
    """Each node and each zone, with the slots that stop without it."""
    zones: dict[str, set[int]] = {}
    for node in found.nodes:
        if node.zone:
            zones.setdefault(node.zone, set()).add(node.id)
    nodes = [(node.name, "node", slots_lost(found, {node.id})) for node in by_name(found.nodes)]
    return nodes + [(zone, "zone", slots_lost(found, ids)) for zone, ids in zones.items()]


@click.command()
@cluster_options
@output_option
@click.option("--plan", "plan_only", is_flag=True, help="Show what would move, and change nothing.")
@click.option("--pause", is_flag=True, help="Move no more slots until --resume.")
@click.option("--resume", is_flag=True, help="Move on.")
@click.option(
    "--rate", metavar="SIZE", help="Bytes/s that each node sends, like 20MiB; 0: no limit."
)
@click.option("--weight", metavar="NODE=NUMBER", help="Give a node another share.")
@click.option("--zone", metavar="NODE=ZONE", help="A node stands in another zone.")
@click.option("--replicas", type=int, metavar="COUNT", help="Keep another number of copies.")
@click.option(
    "--away-after",
    type=int,
    metavar="SECONDS",
    help="Replace a node that is dead so long; 0: never.",
)
@click.option("--wait", is_flag=True, help="Show the progress until all slots have arrived.")
def rebalance(
    url: str, timeout: float, output: str, plan_only: bool, wait: bool, **asked: Any
) -> None:
    """Show which slots move, or change where they should be and how fast they go there.

    Slots move by themselves when the topology changes. Without an option: what is on its way.
    """
    changes = list(changes_of(**asked))
    if plan_only and changes:
        for change in changes:
            show_plan(asyncio.run(ask_plan(url, change, timeout)), output)
        return
    for change in changes:
        topology = asyncio.run(send_change(url, change, timeout))
        click.echo(f"epoch {topology.epoch}", err=True)
    if not changes or wait:
        asyncio.run(_follow(url, timeout, output, wait=wait))


async def _follow(url: str, timeout: float, output: str, *, wait: bool) -> None:
    found = await take_moves(url, timeout)
    if not wait:
        found.show(output)
        return
    with Progress("slots move") as progress:
        while found.slots or found.waits_for_nodes:
            progress.show(found)
            await asyncio.sleep(LOOK_INTERVAL_S)
            found = await take_moves(url, timeout)


def changes_of(
    *,
    pause: bool,
    resume: bool,
    rate: str | None,
    weight: str | None,
    zone: str | None,
    replicas: int | None,
    away_after: int | None,
) -> Sequence[OperatorChange]:
    """What the options ask for.

    Raises:
        BadRequest: they contradict each other, or a value is none.
    """
    if pause and resume:
        raise BadRequest("--pause and --resume exclude each other")
    changes: list[OperatorChange] = []
    bytes_per_s = None
    if rate is not None:
        try:
            bytes_per_s = parse_size(rate, 0, RATE_MAX, "from 64KiB; 0 is no limit")
        except ValueError as error:
            raise BadRequest(f"--rate {rate!r}: {error}") from None
    if pause or resume or bytes_per_s is not None:  # before whatever it should hold up
        changes.append(Pace(pause if pause or resume else None, bytes_per_s))
    if weight is not None:
        name, _, number = weight.partition("=")
        try:
            changes.append(Weigh(name, float(number)))
        except ValueError:
            raise BadRequest(f"--weight is NODE=NUMBER, not {weight!r}") from None
    if zone is not None:
        name, equals, text = zone.partition("=")
        if not equals:
            raise BadRequest(f"--zone is NODE=ZONE, not {zone!r}")
        changes.append(Rezone(name, text))
    if replicas is not None:
        changes.append(Replicate(replicas))
    if away_after is not None:
        changes.append(Patience(away_after))
    return changes


def show_plan(found: PlanStatus, output: str) -> None:
    """Slots, bytes, time and the reason, and what it means for each node."""
    if output == "json":
        print_json(msgspec.to_builtins(found))
        return
    took = f"about {found.seconds:,.0f} s"
    click.echo(f"reason  {found.reason}")
    click.echo(f"slots   {found.slots} change their owners")
    click.echo(f"copies  {found.copies}, {human_bytes(found.copies_bytes)}, {took}")
    click.echo()
    rows = [
        (s.node, *(s.held_before, s.held_after), *(s.led_before, s.led_after), s.receives, s.sends)
        for s in by_name_of(found)
    ]
    print_columns(["node", "held", "then", "led", "then", "receives", "sends"], rows)


def by_name_of(found: PlanStatus) -> list[Any]:
    """The shares of a plan in the order that a person expects."""
    return sorted(found.nodes, key=lambda share: (len(share.node), share.node))


async def ask_plan(url: str, change: PlannedChange, timeout: float) -> PlanStatus:
    """What a change would move."""
    return msgspec.convert(await _post(url, "/v1/cluster/plan", change, timeout), PlanStatus)


async def send_change(url: str, change: OperatorChange, timeout: float) -> TopologyStatus:
    """Change the topology by whichever node takes it.

    Raises:
        BadRequest: it is refused, with the reason.
        Unavailable: nobody could make it.
        OutcomeUnknown: it may have been made.
    """
    target = f"/v1/cluster/topology?timeout={timeout:g}"
    return msgspec.convert(await _post(url, target, change, timeout), TopologyStatus)


async def _post(url: str, target: str, change: PlannedChange, timeout: float) -> Any:
    body = msgspec.json.encode(change)
    deadline = time.monotonic() + timeout
    errors = []
    for node in sorted((await learn_routes(url, timeout)).nodes, key=lambda n: n.state != "alive"):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        answer = await post_http(node.http_address, target, body, left)
        if not answer.error:
            return answer.document
        if answer.status in (400, 409):
            raise BadRequest(answer.error.rstrip("."))
        if answer.status == 504:
            raise OutcomeUnknown(answer.error, "")
        errors.append(f"{node.name}: {answer.error}")
    raise Unavailable(f"no node could do it; tried {'; '.join(errors) or 'none in time'}")
