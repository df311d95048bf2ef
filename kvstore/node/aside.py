"""What would hold up the event loop, done beside it.

Most of it takes a few milliseconds and runs in a thread. To compute the owners of all slots takes
half a second and more, in which a thread would fight the loop for the interpreter at every switch,
and all nodes do it at the same moment. So that runs in a process of its own, at lowest priority:
``python -m kvstore.node.aside`` reads a topology and writes the owners, eight bytes each.
"""

from __future__ import annotations

import asyncio
import os
import sys
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from cluster.placement import place
from cluster.system_slot import owners, voters
from cluster.topology import decode_topology, encode_topology
from kvstore.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.ballot import NodeId
    from cluster.topology import Topology

log = get_logger(__name__)

NICE: Final = 19

SMALL_SLOTS: Final = 2_048
"""Owners of no more slots than this are known sooner than a process has started."""


async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function without holding up the loop; its errors are raised here."""
    if function is owners and arguments[0].slot_count > SMALL_SLOTS:
        return await _owners_in_a_process(arguments[0])
    return await asyncio.to_thread(function, *arguments)


async def _owners_in_a_process(topology: Topology) -> list[tuple[NodeId, ...]]:
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    except OSError as error:  # no process, memory or descriptor is left
        log.error("owners cannot be computed in a process of its own", error=str(error))
        return await asyncio.to_thread(owners, topology)
    try:
        written, _ = await child.communicate(encode_topology(topology))
    except BaseException:
        child.kill()
        raise
    packed = array("Q")
    width = packed.itemsize * topology.slot_count
    if child.returncode or not written or len(written) % width:
        log.error("owners cannot be computed in a process of its own", status=child.returncode)
        return await asyncio.to_thread(owners, topology)
    packed.frombytes(written)
    rows = [iter(packed)] * (len(written) // width)
    return [*zip(*rows, strict=True), voters(topology)]


def main() -> None:
    """The child: a topology in, the owners of its data slots out."""
    os.nice(NICE)
    topology = decode_topology(sys.stdin.buffer.read())
    packed = array("Q", chain.from_iterable(place(topology).owners))
    sys.stdout.buffer.write(packed.tobytes())


if __name__ == "__main__":
    main()
