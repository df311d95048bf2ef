"""A client that speaks plain HTTP, with the methods of the library: what `curl` in a program does.

It keeps one connection to one node and goes to the next when that breaks. It repeats nothing that
may have been sent, unless the request has an `Idempotency-Key`, which every second one has.
The standard library's client is used because it never sends a request twice by itself.
"""

from __future__ import annotations

import http.client
import json
import select
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from kvstore.errors import (
    CorruptValue,
    DeadlineExceeded,
    KVError,
    OutcomeUnknown,
    Overloaded,
    PartialFailure,
    Unavailable,
    VersionConflict,
    WrongType,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from random import Random

CONNECT_SECONDS: Final = 1.0
GRACE_SECONDS: Final = 1.5
"""A node answers in the time that it was given; a little later it is taken for lost."""

PAUSE_SECONDS: Final = 0.05
LOST: Final = (OSError, http.client.HTTPException)


class Answer(NamedTuple):
    """What came back; a document is decoded JSON."""

    status: int
    document: Any
    version: str


class HttpClient:
    """Operations on a cluster by HTTP; for one thread.

    Args:
        addresses: ``host:port`` of each node's HTTP port.
        timeout: Seconds for a call.
        rng: Which node first, and whether a request gets a key of its own.
    """

    def __init__(self, addresses: list[str], timeout: float, rng: Random) -> None:
        self._addresses = rng.sample(addresses, len(addresses))
        self._timeout = timeout
        self._rng = rng
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- the operations ----------------------------------------------------------------------

    def put(
        self,
        key: str,
        value: Any,
        *,
        ttl: float | None = None,
        if_version: str | None = None,
        if_absent: bool = False,
        operation_id: str | None = None,
    ) -> str:
        headers = {"Content-Type": "application/json"}
        if if_version is not None:
            headers["If-Match"] = f'"{if_version}"'
        if if_absent:
            headers["If-None-Match"] = "*"
        parameters = {} if ttl is None else {"ttl": f"{ttl:g}"}
        body = json.dumps(value).encode()
        answer = self._write("PUT", _path(key), parameters, headers, body, operation_id)
        return answer.version

    def get_entry(self, key: str) -> Entry | None:
        answer = self._read("GET", _path(key))
        return None if answer.status == 404 else Entry(answer.document, answer.version)

    def delete(
        self, key: str, *, if_version: str | None = None, operation_id: str | None = None
    ) -> bool:
        headers = {} if if_version is None else {"If-Match": f'"{if_version}"'}
        answer = self._write("DELETE", _path(key), {}, headers, b"", operation_id)
        if answer.status == 404 and if_version is not None:
            raise VersionConflict("there is no such key", None)
        return answer.status == 204

    def incr(self, key: str, by: int, *, operation_id: str | None = None) -> int:
        parameters = {"by": str(by)}
        answer = self._write("POST", f"{_path(key)}/incr", parameters, {}, b"", operation_id)
        return int(answer.document)

    def touch(self, key: str, ttl: float | None, *, operation_id: str | None = None) -> bool:
        parameters = {} if ttl is None else {"ttl": f"{ttl:g}"}
        answer = self._write("POST", f"{_path(key)}/touch", parameters, {}, b"", operation_id)
        return answer.status == 204

    def batch(self, puts: Mapping[str, Any], *, operation_id: str | None = None) -> str:
        document = {"operations": _puts(puts), "atomic": True}
        answer = self._batch(document, operation_id)
        return str(answer.document["results"][0]["version"])

    def put_many(self, items: Mapping[str, Any]) -> None:
        try:
            answer = self._batch({"operations": _puts(items)}, None)
        except KVError as error:
            raise PartialFailure(str(error), dict.fromkeys(items, error)) from error
        errors: dict[str | bytes, KVError] = {}
        for key, result in zip(items, answer.document["results"], strict=True):
            if result["status"] != 200:
                errors[key] = _error(result["status"], result)
        if errors:
            raise PartialFailure("some were not stored", errors)

    def get_many(self, keys: list[str]) -> dict[str, Any]:
        document = {"operations": [{"op": "get", "key": key} for key in keys]}
        headers = {"Content-Type": "application/json"}
        answer = self._read("POST", "/v1/batch", {}, headers, json.dumps(document).encode())
        found = {}
        for key, result in zip(keys, answer.document["results"], strict=True):
            if result["status"] == 200:
                found[key] = result["value"]
            elif result["status"] != 404:
                raise PartialFailure("some were not read", {key: _error(result["status"], result)})
        return found

    def listing(self, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        parameters = {"prefix": prefix, "values": "1"}
        while True:
            document = self._read("GET", "/v1/kv", parameters).document
            found |= {entry["key"]: entry["value"] for entry in document["entries"]}
            if document["next"] is None:
                return found
            parameters["cursor"] = document["next"]

    # -- requests ----------------------------------------------------------------------------

    def _batch(self, document: Any, operation_id: str | None) -> Answer:
        headers = {"Content-Type": "application/json"}
        body = json.dumps(document).encode()
        return self._write("POST", "/v1/batch", {}, headers, body, operation_id)

    def _read(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Ask until somebody answers; reads may be asked twice."""
        try:
            return self._ask(method, path, parameters or {}, headers or {}, body, again=True)
        except OutcomeUnknown as unknown:
            raise Unavailable(str(unknown)) from unknown

    def _write(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
        operation_id: str | None,
    ) -> Answer:
        """Ask once, or more often under a key."""
        if operation_id == "":
            raise OutcomeUnknown("a request without a key cannot be settled", "")
        own = operation_id or ""
        if not own and self._rng.random() < 0.5:
            own = str(uuid.UUID(int=self._rng.getrandbits(128)))
        named = dict(headers) | ({"Idempotency-Key": own} if own else {})
        ambiguous = operation_id is not None
        try:
            return self._ask(method, path, parameters, named, body, again=bool(own))
        except OutcomeUnknown as unknown:
            raise OutcomeUnknown(str(unknown), own or unknown.operation_id) from unknown
        except Unavailable as error:
            if ambiguous:
                raise OutcomeUnknown(str(error), own) from error
            raise

    def _ask(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
        *,
        again: bool,
    ) -> Answer:
        deadline = time.monotonic() + self._timeout
        lost: Exception | None = None
        while (left := deadline - time.monotonic()) > 0.01:
            try:
                connection = self._connected(left)
            except OSError:
                time.sleep(PAUSE_SECONDS)
                continue
            query = urlencode({**parameters, "timeout": f"{left:.3f}"}, quote_via=quote)
            try:
                connection.request(method, f"{path}?{query}", body or None, dict(headers))
                response = connection.getresponse()
                raw = response.read()
            except LOST as error:
                self._next_node()
                lost = error
                if not again:
                    raise OutcomeUnknown(f"the connection broke: {error!r}", "") from error
                continue
            document = json.loads(raw) if raw else None
            if response.status in (200, 201, 204, 404):
                version = (response.headers["ETag"] or "").strip('"')
                return Answer(response.status, document, version)
            error_told = _error(response.status, document)
            if lost is not None and isinstance(error_told, Unavailable):
                raise OutcomeUnknown(f"{error_told}, after {lost!r}", "")
            raise error_told
        if lost is not None:
            raise OutcomeUnknown(f"no node answered: {lost!r}", "")
        raise DeadlineExceeded("no node could be connected to")

    def _connected(self, seconds: float) -> http.client.HTTPConnection:
        if self._connection is not None and _is_over(self._connection):
            self.close()
        if self._connection is None:
            host, _, port = self._addresses[0].rpartition(":")
            limit = min(seconds, CONNECT_SECONDS)
            connection = http.client.HTTPConnection(host, int(port), timeout=limit)
            try:
                connection.connect()
            except OSError:
                self._next_node()
                raise
            self._connection = connection
        self._connection.sock.settimeout(seconds + GRACE_SECONDS)
        return self._connection

    def _next_node(self) -> None:
        self.close()
        self._addresses.append(self._addresses.pop(0))


class Entry(NamedTuple):
    """A value and its version."""

    value: Any
    version: str


def _is_over(connection: http.client.HTTPConnection) -> bool:
    """Whether the node has closed it: nothing may arrive on a connection that waits for nothing."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


def _path(key: str) -> str:
    return f"/v1/kv/{quote(key, safe='')}"


def _puts(items: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"op": "put", "key": key, "value": value} for key, value in items.items()]


def _error(status: int, document: Any) -> KVError:
    """The library's error for a problem document."""
    detail = document.get("detail", "") if isinstance(document, dict) else ""
    match status, document.get("type", "") if isinstance(document, dict) else "":
        case 412, _:
            return VersionConflict(detail, document.get("current"))
        case 400, "/problems/wrong-type":
            return WrongType(detail)
        case 500, "/problems/corrupt-value":
            return CorruptValue(detail)
        case 429, _:
            return Overloaded(detail, 1.0)
        case 503, _:
            return Unavailable(detail)
        case 504, _:
            return OutcomeUnknown(detail, document.get("operation_id", ""))
        case _:
            return KVError(f"answered with {status}: {document}")
