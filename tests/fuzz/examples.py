"""What is valid, where mutation begins: each kind of message, header and row at least once."""

from __future__ import annotations

from typing import Any, Final

import msgpack
import msgspec

from cluster.ballot import Ballot, Position
from cluster.key_log import LogEntry, Run
from cluster.membership import Join, Leave, Pace
from cluster.messages import (
    Accept,
    Ack,
    Ask,
    Chunk,
    Compare,
    Compared,
    Condemn,
    Confirm,
    Confirmed,
    Content,
    Drop,
    Establish,
    Fetch,
    Gap,
    HandOver,
    Head,
    Install,
    Prepare,
    Promise,
    Pull,
    Pulled,
    Refuse,
    Retiring,
    SlotMessage,
    Space,
    Surplus,
    Tail,
    TailQuery,
    Willing,
)
from cluster.operations import (
    Absent,
    Atomic,
    Code,
    Conflict,
    Delete,
    Deleted,
    Done,
    Failed,
    Found,
    Get,
    Incr,
    Number,
    Operation,
    Page,
    Put,
    Scan,
    Stale,
    Touch,
)
from cluster.outputs import WatchState
from cluster.records import encode_record, pack_version
from cluster.slot import SlotRow
from cluster.slot_config import SlotConfig
from cluster.swim_messages import Ping
from cluster.topology import Node, encode_topology, found_topology
from kvstore.values import pack_value
from kvstore.wire.packing import encode_slots
from kvstore.wire.protocol import (
    PROTOCOL_VERSION,
    ChangeTopology,
    Founding,
    Frame,
    Gossip,
    Hello,
    Leads,
    Packed,
    Refused,
    Request,
    Response,
    RouteNode,
    RouteQuery,
    Routes,
    SlotChanged,
    SlotMessages,
    SlotTold,
    TopologyChanged,
    TopologyDocument,
    TopologyQuery,
    Watch,
    Watched,
    Welcome,
)

