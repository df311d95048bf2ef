"""Every limit of the system, in one place: its unit, its reason, and how it depends on the others.

A limit is enforced once, where data enters (a door, a decoder, a form), and assumed afterwards.
What is refused is refused with the number in the message, before anything is stored. The relations
at the end are checked when this file is imported: whoever changes one limit learns at once which
others hang on it.

The unit is the last word before ``MAX`` or ``DEFAULT``. Limits are part of the peer protocol: all
nodes of a cluster run the same ones, because a replica must accept what its primary accepted. Only
those named ``DEFAULT`` are settings, fixed when a cluster is made or free for each node.
"""

from __future__ import annotations

KEY_BYTES_MAX = 4_096
"""Keys are compared, logged and listed as a whole; fits a request line (below). S3 has 1,024."""

VALUE_BYTES_MAX = 1_048_576
"""One record's MessagePack; larger ones are blobs, so that no frame delays others for long."""

CONTENT_TYPE_BYTES_MAX = 255
"""One length byte in the record (`cluster.records`); RFC 6838 names have at most 127 a side."""

RECORD_OVERHEAD_BYTES_MAX = 26 + 8 + 1 + CONTENT_TYPE_BYTES_MAX
"""What a record adds to its value: header, expiry, content type (`cluster.records`)."""

VALUE_DEPTH_MAX = 128
"""Nested arrays and maps in a value: below the recursion limits of common decoders."""

VALUE_ITEMS_MAX = 262_144
"""Elements of all arrays and maps in a value, so that a small body cannot unfold into gigabytes."""

TTL_MS_MAX = 100 * 365 * 24 * 3_600 * 1_000
"""A century; the sum with any sane clock stays far below the 64 bits of a record's expiry."""

FRAME_BYTES_MAX = 16 * 1_048_576
"""One frame on the peer and client port: several whole values, yet cheap to buffer per peer."""

HANDSHAKE_BYTES_MAX = 16_384
"""The first frame, read before we know who is there: names and addresses, nothing more."""

NAME_BYTES_MAX = 64
"""A node's or cluster's name or zone: a DNS label fits, a table column too."""

AWAY_AFTER_SECONDS_DEFAULT = 600
"""A node that is dead for so long loses its slots to others: a restart, even of a machine, is over
by then, and a second failure in that time is unlikely."""

AWAY_AFTER_SECONDS_MAX = 30 * 86_400
"""A month; who wants more wants none."""

ADDRESS_BYTES_MAX = 262
"""``host:port``: 253 characters of DNS name, brackets of an IPv6 address, colon and five digits."""

REQUEST_OPERATIONS_MAX = 10_000
"""Operations in one request: tens of milliseconds of work, so that one batch never hogs a node."""

REQUEST_HOPS_MAX = 4
"""Forwards of one request. Routes are hints (rule 10); after so many it is "unavailable"."""

ATOMIC_WRITES_MAX = 1_024
"""Writes in one atomic batch: it is one operation, one key-log entry, one write to the store."""

SCAN_PAGE_KEYS_MAX = 10_000
"""Keys in one page of a scan, read in one moment of one slot (rule 6) while that slot waits."""

SCAN_PAGE_BYTES_MAX = 4 * 1_048_576
"""Keys and records read for one page; one that is full says ``more`` (`cluster.scan`)."""

CONNECTION_REQUESTS_IN_FLIGHT_MAX = 1_024
"""Unanswered requests of one connection; beyond it the node stops reading, so TCP slows it."""

CONNECTION_BYTES_IN_FLIGHT_MAX = 4 * FRAME_BYTES_MAX
"""Unanswered request bytes of one connection; beside the count, because batches may be large."""

PEER_UNSENT_BYTES_MAX = FRAME_BYTES_MAX
"""What a peer has not taken yet; one that falls behind more is sent nothing until it has, and is
left to rule 11. Nothing else is kept for it: an Accept that was sent is forgotten by its sender."""

SLOT_OPERATIONS_IN_FLIGHT_MAX = 16_384
"""Uncommitted operations of one slot at its primary; above it new ones are refused as overload."""

EXPIRY_TICK_SLOT_COUNT_MAX = 256
"""Slots that the removal of expired keys looks into in a tick: a millisecond where all are empty,
and a round of 16,384 slots takes 64 ticks, 3 s (a minute where nothing has an expiry)."""

EXPIRY_TICK_KEYS_MAX = 512
"""Records that it reads, and so deletes, in a tick: about a millisecond, 10,000 a second."""

EXPIRY_TICK_BYTES_MAX = 262_144
"""... and their bytes (over by one record at most), so that large values cost 5 MiB/s of disk."""

EXPIRY_SLOT_IN_FLIGHT_MAX = 256
"""A slot with so many uncommitted operations is passed over: it is busy, or has no quorum."""

KEY_LOG_ENTRIES_MAX = 256
"""Entries of a slot's key log: the reach of retries and short catch-ups, a cost of each write."""

RETRIED_OPERATIONS_MAX = 1_024
"""Retried ids remembered per slot and ballot; when full, a new ballot is taken (rule 5)."""

MOVES_IN_FLIGHT_DEFAULT = 128
"""Slots that a node moves at once as their primary: enough to share round trips and fsyncs."""

COPIES_IN_FLIGHT_MAX = 512
"""Slots that a node lets itself be brought at once; more are asked to come again."""

COPIES_PER_SECOND_BYTES_DEFAULT = 32 * 1_048_576
"""What a node sends its learners in a second; leaves most of a gigabit link to everyone else."""

