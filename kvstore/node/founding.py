"""How a cluster begins: one founding document, taken by each founder once (rule 16).

All founders are started with the same list of addresses. Each asks the others who they are and
whether they are founded already. Only the first in the list makes the document, and only when every
other answered and none was founded: so a first node that lost its disk does not found a second
time. The document names member ids, which are drawn when a disk is formatted: an empty disk is
never in it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.topology import Node, Topology, decode_topology, encode_topology, found_topology
from kvstore.errors import SetupError
from kvstore.log import get_logger
from kvstore.wire.frames import FrameDecoder, encode_frame
from kvstore.wire.protocol import MAGIC, Founding, Hello, Refused, Welcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from kvstore.wire.protocol import Frame

log = get_logger(__name__)

ASK_AGAIN_S: Final = 0.2
ASK_TIMEOUT_S: Final = 2.0
READ_BYTES: Final = 65_536

_node_encoder = msgspec.msgpack.Encoder()
_node_decoder = msgspec.msgpack.Decoder(Node)


def make_founding(topology: Topology | None, node: Node) -> Founding:
    """What this node says when it is asked."""
    document = encode_topology(topology) if topology is not None else b""
    return Founding(document, _node_encoder.encode(node))


async def ask(
    address: str, hello: Hello, question: Frame, *, timeout_s: float = ASK_TIMEOUT_S
) -> Frame:
    """One question and its answer over a connection of its own.

    Raises:
        OSError, TimeoutError: nobody answers there.
        SetupError: it answers, and refuses.
    """
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(MAGIC + encode_frame(hello) + encode_frame(question))
            decoder = FrameDecoder()
            while data := await reader.read(READ_BYTES):
                for frame in decoder.feed(data):
                    match frame:
                        case Welcome():
                            continue
                        case Refused(detail=detail):
                            raise SetupError(f"the node at {address} refuses this one: {detail}")
                        case _:
                            return frame
            raise ConnectionError("closed without an answer")
        finally:
            writer.close()


class Founder:
    """Brings an unfounded node to its founding document."""

    def __init__(
        self,
        me: Node,
        cluster_name: str,
        founders: Sequence[str],
        hello: Hello,
        *,
        slot_count: int,
        replicas: int,
        rng: Random,
    ) -> None:
        if founders and me.address not in founders:
            raise SetupError(
                f"--founders lists {', '.join(founders)}, but not this node's own address "
                f"{me.address}: all founders are started with one and the same list"
            )
        self._me = me
        self._cluster_name = cluster_name
        self._others = [address for address in founders if address != me.address]
        self._is_first = not founders or founders[0] == me.address
        self._hello = hello
        self._slot_count = slot_count
        self._replicas = replicas
        self._rng = rng

    async def found(self, adopted: asyncio.Future[Topology]) -> Topology:
        """The founding document: made here, found at another founder, or handed in by one.

        Args:
            adopted: Done when a founder has handed the document in (`Server`).
        """
        waiting_for: set[str] = set()
        while not adopted.done():
            answers = await asyncio.gather(
                *(ask(a, self._hello, make_founding(None, self._me)) for a in self._others),
                return_exceptions=True,
            )
            nodes = [self._me]
            silent: set[str] = set()
            for address, answer in zip(self._others, answers, strict=True):
                if isinstance(answer, SetupError):
                    raise answer
                if isinstance(answer, BaseException):
                    silent.add(address)
                elif not isinstance(answer, Founding):
                    raise SetupError(f"the node at {address} answers nonsense")
                elif answer.topology:
                    return self.accept(decode_topology(answer.topology), address)
                else:
                    nodes.append(_node_decoder.decode(answer.node))
            if silent != waiting_for:
                waiting_for = silent
                log.info("waiting for founders", silent=sorted(silent))
            if not silent and self._is_first:
                return self._make(nodes)
            await asyncio.wait([adopted], timeout=ASK_AGAIN_S)
        return adopted.result()

    def accept(self, topology: Topology, address: str) -> Topology:
        """A document from elsewhere, if it is meant for this disk.

        Raises:
            SetupError: the cluster was founded without it.
        """
        if topology.node(self._me.id) is None:
            raise SetupError(
                f"the node at {address} is of a cluster that was founded without this disk "
                f"(member id {self._me.id:012x}). If the disk of a member was wiped, the node can "
                "only come back as a new member: start it with --join and --replace"
            )
        return topology

    def _make(self, nodes: list[Node]) -> Topology:
        replicas = min(self._replicas, len(nodes)) if self._others else 1
        topology = found_topology(
            f"{self._rng.getrandbits(64):016x}",
            self._cluster_name,
            nodes,
            slot_count=self._slot_count,
            replicas=replicas,
        )
        log.info("founding", cluster=self._cluster_name, nodes=[n.name for n in nodes])
        return topology
