"""Processes of other people's servers: started with a log, waited for, ended by their ids."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from scripts.bench import STOP_SIGNALS
from scripts.bench_loops import PhaseFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scripts.compare.store import Store

STOP_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.05
LOG_LINES_SHOWN: Final = 5


class Processes:
    """What was started and not yet stopped."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []

    @property
    def pids(self) -> list[int]:
        """In the order of their start."""
        return [process.pid for process, _ in self._running]

    def start(self, name: str, command: list[str]) -> None:
        """Start one; what it says goes to ``name.log``."""
        log_path = self._directory / f"{name}.log"
        with log_path.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for us, who stop it cleanly.
            process = subprocess.Popen(
                command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append((process, log_path))

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Ask again and again whether everything serves.

        Raises:
            PhaseFailed: a process ended, or not everything serves in time; with the end of a log.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            for process, log_path in self._running:
                if process.poll() is not None:
                    raise PhaseFailed(
                        f"{process.args!r} ended with status {process.returncode}; the end of its "
                        f"log:\n{tail(log_path)}"
                    )
            if time.monotonic() > deadline:
                logs = "\n".join(f"{path.name}:\n{tail(path)}" for _, path in self._running)
                raise PhaseFailed(f"not ready after {timeout_s:.0f} s; the logs end with\n{logs}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Stop all cleanly; whoever does not listen is killed."""
        for process, _ in self._running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process, _ in self._running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def kill(self) -> None:
        """End all at once."""
        for process, _ in self._running:
            process.kill()
        for process, _ in self._running:
            process.wait()
        self._running.clear()


@contextmanager
def stopping(store: Store) -> Iterator[None]:
    """Stop the store at the end, whatever it was that ended, and whoever else wants to stop us."""
    try:
        yield
    finally:
        before = [signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS]
        try:
            store.stop()
        finally:
            for number, handler in zip(STOP_SIGNALS, before, strict=True):
                signal.signal(number, handler)


def tail(path: Path) -> str:
    """The last lines of a log."""
    lines = path.read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in lines[-LOG_LINES_SHOWN:])
