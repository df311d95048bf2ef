"""What the commands about the cluster ask, and whom: every node at once, no answer without an end.

A command starts from client addresses (``--url``). Any one of them tells all nodes with both their
addresses (`Routes`); the figures then come over HTTP from each node. A cluster is looked at when
something is wrong with it, so a silent node is a finding and not an error: only when nobody answers
at all is there nothing to show, and `Unavailable` says who was tried.

Each node answers from its own view and without waiting for others. `Snapshot` keeps these views
apart; its methods say which to believe about what: a node about its own figures, its peers about
whether it is alive.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections import Counter
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import aiohttp
import msgspec

from kvstore.client.address import parse_url
from kvstore.client.exchange import Send
from kvstore.client.streams import StreamTransport
from kvstore.errors import BadRequest, Unavailable
from kvstore.node.view import MemberStatus, NodeStatus, SlotStatus
from kvstore.wire.protocol import RouteNode, RouteQuery, Routes

if TYPE_CHECKING:
    from collections.abc import Iterable

ASK_TIMEOUT_S: Final = 2.0
"""For one question to one node; they are all asked at once."""

GRACE_S: Final = 0.2
"""For further routing tables after the first: one may be of a newer epoch."""

SLOTS_PER_PAGE: Final = 1_000
"""The most that a node gives at once."""

ANSWER_BYTES_MAX: Final = 8 * 1_048_576
"""Of a document; `/v1/cluster` has some 300 bytes a node."""

JSON_TYPE: Final = "application/json"

_PARTS: Final = re.compile("([0-9]+)").split
"""Texts and numbers in turn, so that numbers are compared with numbers."""

_Named = TypeVar("_Named", RouteNode, MemberStatus)

_WORST_FIRST: Final = ("dead", "suspect", "left", "alive")


class Answer(NamedTuple):
    """What came back from one node's HTTP port; ``error`` is empty when it was what was asked."""

    document: Any
    error: str
    status: int
    """Of HTTP; 0 without an answer."""
    round_trip_s: float
    clock_offset_s: float | None
    """Its clock minus ours, to about half a second, from the Date header."""


class Snapshot(NamedTuple):
    """One moment of the cluster; lists by node are in the order of ``nodes``."""

    routes: Routes
    nodes: list[RouteNode]
    """All nodes of the topology, by name."""
    views: list[Answer]
    """Of ``/v1/cluster``."""
    figures: list[Answer]
    """Of ``/v1/cluster/node``."""

    def status(self, at: int) -> NodeStatus | None:
        """A node's own figures; None if it did not tell."""
        return status_in(self.figures[at])

    def members(self) -> list[MemberStatus]:
        """All nodes, each in the state that most others see it in, with its own count of slots."""
        views = [members_in(view) for view in self.views]
        found = []
        for at, node in enumerate(self.nodes):
            seen = [
                member
                for viewer, view in enumerate(views)
                for member in view
                if member.id == node.id and viewer != at
            ]
            own = next((member for member in views[at] if member.id == node.id), None)
            state, since_ms = _agreed(seen or ([own] if own is not None else []), node.state)
            figures = own or (seen[0] if seen else None)
            found.append(
                MemberStatus(
                    node.id,
                    node.name,
                    node.address,
                    node.http_address,
                    node.zone,
                    state,
                    since_ms,
                    figures.slots_led if figures is not None else 0,
                    figures.slots_held if figures is not None else 0,
                    figures.leaving if figures is not None else False,
                    figures.away if figures is not None else False,
                )
            )
        return found


def by_name(nodes: Iterable[_Named]) -> list[_Named]:
    """In the order that a person expects: n2 before n10."""
    return sorted(
        nodes, key=lambda node: [int(p) if p.isdecimal() else p for p in _PARTS(node.name)]
    )


def members_in(view: Answer) -> list[MemberStatus]:
    """The nodes in an answer to ``/v1/cluster``; none if there was no answer."""
    if view.error:
        return []
    try:
        return msgspec.convert(view.document["nodes"], list[MemberStatus])
    except (msgspec.ValidationError, KeyError, TypeError):
        return []


