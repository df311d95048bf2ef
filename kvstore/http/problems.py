"""Errors as `application/problem+json` (RFC 9457).

Each kind of problem has one row in `PROBLEMS`: a stable ``type`` (``/problems/<slug>``), the
status, a title that never changes, and whether it counts as a refused input. What happened this
time stands in ``detail``. Extra members: ``operation_id`` where a write's outcome is unknown (sent
as `Idempotency-Key` it settles it), ``current`` where a condition was not met.

A handler raises `ProblemError`; `app` turns it into the answer. Of the 5xx only 504 leaves open
whether a write happened: everything else means that nothing was written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from cluster.operations import Code, Conflict, Failed
from kvstore.values import version_to_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.operations import Result

__all__ = [
    "PROBLEMS",
    "PROBLEM_TYPE",
    "Kind",
    "ProblemError",
    "conflict",
    "failure",
    "problem_bytes",
]

PROBLEM_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table of problems; ``refusal`` = counted as an input that was turned away."""

    slug: str
    status: int
    title: str
    refusal: bool = True

    @property
    def uri(self) -> str:
        """The stable ``type``."""
        return f"/problems/{self.slug}"


PROBLEMS: Final[Mapping[str, Kind]] = {
    kind.slug: kind
    for kind in (
        Kind("bad-request", 400, "The request cannot work as it stands"),
        Kind("bad-http", 400, "This is not valid HTTP"),
        Kind("bad-key", 400, "The key is empty, too long or wrongly encoded"),
        Kind("bad-parameter", 400, "A query parameter is wrong"),
        Kind("bad-header", 400, "A header is wrong"),
        Kind("bad-cursor", 400, "The cursor is not one that this listing gave"),
        Kind("bad-token", 400, "The token is not one that this watch gave"),
        Kind("bad-value", 400, "The body is not a value that can be stored"),
        Kind("bad-operation", 400, "An operation of the batch is wrong"),
        Kind("wrong-type", 400, "The stored value is not of the type that this needs"),
        Kind("unknown-path", 404, "There is nothing at this path"),
        Kind("not-found", 404, "There is no such key", refusal=False),
        Kind("method-not-allowed", 405, "This resource does not know this method"),
        Kind("not-acceptable", 406, "The value has no form that Accept asks for"),
        Kind("slow-request", 408, "The request did not arrive in time"),
        Kind("change-refused", 409, "This change of the topology makes no sense now", False),
        Kind("condition-failed", 412, "The condition was not met", refusal=False),
        Kind("too-large", 413, "The body is over the limit"),
        Kind("line-too-long", 414, "The request line is over the limit"),
        Kind("unsupported-media-type", 415, "The body's type is not understood here"),
        Kind("range-not-satisfiable", 416, "The range lies outside of the value", refusal=False),
        Kind("bad-expectation", 417, "Expect asks for something unknown"),
        Kind("overloaded", 429, "Too many requests at once; nothing was done"),
        Kind("headers-too-large", 431, "The headers are over the limit"),
        Kind("corrupt-value", 500, "What is stored cannot be decoded", refusal=False),
        Kind("internal-error", 500, "The node made a mistake", refusal=False),
        Kind("condition-not-supported", 501, "This condition is not supported here"),
        Kind("unavailable", 503, "The cluster cannot serve this now; nothing was done", False),
        Kind("deadline-exceeded", 503, "The time was over; nothing was done", refusal=False),
        Kind("not-ready", 503, "The node does not serve what could be served", refusal=False),
        Kind("too-many-connections", 503, "The node has as many connections as it takes"),
        Kind("outcome-unknown", 504, "The write may or may not have happened", refusal=False),
    )
}
"""Every problem that this server can answer; part of the OpenAPI document, so of the contract."""

_CODES: Final[Mapping[Code, str]] = {
    Code.BAD_REQUEST: "bad-request",
    Code.TOO_LARGE: "too-large",
    Code.UNAVAILABLE: "unavailable",
    Code.OVERLOADED: "overloaded",
    Code.DEADLINE: "deadline-exceeded",
    Code.UNKNOWN: "outcome-unknown",
    Code.WRONG_TYPE: "wrong-type",
    Code.CORRUPT: "corrupt-value",
}
assert set(_CODES) == set(Code), "every failure of an operation has its problem"

RETRY_SECONDS_DEFAULT: Final = 1
"""`Retry-After` where the node names no time of its own: a takeover is over by then."""


class ProblemError(Exception):
    """Ends a handler with a problem as the answer.

    Args:
        slug: A row of `PROBLEMS`.
        detail: What happened this time and what to do, for a person.
        headers: Added to the answer.
        members: Added to the document (``current``, ``operation_id``).
        retry_seconds: For `Retry-After`; 429 and 503 always carry one.
    """

    def __init__(
        self,
        slug: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
        retry_seconds: int = RETRY_SECONDS_DEFAULT,
    ) -> None:
        super().__init__(f"{slug}: {detail}")
        self.kind = PROBLEMS[slug]
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = dict(members or {})
        if self.kind.status in (429, 503):
            self.headers.setdefault("Retry-After", str(max(retry_seconds, 1)))

    def document(self) -> dict[str, object]:
        """The members of the problem document."""
        kind = self.kind
        head = {"type": kind.uri, "title": kind.title, "status": kind.status, "detail": self.detail}
        return head | self.members

    def response(self) -> web.Response:
        """The answer."""
        return web.Response(
            status=self.kind.status,
            body=json.dumps(self.document(), ensure_ascii=False).encode(errors="replace"),
            content_type=PROBLEM_TYPE,
            headers=self.headers,
        )


def conflict(result: Conflict, what: str) -> ProblemError:
    """412 with the version that stands now, as ``current`` and as ETag."""
    if not result.current:
        return ProblemError(
            "condition-failed", f"{what} does not exist.", members={"current": None}
        )
    current = version_to_text(result.current)
    return ProblemError(
        "condition-failed",
        f"{what} stands at version {current}: read it again, then decide again.",
        headers={"ETag": f'"{current}"'},
        members={"current": current},
    )


def failure(result: Result, operation_id: str | None) -> ProblemError:
    """The problem of an operation that was not carried out; a read has no ``operation_id``.

    The result of a write of another kind is one too: it was carried out under the same id.
    """
    if not isinstance(result, Failed):
        return ProblemError(
            "bad-header", "The Idempotency-Key is that of another operation, which was carried out."
        )
    slug = _CODES[result.code]
    if result.code is Code.UNKNOWN:
        if operation_id is None:
            return ProblemError("unavailable", result.detail)
        return ProblemError(
            slug,
            f"{result.detail} The same request with 'Idempotency-Key: {operation_id}' settles it.",
            members={"operation_id": operation_id},
        )
    return ProblemError(slug, result.detail, retry_seconds=-(-result.retry_after_ms // 1000))


def problem_bytes(problem: ProblemError, request_id: str) -> bytes:
    """A whole HTTP/1.1 answer for a connection that never came to have a request, and its end."""
    body = json.dumps(problem.document(), ensure_ascii=False).encode()
    status = problem.kind.status
    headers = problem.headers | {
        "Content-Type": PROBLEM_TYPE,
        "Content-Length": str(len(body)),
        "X-Request-Id": request_id,
        "Connection": "close",
    }
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{head}{lines}\r\n".encode() + body
