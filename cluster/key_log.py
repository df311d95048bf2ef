"""The key log: a slot's last operations, without their values.

One entry per operation: which keys it changed, under whose operation id, with what small result. It
is what stands in for a replicated log (`docs/protocol.md`, "State"): replicas are caught up from it
(rule 11), retries are recognised in it (rule 5), watches are fed by it.

How far it reaches back is a function of the sequence alone (`log_begin`), so replicas at equal
positions hold equal logs without a word about it. Entries are evicted `KEY_LOG_EVICTION_STEP` at a
time, because one range is cheaper to drop than many single entries.

*Runs* are the log's shape in a few numbers: entries of one ballot are contiguous, so
``((ballot, first sequence), ...)`` says exactly which versions a log holds. An operation's version
is unique and was made on top of exactly one content, so two logs that share an entry share
everything before it; `common_sequence` finds the newest such entry.
"""

from __future__ import annotations

import msgspec

from cluster.ballot import Ballot, NodeId
from cluster.limits import KEY_LOG_ENTRIES_MAX
from cluster.operations import Result

KEY_LOG_EVICTION_STEP = 64
"""Entries dropped at once; the log holds at most KEY_LOG_ENTRIES_MAX + this."""

OperationId = tuple[int, int]
"""``(client id, number)``, both chosen by the client (rule 5)."""

Run = tuple[Ballot, int]
"""``(ballot, first sequence)``; the run ends where the next begins."""


class LogEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One operation; its sequence is the key it is stored under.

    ``result`` is what the operation answered, without the version that its place in the log gives.
    """

    ballot_round: int
    ballot_node: NodeId
    client: int
    number: int
    keys: list[bytes]
    result: Result | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(LogEntry)

encode_entry = _encoder.encode
decode_entry = _decoder.decode


def log_begin(sequence: int) -> int:
    """The oldest sequence that the log of a slot at ``sequence`` holds.

    >>> log_begin(5), log_begin(320), log_begin(321)
    (1, 1, 65)
    """
    surplus = sequence - KEY_LOG_ENTRIES_MAX - 1
    return 1 if surplus < 0 else surplus // KEY_LOG_EVICTION_STEP * KEY_LOG_EVICTION_STEP + 1


def add_run(runs: tuple[Run, ...], ballot: Ballot, sequence: int) -> tuple[Run, ...]:
    """The runs after ``ballot`` was established on content that ends at ``sequence``.

    Runs without an entry, and those that the log has outgrown, are left out.
    """
    begin = log_begin(sequence)
    kept = [run for run in runs if run[1] <= sequence]
    while len(kept) > 1 and kept[1][1] <= begin:
        del kept[0]
    return (*kept, (ballot, sequence + 1))


def _spans(runs: tuple[Run, ...], sequence: int) -> dict[Ballot, tuple[int, int]]:
    """Each ballot's entries as (first, last), as far as the log reaches."""
    begin = log_begin(sequence)
    ends = [*(first - 1 for _, first in runs[1:]), sequence][: len(runs)]
    return {
        ballot: (max(first, begin), last)
        for (ballot, first), last in zip(runs, ends, strict=True)
        if last >= max(first, begin)
    }


def whole_log(common: int | None, source: int, receiver: int) -> int | None:
    """The common point that makes the receiver's log whole, where content goes to it (R11).

    A receiver that stands at a higher sequence than the source may have dropped entries that a log
    of the source's sequence still has: then they are sent too.
    """
    begin = log_begin(source)
    return min(common, begin - 1) if common is not None and log_begin(receiver) > begin else common


def common_sequence(
    mine: tuple[Run, ...], my_sequence: int, theirs: tuple[Run, ...], their_sequence: int
) -> int | None:
    """The sequence of the newest entry that both logs hold; None if they share none.

    Logs that both reach back to the first operation share at least the empty beginning, 0.
    """
    ours, others = _spans(mine, my_sequence), _spans(theirs, their_sequence)
    best = 0 if log_begin(max(my_sequence, their_sequence)) == 1 else None
    for ballot in ours.keys() & others.keys():
        last = min(ours[ballot][1], others[ballot][1])
        if last >= max(ours[ballot][0], others[ballot][0]) and (best is None or last > best):
            best = last
    return best
