"""Every error that a user of the library can see, by what they can do about it.

::

    KVError
    ├── BadRequest            the call can never work as it stands: mend it
    │   ├── ValueTooLarge     ... because the value is over the limit
    │   └── WrongType         ... because the stored value is of another type (increment of a text)
    ├── AuthError             not allowed: mend the credentials
    ├── VersionConflict       the condition was not met: read again, decide again
    ├── Unavailable           nothing was done, so nothing written: try again
    │   ├── Overloaded        ... after `retry_after` seconds
    │   └── DeadlineExceeded  ... with more time
    ├── OutcomeUnknown        may or may not have happened: a retry with `operation_id` settles it
    ├── PartialFailure        a batch of independent keys went through in part: `errors` says which
    ├── SlowWatcher           a watch was not read fast enough: go on from its token, faster
    ├── CorruptValue          what is stored cannot be decoded
    └── ClientClosed          the client was used after `close`

The node's own troubles at start (a taken port, a foreign data directory) are `SetupError`: their
message is meant for the person at the terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "AuthError",
    "BadRequest",
    "ClientClosed",
    "CorruptValue",
    "DeadlineExceeded",
    "KVError",
    "OutcomeUnknown",
    "Overloaded",
    "PartialFailure",
    "SetupError",
    "SlowWatcher",
    "Unavailable",
    "ValueTooLarge",
    "VersionConflict",
    "WrongType",
]


class KVError(Exception):
    """The root of all errors of this library."""


class BadRequest(KVError):
    """The call can never work as it stands: an empty key, a value that MessagePack lacks."""


class ValueTooLarge(BadRequest):
    """The value is over the limit of one record."""


class WrongType(BadRequest):
    """The stored value is not of the type that the operation needs."""


class AuthError(KVError):
    """The server does not let this caller do this."""


class VersionConflict(KVError):
    """The condition of a write was not met; nothing was written.

    Attributes:
        current: The version that stands now, or None if the key is absent.
    """

    def __init__(self, message: str, current: str | None) -> None:
        super().__init__(message)
        self.current = current


class Unavailable(KVError):
    """The cluster could not serve the call now. Nothing was done; it is safe to try again."""


class Overloaded(Unavailable):
    """A node refused the call at its door because its queues are full.

    Attributes:
        retry_after: Seconds after which a new attempt makes sense.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(Unavailable):
    """The call's time was over before anything was sent or done."""


class OutcomeUnknown(KVError):
    """The write may have happened, or may yet happen; only a retry with its id can tell.

    Attributes:
        operation_id: What a retry names to be recognised as the same operation.
    """

    def __init__(self, message: str, operation_id: str) -> None:
        super().__init__(message)
        self.operation_id = operation_id


class PartialFailure(KVError):
    """Some keys of a batch failed; all others are done.

    Attributes:
        errors: Each failed key with its own error.
    """

    def __init__(self, message: str, errors: Mapping[str | bytes, KVError]) -> None:
        super().__init__(message)
        self.errors: dict[str | bytes, KVError] = dict(errors)


class SlowWatcher(KVError):
    """A node cut off a watch that left too much unread; nothing is lost.

    What had arrived was handed out first. Begin again with ``resume=watch.token``, and read faster
    or watch a narrower prefix.
    """


class CorruptValue(KVError):
    """What is stored under a key fails its checksum or is no MessagePack."""


class ClientClosed(KVError):
    """The client was used after it was closed, or from a place that it cannot serve."""


class SetupError(KVError):
    """A node or command cannot start as it was told to; the message says what to change."""
