"""Logging: structured lines from structlog through the standard library's loggers.

Inside a program (`kvstore.open`) the program decides what becomes of them, as with any library: by
default nothing below a warning is shown. A process of ours calls `configure_logging`.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")
FORMS: Final = ("auto", "text", "json")

# Shared by our own lines and those of libraries.
_SHARED: Final[list[Any]] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]


def get_logger(name: str) -> Any:
    """A structlog logger that hands its events to ``logging.getLogger(name)``."""
    return structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def configure_logging(level: str = "info", form: str = "auto") -> None:
    """Send this process's log to stderr.

    Args:
        level: One of `LEVELS`, for our own packages; others are heard from "warning" on.
        form: "text", "json" (one object a line), or "auto": text on a terminal, else JSON.
    """
    terminal = sys.stderr.isatty()
    renderer: Any
    if form == "json" or (form == "auto" and not terminal):
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=24)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                *_SHARED,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in ("kvstore", "cluster"):
        logging.getLogger(package).setLevel(level.upper())
