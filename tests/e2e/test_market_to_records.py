"""From a market event to rows in PostgreSQL, through a real broker.

A replay computes features and signals, the relay publishes them, RabbitMQ brings them back, limits
let an order through, the venue fills it, and the records join. In the node's queue wait signals of
a stranger: a good one ten times over, and some that must not be acted on. An observer listens.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pyarrow.parquet as pq
import pytest
from tests.integration.hosted import PERP, model

from qbtc.bus import Delivery, Topic, open_bus
from qbtc.bus.admin import remove_topology
from qbtc.bus.topology import EVENTS, RESPONSES
from qbtc.messages.envelope import message
from qbtc.messages.events import OrderEvent, TradingSignal
from qbtc.store import open_store

STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"
HEARD_S_MAX = 60.0
COPIES = 10
QUEUE = "q_node_signals"
START_NS = 1_704_067_200_000_000_000
"""Of the synthetic market."""
START_PRICE = "60000"
S = 1_000_000_000
STRANGER = "qbtc/test/stranger"
RUN = f"""
name = "market-to-records"
seed = 1

[[data]]
source = "synthetic"
instrument = "{PERP}"
seed = 3
duration_s = 90.0

[replay]
speed = 12.0

[[signals]]
instrument = "{PERP}"
model = "model.safetensors"

[bus]

[[bus_signals]]
instrument = "{PERP}"
durable_name = "{QUEUE}"

[risk]
order_notional_max = 2000.0
position_notional_max = 2000.0
orders_per_minute_max = 10000
signal_age_ms_max = 100000.0
price_deviation_bp_max = 100.0

[records]

[[strategies]]
path = "{STRATEGIES}/bus_taker.py:BusTaker"
params = {{ instrument = "{PERP}", size = 0.02, hold_ms = 400.0 }}
"""


SIGNAL = TradingSignal(
    signal_id="good",
    instrument=PERP,
    action="BUY",
    confidence=0.9,
    price=START_PRICE,
    ts_event=START_NS,
    ts_init=START_NS,
    valid_until=START_NS + 90 * S,
)
BAD = {
    "late": ({"ts_event": START_NS - 9, "valid_until": START_NS - 1}, "expired"),
    "for ever": ({"valid_until": None}, "expired: it has no valid_until"),
    "early": (
        {"ts_event": START_NS + 10**6 * S, "valid_until": START_NS + 10**7 * S},
        "risk: it is from the future",
    ),
    "far": ({"price": "1"}, "risk: its price is 9999"),
}
"""Signals that must not be acted on, and what their rows say."""


async def send_strangers(url: str, prefix: str) -> None:
    """Leave signals in the node's queue before there is a node."""

    async def nothing(_: Delivery) -> None:
        raise AssertionError("nothing was sent yet")

    bus = await open_bus(url, prefix=prefix, source=STRANGER)
    try:
        topic = Topic(exchange=RESPONSES, pattern=f"trading.signal.{PERP}", durable_name=QUEUE)
        await (await bus.subscribe(topic, nothing)).stop()
        strangers = [SIGNAL] * COPIES + [
            msgspec.structs.replace(SIGNAL, signal_id=name.replace(" ", "-"), **changes)
            for name, (changes, _) in BAD.items()
        ]
        for data in strangers:
            await bus.publish(message(data, source=STRANGER, subject=PERP))
    finally:
        await bus.close()


class Observer:
    """Listens to everything that the node says on the bus."""

    def __init__(self, url: str, prefix: str) -> None:
        self.signals: dict[str, TradingSignal] = {}
        self.events: list[OrderEvent] = []
        self._url = url
        self._prefix = prefix
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    async def watch(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        bus = await open_bus(self._url, prefix=self._prefix, source="qbtc/test/observer")
        try:
            for exchange, pattern in ((RESPONSES, "trading.signal.#"), (EVENTS, "order.#")):
                await bus.subscribe(Topic(exchange=exchange, pattern=pattern), self._hear)
            ready.set()
            await self._stop.wait()
        finally:
            await bus.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    def wait(self, *, signals: int, events: int) -> None:
        """Wait until so much was heard, for a bounded time."""
        end = time.monotonic() + HEARD_S_MAX
        while len(self.signals) < signals or len(self.events) < events:
            assert time.monotonic() < end, (len(self.signals), signals, len(self.events), events)
            time.sleep(0.02)

    async def _hear(self, delivery: Delivery) -> None:
        data = delivery.message.data
        if isinstance(data, OrderEvent):
            self.events.append(data)
        elif isinstance(data, TradingSignal):
            self.signals[data.signal_id] = data


@contextlib.contextmanager
def observing(url: str, prefix: str) -> Iterator[Observer]:
    observer, ready = Observer(url, prefix), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(observer.watch(ready)))
    thread.start()
    try:
        assert ready.wait(60)
        yield observer
    finally:
        observer.stop()
        thread.join(60)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def select(url: str, statement: str, *arguments: object) -> list[dict[str, Any]]:
    async def go() -> list[dict[str, Any]]:
        async with connected(url) as connection:
            return [dict(row) for row in await connection.fetch(statement, *arguments)]

    return asyncio.run(go())


