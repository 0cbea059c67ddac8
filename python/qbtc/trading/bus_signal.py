"""Signals from the bus, for strategies of this node to act on.

Two halves. ``BusSignalInbox`` lives on the thread of the bus: it takes messages that the codec has
checked, leaves out what was received before, and puts the rest into a bounded queue. A
``BusSignalActor`` lives in the node: at the next quote it empties that queue, refuses what is
expired, from the future or far from the market, and hands the rest to the strategies. The node
never waits.

A signal is acted on at most once: it is marked as received, in the database where the run has one,
before the node sees it. A node that dies in between has lost a signal, which is better than a
second order. Where signals come faster than they can be marked, the oldest are left out.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol, Self

from nautilus_trader.common import DataActor, DataActorConfig
from nautilus_trader.model import ActorId, QuoteTick

from qbtc.bus import Delivery
from qbtc.config import RiskConfig
from qbtc.errors import MessageError, StoreError
from qbtc.messages.events import TradingSignal
from qbtc.trading.desk import OrderDesk
from qbtc.trading.feeds import Feeds
from qbtc.trading.risk import bus_signal_refusal
from qbtc.trading.strategy import BusSignalHandler

__all__ = ["BusSignalActor", "BusSignalInbox", "Marks"]

KEYS_MAX = 65_536
"""Ids that are remembered in memory; older ones are also in the database, if there is one."""
MARKING_MAX = 64
"""Signals that wait for their mark; the oldest make room."""
MARK_S_MAX = 2.0
"""How long a mark may take; the database is then away, and memory alone knows copies."""
UNMARKED_S = 5.0
"""How long it is not asked again after that."""


class Marks(Protocol):
    """Remembers beyond this process which messages were done (a ``Store``)."""

    async def write_once(self, message_id: str, *, consumer: str) -> bool:
        """Mark a message; False: it was marked."""
        ...


type Outcome = Callable[[TradingSignal, str, str], None]
"""Told of a signal, its sender and what became of it."""


class BusSignalInbox:
    """Receives signals on the thread of the bus.

    Parameters
    ----------
    instruments
        Of which signals are wanted.
    queue_max
        Signals of an instrument that wait for the node; the oldest make room.
    consumer
        Whose marks count: a node of the same name does not act again after a restart.
    """

    def __init__(self, *, instruments: tuple[str, ...], queue_max: int, consumer: str) -> None:
        self.waiting: dict[str, deque[tuple[TradingSignal, str]]] = {
            name: deque(maxlen=queue_max) for name in instruments
        }
        self.counts: Counter[str] = Counter()
        """Received, hold, duplicate, unknown_instrument, dropped, unmarked."""
        self._consumer = consumer
        self._marking: deque[tuple[TradingSignal, str, set[str]]] | None = None
        self._work = asyncio.Event()
        self._seen: dict[str, None] = {}  # in the order of arrival

    async def receive(self, delivery: Delivery) -> None:
        """Take one message.

        Raises
        ------
        MessageError
            It is not a signal.
        """
        message = delivery.message
        signal = message.data
        if not isinstance(signal, TradingSignal):
            raise MessageError(f"{message.type} on a topic of signals")
        self.counts["received"] += 1
        if signal.instrument not in self.waiting:
            self.counts["unknown_instrument"] += 1
        elif signal.action == "HOLD":
            self.counts["hold"] += 1
        elif not self._is_new(keys := {signal.signal_id, message.idempotencykey}):
            self.counts["duplicate"] += 1
        elif self._marking is None:
            self._hand_over(signal, message.source)
        else:
            self.counts["dropped"] += len(self._marking) == MARKING_MAX
            self._marking.append((signal, message.source, keys))
            self._work.set()

    async def mark(self, marks: Marks) -> None:
        """Mark what is received from now on before the node sees it; runs until cancelled."""
        self._marking = deque(maxlen=MARKING_MAX)
        away_until = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            await self._work.wait()
            self._work.clear()
            while self._marking:
                signal, sender, keys = self._marking.popleft()
                is_new = None
                if clock() >= away_until:
                    is_new = await self._marked(marks, keys)
                    if is_new is None:
                        away_until = clock() + UNMARKED_S
                if is_new is False:
                    self.counts["duplicate"] += 1
                    continue
                self.counts["unmarked"] += is_new is None
                self._hand_over(signal, sender)

    async def _marked(self, marks: Marks, keys: set[str]) -> bool | None:
        """Mark a signal; False: it was marked; None: the database is away."""
        try:
            async with asyncio.timeout(MARK_S_MAX):
                news = [await marks.write_once(key, consumer=self._consumer) for key in keys]
        except (StoreError, TimeoutError):
            return None
        return all(news)

    def _is_new(self, keys: set[str]) -> bool:
        if not self._seen.keys().isdisjoint(keys):
            return False
        self._seen.update(dict.fromkeys(keys))
        while len(self._seen) > KEYS_MAX:
            del self._seen[next(iter(self._seen))]
        return True

    def _hand_over(self, signal: TradingSignal, sender: str) -> None:
        queue = self.waiting[signal.instrument]
        self.counts["dropped"] += len(queue) == queue.maxlen
        queue.append((signal, sender))


class BusSignalActor(DataActor):
    """Hands the signals of one instrument to the strategies, on the node's thread.

    Parameters
    ----------
    instrument
        Nautilus id.
    inbox
        What was received.
    handlers
        Called with every signal that may be acted on, in this order; a live list.
    limits
        Age and distance allowed.
    desk
        Told which signal is being heard.
    outcome
        Told what became of each.
    feeds
        Where quotes come from.
    """

    def __new__(cls, *, instrument: str, **_: object) -> Self:
        """Hand Nautilus its own config; it takes the id here, not in ``__init__``."""
        config = DataActorConfig(actor_id=ActorId(f"BusSignal-{instrument}"), log_events=False)
        return super().__new__(cls, config)  # type: ignore[call-arg]

    def __init__(
        self,
        *,
        instrument: str,
        inbox: BusSignalInbox,
        handlers: list[BusSignalHandler],
        limits: RiskConfig,
        desk: OrderDesk,
        outcome: Outcome,
        feeds: Feeds,
    ) -> None:
        self.instrument = instrument
        self.outcomes: Counter[str] = Counter()
        """Signals by what became of them, without the details."""
        self._feeds = feeds
        self._waiting = waiting = inbox.waiting[instrument]
        self._handlers = handlers
        self._limits = limits
        self._desk = desk
        self._outcome = outcome

        def on_quote(quote: QuoteTick) -> None:
            if waiting:
                self._hand_over(quote)

        vars(self)["on_quote"] = on_quote

    def on_start(self) -> None:
        """Listen to quotes, for the time and the mid."""
        label = f"BusSignal-{self.instrument}"
        self._feeds.listen("quotes", self.instrument, self, label, self.on_quote)

    def _hand_over(self, quote: QuoteTick) -> None:
        mid = (float(quote.bid_price) + float(quote.ask_price)) / 2
        for _ in range(len(self._waiting)):
            signal, sender = self._waiting.popleft()
            outcome = bus_signal_refusal(signal, self._limits, now_ns=quote.ts_init, mid=mid)
            if outcome is None:
                with self._desk.hearing_bus(signal) as so_far:
                    for handler in self._handlers:
                        handler(signal)
                    outcome = so_far()
            self.outcomes[outcome.partition(":")[0]] += 1
            self._outcome(signal, sender, outcome)
