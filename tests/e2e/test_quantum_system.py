"""The whole language side as processes: client, gateway, RabbitMQ, worker and back, with the rows.

Eight checks bear the names that earlier systems gave theirs; here each can fail. What stands in
for the old Grafana check is the workers' heartbeats.
"""

if __name__ == "__main__":
    # As a script, like the one it is named after: `python tests/e2e/test_quantum_system.py`.
    import subprocess
    import sys

    raise SystemExit(subprocess.call([sys.executable, "-m", "pytest", "-v", __file__]))

import asyncio
import concurrent.futures
import json
import secrets
from collections.abc import Iterator
from typing import Any

import aio_pika
import asyncpg
import httpx
import pytest
from openai import BadRequestError, OpenAI
from tests.support import services
from tests.support.private_servers import running, server_folder
from tests.support.system import Part, System, wait_for

from qbtc.bus import Delivery, Topic, open_bus
from qbtc.bus.topology import EVENTS, LLM_REQUESTS
from qbtc.llm.models import DEFAULT_CHAT_MODEL
from qbtc.messages.events import Health
from qbtc.stack.servers import RedisServer

HEARTBEAT_S_MAX = 60.0
HELLO: list[Any] = [{"role": "user", "content": "Say hello to a friend in one sentence."}]


class Whole:
    """The running system and how to look into it from outside."""

    def __init__(
        self, system: System, gateway: Part, *, amqp_url: str, prefix: str, database: str
    ) -> None:
        self.system = system
        self.gateway = gateway
        self.amqp_url = amqp_url
        self.prefix = prefix
        self.database = database

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.gateway.url}{path}", timeout=60)

    def fetch(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Ask PostgreSQL over a connection of our own."""

        async def go() -> list[dict[str, Any]]:
            link = await asyncpg.connect(self.database, timeout=20)
            try:
                return [dict(row) for row in await link.fetch(query, *values)]
            finally:
                await link.close()

        return asyncio.run(go())

    def row(self, request_id: str) -> dict[str, Any]:
        """Return the row of a request, which comes a moment after its answer."""
        query = "SELECT * FROM qbtc.interactions WHERE request_id = $1"
        rows = wait_for(lambda: self.fetch(query, request_id))
        assert len(rows) == 1, rows
        return rows[0]

    def depth(self) -> int:
        """Return how many requests wait, seen by a new connection to RabbitMQ."""

        async def go() -> int:
            async with await aio_pika.connect(self.amqp_url, timeout=20) as link:
                channel = await link.channel()
                queue = await channel.declare_queue(self.prefix + LLM_REQUESTS, passive=True)
                return queue.declaration_result.message_count or 0

        return asyncio.run(go())

    def figure(self, name: str) -> float:
        """Return a figure of Prometheus, 0 where it is not there yet."""
        found = [
            float(line.rpartition(" ")[2])
            for line in self.get("/metrics").text.splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        return sum(found)


@pytest.fixture(scope="module")
def whole(amqp_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    services.need(services.POSTGRES_URL, "PostgreSQL")
    prefix = f"{services.RUN_ID}.{secrets.token_hex(3)}."
    name = f"{services.RUN_ID}_{secrets.token_hex(3)}"
    database = services.create_database(name)
    try:
        with server_folder() as folder, running(RedisServer(folder / "redis")) as redis:
            variables = {
                "QBTC_AMQP_URL": amqp_url,
                "QBTC_BUS_PREFIX": prefix,
                "QBTC_DATABASE_URL": database,
                "QBTC_REDIS_URL": redis.url,
            }
            system = System(tmp_path_factory.mktemp("system"), variables)
            system.run("db", "migrate")
            system.run("bus", "init")
            with system.gateway("--records", "full") as gateway:
                yield Whole(system, gateway, amqp_url=amqp_url, prefix=prefix, database=database)
    finally:
        services.drop_database(name)
        asyncio.run(_remove(amqp_url, prefix))


async def _remove(url: str, prefix: str) -> None:
    from qbtc.bus.rabbit import remove_topology

    await remove_topology(url, prefix)


@pytest.fixture(scope="module")
def worker(whole: Whole) -> Iterator[Part]:
    with whole.system.worker() as part:
        assert part.line["queues"] == [whole.prefix + LLM_REQUESTS]
        wait_for(lambda: whole.get("/health/ready").status_code == 200)
        yield part


@pytest.fixture(scope="module")
def client(whole: Whole, worker: Part) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{whole.gateway.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_1_health_says_ready_with_all_parts_there(whole: Whole, worker: Part) -> None:
    assert whole.get("/health/live").status_code == 200

    def ready() -> httpx.Response | None:
        answer = whole.get("/health/ready")
        return answer if answer.json() == {"status": "ok"} else None

    # A part that is slow for a moment is said to be away for that moment.
    answer = wait_for(ready)
    assert answer is not None, whole.get("/health/ready").text
    assert answer.status_code == 200


def test_2_a_chat_completion_is_whole_and_counts_its_tokens(client: OpenAI, whole: Whole) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=DEFAULT_CHAT_MODEL, messages=HELLO, max_tokens=24, temperature=0.7, seed=7
    )
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.id
    assert answer.created > 1_700_000_000
    assert answer.model == DEFAULT_CHAT_MODEL
    [choice] = answer.choices
    text = choice.message.content
    assert text
    usage = answer.usage
    assert usage is not None
    # What was said, counted again by asking for its tokens.
    tokens = httpx.post(
        f"{whole.gateway.url}/tokenize",
        json={"model": DEFAULT_CHAT_MODEL, "prompt": text},
        timeout=60,
    ).json()["tokens"]
    # A token that ends the answer is counted and not said.
    assert usage.completion_tokens == len(tokens) + (choice.finish_reason == "stop")
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    rendered = httpx.post(
        f"{whole.gateway.url}/tokenize",
        json={"model": DEFAULT_CHAT_MODEL, "messages": HELLO},
        timeout=60,
    ).json()["tokens"]
    assert usage.prompt_tokens == len(rendered)


def test_3_an_image_is_refused_as_documented_and_names_its_place(client: OpenAI) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    part: Any = {"type": "image_url", "image_url": {"url": pixel}}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(
            model=DEFAULT_CHAT_MODEL,
            messages=[{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}],
        )
    assert refused.value.code == "unsupported_content_type"
    assert refused.value.param == "messages[0].content[1].type"


def test_4_the_row_of_a_request_is_in_postgresql_and_in_an_export(
    client: OpenAI, whole: Whole
) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=DEFAULT_CHAT_MODEL, messages=HELLO, max_tokens=16, temperature=0.3, seed=11
    )
    request_id = raw.headers["x-request-id"]
    answer = raw.parse()
    assert answer.usage is not None
    row = whole.row(request_id)
    assert row["endpoint"] == "/v1/chat/completions"
    assert row["engine"] == "amqp"
    assert row["status"] == 200
    assert row["prompt_tokens"] == answer.usage.prompt_tokens
    assert row["completion_tokens"] == answer.usage.completion_tokens
    said = json.loads(row["response"])["choices"][0]["message"]["content"]
    assert said == answer.choices[0].message.content
    lines = whole.system.run("db", "export", "interactions").splitlines()
    exported = [line for line in map(json.loads, lines) if line["request_id"] == request_id]
    assert len(exported) == 1
    assert exported[0]["completion_tokens"] == answer.usage.completion_tokens


def test_5_prometheus_counts_what_was_asked(client: OpenAI, whole: Whole) -> None:
    asked = 'qbtc_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    sent, read = "qbtc_bus_confirmed_total", 'qbtc_tokens_total{kind="completion"}'
    before = {name: whole.figure(name) for name in (asked, sent, read)}
    answers = [
        client.chat.completions.create(
            model=DEFAULT_CHAT_MODEL, messages=HELLO, max_tokens=5, temperature=0.9, seed=seed
        )
        for seed in range(3)
    ]
    tokens = sum(answer.usage.completion_tokens for answer in answers if answer.usage)

    # They are counted a moment after the answers.
    def counted() -> dict[str, float] | None:
        now = {name: whole.figure(name) for name in before}
        there = now[asked] >= before[asked] + 3 and now[read] >= before[read] + tokens
        return now if there else None

    after = wait_for(counted)
    assert after is not None
    assert after[asked] == before[asked] + 3
    assert after[sent] >= before[sent] + 3
    assert after[read] == before[read] + tokens
    for part in ("bus", "records", "redis"):
        up = f'qbtc_part_up{{part="{part}"}}'
        assert wait_for(lambda up=up: whole.figure(up) == 1), part


def test_6_the_worker_says_that_it_is_well(whole: Whole, worker: Part) -> None:
    async def hear() -> Health:
        bus = await open_bus(whole.amqp_url, prefix=whole.prefix, source="qbtc/test/1")
        heard: asyncio.Future[Health] = asyncio.get_running_loop().create_future()

        async def take(delivery: Delivery) -> None:
            data = delivery.message.data
            if isinstance(data, Health) and data.instance == worker.line["instance"]:
                heard.done() or heard.set_result(data)

        try:
            await bus.subscribe(Topic(exchange=EVENTS, pattern="health.worker"), take)
            return await asyncio.wait_for(heard, HEARTBEAT_S_MAX)
        finally:
            await bus.close()

    health = asyncio.run(hear())
    assert health.service == "worker"
    assert health.status == "ok"
    assert health.counters["bus_done"] > 0


def test_7_a_repeated_question_at_temperature_0_is_answered_from_the_cache(
    client: OpenAI, whole: Whole
) -> None:
    def ask(question: str) -> tuple[str, bool]:
        raw = client.chat.completions.with_raw_response.create(
            model=DEFAULT_CHAT_MODEL,
            messages=[{"role": "user", "content": question}],
            max_tokens=16,
            temperature=0,
        )
        text = raw.parse().choices[0].message.content
        return text, whole.row(raw.headers["x-request-id"])["cache_hit"]

    first, *others = map(ask, ("What is a qubit?", "What is entropy?", "Name a colour."))
    assert not any(hit for _, hit in (first, *others))
    assert len({text for text, _ in (first, *others)}) == 3
    # A Redis that is slow for a moment is not asked for a second, and the answer made again.
    again = wait_for(lambda: found if (found := ask("What is a qubit?"))[1] else None, every_s=1.0)
    assert again == (first[0], True)


def test_8_an_answer_depends_on_the_question_and_not_on_how_often_it_was_asked(
    client: OpenAI, whole: Whole
) -> None:
    """Earlier systems called it evolution; an answer that drifts by itself is a fault."""

    def answer(question: str) -> str | None:
        done = client.chat.completions.create(
            model=DEFAULT_CHAT_MODEL,
            messages=[{"role": "user", "content": question}],
            max_tokens=16,
            temperature=0.8,
            seed=5,
        )
        return done.choices[0].message.content

    same = [answer("Describe the sea.") for _ in range(3)]
    other = answer("Describe a desert.")
    assert len(set(same)) == 1
    assert other not in same


def test_a_stream_through_the_bus_is_what_one_piece_would_be(client: OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": DEFAULT_CHAT_MODEL,
        "messages": HELLO,
        "max_tokens": 24,
        "temperature": 0.8,
        "seed": 3,
    }
    whole_text = client.chat.completions.create(**ask).choices[0].message.content
    chunks = [*client.chat.completions.create(**ask, stream=True)]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole_text
    assert sum(bool(piece) for piece in pieces) > 1


def test_no_queue_is_left_behind_by_many_requests(client: OpenAI, whole: Whole) -> None:
    def ask(seed: int) -> str:
        done = client.chat.completions.create(
            model=DEFAULT_CHAT_MODEL, messages=HELLO, max_tokens=1, temperature=1, seed=seed
        )
        return done.id

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(ask, range(48)))
    assert len(set(ids)) == 48
    assert whole.depth() == 0
    assert wait_for(lambda: whole.figure("qbtc_bus_pending") == 0)


def test_z_a_request_waits_in_its_queue_while_no_worker_is_there(
    client: OpenAI, whole: Whole, worker: Part
) -> None:
    # The last: it takes the worker away.
    worker.kill()
    assert whole.depth() == 0
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            lambda: client.chat.completions.create(
                model=DEFAULT_CHAT_MODEL, messages=HELLO, max_tokens=8, temperature=1, seed=1
            )
        )
        assert wait_for(whole.depth) == 1
        assert not asked.done()
        with whole.system.worker():
            answer = asked.result(120)
            assert answer.choices[0].message.content
            assert whole.depth() == 0
