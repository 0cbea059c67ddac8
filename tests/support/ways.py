"""The ways from a gateway to its engine: in this process, or through a bus to a worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

import msgspec

from qbtc.bus import open_bus
from qbtc.llm.engine import Engine
from qbtc.llm.remote import BusEngine
from qbtc.worker.language import serve_language

FINISH_S: Final = 10.0
CONCURRENCY: Final = 2_000


class Way(msgspec.Struct, frozen=True):
    """A way: no URL is the direct one."""

    url: str | None = None
    prefix: str = ""


DIRECT: Final = Way()
MEMORY: Final = Way("memory://")

way: ContextVar[Way] = ContextVar("way", default=DIRECT)
"""The one that this test takes."""


@asynccontextmanager
async def reached(engine: Engine) -> AsyncIterator[Engine]:
    """The engine as the gateway sees it on the test's way; what it works on ends with the block."""
    taken = way.get()
    if taken.url is None:
        yield engine
        return
    # Two connections, as two processes have; in this process there can only be one.
    here = await open_bus(taken.url, prefix=taken.prefix, source="qbtc/gateway/test")
    there = here
    if taken.url != "memory://":
        there = await open_bus(taken.url, prefix=taken.prefix, source="qbtc/worker/test")
    worker = await serve_language(there, engine, source="qbtc/worker/test", concurrency=CONCURRENCY)
    remote = BusEngine(here, source="qbtc/gateway/test")
    try:
        yield remote
    finally:
        await remote.close()
        async with asyncio.timeout(FINISH_S):
            while worker.active:  # noqa: ASYNC110 - a bus offers nothing to wait for
                await asyncio.sleep(0.001)
        await worker.stop()
        await there.close()
        if here is not there:
            await here.close()