BALLOT: Final = Ballot(3, 7)
PLACE: Final = Position(BALLOT, 41)
CONFIG: Final = SlotConfig(((7, 8, 9), (7, 8, 10)), (11,))
RUNS: Final[tuple[Run, ...]] = ((Ballot(1, 7), 1), (BALLOT, 20))
VERSION: Final = pack_version(BALLOT, 41)
VALUES: Final[tuple[Any, ...]] = (
    *(
        None,
        True,
        0,
        -1,
        2**63,
        1.5,
        "text",
        "{tag}",
        b"bytes",
        [1, [2, ["x"]]],
        {"a": 1, "b": [{}]},
    ),
    *({1: 2, b"k": None}, msgpack.ExtType(7, b"x"), msgpack.Timestamp(1_700_000_000, 5_000)),
)
RECORDS: Final = (
    encode_record(VERSION, pack_value({"a": 1}), "", 0),
    encode_record(VERSION, pack_value(b"raw"), "text/plain", 1_700_000_000_000),
)
ENTRY: Final = LogEntry(3, 7, 5, 6, [b"k1", b"k2"], Done(b""))
TOPOLOGY: Final = found_topology(
    "c1d2",
    "ringkv",
    [
        Node(n, f"m{n}", f"10.0.0.{n}:7401", f"10.0.0.{n}:8401", "abc"[n % 3], float(n))
        for n in range(1, 5)
    ],
)
RAW: Final = msgspec.Raw(pack_value({"a": [1, 2]}))
OPERATIONS: Final[tuple[Operation, ...]] = (
    Put(b"k", RAW, "", 5_000, None),
    Put(b"{t}k", RAW, "", 0, VERSION),
    Put(b"k", msgspec.Raw(pack_value(b"raw")), "text/plain", 0, b""),
    Delete(b"k", b"*"),
    Incr(b"n", -5),
    Touch(b"k", 0),
    Atomic([Put(b"{t}a", RAW), Delete(b"{t}b")]),
    Get(b"k", True),
    Scan(3, b"pre", b"", 100, True),
)
CONTENT: Final = Content(
    3, PLACE, CONFIG, RUNS, [(40, b"e"), (41, b"f")], [(b"k", RECORDS[0]), (b"gone", None)]
)
MESSAGES: Final[tuple[SlotMessage, ...]] = (
    Accept(1, BALLOT, 42, b"entry", [(b"k", RECORDS[0])], CONFIG),
    *(Ack(1, BALLOT, 42), Refuse(1, BALLOT), Gap(1, BALLOT, PLACE, RUNS, PLACE)),
    *(Ask(1, BALLOT), Willing(1, BALLOT), Prepare(1, BALLOT)),
    *(Promise(1, BALLOT, PLACE, CONFIG, RUNS), Pull(1, BALLOT, PLACE, 3, [b"k"])),
    *(TailQuery(1, BALLOT, 3), Tail(1, BALLOT, PLACE, 3, [b"k"])),
    *(Pulled(1, BALLOT, PLACE, CONTENT), Install(1, BALLOT, PLACE, CONTENT)),
    Chunk(1, BALLOT, Head(PLACE, CONFIG, RUNS, [(41, b"e")]), 41, b"", [(b"k", RECORDS[1])], True),
    *(Fetch(1, BALLOT, b"k"), Establish(1, BALLOT, PLACE, 42), Confirm(4, b"\0\1", b"\0\0\0\3")),
    *(Confirmed(4, b""), HandOver(1, BALLOT), Retiring(7), Drop(1, PLACE, CONFIG), Surplus(1)),
    *(Compare(1, BALLOT, 41, b"a", b"b", 9), Compared(1, BALLOT, 41, b"a", b"d" * 16, "")),
    *(Condemn(1, BALLOT, 1, True, b"a", b"b", 3), Space(True)),
)
PACKED: Final = encode_slots([Install(1, BALLOT, PLACE, CONTENT)] * 40)
FRAMES: Final[tuple[Frame, ...]] = (
    Hello(PROTOCOL_VERSION, "client", "c1d2", "ringkv", 0, ""),
    Hello(PROTOCOL_VERSION, "node", "c1d2", "ringkv", 7, "n7"),
    Welcome(PROTOCOL_VERSION, "c1d2", "ringkv", 7, "n7"),
    Refused("cluster", "another one"),
    *(Request(9, 5, n, False, 5_000, 0, [op], [VERSION]) for n, op in enumerate(OPERATIONS)),
    Request(9, 5, 1, True, 5_000, 1, list(OPERATIONS), [], list(range(len(OPERATIONS)))),
    Response(
        9,
        [
            *(Done(VERSION), Deleted(VERSION, True), Number(VERSION, 7), Found(RECORDS[0])),
            *(Absent(), Page([b"a"], [RECORDS[1]], False), Conflict(VERSION), Stale(VERSION)),
            Failed(Code.OVERLOADED, "full", 100),
        ],
        {3: 7},
    ),
    RouteQuery(4),
    Routes(
        *(4, "c1d2", "ringkv", 1, 2),
        [RouteNode(7, "n7", "10.0.0.7:7401", "10.0.0.7:8401", "", "alive")],
        *(b"\0\0\0\0", VERSION * 2),
    ),
    Leads(True, b"\0\1\0\2", VERSION * 2, b"\0\3"),
    *(SlotMessages([message]) for message in MESSAGES),
    SlotMessages(list(MESSAGES)),
    msgspec.msgpack.decode(PACKED[4:], type=Packed),
    Gossip(Ping(1, []), 3),
    Founding(encode_topology(TOPOLOGY), msgspec.msgpack.encode(TOPOLOGY.nodes[0])),
    *(TopologyQuery(), TopologyDocument(encode_topology(TOPOLOGY))),
    Watch(b"pre", [0, 1, 2], [-1, 5, 9]),
    Watched(
        [
            SlotChanged(1, VERSION, [(b"k", RECORDS[0]), (b"gone", None), (b"again", b"")]),
            SlotTold(1, next(iter(WatchState)), 5, 7),
        ]
    ),
    *(ChangeTopology(1, Leave("m2")), ChangeTopology(2, Join(TOPOLOGY.nodes[0], "m1"))),
    *(ChangeTopology(3, Pace(True, 1 << 20)), TopologyChanged(1, b"", Failed(Code.UNKNOWN, "?"))),
)
TREES: Final = tuple(msgspec.msgpack.decode(msgspec.msgpack.encode(frame)) for frame in FRAMES)
"""The frames as plain lists, to be changed."""

