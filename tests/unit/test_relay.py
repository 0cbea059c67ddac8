"""Copies for the bus: bounded, the oldest make room, and every one is accounted for."""

import asyncio
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qbtc.bus import Bus
from qbtc.core.signal_model import SignalModel
from qbtc.errors import BusUnavailable
from qbtc.messages.codec import decode, encode
from qbtc.messages.envelope import Message
from qbtc.messages.events import Fill, OrderEvent, TradingSignal, likeliest
from qbtc.trading.desk import signal_id
from qbtc.trading.relay import Relay, price_text, signal_message

PERP = "BTCUSDT-PERP.BINANCE"
MODEL = cast(
    "SignalModel",
    SimpleNamespace(
        path=Path("m.safetensors"), metadata=SimpleNamespace(label_horizon_ns=1_000_000_000)
    ),
)
FILL = Fill(
    trade_id="t",
    price="1.5",
    quantity="2",
    commission="0.1",
    commission_currency="USDT",
    liquidity="taker",
)


@dataclass(frozen=True)
class Said:
    """A signal as a test wants it."""

    ts_event: int
    p_down: float = 0.2
    p_up: float = 0.5
    mid: float = 60_000.25
    entropy: float = 0.8
    margin: float = 0.2
    ood: float = 0.5

    @property
    def p_flat(self) -> float:
        return 1 - self.p_up - self.p_down


@dataclass
class Wire:
    """A bus of which a test says what becomes of messages."""

    away: bool = False
    stuck: bool = False
    sent: list[Message] = field(default_factory=list)

    async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
        if self.stuck:
            await asyncio.sleep(timeout_s)
        if self.away:
            raise BusUnavailable("away")
        self.sent.append(decode(encode(message)))


def event(sequence: int, fill: Fill | None = None) -> OrderEvent:
    return OrderEvent(
        order_id="o1",
        sequence=sequence,
        kind="accepted" if fill is None else "filled",
        run_id="run",
        strategy="S-001",
        instrument=PERP,
        side="BUY",
        order_type="MARKET",
        quantity="2",
        status="ACCEPTED",
        fill=fill,
        ts_event=1,
        ts_init=1,
    )


def relay(queue_max: int = 100, kinds: tuple[str, ...] = ("signals", "orders", "fills")) -> Relay:
    return Relay(run_id="run", source="qbtc/node/t", kinds=kinds, queue_max=queue_max)


def send(made: Relay, wire: Wire, *, timeout_s: float = 10.0) -> None:
    async def go() -> None:
        stopped = asyncio.Event()
        stopped.set()
        task = asyncio.create_task(made.run(cast("Bus", wire), stopped))
        await asyncio.wait({task}, timeout=timeout_s)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(go())


def test_every_copy_is_sent_with_an_id_that_a_second_sending_would_repeat() -> None:
    ids = []
    for _ in range(2):
        made, wire = relay(), Wire()
        handler = made.signal_handler(PERP, MODEL, "ab" * 32)
        for ts in range(1, 101):
            handler(Said(ts), None)
        made.order_event(event(0), cast("Any", None))
        made.order_event(event(1, FILL), cast("Any", None))
        send(made, wire)
        counts = {kind: (item.sent, item.dropped) for kind, item in made.counts().items()}
        assert counts == {"signals": (100, 0), "orders": (1, 0), "fills": (1, 0)}
        ids.append({message.id for message in wire.sent})
    assert ids[0] == ids[1]
    assert len(ids[0]) == 102


def test_a_flood_of_signals_pushes_out_old_signals_and_no_order() -> None:
    made, wire = relay(queue_max=10), Wire()
    handler = made.signal_handler(PERP, MODEL, "")
    made.order_event(event(0), cast("Any", None))
    for ts in range(1, 1001):
        handler(Said(ts), None)
    send(made, wire)
    counts = made.counts()
    assert (counts["signals"].sent, counts["signals"].dropped) == (10, 990)
    assert (counts["orders"].sent, counts["orders"].dropped) == (1, 0)
    heard = [item.data.ts_event for item in wire.sent if isinstance(item.data, TradingSignal)]
    assert heard == list(range(991, 1001))


