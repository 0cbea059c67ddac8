"""A whole gateway on loopback, as ``qbtc serve`` puts it together, with an engine of the test's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from qbtc.llm.engine import Engine
from qbtc.store import open_store
from qbtc_gateway.loading import LoadingEngine
from qbtc_gateway.security.keys import KeyFile, KeyRing, new_key
from qbtc_gateway.security.scopes import SCOPES
from qbtc_gateway.server import build_app, listen, make_server
from qbtc_gateway.services import Services
from qbtc_gateway.settings import Settings

START_S_MAX = 30.0


class Whole(msgspec.Struct):
    """Where it is and what is beside it."""

    url: str
    web: httpx.AsyncClient
    services: Services
    engine: LoadingEngine
    key: str = ""


@asynccontextmanager
async def whole_gateway(
    engine: Engine, folder: Path, /, *, key: bool = False, **settings: Any
) -> AsyncIterator[Whole]:
    """Serve for the length of a block; records go to ``folder / "records.db"`` unless named."""
    values = Settings(
        **{"access_log": False, "database_url": database(folder), "load_wait_s_max": 5.0} | settings
    )
    file = KeyFile(folder / "keys.json")
    secret = ""
    if key:
        secret, made = new_key("test", SCOPES)
        file.add(made)
    services = Services(values)

    async def load() -> Engine:
        return services.behind(engine)

    loading = LoadingEngine(load, wait_s_max=values.load_wait_s_max)
    await loading.start()
    sock = listen("127.0.0.1", 0)
    server = make_server(values, build_app(values, loading, KeyRing(file), services))
    task = asyncio.ensure_future(server.serve(sockets=[sock]))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    try:
        async with asyncio.timeout(START_S_MAX):
            while not server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait for
                await asyncio.sleep(0.01)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as web:
            yield Whole(url, web, services, loading, secret)
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, START_S_MAX)
        await loading.close()
        await services.close()


def database(folder: Path) -> str:
    """Return where the records of a gateway in this folder are."""
    return f"sqlite:///{folder / 'records.db'}"


async def rows(url: str, table: str) -> list[dict[str, Any]]:
    """Return the rows of a table, the oldest first."""
    store = await open_store(url)
    try:
        return [row async for row in store.export(table)]
    finally:
        await store.close()
