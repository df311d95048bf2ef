"""What is alone leaves a connection at once, what is one of many in one write with the others."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from kvstore.node.connection import GATHERED_BYTES_MAX, Connection
from kvstore.wire.frames import encode_frame
from kvstore.wire.protocol import Refused, TopologyDocument


class Socket:
    """As a transport: what was written, each write by itself."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.end = ""

    def write(self, data: bytes) -> None:
        assert not self.end
        self.writes.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        del name

    def set_write_buffer_limits(self, high: int) -> None:
        del high

    def close(self) -> None:
        self.end = self.end or "closed"

    def abort(self) -> None:
        self.end = self.end or "aborted"


FRAMES = [Refused("frame", f"number {number}") for number in range(5)]
BYTES = [encode_frame(frame) for frame in FRAMES]


@pytest.fixture
async def opened() -> tuple[Connection, Socket]:
    connection = Connection(lambda _, __: None, lambda _: None, lambda _, __: None, listening=True)
    socket = Socket()
    connection.connection_made(cast("asyncio.Transport", socket))
    return connection, socket


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_is_alone_leaves_at_once(opened: tuple[Connection, Socket]) -> None:
    connection, socket = opened
    connection.send(FRAMES[0])
    connection.send(FRAMES[1])
    assert socket.writes == BYTES[:2]


async def test_many_leave_in_one_write_at_the_end_of_the_turn(
    opened: tuple[Connection, Socket],
) -> None:
    connection, socket = opened
    for frame in FRAMES[:3]:
        connection.send_soon(frame)
    assert not socket.writes
    assert connection.unsent_bytes == sum(map(len, BYTES[:3]))
    await turn()
    assert socket.writes == [b"".join(BYTES[:3])]
    assert connection.unsent_bytes == 0
    connection.send_soon(FRAMES[3])
    await turn()
    assert socket.writes[1:] == [BYTES[3]]
    assert connection.sent_bytes == sum(map(len, BYTES[:4]))


async def test_the_order_is_kept(opened: tuple[Connection, Socket]) -> None:
    connection, socket = opened
    connection.send_soon(FRAMES[0])
    connection.send(FRAMES[1])
    connection.send_soon(FRAMES[2])
    await turn()
    assert b"".join(socket.writes) == b"".join(BYTES[:3])


async def test_much_does_not_wait_for_the_end(opened: tuple[Connection, Socket]) -> None:
    connection, socket = opened
    connection.send_soon(TopologyDocument(bytes(GATHERED_BYTES_MAX)))
    assert len(socket.writes) == 1
    await turn()
    assert len(socket.writes) == 1


async def test_a_close_takes_along_what_was_gathered(opened: tuple[Connection, Socket]) -> None:
    connection, socket = opened
    connection.send_soon(FRAMES[0])
    connection.refuse("frame", "number 1")
    assert b"".join(socket.writes) == b"".join(BYTES[:2])
    assert socket.end == "closed"
    connection.send_soon(FRAMES[2])
    await turn()
    assert len(socket.writes) <= 2


async def test_what_was_gathered_ends_with_a_broken_connection(
    opened: tuple[Connection, Socket],
) -> None:
    connection, socket = opened
    connection.send_soon(FRAMES[0])
    connection.abort("it broke")
    connection.connection_lost(None)
    await turn()
    assert not socket.writes
    assert connection.unsent_bytes == 0
