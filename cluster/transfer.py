"""State transfer: one replica to another's content, in one atomic step (rule 11).

The two key logs are compared by their runs (`cluster.key_log`). From the newest entry that both
hold, the source sends its records (or their absence) for every key that *either* side touched
since, all of one moment, with its own log entries. The receiver's change is one batch
of the tick: a crash leaves the old state or the new one, and the position names which. Beyond the
key log's reach, or where the difference is too much for one message, it gives a whole copy, page by
page (`cluster.copying`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.ballot import Ballot, NodeId, Position
from cluster.key_log import common_sequence, decode_entry, log_begin, whole_log
from cluster.messages import (
    Ack,
    Chunk,
    Content,
    Establish,
    Fetch,
    Gap,
    Head,
    Install,
    Refuse,
    Tail,
    TailQuery,
)
from cluster.replica import send_gap, step_down
from cluster.slot import Primary
from cluster.slot_config import shared
from cluster.store import check_intact

if TYPE_CHECKING:
    from cluster.messages import Change
    from cluster.slot import Context, Slot

BRING_AGAIN_MS = 1_000
"""A peer that stands where it stood is sent content again only after this: messages may be lost."""

DIFFERENCE_BYTES_MAX = 4 * 1_048_576
"""A difference over this is brought as a whole copy: a message must fit into a frame."""

CHUNK_BYTES = 262_144
"""A page of a whole copy is full with so much: other traffic waits behind it for few milliseconds.
The last record may take it over by its size."""

CHUNK_ROWS_MAX = 4_096
"""... or with so many records."""


def touched_keys(slot: Slot, above: int, ctx: Context) -> list[bytes]:
    """Keys of the key log's entries above a sequence, each once."""
    entries = ctx.store.log_entries(slot.prefix, above) if above < slot.sequence else []
    return list(dict.fromkeys(key for _, raw in entries for key in decode_entry(raw).keys))


def content_for(
    slot: Slot, common: int | None, their_keys: list[bytes], ctx: Context
) -> Content | None:
    """The content since ``common``, for somebody who touched ``their_keys`` since (R11).

    None where only a whole copy will do: there is no common point, or too much has changed.

    Raises:
        Damage: a record fails its checksum (R18).
    """
    if common is None:
        return None
    entries = ctx.store.log_entries(slot.prefix, common) if common < slot.sequence else []
    mine = (key for _, raw in entries for key in decode_entry(raw).keys)
    changes: list[Change] = []
    size = sum(len(raw) for _, raw in entries)
    for key in dict.fromkeys((*mine, *their_keys)):
        record = ctx.store.read(slot.prefix + key)
        if record is not None:
            check_intact(key, record)  # R18: a good copy is not made from a damaged one
        changes.append((key, record))
        size += len(key) + len(record or b"")
        if size > DIFFERENCE_BYTES_MAX:
            return None
    return Content(common, slot.position, slot.config, slot.runs, entries, changes)


def send_first_chunk(slot: Slot, ballot: Ballot, peer: NodeId, ctx: Context) -> None:
    """Begin a whole copy (R11)."""
    changes, more = page(slot, b"", ctx)
    entries = ctx.store.log_entries(slot.prefix, slot.log_begin - 1)
    head = Head(slot.position, slot.config, slot.runs, entries)
    chunk = Chunk(slot.number, ballot, head, slot.sequence, b"", changes, more)
    ctx.out.send[peer].append(chunk)
    note_copied(slot, peer, changes, ctx)


def on_fetch(slot: Slot, sender: NodeId, fetch: Fetch, ctx: Context) -> None:
    """The next page, from the primary, or from best while its promise stands (R9, R11)."""
    primary = slot.role
    if isinstance(primary, Primary) and primary.ballot == fetch.ballot:
        if sender not in slot.config.everyone:  # no longer wanted
            return
        stood = primary.bringing.get(sender, (None, 0))[0]
        primary.bringing[sender] = (stood, ctx.now_ms)
    elif not slot.holds_state or slot.promised != fetch.ballot or fetch.ballot.node != sender:
        return
    changes, more = page(slot, fetch.after, ctx)
    ctx.out.send[sender].append(
        Chunk(slot.number, fetch.ballot, None, slot.sequence, fetch.after, changes, more)
    )
    note_copied(slot, sender, changes, ctx)


def note_copied(slot: Slot, peer: NodeId, changes: list[Change], ctx: Context) -> None:
    """What a learner is brought counts against the throttle, and is progress to show (R13)."""
    primary = slot.role
    if isinstance(primary, Primary) and peer in slot.config.learners:
        size = sum(len(key) + len(record or b"") for key, record in changes)
        ctx.throttle.spend(size)
        size_before, records_before = primary.copied.get(peer, (0, 0))
        primary.copied[peer] = (size_before + size, records_before + len(changes))


