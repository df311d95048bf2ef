"""A node as a process: settings in, a clean exit out.

The order matters. The directory is locked before anything is opened; the ports are bound before the
cluster is told of them; a failed sync ends the process at once, because after it nothing that the
disk says can be believed (rule 12).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.topology import Node as Member
from kvstore.errors import SetupError
from kvstore.http.app import make_app
from kvstore.http.server import start_http
from kvstore.http.settings import HttpSettings
from kvstore.log import get_logger
from kvstore.metrics import Metrics
from kvstore.node.node import Node
from kvstore.node.stalls import STALL_MS
from kvstore.storage.datadir import DataDir
from kvstore.storage.disk_space import DiskSpace
from kvstore.storage.engine import EngineCorruption, EngineError, EngineSyncError
from kvstore.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvstore.settings import NodeSettings
    from kvstore.storage.opening import Store

log = get_logger(__name__)

SWITCH_INTERVAL_S: Final = 0.0005
"""How long the loop may keep the interpreter from the sync thread; 5 ms would delay acks."""

GC_THRESHOLD: Final = 200_000
"""Objects between collections. What a node makes in quantity is freed by counting references; the
default (700) walks all that lives dozens of times while a frame of thousands of messages is read.
"""

LOST_DISK_STATUS: Final = 74
"""Exit status when the disk failed (EX_IOERR)."""


BROKEN_INVARIANT_STATUS: Final = 70
"""Exit status when an assertion did not hold (EX_SOFTWARE)."""


def run_node(settings: NodeSettings) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status.

    Raises:
        SetupError: a port, the data directory or the cluster is not what the settings say, or
            assertions are off.
    """
    if not __debug__:  # an assertion could not say it
        raise SetupError(
            "a node does not run without assertions, they guard the data: "
            "start python without -O, and unset PYTHONOPTIMIZE"
        )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # uvloop where it installs
        from uvloop import new_event_loop
    directory = DataDir.open(Path(settings.data_dir))
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(_serve(settings, directory))
    except EngineCorruption as error:  # met while the slots were read
        raise SetupError(str(error)) from error
    finally:
        directory.close()


async def _serve(settings: NodeSettings, directory: DataDir) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_exception_handler(_uncaught)
    store = open_store(
        directory,
        loop,
        partial(_disk_lost, directory),
        engine=settings.engine,
        durability=settings.durability,
        cache_bytes=settings.cache_bytes,
    )
    metrics = Metrics()
    node = _node(settings, directory, store, metrics)
    http = None
    try:
        await node.server.bind(settings.host, settings.port, "--port")
        app = make_app(node, metrics, HttpSettings())
        http = await start_http(app, settings.http_host, settings.http_port, flag="--http-port")
        metrics.watch_node(node)
        metrics.gauge("watches", "Watches open here.", lambda: node.watching.count)
        what = "Bytes sent to other nodes, gossip excepted."
        metrics.total("peer_sent_bytes", what, lambda: node.peers.sent_bytes)
        what = f"Turns of the loop that everybody waited for, of {STALL_MS} ms or more."
        metrics.total("loop_stalls", what, lambda: node.stalls.total)
        what = "The longest turn of the loop in the last one to two minutes."
        metrics.gauge("loop_stall_longest_seconds", what, lambda: node.stalls.longest_ms / 1_000)
        log.info(
            "listening",
            node=settings.name,
            id=f"{node.id:012x}",
            pid=os.getpid(),
            port=settings.port,
            http=settings.http_port,
        )
        if node.membership.is_founded:
            await node.start()  # reads its slots first: nobody is kept waiting for that
            _freeze_objects()
            await node.server.serve()
        else:
            await node.server.serve()  # the other founders ask for it
            start = asyncio.ensure_future(node.start())
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait([start, stopped], return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                _freeze_objects()
            start.cancel()
            stopped.cancel()
        await stop.wait()
        log.info("stopping", node=settings.name)
        await node.retire()
    finally:
        if http is not None:
            await http.cleanup()
        with suppress(EngineError):
            await node.close()
    return 0


def _freeze_objects() -> None:
    """Modules and slots live as long as the node: no need to walk them, now or ever again."""
    gc.freeze()


def _node(settings: NodeSettings, directory: DataDir, store: Store, metrics: Metrics) -> Node:
    """Assembled, not started."""
    space = None
    if settings.engine != "memory":
        space = DiskSpace(directory.path, settings.disk_reserve_bytes)
    return Node(
        Member(
            directory.member_id,
            settings.name,
            settings.advertised_address,
            settings.advertised_http_address,
            settings.zone,
            settings.weight,
        ),
        settings.cluster,
        store.engine,
        store.commit,
        metrics.refused,
        founders=settings.founders,
        join=settings.join,
        replaces=settings.replace,
        slot_count=settings.slot_count,
        replicas=settings.replicas,
        space=space,
        scrub_bytes_per_s=settings.scrub_bytes_per_s,
    )


def _disk_lost(directory: DataDir, error: Exception) -> None:
    """A write or sync failed: exit without another acknowledgement (R12)."""
    log.error("the disk failed; this node stops", error=str(error))
    if isinstance(error, EngineSyncError):
        directory.mark_lost(str(error))
    sys.stderr.flush()
    os._exit(LOST_DISK_STATUS)


def _uncaught(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What no callback caught: a broken invariant ends the node, anything else is logged.

    A handler that failed midway has left a state that nobody has thought about. What is on disk is
    whole, for the batch of that tick was not written: the next start goes on from there (R12).
    """
    error = context.get("exception")
    if not isinstance(error, AssertionError):
        loop.default_exception_handler(context)
        return
    log.error(
        "an invariant does not hold; this node stops. Please report this",
        what=context.get("message"),
        exc_info=error,
    )
    sys.stderr.flush()
    os._exit(BROKEN_INVARIANT_STATUS)