def status_in(answer: Answer) -> NodeStatus | None:
    """The figures in an answer to ``/v1/cluster/node``."""
    if answer.error:
        return None
    try:
        return msgspec.convert(answer.document, NodeStatus)
    except msgspec.ValidationError:
        return None


def _agreed(seen: list[MemberStatus], otherwise: str) -> tuple[str, int]:
    """The most frequent state, of equally frequent ones the worst, and for how long."""
    if not seen:
        return otherwise, 0
    counts = Counter(member.state for member in seen)
    most = max(counts.values())
    tied = [state for state, count in counts.items() if count == most]
    state = min(tied, key=lambda one: _WORST_FIRST.index(one) if one in _WORST_FIRST else 0)
    return state, max(member.since_ms for member in seen if member.state == state)


async def take_snapshot(url: str, timeout: float) -> Snapshot:
    """The cluster as its nodes tell it now.

    Raises:
        BadRequest: the address cannot be read.
        Unavailable: no node answers, or the cluster is not founded yet.
    """
    routes = await learn_routes(url, timeout)
    nodes = by_name(routes.nodes)
    addresses = [node.http_address for node in nodes]
    views, figures = await asyncio.gather(
        ask_http(addresses, "/v1/cluster", timeout),
        ask_http(addresses, "/v1/cluster/node", timeout),
    )
    return Snapshot(routes, nodes, views, figures)


async def learn_routes(url: str, timeout: float) -> Routes:
    """The newest routing table that one of the nodes in ``url`` has.

    Raises:
        BadRequest: the address cannot be read, or its nodes are of several clusters.
        Unavailable: no node answers, or the cluster is not founded yet.
    """
    told = await _first_routes(parse_url(url).seeds, min(timeout, ASK_TIMEOUT_S))
    tables = [answer for answer in told.values() if isinstance(answer, Routes)]
    if not tables:
        raise Unavailable(f"no node answers; tried {'; '.join(map(str, told.values()))}")
    clusters = {table.cluster_id for table in tables if table.nodes}
    if len(clusters) > 1:
        raise BadRequest(
            f"the nodes in {url!r} are of several clusters: {', '.join(sorted(clusters))}"
        )
    newest = max(tables, key=lambda table: table.epoch)
    if not newest.nodes:
        raise Unavailable(
            "the cluster is not founded yet: its founders wait for each other; asked "
            + ", ".join(address for address, told_ in told.items() if isinstance(told_, Routes))
        )
    return newest


async def _first_routes(seeds: list[str], seconds: float) -> dict[str, Routes | str]:
    """As `ask_routes`, but once somebody has answered the others are not waited for much longer."""
    asking = {seed: asyncio.create_task(_ask_routes(seed, seconds)) for seed in seeds}
    pending = set(asking.values())
    useful = False
    while pending and not useful:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        useful = any(isinstance(told := task.result(), Routes) and told.nodes for task in done)
    if pending:
        _, pending = await asyncio.wait(pending, timeout=GRACE_S)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return {seed: task.result() for seed, task in asking.items() if not task.cancelled()}


async def ask_routes(addresses: list[str], timeout: float) -> dict[str, Routes | str]:
    """Each address with its node's routing table, or with why there is none, as text."""
    seconds = min(timeout, ASK_TIMEOUT_S)
    told = await asyncio.gather(*(_ask_routes(address, seconds) for address in addresses))
    return dict(zip(addresses, told, strict=True))


async def _ask_routes(address: str, seconds: float) -> Routes | str:
    # A transport of its own: it must not matter to which cluster the other addresses belong.
    transport = StreamTransport(connect_timeout=seconds)
    try:
        send = Send(address, RouteQuery(1))
        (reply,) = await transport.exchange([send], time.monotonic() + seconds)
    finally:
        await transport.close()
    if isinstance(reply, Routes):
        return reply
    detail = getattr(reply, "detail", "an answer to another question")
    return detail if address in detail else f"{address}: {detail}"


