"""Single key presses from a terminal, without echo and without waiting for Enter."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Self


class Keyboard:
    """While this is entered, `read` gives key presses; Ctrl-C still interrupts."""

    def __enter__(self) -> Self:
        self._descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        return self

    def __exit__(self, *exception: object) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def read(self, timeout_s: float) -> str:
        """The next key, or an empty text if none is pressed in time."""
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        return os.read(self._descriptor, 1).decode(errors="replace") if ready else ""