def page(slot: Slot, after: bytes, ctx: Context) -> tuple[list[Change], bool]:
    """The records behind a key, up to a size, and whether there are more.

    Raises:
        Damage: one fails its checksum (R18).
    """
    begin = after + b"\0" if after else b""
    rows = ctx.store.scan(slot.prefix, begin, CHUNK_ROWS_MAX, CHUNK_BYTES)
    size = 0
    for key, record in rows:
        check_intact(key, record)
        size += len(slot.prefix) + len(key) + len(record)
    return [*rows], len(rows) == CHUNK_ROWS_MAX or size >= CHUNK_BYTES


def install(
    slot: Slot, content: Content, promised: Ballot, established: Ballot, ctx: Context
) -> None:
    """Become what ``content`` says, in this tick's one batch (R11)."""
    store = ctx.store
    sequence = content.position.sequence
    begin = log_begin(sequence)
    store.drop_log(slot.prefix, content.common + 1, slot.sequence + 1)  # replaced, not merged
    store.drop_log(slot.prefix, slot.log_begin, begin)
    for key, record in content.changes:
        store.write(slot.prefix + key, record)
    for at, entry in content.entries:
        if at >= begin:
            store.log(slot.prefix, at, entry)
    slot.copy = None
    slot.sequence = sequence
    slot.config = shared(content.config)
    slot.runs = content.runs
    slot.promised, slot.established = promised, established
    slot.save(ctx)


def on_gap(slot: Slot, sender: NodeId, gap: Gap, ctx: Context) -> None:
    """A peer cannot follow: bring it here (R11)."""
    primary = slot.role
    if not isinstance(primary, Primary) or primary.ballot != gap.ballot:
        return
    if sender not in slot.config.everyone:  # it has left: a late word of this or that
        return
    if gap.position is not None and gap.position >= slot.position:
        return
    if gap.position is None:
        primary.durable.pop(sender, None)  # R18: what it acknowledged is damaged
    last = primary.bringing.get(sender)
    if last is not None and last[0] == gap.position and ctx.now_ms - last[1] < BRING_AGAIN_MS:
        return
    primary.bringing[sender] = (gap.position, ctx.now_ms)
    if gap.position is None:
        send_first_chunk(slot, primary.ballot, sender, ctx)
        return
    common = common_sequence(slot.runs, slot.sequence, gap.runs, gap.position.sequence)
    common = whole_log(common, slot.sequence, gap.position.sequence)
    if common is not None and gap.position.sequence > common:  # it strayed: which keys?
        ctx.out.send[sender].append(TailQuery(slot.number, primary.ballot, common))
        return
    send_install(slot, primary, sender, gap.position, common, [], ctx)


def on_tail_query(slot: Slot, sender: NodeId, query: TailQuery, ctx: Context) -> None:
    """Name the keys that this replica touched since it strayed."""
    if slot.holds_state and slot.promised <= query.ballot:
        keys = touched_keys(slot, query.common, ctx)
        ctx.out.send[sender].append(
            Tail(slot.number, query.ballot, slot.position, query.common, keys)
        )


def on_tail(slot: Slot, sender: NodeId, tail: Tail, ctx: Context) -> None:
    """Now everything that must be sent is known."""
    primary = slot.role
    if isinstance(primary, Primary) and primary.ballot == tail.ballot:
        common = tail.common if tail.common + 1 >= slot.log_begin else None
        send_install(slot, primary, sender, tail.position, common, tail.keys, ctx)


def send_install(
    slot: Slot,
    primary: Primary,
    peer: NodeId,
    base: Position,
    common: int | None,
    keys: list[bytes],
    ctx: Context,
) -> None:
    """Send this primary's content, valid for a peer that stands at ``base``."""
    content = content_for(slot, common, keys, ctx)
    if content is None:
        send_first_chunk(slot, primary.ballot, peer, ctx)
    else:
        ctx.out.send[peer].append(Install(slot.number, primary.ballot, base, content))
        note_copied(slot, peer, content.changes, ctx)


def on_install(slot: Slot, sender: NodeId, message: Install, ctx: Context) -> None:
    """Take the primary's content and enter its ballot, both at once (R11)."""
    ballot, content = message.ballot, message.content
    if slot.promised > ballot:
        ctx.out.send[sender].append(Refuse(slot.number, slot.promised))
        return
    if not slot.holds_state or slot.damaged or slot.position != message.base:
        again = Establish(slot.number, ballot, content.position, content.position.sequence)
        if not (slot.holds_state and slot.established == ballot):
            send_gap(slot, sender, again, ctx)
        return
    if Position(ballot, content.position.sequence) <= slot.position:
        return  # R11: never backwards
    step_down(slot, ctx)
    install(slot, content, ballot, ballot, ctx)
    ctx.out.after_fsync[sender].append(Ack(slot.number, ballot, slot.sequence))
