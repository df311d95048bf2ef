"""A node that is not quite right: ``tests.nemesis.bent CLOCK PLANT LINKS python -m kvstore``.

Linux has no wall clock of its own for a process, and a library between the program and the kernel
would bend the steady clock too. So the one place where a node reads the wall clock is replaced
before the node is started: by a reading of the true clock and an offset in milliseconds, eight
bytes of CLOCK, which may be changed at any moment.

PLANT names a bug to plant (`tests.simulation.planted`), so that it can be seen that the bug is
found; a dash is none. LINKS is a file that says which port to dial in place of another node's
(`tests.nemesis.proxies`); a dash if the network needs no help.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from kvstore.node.clock import SystemClock
from tests.simulation.planted import PLANTS

OFFSET: Final = struct.Struct("<q")
NOTHING: Final = "-"
PLANTED: Final = {plant.__name__: plant for plant in PLANTS}
INTERPRETER: Final = 3
"""Words of the command that say ``python -m kvstore``."""


def set_offset(file: Path, offset_ms: int) -> None:
    """Put a node's wall clock off from now on; at once, and in either direction."""
    if not file.exists():
        file.write_bytes(OFFSET.pack(offset_ms))
        return
    with file.open("r+b") as stream:
        stream.write(OFFSET.pack(offset_ms))


def bend_clock(name: str) -> None:
    """Make every node of this process believe the file."""
    with open(name, "rb") as stream:
        offset = mmap.mmap(stream.fileno(), OFFSET.size, access=mmap.ACCESS_READ)

    def unix_ms(self: SystemClock) -> int:
        moved: int = OFFSET.unpack_from(offset)[0]
        return time.time_ns() // 1_000_000 + moved

    SystemClock.unix_ms = unix_ms  # type: ignore[method-assign]


def bend_links(file: Path) -> None:
    """Dial other nodes through their proxies."""
    instead = {int(port): to for port, to in json.loads(file.read_text()).items()}
    kinds: list[Any] = [asyncio.BaseEventLoop]
    with suppress(ImportError):
        import uvloop

        kinds.append(uvloop.Loop)
    for kind in kinds:
        dial = kind.create_connection

        async def dial_proxy(
            loop: Any, make: Any, host: Any = None, port: Any = None, dial: Any = dial, **how: Any
        ) -> Any:
            return await dial(loop, make, host, instead.get(port, port), **how)

        kind.create_connection = dial_proxy


def main() -> None:
    """Run the node's command with its clock and its links bent."""
    clock, plant, links, *command = sys.argv[1:]
    bend_clock(clock)
    if links != NOTHING:
        bend_links(Path(links))
    if plant != NOTHING:
        PLANTED[plant](pytest.MonkeyPatch())
    sys.argv = ["kvstore", *command[INTERPRETER:]]
    from kvstore.cli.main import main as kvstore

    kvstore()


if __name__ == "__main__":
    main()
