"""The Python library: two clients over one sans-I/O core.

`core` decides (whom to ask, under which id, what an answer settles), `flows`, `many` and
`scanning` are the operations, `sync` and `aio` drive them, `sockets`, `streams` and `in_process`
deliver.
"""

from kvstore.client.aio import AsyncClient, connect_async
from kvstore.client.core import ClientCore
from kvstore.client.exchange import AsyncTransport, Transport
from kvstore.client.in_process import InProcessTransport
from kvstore.client.mapping import KeyMapping
from kvstore.client.outcomes import Entry
from kvstore.client.scanning import ScanPage
from kvstore.client.sync import Client, connect
from kvstore.client.watch import AsyncWatch, Watch, WatchEvent

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "AsyncWatch",
    "Client",
    "ClientCore",
    "Entry",
    "InProcessTransport",
    "KeyMapping",
    "ScanPage",
    "Transport",
    "Watch",
    "WatchEvent",
    "connect",
    "connect_async",
]