async def migrate(url: str) -> None:
    store = await open_store(url, ready=False)
    try:
        await store.migrate()
    finally:
        await store.close()


TRAIL = """
SELECT s.signal_id, s.outcome, s.source, s.action, s.ts_event AS signal_ts, s.price AS signal_price,
       o.order_id, o.side, o.status, o.ts_init AS order_ts,
       f.price, f.quantity, f.commission, f.ts_event AS fill_ts
FROM qbtc.fills f
JOIN qbtc.orders o ON o.scope = f.scope AND o.order_id = f.order_id
JOIN qbtc.signals s ON s.signal_id = o.signal_id AND s.run_id = o.run_id
WHERE f.run_id = $1
ORDER BY f.ts_event
"""


def test_a_market_event_becomes_a_row_through_broker_limits_and_venue(
    here: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    amqp_url: str,
    queue_prefix: str,
    postgres_url: str,
) -> None:
    monkeypatch.setenv("QBTC_AMQP_URL", amqp_url)
    monkeypatch.setenv("QBTC_BUS_PREFIX", queue_prefix)
    monkeypatch.setenv("QBTC_DATABASE_URL", postgres_url)
    asyncio.run(migrate(postgres_url))
    asyncio.run(send_strangers(amqp_url, queue_prefix))
    model(tmp_path / "model.safetensors", horizon_s=30)
    (tmp_path / "run.toml").write_text(RUN)
    try:
        with observing(amqp_url, queue_prefix) as observer:
            code, out, err = here("backtest", "run.toml", "--json")
            assert code == 0, err
            result = json.loads(out)
            bus, records = result["outside"]["bus"], result["outside"]["records"]
            relay = bus["relay"]
            observer.wait(
                signals=relay["signals"]["sent"],
                events=relay["orders"]["sent"] + relay["fills"]["sent"],
            )
    finally:
        asyncio.run(remove_topology(amqp_url, queue_prefix, queues=[QUEUE]))
    run_id = result["run_id"]
    folder = tmp_path / "runs" / run_id
    assert bus["problem"] is None
    assert records["problem"] is None
    assert records["counts"]["waiting"] == 0

    # Every fill stands beside the order and the signal behind it, and is the run's own.
    trail = select(postgres_url, TRAIL, run_id)
    own = pq.read_table(folder / "fills.parquet").to_pylist()
    assert len(own) >= 4
    eighth = Decimal("1e-8")
    assert sorted(
        (row["fill_ts"], row["side"], row["price"], row["quantity"], row["commission"])
        for row in trail
    ) == sorted(
        (
            row["ts_event"],
            row["side"],
            *(Decimal(row[name]).quantize(eighth) for name in ("price", "quantity", "commission")),
        )
        for row in own
    )
    prices = pq.read_table(folder / "prices.parquet")["mid"].to_pylist()
    for row in trail:
        assert row["outcome"] == "acted"
        by_stranger = row["signal_id"] == SIGNAL.signal_id
        assert row["source"] == (STRANGER if by_stranger else "qbtc/node/market-to-records")
        sent = SIGNAL if by_stranger else observer.signals[row["signal_id"]]
        assert (sent.ts_event, Decimal(str(sent.price))) == (row["signal_ts"], row["signal_price"])
        assert row["signal_ts"] <= row["order_ts"] <= row["fill_ts"]
        assert min(prices) * 0.9999 <= row["price"] <= max(prices) * 1.0001

    # One entry in the signal's direction, at most one exit against it.
    sides: dict[str, dict[str, str]] = {}  # of its orders, by signal
    for row in trail:
        sides.setdefault(row["signal_id"], {})[row["order_id"]] = row["side"]
        opposite = {"BUY": "SELL", "SELL": "BUY"}[row["action"]]
        found = list(sides[row["signal_id"]].values())
        assert found in ([row["action"]], [row["action"], opposite])
    assert len(sides) == bus["outcomes"]["acted"] > 1
    assert len(sides[SIGNAL.signal_id]) == 2
    assert bus["received"]["duplicate"] >= COPIES - 1

    # What must not be acted on was not, and says why.
    outcomes = {
        row["signal_id"]: row["outcome"]
        for row in select(postgres_url, "SELECT * FROM qbtc.signals WHERE run_id = $1", run_id)
    }
    for name, (_, says) in BAD.items():
        assert outcomes[name.replace(" ", "-")].startswith(says)
    ordered = {row["signal_id"] for row in select(postgres_url, "SELECT * FROM qbtc.orders")}
    assert ordered == sides.keys()
    marks = {
        row["message_id"]
        for row in select(
            postgres_url,
            "SELECT message_id FROM qbtc.processed_messages WHERE consumer = $1",
            "node/market-to-records",
        )
    }
    assert sides.keys() <= marks

    # The bus was told the same as the records.
    told = {(event.order_id, event.sequence, event.kind) for event in observer.events}
    kept = select(postgres_url, "SELECT * FROM qbtc.order_events WHERE scope = $1", run_id)
    assert told == {(row["order_id"], row["sequence"], row["kind"]) for row in kept}
    assert relay["orders"]["dropped"] == relay["fills"]["dropped"] == 0
