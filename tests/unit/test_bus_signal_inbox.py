"""Signals from the bus reach the node at most once, whatever the bus and the database do."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from qbtc.errors import MessageError, StoreUnavailable
from qbtc.messages.envelope import Message, message
from qbtc.messages.events import Cancel, TradingSignal
from qbtc.trading import bus_signal
from qbtc.trading.bus_signal import BusSignalInbox

PERP = "BTCUSDT-PERP.BINANCE"
SIGNAL = TradingSignal(
    signal_id="s1",
    instrument=PERP,
    action="BUY",
    confidence=0.6,
    price="100",
    ts_event=1,
    ts_init=1,
)


@dataclass(frozen=True)
class Delivered:
    """A delivery that a test makes up."""

    message: Message
    attempt: str = "1"
    redelivered: bool = False
    last_chance: bool = False

    async def reply(self, message: Message, *, last: bool = True) -> None:
        raise AssertionError("a signal is not answered")


@dataclass
class Book:
    """Marks in memory, slow or away as a test wants."""

    marked: set[str] = field(default_factory=set)
    away: bool = False
    asked: int = 0

    async def write_once(self, message_id: str, *, consumer: str) -> bool:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnavailable("away")
        mark = f"{consumer} {message_id}"
        is_new = mark not in self.marked
        self.marked.add(mark)
        return is_new


def inbox(queue_max: int = 100) -> BusSignalInbox:
    return BusSignalInbox(instruments=(PERP,), queue_max=queue_max, consumer="node/t")


def delivered(key: str | None = None, **changes: Any) -> Delivered:
    data = msgspec.structs.replace(SIGNAL, **changes)
    return Delivered(message(data, source="qbtc/test/1", subject=PERP, idempotencykey=key))


def waiting(box: BusSignalInbox) -> list[str]:
    return [signal.signal_id for signal, _ in box.waiting[PERP]]


async def receive_all(box: BusSignalInbox, *deliveries: Delivered) -> None:
    for delivery in deliveries:
        await box.receive(delivery)


def test_a_signal_waits_once_however_often_it_comes() -> None:
    box = inbox()
    asyncio.run(receive_all(box, *[delivered() for _ in range(10)]))
    assert waiting(box) == ["s1"]
    assert (box.counts["received"], box.counts["duplicate"]) == (10, 9)


def test_two_signals_that_ask_for_the_same_effect_are_one() -> None:
    box = inbox()
    asyncio.run(receive_all(box, delivered("k"), delivered("k", signal_id="s2")))
    assert waiting(box) == ["s1"]


def test_holds_and_other_instruments_do_not_reach_the_node() -> None:
    box = inbox()
    asyncio.run(receive_all(box, delivered(action="HOLD"), delivered(instrument="ETHUSDT.BINANCE")))
    assert waiting(box) == []
    assert box.counts["hold"] == box.counts["unknown_instrument"] == 1


def test_another_kind_of_message_is_a_dead_letter() -> None:
    stray = message(Cancel(request_id="r"), source="qbtc/test/1", subject=PERP)
    with pytest.raises(MessageError, match="on a topic of signals"):
        asyncio.run(inbox().receive(Delivered(stray)))


def test_the_oldest_makes_room_in_a_full_queue_and_is_counted() -> None:
    box = inbox(queue_max=2)
    asyncio.run(receive_all(box, *[delivered(signal_id=f"s{i}") for i in range(5)]))
    assert waiting(box) == ["s3", "s4"]
    assert box.counts["dropped"] == 3


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_signal, "KEYS_MAX", 4)
    box = inbox()
    asyncio.run(receive_all(box, *[delivered(signal_id=f"s{i}") for i in range(9)]))
    assert len(box._seen) == 4


async def marked(box: BusSignalInbox, book: Book, *deliveries: Delivered) -> None:
    """Receive with marks, and let the marking do its work."""
    task = asyncio.create_task(box.mark(book))
    await asyncio.sleep(0)
    await receive_all(box, *deliveries)
    for _ in range(100):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})


def test_a_signal_is_marked_before_the_node_sees_it() -> None:
    box, book = inbox(), Book()
    asyncio.run(marked(box, book, delivered("k")))
    assert waiting(box) == ["s1"]
    assert book.marked == {"node/t s1", "node/t k"}


def test_after_a_restart_the_marks_know_what_was_received() -> None:
    book = Book()
    asyncio.run(marked(inbox(), book, delivered()))
    again = inbox()
    asyncio.run(marked(again, book, delivered(), delivered(signal_id="s2")))
    assert waiting(again) == ["s2"]
    assert again.counts["duplicate"] == 1


def test_while_the_database_is_away_memory_knows_copies_and_nobody_waits() -> None:
    box, book = inbox(), Book(away=True)
    asyncio.run(marked(box, book, delivered("k"), delivered("k"), delivered(signal_id="s2")))
    assert waiting(box) == ["s1", "s2"]
    assert box.counts["unmarked"] == 2
    assert book.asked == 1  # and not again for a while


def test_signals_that_come_faster_than_marks_make_room_for_newer_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bus_signal, "MARKING_MAX", 3)
    box = inbox()
    asyncio.run(marked(box, Book(), *[delivered(signal_id=f"s{i}") for i in range(8)]))
    assert waiting(box)[-3:] == ["s5", "s6", "s7"]
    assert len(waiting(box)) + box.counts["dropped"] == 8
