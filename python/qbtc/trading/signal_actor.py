"""From market events to model signals, inside the node.

A ``SignalActor`` hears one instrument's quotes, trades and book changes and makes one call into
Rust per event; features and model live there. In a replay it hears the quotes only: the session has
the events already, as columns of the catalog that the node replays. At a quote the session answers
with a ``Signal``, or None while the features are not warmed up. The actor gives the signal to the
strategies listening on its board, before they see the quote itself, and logs it.

The callbacks are closures made once: names in a closure are read faster than attributes of a
Nautilus component, and there is one branch less per event than with a general handler. Another
venue's quotes come through a ``LeadFeed`` of their own, so that no event asks whose quote it is.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import pyarrow as pa
from nautilus_trader.common import DataActor, DataActorConfig
from nautilus_trader.model import ActorId, OrderBookDeltas, QuoteTick, TradeTick
from numpy.typing import NDArray

from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.signal_model import SignalModel
from qbtc.data.catalog import Dataset
from qbtc.errors import RunFailed
from qbtc.messages import Signal
from qbtc.trading.feeds import Feeds
from qbtc.trading.result import SIGNALS
from qbtc.trading.strategy import SignalHandler

__all__ = [
    "LeadFeed",
    "QuoteSession",
    "SignalActor",
    "SignalLog",
    "SignalSession",
    "Span",
    "event_session",
    "replay_session",
]

REPLAY_EVENTS_MAX = 20_000_000
"""Up to here the events of an instrument are replayed from columns: 48 bytes each, 1 GB."""

type Span = tuple[int | None, int | None]
"""From and to, UNIX ns, both inclusive; None is open."""


class QuoteSession(Protocol):
    """Features and model of an instrument that need only be told its quotes.

    Each method raises ``ValueError`` for an event that is not finite, crossed, of zero size or back
    in time.
    """

    def on_quote_tick(self, tick: object, /) -> Signal | None:
        """Take a quote; answer with the signal, or None while not warmed up."""
        ...

    def drain(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], float | None]:
        """Hand over the signals kept so far, and the out-of-distribution score of the last.

        Probabilities (n, 3), ts (n), mid (n); no score where there are none.
        """
        ...


@runtime_checkable
class SignalSession(QuoteSession, Protocol):
    """Features and model of an instrument that must be told every event.

    The objects are read from Rust, which is quicker than reading four attributes here.
    """

    def on_trade_tick(self, tick: object, /) -> None:
        """Take a trade."""
        ...

    def on_book_deltas(self, deltas: object, /) -> None:
        """Take the level changes of one book update."""
        ...

    def on_lead_quote(self, ts: int, bid: float, ask: float, /) -> None:
        """Take another venue's quote."""
        ...


def event_session(
    model: SignalModel, dataset: Dataset, lead: Dataset | None, span: Span, keep_from_ns: int
) -> SignalSession:
    """Make the features and model of one instrument, to be told every event.

    Its signals are kept from ``keep_from_ns`` on. ``lead`` and ``span`` are for the node, which
    tells the session what it is to hear.
    """
    del lead, span
    instrument = dataset.instrument
    return model.session(
        price_increment=float(instrument.price_increment),
        size_increment=float(instrument.size_increment),
        keep_from_ns=keep_from_ns,
    )


def replay_session(
    model: SignalModel, dataset: Dataset, lead: Dataset | None, span: Span, keep_from_ns: int
) -> QuoteSession:
    """Make the features and model of one instrument, with its events as columns.

    Reading the numbers out of Nautilus's objects costs several times the features, and the node
    replays the same catalog; the signals are the same bits. Heard event by event are: data without
    quotes or with more than ``REPLAY_EVENTS_MAX`` events, and a lead that quotes at a time at which
    the instrument has an event too, since of two instruments only the node knows the order.
    """
    heard = event_session(model, dataset, lead, span, keep_from_ns)
    if not dataset.counts["quotes"] or sum(dataset.counts.values()) > REPLAY_EVENTS_MAX:
        return heard
    columns = _cut(dataset.columns(), span)
    if lead is not None:
        quotes = _cut(lead.columns(), span)
        if np.isin(quotes.ts[quotes.kind == EventKind.QUOTE], columns.ts).any():
            return heard
        columns = columns.with_lead(quotes)
    return model.replay(columns, keep_from_ns=keep_from_ns)


def _cut(columns: EventColumns, span: Span) -> EventColumns:
    """Events of a span; columns of a catalog are never empty."""
    start, end = span
    first = int(columns.ts[0]) if start is None else start
    last = int(columns.ts[-1]) if end is None else end
    return columns.slice_time(first, last + 1)


