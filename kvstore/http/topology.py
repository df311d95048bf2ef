"""The topology over HTTP: what it is, how it is changed, what would move and what does.

Any node answers and any node changes it. A change says what is meant, as one of a few records told
apart by ``type``; repeating it is no harm. What makes no sense is refused with 409 and the reason,
and nothing was changed. A plan takes the same body and changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web

from cluster.topology import TopologyError
from kvstore.errors import OutcomeUnknown, Unavailable
from kvstore.http.door import Call, Route, read_body
from kvstore.http.forms import JSON
from kvstore.http.problems import ProblemError
from kvstore.json_values import dump_json
from kvstore.node.operator_view import OperatorChange, PlannedChange, TopologyStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["ROUTES"]

CHANGE_BYTES_MAX: Final = 65_536

_Change = TypeVar("_Change", OperatorChange, PlannedChange)
_changes: msgspec.json.Decoder[OperatorChange] = msgspec.json.Decoder(OperatorChange)
_planned: msgspec.json.Decoder[PlannedChange] = msgspec.json.Decoder(PlannedChange)


async def topology(call: Call) -> web.Response:
    """The newest topology that this node knows."""
    return _json(_known(call))


async def change(call: Call) -> web.Response:
    """Change it; answers when the change is committed."""
    wanted = await _body(call, _changes)
    timeout_ms = int(1_000 * call.timeout_seconds)
    return _json(await _refusing(lambda: call.door.node.operator.change(wanted, timeout_ms)))


async def plan(call: Call) -> web.Response:
    """What a change would move."""
    wanted = await _body(call, _planned)
    return _json(await _refusing(lambda: call.door.node.operator.plan(wanted)))


async def moves(call: Call) -> web.Response:
    """The slots that this node is moving."""
    return _json(await _refusing(call.door.node.operator.moves))


async def quorums(call: Call) -> web.Response:
    """Whom the slots need that this node leads."""
    _known(call)
    return _json(call.door.node.operator.quorums())


ROUTES: Final = (
    Route("GET", "/v1/cluster/topology", "topology", topology),
    Route("POST", "/v1/cluster/topology", "change_topology", change, ("timeout",)),
    Route("POST", "/v1/cluster/plan", "plan", plan),
    Route("GET", "/v1/cluster/moves", "moves", moves),
    Route("GET", "/v1/cluster/quorums", "quorums", quorums),
)


def _known(call: Call) -> TopologyStatus:
    found = call.door.node.operator.topology()
    if found is None:
        raise ProblemError("unavailable", "This node does not belong to a founded cluster yet.")
    return found


async def _body(call: Call, decoder: msgspec.json.Decoder[_Change]) -> _Change:
    body = await read_body(call, CHANGE_BYTES_MAX)
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(
            "bad-value", f"The body is no change of the topology: {error}."
        ) from None


async def _refusing(ask: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await ask()
    except TopologyError as error:
        raise ProblemError("change-refused", f"{error}.") from None
    except OutcomeUnknown as error:
        raise ProblemError("outcome-unknown", f"{error}. To repeat it is no harm.") from None
    except Unavailable as error:
        raise ProblemError("unavailable", f"{error}.") from None


def _json(status: msgspec.Struct) -> web.Response:
    return web.Response(
        body=dump_json(msgspec.to_builtins(status)),
        headers={"Content-Type": JSON, "Cache-Control": "no-store"},
    )
