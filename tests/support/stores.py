"""Databases for tests of stores: each kind, empty, at a URL."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from qbtc.store import Store, open_store


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    """A store with its tables."""
    store = await open_store(url, ready=False)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


def within[T](url: str, work: Callable[[Store], Awaitable[T]]) -> T:
    """Run a test's work on a store."""

    async def go() -> T:
        async with opened(url) as store:
            return await work(store)

    return asyncio.run(go())


async def exported(store: Store, table: str, **bounds: Any) -> list[dict[str, Any]]:
    return [row async for row in store.export(table, **bounds)]
