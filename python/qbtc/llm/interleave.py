"""Several event streams as one, each item as soon as it is there."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

__all__ = ["Interleaved"]


class Interleaved[T](AsyncIterator[T]):
    """Items of ``sources`` as they come; within a source in its order.

    The first exception of a source comes out of the iterator. Closing it closes all sources.
    A waiting ``anext`` that is cancelled loses nothing.
    """

    def __init__(self, sources: Sequence[AsyncIterator[T]]) -> None:
        self._idle = list(sources)
        self._waiting: dict[asyncio.Task[T | None], AsyncIterator[T]] = {}
        self._ready: list[tuple[asyncio.Task[T | None], AsyncIterator[T]]] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            while self._ready:
                task, source = self._ready.pop()
                item = task.result()
                if item is not None:
                    self._idle.append(source)
                    return item
            for source in self._idle:
                self._waiting[asyncio.ensure_future(_next(source))] = source
            self._idle.clear()
            if not self._waiting:
                raise StopAsyncIteration
            done, _ = await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
            self._ready.extend((task, self._waiting.pop(task)) for task in done)

    async def aclose(self) -> None:
        """Cancel and close every source."""
        tasks, sources = list(self._waiting), [*self._idle, *self._waiting.values()]
        for task, source in self._ready:
            tasks.append(task)
            sources.append(source)
        self._waiting.clear()
        self._ready.clear()
        self._idle.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for source in sources:
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()


async def _next[T](source: AsyncIterator[T]) -> T | None:
    return await anext(source, None)
