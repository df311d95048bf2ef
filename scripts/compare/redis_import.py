"""Mass insertion into a Redis Cluster: commands in files, one for each master.

`redis-cli --pipe` does not follow redirections, so each master gets the keys that it leads. The
slot of a key is CRC16 (XMODEM) modulo 16,384, as the specification of Redis Cluster says; its
variant is the one that `binascii.crc_hqx` computes.
"""

from __future__ import annotations

from binascii import crc_hqx
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

SLOTS: Final = 16_384


def slot_of_key(key: bytes) -> int:
    """Where a key without a hash tag belongs.

    >>> slot_of_key(b"123456789")
    12739
    """
    return crc_hqx(key, 0) % SLOTS


def set_command(key: bytes, value: bytes) -> bytes:
    r"""A SET as it goes over the wire.

    >>> set_command(b"k", b"abc")
    b'*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nabc\r\n'
    """
    return b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)


def write_import(
    directory: Path, led: Mapping[int, list[range]], entries: Iterable[tuple[str, bytes]]
) -> None:
    """A file for each port; ``led``: the slots that it leads."""
    port_of = {slot: port for port, ranges in led.items() for some in ranges for slot in some}
    with ExitStack() as stack:
        files = {
            port: stack.enter_context((directory / f"import-{port}.resp").open("wb"))
            for port in led
        }
        for name, value in entries:
            key = name.encode()
            files[port_of[slot_of_key(key)]].write(set_command(key, value))


def import_commands(directory: Path) -> Iterator[tuple[int, Path]]:
    """Port and file of each."""
    for file in sorted(directory.glob("import-*.resp")):
        yield int(file.stem.removeprefix("import-")), file
