"""Catch what Nautilus swallows: the first exception that leaves a callback.

Nautilus v2 logs an exception raised in a Python callback and trades on. With
``shutdown_on_error=True`` its engine stops at that event, but ``run()`` still returns as if all
were well. The trap keeps the exception itself, with its traceback, so that the host can raise it.

It listens to the interpreter's own "a frame is left by an exception" event (``sys.monitoring``,
PEP 669, ``PY_UNWIND``), which costs nothing until something is raised. A generated try/except
wrapper around each callback was measured at 50-60 ns per event instead. An exception counts as
swallowed when the frame it leaves was called by Nautilus:

* its caller is the host's own frame, below which there is only Nautilus (market data, timers with
  any callback, topic handlers, ``on_start``, ``on_stop``); or
* it is an ``on_...`` method of a watched component, reached through Nautilus while another callback
  was running (order events inside ``submit_order``, topic handlers inside ``publish_message``).

What a strategy catches itself never leaves its callback and is none of our business.
"""

import sys
from collections.abc import Callable
from types import CodeType, FunctionType, TracebackType
from typing import Self

__all__ = ["ExceptionTrap"]

_PY_UNWIND = sys.monitoring.events.PY_UNWIND


class ExceptionTrap:
    """Context manager; one at a time per process, as there is one engine per process.

    Attributes
    ----------
    error
        The first exception that a callback let out, or None.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._codes: set[CodeType] = set()
        self._host: object = None
        self._tool: int | None = None

    def watch(self, component: object) -> None:
        """Treat every ``on_...`` method of a component's own classes as called by Nautilus."""
        for cls in type(component).__mro__:
            for name, value in vars(cls).items():
                if name.startswith(("on_", "post_")) and isinstance(value, FunctionType):
                    self._codes.add(value.__code__)

    def watch_handler(self, handler: Callable[..., object]) -> None:
        """Treat a function handed to Nautilus (a topic handler) as called by Nautilus."""
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            self._codes.add(code)

    def call[T](self, function: Callable[[], T]) -> T:
        """Call into Nautilus from here."""
        self._host = sys._getframe()
        try:
            return function()
        finally:
            self._host = None

    def __enter__(self) -> Self:
        monitoring = sys.monitoring
        free = [tool for tool in (4, 3, 5, 1, 0, 2) if monitoring.get_tool(tool) is None]
        assert free, "a free sys.monitoring tool id"
        self._tool = free[0]
        monitoring.use_tool_id(self._tool, "qbtc")
        monitoring.register_callback(self._tool, _PY_UNWIND, self._unwound)
        monitoring.set_events(self._tool, _PY_UNWIND)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._tool is not None
        sys.monitoring.set_events(self._tool, 0)
        sys.monitoring.register_callback(self._tool, _PY_UNWIND, None)
        sys.monitoring.free_tool_id(self._tool)
        self._tool = None

    def _unwound(self, code: CodeType, offset: int, error: BaseException) -> None:
        if self.error is not None or self._host is None:
            return
        caller = sys._getframe(1).f_back
        if caller is self._host or (
            code in self._codes
            and caller is not None
            # An override calling super().on_...: the exception is still on its way.
            and caller.f_code.co_name != code.co_name
        ):
            self.error = error
