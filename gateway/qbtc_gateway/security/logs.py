"""JSON lines on stderr: one a request, one an event of the server.

Prompts, answers, query strings and headers are never written. All text is ASCII with control
characters escaped, so that no client can write to a terminal or forge a line.
"""

import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["JsonFormatter", "configure_logging", "write_line"]

TEXT_CHARS_MAX = 500
"""Longer text in a line is cut."""

type Line = dict[str, Any]


def write_line(
    line: Line, *, stream: TextIO | None = None, now: Callable[[], float] = time.time
) -> None:
    """Write one line; values are text, numbers, booleans or None."""
    stamp = datetime.fromtimestamp(now(), tz=UTC).isoformat(timespec="milliseconds")
    fields = {key: _cut(value) for key, value in line.items() if value is not None}
    out = sys.stderr if stream is None else stream
    out.write(_dump({"time": stamp, **fields}))
    out.flush()


class JsonFormatter(logging.Formatter):
    """Records of libraries in the same shape; a traceback becomes one field."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line: Line = {
            "time": datetime.fromtimestamp(record.created, tz=UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _dump(line).rstrip("\n")


def configure_logging() -> None:
    """Send warnings of this server and its libraries to stderr as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_is_news)
    for name in ("qbtc", "qbtc_gateway", "uvicorn", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out that requests were cancelled when the server stopped: their own lines say so."""
    if record.exc_info:
        return not isinstance(record.exc_info[1], asyncio.CancelledError)
    # Starlette reports the end of its lifespan as a text.
    return not record.getMessage().rstrip().endswith("CancelledError")


def _dump(line: Line) -> str:
    return json.dumps(line, ensure_ascii=True).replace("\x7f", "\\u007f") + "\n"


def _cut(value: Any) -> Any:
    return value[:TEXT_CHARS_MAX] if isinstance(value, str) else value