COPIES_PER_SECOND_BYTES_MIN = 65_536
"""Less would take a day for each few gigabytes: a slip of the unit, where a pause was meant."""

SLOT_COUNT_DEFAULT = 16_384
"""Slots of a new cluster: 1,000 nodes with 3 replicas still hold about 49 each."""

SLOT_COUNT_MAX = 32_768
"""Slot numbers have two bytes, and the system slot is one more than the power of two."""

REPLICAS_DEFAULT = 3
"""Survives any single node; a quorum is two fsyncs."""

REPLICAS_MAX = 7
"""Survives three nodes; more only makes each write slower."""

NODES_MAX = 5_000
"""What gossip is simulated at; also far below the two-byte node index of routing tables."""

NODE_ID_BITS = 48
"""A member id fits exactly into a double, so that JSON and JavaScript keep it whole."""

NODE_WEIGHT_DEFAULT = 1.0
"""A node's share relative to others'."""

NODE_WEIGHT_MIN = 0.001
"""Less than a thousandth of a node: its share of the slots would round to nothing."""

NODE_WEIGHT_MAX = 1_000.0
"""Shares more than a millionfold apart are a slip of the unit, not a plan."""

SYSTEM_SLOT_VOTERS_MAX = 5
"""Voters of the topology document (rule 17): survives two, however large the cluster."""

TOPOLOGY_BYTES_MAX = 4 * 1_048_576
"""The encoded topology: 5,000 nodes with the longest names and addresses."""

GOSSIP_MESSAGE_BYTES_MAX = 1_400
"""One probe with its piggyback, the size of an Ethernet packet: gossip cost stays constant."""

HTTP_HEADER_BYTES_MAX = 49_152
"""All headers of a request. One may be the token of a watch over 16,384 busy slots: 40 KB."""

HTTP_LINE_BYTES_MAX = 16_384
"""The request line; the longest key fits, percent-encoded."""

HTTP_BATCH_BYTES_MAX = 8 * 1_048_576
"""The body of a batch, so that it still fits into one frame when it is forwarded."""

_OPERATION_OVERHEAD_BYTES_MAX = 128
"""Tags, lengths, ids and condition around one operation's key and value, in any message."""

# Everything that is accepted can be forwarded, replicated and answered in one frame.
assert KEY_BYTES_MAX + VALUE_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX < SCAN_PAGE_BYTES_MAX
assert SCAN_PAGE_BYTES_MAX + KEY_BYTES_MAX < FRAME_BYTES_MAX
assert (
    HTTP_BATCH_BYTES_MAX + REQUEST_OPERATIONS_MAX * _OPERATION_OVERHEAD_BYTES_MAX < FRAME_BYTES_MAX
)
assert HTTP_BATCH_BYTES_MAX > VALUE_BYTES_MAX + KEY_BYTES_MAX
assert TOPOLOGY_BYTES_MAX < FRAME_BYTES_MAX
assert FRAME_BYTES_MAX < 2**32, "a frame's length prefix has four bytes"
assert FRAME_BYTES_MAX <= CONNECTION_BYTES_IN_FLIGHT_MAX, "one frame must always be allowed"
assert FRAME_BYTES_MAX <= PEER_UNSENT_BYTES_MAX < CONNECTION_BYTES_IN_FLIGHT_MAX
assert HANDSHAKE_BYTES_MAX < FRAME_BYTES_MAX
assert 3 * NAME_BYTES_MAX + 2 * ADDRESS_BYTES_MAX < HANDSHAKE_BYTES_MAX

# One full request is always admitted, whatever slot it aims at.
assert ATOMIC_WRITES_MAX <= REQUEST_OPERATIONS_MAX
assert SCAN_PAGE_KEYS_MAX <= REQUEST_OPERATIONS_MAX, "a page's keys can be asked for in one request"
assert EXPIRY_TICK_KEYS_MAX <= ATOMIC_WRITES_MAX, "they are deleted by one operation"
assert EXPIRY_SLOT_IN_FLIGHT_MAX < SLOT_OPERATIONS_IN_FLIGHT_MAX, "clients come first"
assert REQUEST_OPERATIONS_MAX <= SLOT_OPERATIONS_IN_FLIGHT_MAX

# Percent-encoding trebles a key.
assert 3 * KEY_BYTES_MAX < HTTP_LINE_BYTES_MAX

# A topology of the largest size fits, and its indices into what carries them.
assert NODES_MAX * (3 * NAME_BYTES_MAX + 2 * ADDRESS_BYTES_MAX + 64) < TOPOLOGY_BYTES_MAX
assert NODES_MAX < 65_535, "a routing table's node index has two bytes, one value means unknown"
assert SLOT_COUNT_DEFAULT <= SLOT_COUNT_MAX
assert SLOT_COUNT_MAX + 1 <= 65_536, "a slot number has two bytes, the system slot is the last"
assert SLOT_COUNT_DEFAULT & (SLOT_COUNT_DEFAULT - 1) == 0, "hash mod count must be unbiased"
assert SLOT_COUNT_MAX & (SLOT_COUNT_MAX - 1) == 0
assert 1 <= REPLICAS_DEFAULT <= REPLICAS_MAX
assert SYSTEM_SLOT_VOTERS_MAX % 2 == 1, "an even number of voters survives no more than one less"
assert SYSTEM_SLOT_VOTERS_MAX <= REPLICAS_MAX
assert 0 < NODE_WEIGHT_MIN <= NODE_WEIGHT_DEFAULT <= NODE_WEIGHT_MAX
assert NODE_ID_BITS <= 53
