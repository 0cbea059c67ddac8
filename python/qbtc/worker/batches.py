"""Items of a stream in batches: few messages for many small pieces, and no piece waits long."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

__all__ = ["batches"]


async def batches[T](
    items: AsyncIterator[T],
    *,
    interval_s: float,
    items_max: int,
    patient: Callable[[T], bool] = lambda _: True,
) -> AsyncGenerator[tuple[T, ...]]:
    """Yield items at once, and together those that come within ``interval_s`` of the last batch.

    After a batch without a ``patient`` item nothing waits. At most ``items_max`` are held; then
    ``items`` has to wait. An exception of ``items`` comes out after what came before it. Closing
    this closes ``items``.
    """
    held: list[T] = []
    there, room = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async for item in items:
            held.append(item)
            there.set()
            while len(held) >= items_max:
                room.clear()
                await room.wait()

    reader = asyncio.ensure_future(read())
    reader.add_done_callback(lambda _: there.set())
    try:
        while held or not reader.done():
            await there.wait()
            there.clear()
            if held:
                batch = tuple(held)
                held.clear()
                room.set()
                yield batch
                if any(map(patient, batch)):
                    await asyncio.wait([reader], timeout=interval_s)
                if held or reader.done():
                    there.set()
        await reader
    finally:
        reader.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled():
            # Whoever closes early does not want to know how it ended.
            reader.exception()
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