@pytest.mark.parametrize("wire", [Wire(away=True), Wire(stuck=True)])
def test_what_the_bus_does_not_take_is_counted(wire: Wire) -> None:
    made = relay(queue_max=200)
    handler = made.signal_handler(PERP, MODEL, "")
    for ts in range(1, 151):
        handler(Said(ts), None)
    made.order_event(event(0, FILL), cast("Any", None))
    send(made, wire, timeout_s=0.2)
    counts = made.counts()
    assert (counts["signals"].sent, counts["signals"].dropped) == (0, 150)
    assert (counts["fills"].sent, counts["fills"].dropped) == (0, 1)


def test_what_makes_room_while_the_bus_takes_is_counted_once() -> None:
    made, offered = relay(queue_max=1), 40_000
    over, taken = threading.Event(), 0

    def take() -> None:
        nonlocal taken
        while not over.is_set() or made._events:
            taken += made._next() is not None

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        bus = threading.Thread(target=take)
        bus.start()
        item, state = event(0), cast("Any", None)
        for _ in range(offered):
            made.order_event(item, state)
        over.set()
        bus.join()
    finally:
        sys.setswitchinterval(interval)
    assert taken + made.counts()["orders"].dropped == offered


def test_signals_can_be_thinned_out_by_event_time() -> None:
    made, wire = (
        Relay(run_id="run", source="s", kinds=("signals",), queue_max=99, signal_every_ns=10),
        Wire(),
    )
    handlers = [made.signal_handler(name, MODEL, "") for name in (PERP, "ETHUSDT.BINANCE")]
    for ts in range(1, 41):
        for handler in handlers:
            handler(Said(ts), None)
    send(made, wire)
    times = [item.data.ts_event for item in wire.sent if isinstance(item.data, TradingSignal)]
    assert times == [1, 1, 11, 11, 21, 21, 31, 31]
    assert made.counts()["signals"].dropped == 0


def test_a_kind_that_is_not_asked_for_is_not_copied() -> None:
    made, wire = relay(kinds=("fills",)), Wire()
    made.order_event(event(0), cast("Any", None))
    made.order_event(event(1, FILL), cast("Any", None))
    send(made, wire)
    assert [type(item.data).__name__ for item in wire.sent] == ["OrderEvent"]
    assert made.counts().keys() == {"fills"}


def test_a_message_says_what_the_signal_says_and_until_when_it_is_good() -> None:
    said = signal_message(Said(5), run_id="run", instrument=PERP, horizon_ns=7)
    assert (said.action, said.confidence, said.price) == ("BUY", 0.5, "60000.25")
    assert (said.ts_event, said.valid_until, said.horizon_ns) == (5, 12, 7)
    assert said.signal_id == signal_id("run", PERP, Said(5))
    down = signal_message(Said(5, 0.6, 0.1), run_id="run", instrument=PERP, horizon_ns=7)
    assert down.action == "SELL"
    flat = signal_message(Said(5, 0.1, 0.1), run_id="run", instrument=PERP, horizon_ns=7)
    assert flat.action == "HOLD"


@pytest.mark.parametrize(
    ("chances", "said"),
    [
        ((0.5, 0.2, 0.3), ("SELL", 0.5)),
        ((0.4, 0.4, 0.2), ("HOLD", 0.4)),
        ((0.2, 0.4, 0.4), ("HOLD", 0.4)),
        ((0.4, 0.2, 0.4), ("HOLD", 0.2)),
        ((1 / 3, 1 / 3, 1 / 3), ("HOLD", 1 / 3)),
    ],
)
def test_of_two_that_are_as_likely_none_is_acted_on(
    chances: tuple[float, float, float], said: tuple[str, float]
) -> None:
    assert likeliest(*chances) == said


def test_signals_that_differ_have_ids_that_differ() -> None:
    ids = {
        signal_id(run, name, Said(ts, p_up=p))
        for run in ("a", "b")
        for name in (PERP, "ETHUSDT.BINANCE")
        for ts in (1, 2)
        for p in (0.5, 0.6)
    }
    assert len(ids) == 16


def test_a_price_is_written_without_an_exponent() -> None:
    assert [price_text(x) for x in (60_000.25, 1e-7, 100.0, 0.1 + 0.2)] == [
        "60000.25",
        "0.0000001",
        "100",
        "0.3",
    ]


def test_what_nobody_foresaw_ends_the_relay() -> None:
    class Broken(Wire):
        async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
            raise ZeroDivisionError

    one, stopped = relay(), asyncio.Event()
    one.order_event(event(0), cast("Any", None))
    stopped.set()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(one.run(cast("Bus", Broken()), stopped))
    assert one.counts()["orders"].dropped == 1
