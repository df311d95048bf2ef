"""The HTTP listener: the application on a socket, guarded against bad senders.

aiohttp parses; this adds what it leaves open. A connection that does not finish a request's head
in time is answered 408 and closed, one that sends more head than allowed 431 or 414, one too many
503. What is no HTTP at all is answered with a problem document like everything else, and each
refusal is counted. The guard costs one timer per request that does not arrive in one piece, none
otherwise.

It reaches into four attributes of aiohttp's `RequestHandler` (``_waiter``, ``_messages``,
``_upgraded``, ``_lingering_time`` by its argument); `tests/kvstore/test_http_server.py` would
notice a change.
"""

from __future__ import annotations

import errno
import secrets
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from kvstore.errors import SetupError
from kvstore.http.app import DOOR
from kvstore.http.problems import ProblemError, problem_bytes

if TYPE_CHECKING:
    import asyncio

    from kvstore.http.door import Door

__all__ = ["HttpRunner", "start_http"]

_DOOR_NAME: Final = "http"

_FIELD_OVERHEAD_BYTES: Final = 4
"""Colon, space and line end of a header; also tells its limit from the request line's."""


async def start_http(
    app: web.Application, host: str, port: int, *, flag: str = "--http"
) -> HttpRunner:
    """Listen; `HttpRunner.cleanup` stops it, `HttpRunner.port` tells the port behind 0.

    Args:
        app: Made by `make_app`.
        host: Address to bind.
        port: 0 for any free one.
        flag: How the person at the terminal changes the address.

    Raises:
        SetupError: the port is taken, or cannot be bound.
    """
    runner = HttpRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"the HTTP port {port} on {host} is taken by another program: "
                f"stop that, or choose another with {flag}"
            ) from None
        raise SetupError(
            f"cannot listen for HTTP on {host}:{port} ({error.strerror or error}): change {flag}"
        ) from None
    return runner


class HttpRunner(web.AppRunner):
    """aiohttp's runner with guarded connections."""

    def __init__(self, app: web.Application) -> None:
        settings = app[DOOR].settings
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,  # a compressed body is refused, never unfolded
            handler_cancellation=True,  # nobody waits for it: what has no sequence yet is dropped
            keepalive_timeout=settings.keepalive_seconds_max,
            lingering_time=settings.linger_seconds_max,
            max_line_size=settings.line_bytes_max,
            max_field_size=settings.header_bytes_max - _FIELD_OVERHEAD_BYTES,
            max_headers=settings.headers_max,
            shutdown_timeout=5.0,
        )

    @property
    def port(self) -> int:
        """The port of the first socket."""
        return int(self.addresses[0][1])

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(plain, self.app[DOOR])


class _Server(web.Server):
    """Makes guarded connections."""

    def __init__(self, plain: web.Server, door: Door) -> None:
        super().__init__(
            plain.request_handler, request_factory=plain.request_factory, **plain._kwargs
        )
        self.door = door

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """One connection with its guard."""

    __slots__ = ("_counted", "_door", "_head_bytes", "_head_timer")

    def __init__(self, server: _Server, *, loop: asyncio.AbstractEventLoop, **kwargs: Any) -> None:
        super().__init__(server, loop=loop, **kwargs)
        self._door = server.door
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it, or refuse one too many."""
        super().connection_made(transport)
        metrics, settings = self._door.metrics, self._door.settings
        metrics.connection_opened(_DOOR_NAME)
        self._counted = True
        if metrics.connections(_DOOR_NAME) > settings.connections_max:
            self._turn_away(
                ProblemError(
                    "too-many-connections",
                    f"{settings.connections_max:,} connections are open; close some, or ask "
                    "another node.",
                )
            )
            return
        self._start_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count its end."""
        self._stop_timer()
        if self._counted:
            self._counted = False
            self._door.metrics.connection_closed(_DOOR_NAME)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; while only a part of a head is there, watch its time and size."""
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages or self._upgraded:
            self._stop_timer()
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        settings = self._door.settings
        if self._head_bytes > settings.line_bytes_max + settings.header_bytes_max:
            self._turn_away(ProblemError("headers-too-large", "The request's head is endless."))
        elif self._head_timer is None:
            self._start_timer()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refused."""
        if status >= 500 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        problem = _parser_problem(exc, message, self._door.settings.line_bytes_max)
        self._door.metrics.refused(problem.kind.slug)
        response = problem.response()
        response.headers["X-Request-Id"] = secrets.token_hex(8)
        response.headers["Connection"] = "close"
        response.force_close()
        return response

    def _start_timer(self) -> None:
        seconds = self._door.settings.head_seconds_max
        self._head_timer = self._loop.call_later(seconds, self._head_overdue)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        seconds = self._door.settings.head_seconds_max
        self._turn_away(
            ProblemError("slow-request", f"No whole request arrived within {seconds:g} seconds.")
        )

    def _turn_away(self, problem: ProblemError) -> None:
        self._stop_timer()
        self._door.metrics.refused(problem.kind.slug)
        if self.transport is not None:
            transport = self.transport
            transport.write(problem_bytes(problem, secrets.token_hex(8)))
        self.force_close()


def _parser_problem(
    exc: BaseException | None, message: str | None, line_bytes_max: int
) -> ProblemError:
    text = (message or str(exc) or "unreadable").split("\n", 1)[0].rstrip(".: ")
    if isinstance(exc, LineTooLong):
        if exc.args[1] == line_bytes_max:
            detail = f"The request line is over {line_bytes_max:,} bytes."
            return ProblemError("line-too-long", detail)
        return ProblemError("headers-too-large", "A header is over the limit.")
    if "too many headers" in text.lower():
        return ProblemError("headers-too-large", "The request has too many headers.")
    return ProblemError("bad-http", f"{text[:200]}.")