ROW: Final = SlotRow(1, 2, True, BALLOT, BALLOT, CONFIG, RUNS, PLACE, False)
TARGETS: Final = (
    "/v1/kv/city%3A1/a%20b?ttl=60&timeout=2.5",
    "/v1/kv/k?consistency=eventual",
    "/v1/kv/n/incr?by=-5",
    "/v1/kv?prefix=city%3A&limit=3&values=1&cursor=abc",
    "/v1/cluster/slots?from=0&limit=100",
    "/v1/watch?prefix=%7Bt%7D",
    "http://host:8401/v1/kv/k?ttl=1",
)
JSON: Final = (
    b'{"a": [1, 2.5, -3e2, null, true], "b": {"$bytes": "3q2+7w=="}}',
    b'{"$datetime": "2024-01-02T03:04:05.5Z"}',
    b'{"$map": [[1, "one"], [{"$bytes": "AA=="}, {"$float": "nan"}]]}',
    b'{"$ext": [7, "AA=="]}',
    '"t\u20acxt \\ud83d\\ude00"'.encode(),
    b"18446744073709551615",
    b"[[[[[[1]]]]]]",
)
BATCHES: Final[tuple[Any, ...]] = (
    [
        {"op": "put", "key": "a", "value": {"x": 1}, "ttl": 5, "if_absent": True},
        {"op": "get", "key": "a", "consistency": "eventual"},
        {"op": "incr", "key": "n", "by": 2},
        {"op": "touch", "key": "a"},
        {"op": "delete", "key": "a", "if_version": "1.2.3"},
    ],
    {
        "atomic": True,
        "operations": [
            {"op": "put", "key": "{t}a", "value": 1},
            {"op": "delete", "key": "{t}b"},
        ],
    },
)
CHANGES: Final[tuple[Any, ...]] = (
    {"type": "leave", "node": "m4", "force": False},
    {"type": "pace", "paused": True, "copy_bytes_per_s": 1_048_576},
    {"type": "weight", "node": "m1", "weight": 2.5},
    {"type": "zone", "node": "m1", "zone": "b"},
    {"type": "replicas", "replicas": 3},
    {"type": "remove", "node": "m2", "force": True},
)
ROWS: Final[tuple[Any, ...]] = (
    {"key": "a", "value": {"x": [1]}},
    {"key": "b", "value": 5, "expires_at": "2030-01-02T03:04:05+00:00"},
    {"key": "c", "value": {"$bytes": "AAE="}, "content_type": "image/png"},
)
CSV: Final = (
    b'key,json,expires_at,content_type\na,"{""x"": 1}",,\nb,5,2030-01-02T03:04:05Z,\n',
    b'key,value\r\nx,one\r\ny,"two\nlines"\r\n',
    b"id,name,n\n1,Berlin,5\n2,Paris,6\n",
)
SETTINGS: Final = (
    'name = "n1"\nhost = "127.0.0.1"\nport = 7401\nfounders = ["10.0.0.1:7401", "10.0.0.2:7401"]\n'
    'slot_count = 256\nweight = 1.5\ncache_bytes = "64MiB"\nzone = "a"\ninsecure = true\n',
    'join = "10.0.0.1:7401"\ndata_dir = "/data"\nadvertised_address = "[::1]:7401"\n',
)
URLS: Final = (
    "kv://127.0.0.1:7401,127.0.0.2:7402/?timeout=5",
    "kv://[::1]:7401",
    "kv://node-1.example/?timeout=0.5&connect_timeout=1",
)
HEADERS: Final[tuple[tuple[str, str], ...]] = (
    ("If-Match", '"1.a2.5", W/"x", "3.b.1-msgpack"'),
    ("If-None-Match", "*"),
    ("If-Range", '"1.a2.5"'),
    ("Range", "bytes=0-99"),
    ("Range", "bytes=-5"),
    ("Accept", "application/msgpack;q=0.9, */*;q=0.1"),
    ("Content-Type", "application/json; charset=utf-8"),
    ("Content-Type", "text/plain"),
    ("Idempotency-Key", "9f-1a-" + "00" * 20),
    ("Idempotency-Key", "d4c2e1f0-1111-2222-3333-444455556666"),
    ("X-Request-Id", "abc-1"),
    ("Expect", "100-continue"),
    ("Last-Event-ID", "AVLJ"),
    ("Content-Encoding", "identity"),
    ("Content-Length", "7"),
    ("Transfer-Encoding", "chunked"),
)
