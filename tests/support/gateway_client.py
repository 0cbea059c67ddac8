"""A gateway in this process, and what its answers look like on the wire."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from openai import AsyncOpenAI
from tests.support.scripted_engine import MODEL
from tests.support.ways import reached

from qbtc.llm.engine import Engine
from qbtc_gateway.app import create_app
from qbtc_gateway.settings import Settings

HELLO = [{"role": "user", "content": "Hi"}]


@asynccontextmanager
async def http_client(engine: Engine, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that reaches the engine on the test's way."""
    async with reached(engine) as answering:
        transport = httpx.ASGITransport(create_app(Settings(**settings), answering))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield http


def send(
    engine: Engine, path: str, body: Any = None, *, method: str = "POST", **settings: Any
) -> httpx.Response:
    """Send one request; a body of bytes goes as it is."""

    async def go() -> httpx.Response:
        async with http_client(engine, **settings) as http:
            if body is None:
                return await http.request(method, path)
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            return await http.request(
                method, path, content=content, headers={"content-type": "application/json"}
            )

    return asyncio.run(go())


def ask(engine: Engine, **body: Any) -> httpx.Response:
    """Send one chat."""
    sent = {"model": MODEL, "messages": HELLO} | body
    return send(engine, "/v1/chat/completions", sent)


def frames(response: httpx.Response) -> list[Any]:
    """Return the data of a stream, without its last ``[DONE]``."""
    found = [line for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert found[-1] == "data: [DONE]", response.text
    return [json.loads(each.removeprefix("data: ")) for each in found[:-1]]


def with_sdk[T](engine: Engine, use: Callable[[AsyncOpenAI], Awaitable[T]]) -> T:
    """Let OpenAI's own client talk to the gateway."""

    async def go() -> T:
        async with (
            http_client(engine) as http,
            AsyncOpenAI(
                base_url="http://gateway/v1", api_key="sk-none", http_client=http, max_retries=0
            ) as sdk,
        ):
            return await use(sdk)

    return asyncio.run(go())
