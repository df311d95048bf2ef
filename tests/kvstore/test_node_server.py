"""A real node's port against those who break its rules: told why, counted, and nothing harmed."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cluster.ballot import Ballot
from cluster.limits import (
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
)
from cluster.messages import Confirm, Confirmed, Prepare, SlotMessage
from cluster.operations import (
    Atomic,
    Failed,
    Put,
)
from cluster.swim_messages import Ping
from cluster.system_slot import TOPOLOGY_KEY
from kvstore.wire.frames import LENGTH_BYTES, encode_frame
from kvstore.wire.protocol import (
    MAGIC,
    PROTOCOL_VERSION,
    Founding,
    Gossip,
    Hello,
    Leads,
    Refused,
    Request,
    Response,
    RouteQuery,
    Routes,
    SlotMessages,
    Welcome,
)
from tests.kvstore.node_harness import (
    BEFORE,
    CLIENT,
    CLUSTER_NAME,
    MEMBER_ID,
    RAW,
    SLOT_COUNT,
    VALUE,
    Site,
    Wire,
    assert_says,
    put,
    running,
    working,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from kvstore.wire.protocol import Frame

STRANGER_ID = 0xBAD

HUGE = b"\xff\xff\xff\xff"
DEEP = 100_000


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with working() as site:
        yield site


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def hello(**fields: Any) -> bytes:
    return MAGIC + encode_frame(msgspec.structs.replace(CLIENT, **fields))


# -- before the handshake --------------------------------------------------------------------------

UNWELCOME: dict[str, tuple[bytes, str, str]] = {
    "wrong magic": (b"RKV2" + hello()[4:], "frame", "no kvstore client"),
    "http": (b"GET /v1/keys/a HTTP/1.1\r\n\r\n", "frame", "no kvstore client"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "frame", "no kvstore client"),
    "other name": (hello(cluster_name="other"), "cluster", f"{CLUSTER_NAME!r}, not 'other'"),
    "other id": (hello(cluster_id="f00"), "cluster", "another cluster of that name.*not f00"),
    "older version": (hello(version=0), "version", f"version {PROTOCOL_VERSION}, you speak 0"),
    "newer version": (hello(version=99), "version", "you speak 99: run the same release"),
    "unknown role": (hello(role="king"), "frame", "unknown role 'king'"),
    "request first": (MAGIC + encode_frame(put(b"k")), "frame", "Request before the handshake"),
    "slot messages first": (MAGIC + encode_frame(SlotMessages([])), "frame", "SlotMessages before"),
    "4 GiB": (MAGIC + HUGE, "frame", f"claims 4294967295 .* {HANDSHAKE_BYTES_MAX}"),
    "16 MiB": (
        MAGIC + FRAME_BYTES_MAX.to_bytes(LENGTH_BYTES, "big"),
        "frame",
        f"the limit here is {HANDSHAKE_BYTES_MAX}",
    ),
    "no msgpack": (MAGIC + framed(b"\xc1"), "frame", "not a message of this protocol"),
    "deep": (MAGIC + framed(b"\x91" * HANDSHAKE_BYTES_MAX), "frame", "not a message"),
    "map bomb": (MAGIC + framed(b"\xdf" + HUGE), "frame", "not a message of this protocol"),
    "a put behind the wrong name": (
        hello(cluster_name="other") + encode_frame(put(b"k")),
        "cluster",
        "not 'other'",
    ),
    "a put behind a bad frame": (
        MAGIC + framed(b"\xc1") + encode_frame(CLIENT) + encode_frame(put(b"k")),
        "frame",
        "not a message",
    ),
}


@pytest.mark.parametrize(("sent", "reason", "detail"), UNWELCOME.values(), ids=UNWELCOME.keys())
async def test_who_is_not_of_here_is_told_so_and_counted(
    site: Site, sent: bytes, reason: str, detail: str
) -> None:
    async with site.harness.connect() as wire:
        await wire.send_bytes(sent)
        refused = await wire.refusal()
    assert refused.reason == reason
    assert_says(refused.detail, detail)
    await site.unharmed({reason: 1})


async def test_refusals_show_in_the_metrics(site: Site) -> None:
    for _ in range(3):
        async with site.harness.connect() as wire:
            await wire.send_bytes(hello(version=99))
            await wire.refusal()
    text, _ = site.harness.metrics.expose()
    assert b'kvstore_refused_total{reason="version"} 3.0' in text


@pytest.mark.parametrize("sent", [b"", MAGIC[:2], MAGIC, hello()[:-1]])
async def test_no_handshake_in_time(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.server.SWEEP_INTERVAL_S", 0.01)
    async with working() as site:
        async with site.harness.connect() as wire:
            await wire.send_bytes(sent)
            monkeypatch.setattr("kvstore.node.server.HANDSHAKE_TIMEOUT_S", 0.02)
            refused = await wire.refusal()
        monkeypatch.setattr("kvstore.node.server.HANDSHAKE_TIMEOUT_S", 5.0)
        assert refused.reason == "slow"
        assert "no handshake within 0.02 s" in refused.detail
        await site.unharmed({"slow": 1})


# -- after the handshake ---------------------------------------------------------------------------

REQUEST = b"\x99\x46\x01\x01\x01\xc2\x64\x00"
"""A request up to its operations: array of 9, tag 70, six fields."""

PUT = REQUEST + b"\x91\x93\x01\xc4\x01k"
"""The same up to the value of its only put."""

BROKEN: dict[str, tuple[bytes, str]] = {
    "4 GiB": (HUGE, f"claims 4294967295 bytes; the limit here is {FRAME_BYTES_MAX}"),
    "a byte over 16 MiB": ((FRAME_BYTES_MAX + 1).to_bytes(LENGTH_BYTES, "big"), "the limit here"),
    "no msgpack": (framed(b"\xc1"), "not a message of this protocol"),
    "nothing": (framed(b""), "not a message of this protocol"),
    "unknown tag": (framed(b"\x92\x63\x01"), "not a message of this protocol"),
    "wrong field": (framed(b"\x92\x48\xa1x"), "Expected `int`, got `str`"),
    "cut inside": (framed(encode_frame(put(b"k"))[LENGTH_BYTES:-1]), "not a message"),
    "more behind": (framed(encode_frame(put(b"k"))[LENGTH_BYTES:] + b"\0"), "not a message"),
    "deep": (framed(b"\x91" * DEEP), "not a message"),
    "deep value": (framed(PUT + b"\x91" * DEEP + b"\xc0\x90"), "not a message"),
    "deep maps in a value": (framed(PUT + b"\x81\xa1k" * DEEP + b"\xc0\x90"), "not a message"),
    "map bomb": (framed(b"\xdf" + HUGE), "not a message"),
    "map bomb in a value": (framed(PUT + b"\xdf" + HUGE), "not a message"),
    "operations without end": (framed(REQUEST + b"\xdd" + HUGE), "not a message"),
}


@pytest.mark.parametrize(("sent", "detail"), BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_frame_ends_the_connection_with_a_word(
    site: Site, sent: bytes, detail: str
) -> None:
    async with site.harness.client() as wire:
        await wire.send_bytes(sent)
        refused = await wire.refusal()
    assert refused.reason == "frame"
    assert_says(refused.detail, detail)
    await site.unharmed({"frame": 1})


@pytest.mark.parametrize(("sent", "detail"), BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_frame_is_counted(site: Site, sent: bytes, detail: str) -> None:
    async with site.harness.client() as wire:
        await wire.send_bytes(sent)
        await wire.refusal()
    assert site.harness.refused == {"frame": 1}


async def test_frames_before_a_broken_one_count_and_those_behind_it_do_not(site: Site) -> None:
    """The good frame arrived whole, yet its answer may be lost with the connection."""
    async with site.harness.client() as wire:
        await wire.send(put(b"first"))
        assert isinstance(await wire.receive(), Response)
        await wire.send_bytes(framed(b"\xc1") + encode_frame(put(b"behind")))
        await wire.refusal()
    await site.unharmed({"frame": 1}, {b"first": VALUE})


async def test_text_that_is_no_utf8_is_refused(site: Site) -> None:
    async with site.harness.client() as wire:
        await wire.send_bytes(framed(b"\x93\x3e\xa1\xff\xa0"))
        refused = await wire.refusal()
    assert refused.reason == "frame"
    assert site.harness.raised == []


NOT_FOR_A_SERVER: list[Frame] = [
    CLIENT,
    Welcome(PROTOCOL_VERSION, "", CLUSTER_NAME, MEMBER_ID, "n1"),
    Refused("frame", "you"),
    Response(1, [], {}),
    Routes(1, "", CLUSTER_NAME, 1, SLOT_COUNT, [], b"", b""),
]


@pytest.mark.parametrize("frame", NOT_FOR_A_SERVER, ids=lambda frame: type(frame).__name__)
async def test_what_only_a_server_says_is_refused(site: Site, frame: Frame) -> None:
    async with site.harness.client() as wire:
        await wire.send(frame, put(b"k"))
        refused = await wire.refusal()
    assert refused == Refused("frame", f"{type(frame).__name__} is not for a server")
    await site.unharmed({"frame": 1})


FROM_NODES: list[Frame] = [
    SlotMessages([Prepare(n, Ballot(99, STRANGER_ID)) for n in range(SLOT_COUNT)]),
    Gossip(Ping(1, [])),
    Leads(True, bytes(2), bytes(20), b""),
    msgspec.structs.replace(put(TOPOLOGY_KEY), system=True),
]

NO_NODES = {
    "client": CLIENT,
    "client with a member's id": msgspec.structs.replace(CLIENT, node=MEMBER_ID),
    "stranger": Hello(PROTOCOL_VERSION, "node", "", CLUSTER_NAME, STRANGER_ID, "n9"),
    "gossiping stranger": Hello(PROTOCOL_VERSION, "gossip", "", CLUSTER_NAME, STRANGER_ID, "n9"),
}


@pytest.mark.parametrize("who", NO_NODES.values(), ids=NO_NODES.keys())
@pytest.mark.parametrize("frame", FROM_NODES, ids=lambda frame: type(frame).__name__)
async def test_only_nodes_speak_for_slots_and_members(site: Site, frame: Frame, who: Hello) -> None:
    """Were the prepare taken, the scans behind it would find no primary."""
    async with site.harness.client(who) as wire:
        await wire.send(frame, put(b"k"))
        refused = await wire.refusal()
    assert refused == Refused("cluster", "only nodes of this cluster may send this")
    await site.unharmed({"stranger": 1})


MALFORMED: dict[str, SlotMessage] = {
    "no such slot": Prepare(SLOT_COUNT + 1, Ballot(99, MEMBER_ID)),
    "a slot below zero": Prepare(-1, Ballot(99, MEMBER_ID)),
    "a slot beyond every cluster": Prepare(2**63, Ballot(99, MEMBER_ID)),
    "a question about no such slot": Confirm(1, b"\xff\xff", bytes(4)),
    "half a slot": Confirm(1, b"\0", bytes(4)),
    "a slot without its round": Confirm(1, bytes(4), bytes(4)),
    "half a slot denied": Confirmed(1, b"\0"),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_message_of_a_node_is_refused(site: Site, message: SlotMessage) -> None:
    """Found by fuzzing the port: it was raised into the event loop, and nobody was told."""
    member = Hello(PROTOCOL_VERSION, "node", "", CLUSTER_NAME, MEMBER_ID, "n1")
    async with site.harness.client(member) as wire:
        await wire.send(SlotMessages([message]))
        refused = await wire.refusal()
    assert refused.reason == "frame"
    await site.unharmed({"frame": 1})


@pytest.mark.parametrize(
    "leads",
    [
        Leads(True, b"\0", b"", b""),
        Leads(True, b"\0\1", b"", b""),
        Leads(True, (SLOT_COUNT + 1).to_bytes(2, "big"), bytes(20), b""),
        Leads(False, b"", b"", b"\xff\xff"),
    ],
    ids=["half a slot", "no position", "a slot too high", "a lost slot too high"],
)
async def test_a_malformed_summary_of_a_node_is_refused(site: Site, leads: Leads) -> None:
    member = Hello(PROTOCOL_VERSION, "node", "", CLUSTER_NAME, MEMBER_ID, "n1")
    async with site.harness.client(member) as wire:
        await wire.send(leads)
        refused = await wire.refusal()
    assert refused.reason == "frame"
    await site.unharmed({"frame": 1})


@pytest.mark.parametrize("kept", [1, LENGTH_BYTES, LENGTH_BYTES + 1, -1])
async def test_a_frame_that_is_never_finished_is_forgotten(site: Site, kept: int) -> None:
    """Who goes away has not been refused; nothing is done, nothing is counted."""
    async with site.harness.client() as wire:
        await wire.send_bytes(encode_frame(put(b"k"))[:kept])
    await site.alone()
    await site.unharmed({})


async def test_a_frame_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.server.SWEEP_INTERVAL_S", 0.01)
    monkeypatch.setattr("kvstore.node.server.FRAME_TIMEOUT_S", 0.05)
    async with working() as site:
        async with site.harness.client() as wire:
            sending = asyncio.ensure_future(_dribble(wire, encode_frame(put(b"k"))))
            refused = await wire.refusal()
            await sending
        assert refused.reason == "slow"
        assert "a frame took over 0.05 s" in refused.detail
        await site.unharmed({"slow": 1})


async def _dribble(wire: Wire, data: bytes) -> None:
    """A byte every ten milliseconds: never silent, never done in time."""
    with suppress(ConnectionError):
        for byte in data:
            await wire.send_bytes(bytes([byte]))
            await asyncio.sleep(0.01)


# -- a node that waits for its founders, and one that comes back -----------------------------------

EARLY: list[Frame] = [
    RouteQuery(1),
    Founding(b"", b""),
]


@pytest.mark.parametrize("frame", EARLY, ids=["routes", "founding"])
async def test_a_node_without_a_cluster_answers_what_it_can(frame: Frame) -> None:
    await early(frame)


TOO_EARLY: list[Frame] = [
    put(b"k"),
    Request(1, 1, 1, False, 50, 0, [], []),
    Request(1, 1, 1, False, 50, 0, [Atomic([Put(b"k", RAW)])], []),
    Founding(b"\xc1", b""),
]


@pytest.mark.parametrize("frame", TOO_EARLY, ids=["put", "no operations", "atomic", "bad founding"])
async def test_a_node_without_a_cluster_refuses_the_rest(frame: Frame) -> None:
    await early(frame)


async def early(frame: Frame) -> None:
    """Whatever is said to a node that still waits for its founders, it has an answer."""
    async with running(founded=False) as harness:
        async with harness.client() as wire:
            await wire.send(frame)
            answer = await wire.receive()
        assert harness.raised == []
        if isinstance(answer, Response):
            assert all(isinstance(result, Failed) for result in answer.results)
        else:
            assert isinstance(answer, Refused | Routes | Founding)


@pytest.mark.parametrize("role", ["node", "gossip"])
async def test_a_founder_that_was_quicker_is_not_welcome_yet_and_not_refused(role: str) -> None:
    """It dials again; nothing is wrong that anybody should read of."""
    founder = Hello(PROTOCOL_VERSION, role, "f00", CLUSTER_NAME, MEMBER_ID + 1, "n2")
    async with running(founded=False) as harness:
        async with harness.connect() as wire:
            await wire.send_bytes(MAGIC + encode_frame(founder))
            assert await wire.receive() is None
        assert harness.refused == Counter()


async def test_nothing_refused_is_on_the_disk(tmp_path: Path) -> None:
    async with running(tmp_path) as harness, harness.client() as good:
        await good.ask([Put(b"before", RAW)])
        async with harness.connect() as wire:
            await wire.send_bytes(hello(cluster_name="other") + encode_frame(put(b"k")))
            await wire.refusal()
        async with harness.client() as wire:
            await wire.send_bytes(framed(b"\xc1") + encode_frame(put(b"k")))
            await wire.refusal()
        await good.ask([Put(b"", RAW), Put(b"k" * 5_000, RAW), Atomic([])])
    async with running(tmp_path) as harness, harness.client() as good:
        assert await good.stored() == BEFORE
