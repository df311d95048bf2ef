"""The HTTP door assembled: from a request to its handler, and from whatever happens to an answer.

Routing is done here on the target as it stood on the wire, not by aiohttp's router, because a key
is no path (`targets`). The order of checks is the order of cost: target, method, headers, query,
conditions, and only then a body (`door.read_body`). Whatever a handler raises becomes a problem
document; every answer carries a request id and is counted.
"""

from __future__ import annotations

import re
import secrets
import time
from itertools import count
from typing import TYPE_CHECKING, Final

from aiohttp import web

from kvstore.http import admin, batch, keys, listing, openapi, topology, watching
from kvstore.http.caller import Caller
from kvstore.http.conditions import refuse_unsupported
from kvstore.http.door import Call, Door, Route
from kvstore.http.problems import ProblemError
from kvstore.http.targets import KV_PREFIX, Query, decode_percent, split_target
from kvstore.http.watch_source import WatchSource
from kvstore.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from kvstore.http.settings import HttpSettings
    from kvstore.metrics import Metrics, Tally
    from kvstore.node.view import NodeView

__all__ = ["DOOR", "make_app"]

_log = get_logger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
_DOOR_NAME: Final = "http"
_SERVER: Final = "kvstore"

EXACT: Final[Mapping[str, Mapping[str, Route]]] = {
    path: {route.method: route for route in routes if route.path == path}
    for routes in [
        (
            *listing.ROUTES,
            *batch.ROUTES,
            *admin.ROUTES,
            *topology.ROUTES,
            *openapi.ROUTES,
            *watching.ROUTES,
        )
    ]
    for path in [route.path for route in routes]
}
"""Resources with a path of their own: path, then method."""

OF_A_KEY: Final[Mapping[str, Route]] = {
    route.method: route for route in keys.ROUTES if not route.path
}
BELOW_A_KEY: Final[Mapping[str, Route]] = {route.path: route for route in keys.ROUTES if route.path}
"""What only POST knows, by the end of the path."""


def make_app(node: NodeView, metrics: Metrics, settings: HttpSettings) -> web.Application:
    """The application of a node's HTTP port; `server.start_http` puts it on a socket."""
    dispatcher = _Dispatcher(Door(node, Caller(node), metrics, settings, WatchSource(node)))
    app = web.Application(
        middlewares=[dispatcher.middleware], client_max_size=settings.batch_bytes_max
    )
    app[DOOR] = dispatcher.door
    app.on_shutdown.append(_end_watches)
    everything = "/{target:[\\s\\S]*}"  # a dot is no line feed
    app.router.add_route("*", everything, dispatcher.handle, expect_handler=_expect_later)
    return app


DOOR: Final = web.AppKey("door", Door)
"""Where an application keeps its `Door`."""


def resolve(method: str, path: str) -> tuple[Route, str]:
    """The route of a request and the key in its path, still encoded.

    Raises:
        ProblemError: 404 or 405.
    """
    if method == "HEAD":
        method = "GET"
    if path.startswith(KV_PREFIX):
        key = path[len(KV_PREFIX) :]
        if method == "POST":
            for ending, route_below in BELOW_A_KEY.items():
                if key.endswith(ending):
                    return route_below, key.removesuffix(ending)
        methods, text = OF_A_KEY, key
    elif path in EXACT:
        methods, text = EXACT[path], ""
    else:
        raise ProblemError("unknown-path", f"{path!r:.120} is unknown; see /v1/openapi.json.")
    route = methods.get(method)
    if route is None:
        allowed = sorted({*methods, *(("HEAD",) if "GET" in methods else ())})
        raise ProblemError(
            "method-not-allowed",
            f"{method!r:.40} is not possible here (possible: {', '.join(allowed)}).",
            headers={"Allow": ", ".join(allowed)},
        )
    return route, text


class _Dispatcher:
    """Runs requests through the door."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self._prefix = secrets.token_hex(6)
        self._numbers = count(1)
        self._tallies: dict[str, Tally] = {}

    @web.middleware
    async def middleware(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Stand around aiohttp's own routing, so that its refusals look like ours."""
        begun = time.perf_counter()
        operation = "unknown"
        request_id = self._request_id(request)
        try:
            path, query = split_target(request.raw_path)
            route, key = resolve(request.method, path)
            operation = route.operation
            response = await route.handle(self._admit(request, route, key, query, request_id))
        except ProblemError as problem:
            response = self._refuse(request, problem)
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            _log.exception("http request failed", method=request.method, target=request.raw_path)
            response = ProblemError("internal-error", _INTERNAL).response()
        response.headers["X-Request-Id"] = request_id
        response.headers["Server"] = _SERVER
        self._tally(operation).add(_outcome(response.status), time.perf_counter() - begun)
        return response

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """What aiohttp's router would call; the middleware has answered before."""
        raise AssertionError(request.raw_path)

    def _admit(
        self, request: web.Request, route: Route, key: str, query: str, request_id: str
    ) -> Call:
        """Check all that stands before the body.

        Raises:
            ProblemError: the first thing that is wrong.
        """
        headers = request.headers
        size = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        if size > self.door.settings.header_bytes_max:
            limit = self.door.settings.header_bytes_max
            raise ProblemError("headers-too-large", f"{size:,} bytes; the limit is {limit:,}.")
        expect = headers.get("Expect")
        if expect is not None and expect.lower() != "100-continue":
            raise ProblemError("bad-expectation", f"Expect {expect!r:.40} is not 100-continue.")
        refuse_unsupported(headers, route.conditions)
        decoded = decode_percent(key, "The key", "bad-key") if key else b""
        return Call(request, self.door, decoded, Query(query, route.parameters), request_id)

    def _refuse(self, request: web.Request, problem: ProblemError) -> web.Response:
        if problem.kind.refusal:
            self.door.metrics.refused(problem.kind.slug)
        response = problem.response()
        if not request.content.is_eof():
            response.force_close()  # the rest of the body is not worth reading
        return response

    def _request_id(self, request: web.Request) -> str:
        given = request.headers.get("X-Request-Id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers):x}"

    def _tally(self, operation: str) -> Tally:
        tally = self._tallies.get(operation)
        if tally is None:
            tally = self._tallies[operation] = self.door.metrics.tally(_DOOR_NAME, operation)
        return tally


_INTERNAL: Final = (
    "The node's log has the cause at this time. A write of this request may have happened."
)

_OUTCOMES: Final = {
    404: "absent",
    412: "conflict",
    429: "overloaded",
    500: "error",
    503: "unavailable",
    504: "unknown",
}


def _outcome(status: int) -> str:
    return _OUTCOMES.get(status) or ("ok" if status < 400 else "refused")


async def _end_watches(app: web.Application) -> None:
    """Streams have no end of their own; those of a node that stops go to another one."""
    await app[DOOR].watches.close()


async def _expect_later(request: web.Request) -> None:
    """Leave ``100 Continue`` to `door.read_body`, which knows whether the body is wanted."""
