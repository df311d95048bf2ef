"""What a caller is told of a call that failed: what happened, to which key, and what it left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster.operations import Code, Failed
from kvstore.client import flows, many
from kvstore.client.outcomes import error_of
from kvstore.errors import KVError
from tests.kvstore.client_bench import REFUSED, Bench

if TYPE_CHECKING:
    from kvstore.client.exchange import Flow

REPEATED = [Code.UNAVAILABLE, Code.OVERLOADED, Code.DEADLINE]


@pytest.mark.parametrize("code", REPEATED)
@pytest.mark.parametrize("detail", ["no quorum", "no quorum; nothing was written"])
def test_a_write_that_was_refused_says_once_that_it_left_nothing(code: Code, detail: str) -> None:
    told = str(error_of(Failed(code, detail, 50), "put of 'k'"))
    assert told.startswith("put of 'k': no quorum; nothing was written; try ")


@pytest.mark.parametrize("code", REPEATED)
def test_a_read_that_was_refused_does_not_speak_of_writing(code: Code) -> None:
    told = str(error_of(Failed(code, "no quorum", 50), "get of 'k'", reads=True))
    assert told.startswith("get of 'k': no quorum; try ")
    assert "written" not in told


def test_every_kind_of_read_is_told_apart_from_a_write() -> None:
    bench = Bench()
    core, deadline = bench.core, bench.time + 0.5
    reads: list[Flow[Any]] = [
        flows.get(core, deadline, "k", None, "linearizable"),
        flows.get_entry(core, deadline, "k", "eventual"),
        many.get_many(core, deadline, ["k"], "linearizable"),
    ]
    for flow in reads:
        bench.time = 100.0
        script = iter(lambda: REFUSED, None)
        bench.reply = lambda send, step, _, script=script: Bench.reply(  # type: ignore[method-assign, misc]
            bench, send, step, [next(script)]
        )
        with pytest.raises(KVError) as caught:
            bench.run(flow)
        errors = getattr(caught.value, "errors", {}).values()
        assert "written" not in " ".join(map(str, (caught.value, *errors)))
