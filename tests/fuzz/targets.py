"""Every parser of what comes from a socket or a file: how an input is made, and what may happen.

A target makes an input from valid examples and hands it to the production code. Only the documented
errors may come out (they are caught in here); everything else that is raised is a crash. What is
accepted is looked at as well: it must come out again as it went in, or be stored whole.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import shutil
import socket
import tempfile
import zlib
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import msgspec

from cluster.key_log import decode_entry
from cluster.limits import FRAME_BYTES_MAX, KEY_BYTES_MAX
from cluster.membership import TopologyChange, apply_change
from cluster.records import RecordError, decode_record, encode_record
from cluster.slot import decode_row, encode_row
from cluster.topology import TopologyError, decode_topology, encode_topology
from kvstore.cli.bulk import Remembered
from kvstore.cli.formats import FORMATS, BadRow, Row, Shape, read_rows
from kvstore.client.address import parse_url, split_address
from kvstore.client.greeting import Greeting
from kvstore.client.operation_id import operation_id_from_text
from kvstore.client.outcomes import entry_of
from kvstore.client.scanning import _Place, _place_from_text, _place_to_text
from kvstore.client.watch_tokens import Place, decode_token, encode_token
from kvstore.errors import BadRequest, CorruptValue, KVError, SetupError
from kvstore.http.batch import _parse
from kvstore.http.caller import operation_id_of
from kvstore.http.conditions import parse_range, parse_tags
from kvstore.http.cursors import Place as HttpPlace
from kvstore.http.cursors import decode_cursor, encode_cursor
from kvstore.http.forms import JSON, MSGPACK, load, negotiate, stored_form, structured_type
from kvstore.http.problems import ProblemError
from kvstore.http.targets import Query, decode_percent, split_target
from kvstore.json_values import dump_json, load_json
from kvstore.node.operator_view import OperatorChange
from kvstore.settings import load_settings
from kvstore.storage.datadir import DataDirError, _parsed
from kvstore.storage.synced_mark import MARK_NAME, shortfall
from kvstore.values import pack_value, unpack_value, version_from_text, version_to_text
from kvstore.wire.frames import FrameDecoder, FrameError, encode_frame
from kvstore.wire.packing import unpack
from kvstore.wire.protocol import MAGIC, Packed
from tests.fuzz import doors, examples

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.mutation import Mutator

    Target = Callable[[Mutator], None]

_SHM: Final = Path("/dev/shm")
SCRATCH: Final = Path(tempfile.mkdtemp(prefix="ringkv-fuzz-", dir=_SHM if _SHM.is_dir() else None))
"""For parsers that take a path."""

Finalize(None, shutil.rmtree, args=(SCRATCH, True), exitpriority=1)

_JSON: Final = tuple(json.loads(text) for text in examples.JSON)
_changes: msgspec.json.Decoder[OperatorChange] = msgspec.json.Decoder(OperatorChange)
_file_changes: msgspec.msgpack.Decoder[TopologyChange] = msgspec.msgpack.Decoder(TopologyChange)


def frames(mutator: Mutator) -> None:
    """What peers and clients send: in any pieces, behind the magic or not."""
    rng = mutator.rng
    bodies = [
        mutator.packed(mutator.pick(examples.TREES)) for _ in range(rng.choice((1, 1, 1, 2, 3)))
    ]
    stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    magic = rng.random() < 0.3
    stream = MAGIC * magic + (mutator.raw(stream) if rng.random() < 0.2 else stream)
    decoder = FrameDecoder(expect_magic=magic)
    cut = rng.randrange(len(stream) + 1)
    with suppress(FrameError):
        for piece in (stream[:cut], stream[cut:]):
            for frame in decoder.feed(piece):
                assert encode_frame(frame), "what was understood can be said again"
                if isinstance(frame, Packed):
                    unpack(frame)
    assert decoder.buffered_bytes <= FRAME_BYTES_MAX + len(stream)


def packed_frames(mutator: Mutator) -> None:
    """Compressed bulk between nodes, a bomb among it."""
    data = mutator.raw(examples.PACKED[9:] if mutator.rng.random() < 0.999 else _BOMB)
    with suppress(FrameError):
        unpack(Packed(data))


def greetings(mutator: Mutator) -> None:
    """What a node, or whoever is at that port, says to a client first."""
    body = mutator.packed(mutator.pick(examples.TREES[2:4]))
    greeting = Greeting("")
    with suppress(FrameError):
        greeting.feed(mutator.raw(len(body).to_bytes(4, "big") + body))


def values(mutator: Mutator) -> None:
    """Stored values, and MessagePack bodies."""
    data = mutator.packed(mutator.pick(examples.VALUES))
    with suppress(CorruptValue):
        value = unpack_value(data)
        with suppress(RecursionError):  # JSON has its own bound; the callers know
            dump_json(value)
        with suppress(BadRequest):
            assert same(unpack_value(pack_value(value)), value)


def json_bodies(mutator: Mutator) -> None:
    """JSON bodies and lines, with the marks for what JSON lacks."""
    text = _json_text(mutator, mutator.pick(_JSON))
    with suppress(BadRequest):
        value = load_json(text)
        pack_value(value)
        assert same(load_json(dump_json(value)), value), "what is stored is given back"


def tokens(mutator: Mutator) -> None:
    """Versions, operation ids, `Idempotency-Key`: short texts that were given out."""
    text = mutator.text(mutator.pick(("1.a2c17ae620cb.5", "9f-1a-" + "00" * 20, "0.0.0", "ab-1-")))
    with suppress(BadRequest):
        assert version_to_text(version_from_text(text)) == text
    with suppress(BadRequest):
        assert operation_id_from_text(text).number >= 0
    with suppress(ProblemError):
        operation_id_of(text, b"PUT k")


def targets(mutator: Mutator) -> None:
    """The target of an HTTP request: path, key, query."""
    text = on_the_wire(mutator.text(mutator.pick(examples.TARGETS)))
    known = ("ttl", "timeout", "consistency", "prefix", "limit", "values", "cursor", "by", "from")
    with suppress(ProblemError):
        path, query = split_target(text)
        key = decode_percent(path, "The key", "bad-key")
        assert len(key) <= 4 * len(path)
        asked = Query(query, known)
        for name in known:
            with suppress(ProblemError):
                assert 0 < asked.seconds(name, 1.0, most=1e9) <= 1e9
            with suppress(ProblemError):
                assert -(2**63) <= asked.integer(name, 0, least=-(2**63), most=2**63 - 1) < 2**63
            with suppress(ProblemError):
                asked.text(name)


def headers(mutator: Mutator) -> None:
    """HTTP headers that are ours to read."""
    name, text = mutator.pick(examples.HEADERS)
    text = on_the_wire(mutator.text(text))
    size = mutator.rng.choice((0, 1, 100, 1 << 20))
    with suppress(ProblemError):
        tags = parse_tags(name, text)
        tags.versions()
        tags.matches('"1.a2.5"', weakly=True)
    with suppress(ProblemError):
        part = parse_range(text, size)
        assert part is None or 0 <= part.start < part.stop <= size
    with suppress(ProblemError):
        assert negotiate({"Accept": text}) in (JSON, MSGPACK)
    with suppress(ProblemError):
        structured_type(text)
    with suppress(ProblemError):
        stored_form(text, b'{"a": 1}')


def cursors(mutator: Mutator) -> None:
    """Places in a listing: over HTTP, and those of the library."""
    rng = mutator.rng
    after = rng.choice((b"", b"k", b"city:1", b"\xff" * 40))
    slot = rng.choice((0, 5, 16_383, 65_535))
    text = mutator.text(encode_cursor(HttpPlace(slot, after), b"pre"))
    with suppress(ProblemError):
        assert encode_cursor(decode_cursor(text, b"pre"), b"pre") == text
    own = mutator.text(_place_to_text(_Place(slot, after)))
    with suppress(BadRequest):
        place = _place_from_text(own)
        assert 0 <= place.slot < 65_536
        assert len(place.after) <= KEY_BYTES_MAX


def watch_tokens(mutator: Mutator) -> None:
    """Where a watch goes on; with a checksum that fits, too, or nothing behind it is reached."""
    rng = mutator.rng
    count = rng.choice((1, 3, 64))
    sequences = [rng.choice((0, 1, 5, 2**40)) for _ in range(count)]
    text = encode_token(Place("c1", 64, 0, sequences, {0: 2}), b"p")
    text = resealed(text, mutator) if rng.random() < 0.5 else mutator.text(text)
    with suppress(BadRequest):
        place = decode_token(text, b"p", "c1", 64)
        assert 0 < len(place.sequences) <= 64 - place.first
        assert all(0 <= sequence < 2**63 for sequence in place.sequences)


def resealed(text: str, mutator: Mutator) -> str:
    """A token whose body was changed, and whose checksum fits again."""
    body = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4]
    body = mutator.raw(body)
    whole = body + zlib.crc32(body).to_bytes(4, "big")
    return base64.urlsafe_b64encode(whole).decode().rstrip("=")


def batches(mutator: Mutator) -> None:
    """`POST /v1/batch`: all of it is understood, or none."""
    document = mutator.pick(examples.BATCHES)
    if mutator.rng.random() < 0.5:
        form, body = JSON, _json_text(mutator, document)
    else:
        form, body = MSGPACK, mutator.packed(document)
    with suppress(BadRequest, ProblemError):
        ops, _ = _parse(load(form, body))
        assert all(0 < len(op.key) <= KEY_BYTES_MAX for op in ops)  # type: ignore[union-attr]


def changes(mutator: Mutator) -> None:
    """Changes of the topology: an operator's JSON, and what nodes send; then applied."""
    rng = mutator.rng
    change: Any
    try:
        if rng.random() < 0.5:
            change = _changes.decode(_json_text(mutator, mutator.pick(examples.CHANGES)))
        else:
            change = _file_changes.decode(mutator.packed(mutator.pick(_CHANGE_TREES)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    with suppress(TopologyError):
        changed = apply_change(examples.TOPOLOGY, change)
        assert decode_topology(encode_topology(changed)) == changed


def topologies(mutator: Mutator) -> None:
    """The topology document."""
    with suppress(TopologyError):
        topology = decode_topology(mutator.packed(_TOPOLOGY_TREE))
        assert decode_topology(encode_topology(topology)) == topology


def records(mutator: Mutator) -> None:
    """Stored records, also with a checksum that fits."""
    data = mutator.raw(mutator.pick(examples.RECORDS))
    if mutator.rng.random() < 0.5:
        data = zlib.crc32(data[4:]).to_bytes(4, "big") + data[4:]
    with suppress(RecordError):
        with suppress(CorruptValue):
            entry_of(data, "k")
        record = decode_record(data)
        encode_record(record.version, record.value, record.content_type, record.expires_at_ms)


def rows(mutator: Mutator) -> None:
    """A slot's row and key-log entries."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        encode_row(decode_row(mutator.packed(_ROW_TREE)))
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decode_entry(mutator.packed(_ENTRY_TREE))


def load_files(mutator: Mutator) -> None:
    """Files to load: each row comes out whole or as a bad one with its number."""
    rng = mutator.rng
    form = rng.choice(FORMATS)
    match form:
        case "jsonl":
            lines = [_json_text(mutator, row) for row in examples.ROWS]
            data = b"\n".join(lines)
        case "csv":
            data = mutator.raw(mutator.pick(examples.CSV))
        case _:
            data = b"".join(mutator.packed(row) for row in examples.ROWS)
    shape = rng.choice((Shape(), Shape("id", "p:"), Shape("key")))
    last = 0
    try:
        for row in read_rows(form, io.BytesIO(data), shape):
            assert isinstance(row, Row | BadRow)
            assert row.number >= last or form == "csv"
            last = row.number
            if isinstance(row, Row):
                assert isinstance(row.key, str | bytes)
                assert row.expires_at is None or row.expires_at.tzinfo is not None
    except BadRequest:
        assert form == "csv", "only the head of a table is the whole file's fault"
    csv.field_size_limit(131_072)


def settings_files(mutator: Mutator) -> None:
    """TOML files of settings."""
    file = SCRATCH / "settings.toml"
    file.write_bytes(mutator.text(mutator.pick(examples.SETTINGS)).encode(errors="surrogatepass"))
    with suppress(SetupError):
        load_settings({}, {}, file)


def urls(mutator: Mutator) -> None:
    """Addresses from the environment or a configuration file."""
    with suppress(BadRequest):
        target = parse_url(mutator.text(mutator.pick(examples.URLS)))
        assert target.seeds
        assert math.isfinite(target.timeout)
        for seed in target.seeds:
            host, port = split_address(seed)
            with suppress(socket.gaierror):  # a resolver takes it, whatever it then finds
                socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)


def node_files(mutator: Mutator) -> None:
    """The small files of a data directory, and how far a load came."""
    file = SCRATCH / "file"
    file.write_bytes(_json_text(mutator, _IDENTITY))
    with suppress(DataDirError):
        _parsed(file)
    mark = SCRATCH / MARK_NAME
    mark.write_bytes(mutator.raw(b"5d3c1c1e 000004.log:100 000009.log:20\n"))
    shortfall(SCRATCH)
    progress = SCRATCH / "x.progress"
    progress.write_bytes(_json_text(mutator, {"job": {"size": 1}, "place": {"rows": 5}}))
    Remembered(progress, {"size": 1}).recall()


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        *(frames, packed_frames, greetings, values, json_bodies, tokens, targets, headers),
        *(cursors, watch_tokens, batches, changes, topologies, records, rows, load_files),
        *(settings_files, urls, node_files, doors.client_port, doors.peer_port, doors.http_port),
    )
}


def same(one: Any, other: Any) -> bool:
    """Equal, NaN and types included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        keys = list(map(same, one, other))
        return len(one) == len(other) and all(keys) and all(map(same, one.values(), other.values()))
    return bool(one == other) or (one != one and other != other)


def on_the_wire(text: str) -> str:
    """As the HTTP server hands it out: what is no UTF-8 has been escaped byte by byte."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _json_text(mutator: Mutator, document: Any) -> bytes:
    """JSON of a changed tree, or a changed text."""
    rng = mutator.rng
    if rng.random() < 0.5:
        with suppress(TypeError, ValueError):  # bytes and the like
            return json.dumps(mutator.tree(document)).encode(errors="surrogatepass")
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.3:
        return mutator.raw(text.encode())
    return mutator.text(text).encode(errors="surrogatepass")


def _tree(struct: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(struct))


_BOMB: Final = zlib.compress(bytes(64 << 20))
_TOPOLOGY_TREE: Final = _tree(examples.TOPOLOGY)
_ROW_TREE: Final = _tree(examples.ROW)
_ENTRY_TREE: Final = _tree(examples.ENTRY)
_CHANGE_TREES: Final = tuple(
    msgpack.unpackb(msgspec.msgpack.encode(frame.change))
    for frame in examples.FRAMES
    if hasattr(frame, "change")
)
_IDENTITY: Final = {"format": 1, "member": 77, "created": "2026-01-02", "formatted": True}
assert issubclass(BadRequest, KVError)