class SignalLog:
    """Every signal published, in columns, with the out-of-distribution score of a sample.

    The session keeps the signals in Rust (about 10 ns each) and hands them over at every pulse.
    The score costs as much as the model itself, so one signal per pulse has it; the others' is
    null in ``signals.parquet``.
    """

    def __init__(self, instrument: str, session: QuoteSession) -> None:
        self._instrument = instrument
        self._session = session
        self._blocks: list[tuple[Any, Any, Any]] = []  # probabilities (n, 3), ts (n), mid (n)
        self._scores: dict[int, float] = {}  # by ts

    def pull(self) -> None:
        """Take over what the session kept; score the last signal."""
        p, ts, mid, score = self._session.drain()
        if len(ts):
            self._blocks.append((p, ts, mid))
        if score is not None:
            self._scores[int(ts[-1])] = score

    def times(self) -> NDArray[np.int64]:
        """Return the event time of every signal, shape (n,)."""
        self.pull()
        blocks = [ts for _, ts, _ in self._blocks]
        return np.concatenate(blocks) if blocks else np.empty(0, np.int64)

    def table(self) -> Any:
        """Return all signals as a table of schema ``SIGNALS``."""
        ts = self.times()
        if len(ts) == 0:
            return SIGNALS.empty_table()
        p = np.concatenate([block[0] for block in self._blocks]).astype(np.float64)
        mid = np.concatenate([block[2] for block in self._blocks])
        columns = {
            "ts": ts,
            "instrument": [self._instrument] * len(ts),
            "p_down": p[:, 0],
            "p_flat": p[:, 1],
            "p_up": p[:, 2],
            "ood": [self._scores.get(time) for time in ts.tolist()],
            "mid": mid,
        }
        return pa.table(columns, schema=SIGNALS)


class SignalActor(DataActor):
    """Features and model of one instrument.

    Parameters
    ----------
    instrument
        Nautilus id.
    session
        The instrument's features and model.
    handlers
        Called with every signal and its quote, in this order; a live list.
    silent_before_ns
        Publish nothing before this event time (the first after the model's training span).
    feeds
        Where market data comes from.
    """

    def __new__(cls, *, instrument: str, **_: object) -> Self:
        """Hand Nautilus its own config; it takes the id here, not in ``__init__``."""
        config = DataActorConfig(actor_id=ActorId(f"Signal-{instrument}"), log_events=False)
        return super().__new__(cls, config)  # type: ignore[call-arg]

    def __init__(
        self,
        *,
        instrument: str,
        session: QuoteSession,
        handlers: list[SignalHandler],
        silent_before_ns: int,
        feeds: Feeds,
    ) -> None:
        self.instrument = instrument
        self.published = SignalLog(instrument, session)
        self.not_warm = 0
        self.skipped_in_sample = 0
        self._feeds = feeds
        self._hears_all = isinstance(session, SignalSession)
        vars(self)["on_quote"] = self._quote_callback(session, handlers, silent_before_ns)
        if isinstance(session, SignalSession):
            vars(self)["on_trade"] = self._trade_callback(session)
            vars(self)["on_book_deltas"] = self._depth_callback(session)

    @property
    def quotes(self) -> int:
        """Quotes seen so far."""
        return len(self.published.times()) + self.not_warm + self.skipped_in_sample

    def on_start(self) -> None:
        """Listen to what the data has of the instrument."""
        label = f"Signal-{self.instrument}"
        self._feeds.listen("quotes", self.instrument, self, label, self.on_quote)
        if self._hears_all:
            self._feeds.listen("trades", self.instrument, self, label, self.on_trade)
            self._feeds.listen("depth", self.instrument, self, label, self.on_book_deltas)

    def _quote_callback(
        self, session: QuoteSession, handlers: list[SignalHandler], silent_before: int
    ) -> Callable[[QuoteTick], None]:
        core = session.on_quote_tick
        silent = True

        def on_quote(quote: QuoteTick) -> None:
            nonlocal silent
            try:
                signal = core(quote)
            except ValueError as error:
                raise _rejected(error, quote) from error
            if signal is None:
                self.not_warm += 1
                return
            if silent:
                if signal.ts_event < silent_before:
                    self.skipped_in_sample += 1
                    return
                silent = False  # time does not go back: no need to ask again
            for handler in handlers:
                handler(signal, quote)

        return on_quote

    def _trade_callback(self, session: SignalSession) -> Callable[[TradeTick], None]:
        core = session.on_trade_tick

        def on_trade(trade: TradeTick) -> None:
            try:
                core(trade)
            except ValueError as error:
                raise _rejected(error, trade) from error

        return on_trade

    def _depth_callback(self, session: SignalSession) -> Callable[[OrderBookDeltas], None]:
        core = session.on_book_deltas

        def on_book_deltas(deltas: OrderBookDeltas) -> None:
            try:
                core(deltas)
            except ValueError as error:
                raise _rejected(error, deltas) from error

        return on_book_deltas


class LeadFeed(DataActor):
    """Gives another instrument's quotes to a session."""

    def __new__(cls, *, instrument: str, lead: str, session: SignalSession, feeds: Feeds) -> Self:
        """Hand Nautilus its own config; it takes the id here, not in ``__init__``."""
        config = DataActorConfig(actor_id=ActorId(f"Lead-{lead}-{instrument}"), log_events=False)
        return super().__new__(cls, config)  # type: ignore[call-arg]

    def __init__(self, *, instrument: str, lead: str, session: SignalSession, feeds: Feeds) -> None:
        self._lead = lead
        self._feeds = feeds
        core = session.on_lead_quote

        def on_quote(quote: QuoteTick) -> None:
            try:
                core(quote.ts_init, float(quote.bid_price), float(quote.ask_price))
            except ValueError as error:
                raise _rejected(error, quote) from error

        vars(self)["on_quote"] = on_quote

    def on_start(self) -> None:
        """Listen to the lead's quotes."""
        self._feeds.listen("quotes", self._lead, self, f"Lead-{self._lead}", self.on_quote)


def _rejected(error: ValueError, event: object) -> RunFailed:
    text = repr(event)
    facts = text if len(text) <= 400 else f"{text[:400]}..."
    return RunFailed(f"the features rejected an event: {error}; the event: {facts}")
