"""What a node tells of itself and its cluster: status, slots, health, metrics.

All of it is the view of the node that was asked, cheap, and never waits for another node, so that
it answers when the cluster does not. Liveness says only that the process answers (restarting it
would not mend anything else); readiness says whether it serves the slots that it should.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web

from cluster.slots import slot_of
from kvstore.http.door import Call, Route, check_key
from kvstore.http.forms import JSON
from kvstore.http.frontpage import FRONT_PAGE
from kvstore.http.problems import ProblemError
from kvstore.json_values import dump_json

if TYPE_CHECKING:
    from kvstore.node.view import SlotStatus

__all__ = ["ROUTES"]

SLOTS_DEFAULT: Final = 100
SLOTS_MAX: Final = 1_000
"""Slots in one answer."""


async def cluster(call: Call) -> web.Response:
    """The cluster and its nodes as this one sees them."""
    node = call.door.node
    routes = node.routes()
    return _json(
        {
            "cluster": routes.cluster_name,
            "cluster_id": routes.cluster_id,
            "epoch": routes.epoch,
            "slot_count": routes.slot_count,
            "node": node.name,
            "nodes": msgspec.to_builtins(node.members()),
            "problems": node.status().problems,
        }
    )


async def slots(call: Call) -> web.Response:
    """Where a key's slot lives, or a stretch of slots."""
    query = call.query
    ways = [name for name in ("key", "slot", "from") if name in query]
    if len(ways) > 1 or ("limit" in query and ways not in ([], ["from"])):
        raise ProblemError(
            "bad-parameter", "Give one of 'key', 'slot' and 'from'; 'limit' goes with 'from'."
        )
    count = call.door.caller.slot_count
    if not count:
        raise ProblemError("unavailable", "This node does not belong to a founded cluster yet.")
    key = query.raw("key")
    if key is not None:
        slot = slot_of(check_key(key), count)
        return _json({"slots": [_slot(call, slot)], "next": None})
    if "slot" in query:
        slot = query.integer("slot", 0, least=0, most=count - 1)
        return _json({"slots": [_slot(call, slot)], "next": None})
    begin = query.integer("from", 0, least=0, most=count - 1)
    end = min(begin + query.integer("limit", SLOTS_DEFAULT, least=1, most=SLOTS_MAX), count)
    found = [_slot(call, slot) for slot in range(begin, end)]
    return _json({"slots": found, "next": end if end < count else None})


async def node_status(call: Call) -> web.Response:
    """This node's own figures."""
    return _json(msgspec.to_builtins(call.door.node.status()))


async def live(call: Call) -> web.Response:
    """The process answers."""
    return _json({"status": "live"})


async def ready(call: Call) -> web.Response:
    """The node knows a primary for each slot that has a quorum, or 503 with the reason."""
    reason = call.door.node.not_ready_reason()
    if reason:
        raise ProblemError("not-ready", reason)
    return _json({"status": "ready"})


async def metrics(call: Call) -> web.Response:
    """Prometheus metrics."""
    await asyncio.to_thread(import_module, "kvstore.exposition")  # not on the loop: it takes long
    body, content_type = call.door.metrics.expose()
    return web.Response(body=body, headers={"Content-Type": content_type})


async def front_page(call: Call) -> web.Response:
    """A page for whoever opens the port in a browser."""
    return web.Response(
        body=FRONT_PAGE,
        headers={
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
        },
    )


ROUTES: Final = (
    Route("GET", "/v1/cluster", "cluster", cluster),
    Route("GET", "/v1/cluster/slots", "slots", slots, ("from", "key", "limit", "slot")),
    Route("GET", "/v1/cluster/node", "node", node_status),
    Route("GET", "/health/live", "live", live),
    Route("GET", "/health/ready", "ready", ready),
    Route("GET", "/metrics", "metrics", metrics),
    Route("GET", "/", "front_page", front_page),
)


def _slot(call: Call, slot: int) -> dict[str, Any]:
    status: SlotStatus = call.door.node.slot_status(slot)
    found: dict[str, Any] = msgspec.to_builtins(status)
    return found


def _json(document: Any) -> web.Response:
    return web.Response(
        body=dump_json(document), headers={"Content-Type": JSON, "Cache-Control": "no-store"}
    )
