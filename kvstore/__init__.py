"""ringkv: a consistent-hashing, replicated key-value store.

::

    import kvstore

    with kvstore.connect("kv://127.0.0.1:7401") as db:
        db.put("city:2950159", {"name": "Berlin"})
        db.get("city:2950159")

The library is loaded when one of its names is first used: a node, or whoever wants only
`kvstore.errors`, does not pay for clients that it does not make.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from kvstore.errors import (
    AuthError,
    BadRequest,
    ClientClosed,
    CorruptValue,
    DeadlineExceeded,
    KVError,
    OutcomeUnknown,
    Overloaded,
    PartialFailure,
    SetupError,
    SlowWatcher,
    Unavailable,
    ValueTooLarge,
    VersionConflict,
    WrongType,
)

if TYPE_CHECKING:
    from kvstore.client import (
        AsyncClient,
        AsyncWatch,
        Client,
        Entry,
        ScanPage,
        Watch,
        WatchEvent,
        connect,
        connect_async,
    )
    from kvstore.embedded import open  # noqa: A004 - its documented name

__all__ = [
    "AsyncClient",
    "AsyncWatch",
    "AuthError",
    "BadRequest",
    "Client",
    "ClientClosed",
    "CorruptValue",
    "DeadlineExceeded",
    "Entry",
    "KVError",
    "OutcomeUnknown",
    "Overloaded",
    "PartialFailure",
    "ScanPage",
    "SetupError",
    "SlowWatcher",
    "Unavailable",
    "ValueTooLarge",
    "VersionConflict",
    "Watch",
    "WatchEvent",
    "WrongType",
    "connect",
    "connect_async",
    "open",
]

_ROOMS = {
    "AsyncClient": "kvstore.client",
    "AsyncWatch": "kvstore.client",
    "Client": "kvstore.client",
    "Entry": "kvstore.client",
    "ScanPage": "kvstore.client",
    "Watch": "kvstore.client",
    "WatchEvent": "kvstore.client",
    "connect": "kvstore.client",
    "connect_async": "kvstore.client",
    "open": "kvstore.embedded",
}

if not TYPE_CHECKING:  # a type checker would take it for a promise of any name

    def __getattr__(name: str) -> object:
        """Load what is in `_ROOMS` when it is first asked for (PEP 562)."""
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        loaded = getattr(_import_module(_ROOMS[name]), name)
        globals()[name] = loaded
        return loaded