async def ask_http(addresses: list[str], target: str, timeout: float) -> list[Answer]:
    """GET ``target`` from every address at once; failures are answers with an ``error``."""
    seconds = min(timeout, ASK_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session:
        return await asyncio.gather(*(_ask(session, address, target) for address in addresses))


async def post_http(address: str, target: str, body: bytes, timeout: float) -> Answer:
    """POST a JSON body to one address; a failure is an answer with an ``error``."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session:
        return await _ask(session, address, target, body)


async def _ask(
    session: aiohttp.ClientSession, address: str, target: str, body: bytes | None = None
) -> Answer:
    if not address:
        return _failed("it has no HTTP address")
    begin = time.monotonic()
    try:
        method, headers = ("GET", {}) if body is None else ("POST", {"Content-Type": JSON_TYPE})
        url = f"http://{address}{target}"
        async with session.request(method, url, data=body, headers=headers) as response:
            told = bytearray()
            async for chunk in response.content.iter_any():
                told += chunk
                if len(told) > ANSWER_BYTES_MAX:
                    return _failed(f"{address}: its answer is over {ANSWER_BYTES_MAX} bytes")
            status, date = response.status, response.headers.get("Date", "")
    except TimeoutError:
        return _failed(f"{address}: no answer in time")
    except aiohttp.ClientConnectorError as error:
        # asyncio's own text for a refused connection repeats the address instead of the reason.
        reason = os.strerror(error.os_error.errno) if error.os_error.errno else str(error.os_error)
        return _failed(f"{address}: {reason.lower()}")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _failed(f"{address}: {str(error) or type(error).__name__}")
    round_trip_s = time.monotonic() - begin
    offset = _clock_offset_s(date, round_trip_s)
    try:
        document = msgspec.json.decode(told)
    except msgspec.DecodeError:
        return _failed(f"{address}: no JSON in its answer; is this another server?")
    if status == 200:
        return Answer(document, "", status, round_trip_s, offset)
    detail = document.get("detail") if isinstance(document, dict) else None
    return Answer(document, str(detail or f"HTTP status {status}"), status, round_trip_s, offset)


async def ask_slots(addresses: list[str], slot_count: int, timeout: float) -> list[SlotStatus]:
    """Every slot whose members one of these nodes knows, as the one with the newest primary does.

    A page at a time, so that a node can serve in between; a node that fails once is asked no more.
    """
    newest: dict[int, SlotStatus] = {}
    for begin in range(0, slot_count, SLOTS_PER_PAGE):
        target = f"/v1/cluster/slots?from={begin}&limit={SLOTS_PER_PAGE}"
        answers = await ask_http(addresses, target, timeout)
        addresses = [at for at, told in zip(addresses, answers, strict=True) if not told.error]
        for answer in answers:
            for found in slots_in(answer):
                known = newest.get(found.slot)
                if found.members and (known is None or ballot_order(known) < ballot_order(found)):
                    newest[found.slot] = found
    return [newest[slot] for slot in sorted(newest)]


def slots_in(answer: Answer) -> list[SlotStatus]:
    """The slots in an answer to ``/v1/cluster/slots``."""
    if answer.error:
        return []
    try:
        return msgspec.convert(answer.document["slots"], list[SlotStatus])
    except (msgspec.ValidationError, KeyError, TypeError):
        return []


def ballot_order(found: SlotStatus) -> tuple[bool, int, int]:
    """Whose word on a slot counts: its primary's, then that of the newest ballot."""
    number, _, _ = found.ballot.partition(".")
    rounds = int(number) if number.isdecimal() else -1
    return found.role == "primary", rounds, found.sequence


def _failed(error: str) -> Answer:
    return Answer(None, error, 0, 0.0, None)


def _clock_offset_s(date: str, round_trip_s: float) -> float | None:
    """Its clock minus ours at the middle of the round trip; Date is cut to whole seconds."""
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        return None
    return theirs - (time.time() - round_trip_s / 2)
