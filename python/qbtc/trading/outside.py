"""A run's dealings with the outside: which of them its config asks for, opened and closed.

``open_outside`` gives None for a config without ``[bus]``, ``[records]``, ``[risk]`` and
``[replay]``; the host then does nothing for any of them.
"""

import gc
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from qbtc.config import BusConfig, RiskConfig
from qbtc.core.signal_model import SignalModel
from qbtc.errors import ConfigError
from qbtc.messages import Signal
from qbtc.messages.events import TradingSignal
from qbtc.store import database_url, open_store
from qbtc.store.opening import shown
from qbtc.store.recorder import Recorder
from qbtc.trading.bus_link import BusLink, BusPlace
from qbtc.trading.bus_signal import BusSignalActor, BusSignalInbox
from qbtc.trading.desk import OrderDesk
from qbtc.trading.feeds import Feeds
from qbtc.trading.journal import Journal, Listener
from qbtc.trading.market import Market
from qbtc.trading.pace import Pacer
from qbtc.trading.plan import Plan
from qbtc.trading.recording import RunRecords
from qbtc.trading.relay import Relay
from qbtc.trading.result import BusResult, OutsideResult, RecordsResult, RiskResult
from qbtc.trading.risk import RiskGate
from qbtc.trading.strategy import BusSignalHandler, SignalBoard
from qbtc.trading.trap import ExceptionTrap

__all__ = ["Outside", "open_outside"]

AMQP_VARIABLE = "QBTC_AMQP_URL"
PREFIX_VARIABLE = "QBTC_BUS_PREFIX"
FLUSH_S_MAX = 10.0
"""How long the end of a run waits for copies and records on their way."""


class Outside:
    """Everything of one run that is not its node."""

    def __init__(self, plan: Plan, market: Market, folder: Path) -> None:
        config = plan.config
        self.kept: list[Any] = []
        """What must not become garbage while other threads run. Python collects on whichever thread
        happens to allocate; Nautilus's components must be dropped on the one that made them."""
        self._plan = plan
        self._market = market
        self._run_id = folder.name
        self._listeners: list[Listener] = []
        self._journal = Journal(run_id=self._run_id, listeners=self._listeners)
        self._gate = None if config.risk is None else _gate(config.risk, market)
        place = None if config.bus is None else _place(config.bus, config.name)
        self._database = None if config.records is None else database_url(config.records.url)
        self._recorder: Recorder | None = None
        self._records: RunRecords | None = None
        if self._database is not None:
            self._recorder = Recorder(self._database, spool=_spool(folder, self._database))
            self._records = RunRecords(self._recorder, run_id=self._run_id, venue=config.venue.name)
        self.desk: OrderDesk | None = None
        if config.risk is not None or config.bus is not None or self._records is not None:
            self.desk = OrderDesk(
                run_id=self._run_id,
                journal=self._journal,
                gate=self._gate,
                currency=market.currency,
                acted=_nobody if self._records is None else self._records.acted,
            )
            self._listeners.append(self.desk.note)
        if self._records is not None:
            self._listeners.append(self._records.order_event)
        self.bus_board: dict[str, list[BusSignalHandler]] = {
            entry.instrument: [] for entry in config.bus_signals
        }
        self._bus_actors: list[BusSignalActor] = []
        self._relay: Relay | None = None
        self._inbox: BusSignalInbox | None = None
        self._link: BusLink | None = None
        if config.bus is not None and place is not None:
            self._join(config.bus, place)

    def start(self) -> None:
        """Connect.

        Raises
        ------
        QbtcError
            The run wants signals from a bus that is away.
        """
        if self._link is not None:
            self._link.start()

    def listen(self, board: SignalBoard, models: Mapping[str, SignalModel]) -> None:
        """Hear the signals of the run's own models, by instrument, before the strategies do."""
        records = self._plan.config.records
        for instrument, model in models.items():
            if self._relay is not None and "signals" in self._relay.kinds:
                sha256 = hashlib.sha256(model.path.read_bytes()).hexdigest()
                board.listen(instrument, self._relay.signal_handler(instrument, model, sha256))
            if self._records is not None and records is not None and records.signals == "all":
                board.listen(instrument, self._records.published(instrument))

    def actors(self, feeds: Feeds) -> list[Any]:
        """Make the actors that the node needs."""
        config, made = self._plan.config, []
        if config.replay is not None and config.replay.speed > 0:
            made.append(Pacer(self._market.span_ns[0], config.replay.speed))
        for entry in config.bus_signals:
            assert self._inbox is not None, "a bus"
            assert self.desk is not None, "a bus"
            assert config.risk is not None, "checked with the config"
            self._bus_actors.append(
                BusSignalActor(
                    instrument=entry.instrument,
                    inbox=self._inbox,
                    handlers=self.bus_board[entry.instrument],
                    limits=config.risk,
                    desk=self.desk,
                    outcome=_nothing if self._records is None else self._records.bus_signal,
                    feeds=feeds,
                )
            )
        return [*made, *self._bus_actors]

    def watch(self, strategy: Any, trap: ExceptionTrap) -> None:
        """Hear what happens to a strategy's orders."""
        if self.desk is None:
            return
        hear, own = self._journal.hear, strategy.on_order_event

        def on_order_event(event: Any) -> None:
            hear(event)
            own(event)

        trap.watch_handler(on_order_event)
        # Nautilus looks the callback up on the object.
        vars(strategy)["on_order_event"] = on_order_event

    def close(self) -> OutsideResult:
        """Send and write what is on its way, for a bounded time; say what came of it all."""
        bus = records = None
        if self._link is not None and self._relay is not None:
            self._link.stop(flush_s=FLUSH_S_MAX)
            received = Counter(self._inbox.counts) if self._inbox is not None else Counter()
            outcomes: Counter[str] = Counter()
            for actor in self._bus_actors:
                outcomes.update(actor.outcomes)
            if self._inbox is not None:
                outcomes["unheard"] += sum(map(len, self._inbox.waiting.values()))
            bus = BusResult(
                relay=self._relay.counts(),
                received=dict(sorted(received.items())),
                outcomes={name: number for name, number in sorted(outcomes.items()) if number},
                problem=self._link.problem(),
            )
        if self._recorder is not None and self._database is not None:
            self._recorder.flush(FLUSH_S_MAX)
            # Closing can still lose what found no room on disk.
            self._recorder.close()
            records = RecordsResult(
                database=shown(self._database),
                counts=self._recorder.counters(),
                problem=self._recorder.shortfall(),
            )
        risk = None
        if self._gate is not None:
            risk = RiskResult(
                refused=dict(sorted(self._gate.refused.items())), latched=self._gate.latched
            )
        return OutsideResult(bus=bus, records=records, risk=risk)

    def _join(self, bus: BusConfig, place: BusPlace) -> None:
        config = self._plan.config
        self._relay = Relay(
            run_id=self._run_id,
            source=place.source,
            kinds=bus.relay,
            queue_max=bus.queue_max,
            signal_every_ns=round(bus.signal_every_ms * 1e6),
        )
        if {"orders", "fills"} & self._relay.kinds:
            self._listeners.append(self._relay.order_event)
        if config.bus_signals:
            self._inbox = BusSignalInbox(
                instruments=tuple(self.bus_board),
                queue_max=bus.queue_max,
                consumer=f"node/{config.name}",
            )
        self._link = BusLink(
            place,
            relay=self._relay,
            inbox=self._inbox,
            topics=config.bus_signals,
            marks=None if self._database is None else partial(open_store, self._database),
        )


@contextmanager
def open_outside(
    plan: Plan, market: Market, folder: Path
) -> Iterator[tuple[Outside | None, Callable[[], OutsideResult]]]:
    """Open what a config asks for; yield it with what closes it and says what came of it.

    Raises
    ------
    ConfigError
        A URL is missing.
    QbtcError
        The run wants signals from a bus that is away.
    """
    config = plan.config
    sections = (config.bus, config.records, config.risk, config.replay)
    if all(section is None for section in sections):
        yield None, OutsideResult
        return
    told: list[OutsideResult] = []

    def close() -> OutsideResult:
        if not told:
            told.append(outside.close())
        return told[0]

    gc.collect()  # what an earlier node left
    outside = Outside(plan, market, folder)
    try:
        outside.start()
        yield outside, close
    finally:
        close()
        outside.kept.clear()


def _place(bus: BusConfig, name: str) -> BusPlace:
    url = bus.url or os.environ.get(AMQP_VARIABLE)
    if not url:
        raise ConfigError(
            f"[bus] has no url; add one (amqp://user:password@host:5672/) or set {AMQP_VARIABLE}"
        )
    prefix = os.environ.get(PREFIX_VARIABLE, "") if bus.prefix is None else bus.prefix
    return BusPlace(url=url, prefix=prefix, source=f"qbtc/node/{name}")


def _spool(folder: Path, url: str) -> Path:
    """One folder for each database, found again by the next run beside this one."""
    return folder.parent / ".spool" / hashlib.sha256(url.encode()).hexdigest()[:12]


def _gate(limits: RiskConfig, market: Market) -> RiskGate:
    multipliers = {}
    for item in market.sets:
        if item.instrument.is_inverse:
            raise ConfigError(
                f"[risk] cannot value {item.instrument_id}, which settles in its base currency; "
                "leave [risk] out or trade a linear contract"
            )
        multipliers[item.instrument_id] = Decimal(str(item.instrument.multiplier))
    return RiskGate(limits, multipliers)


def _nobody(identity: str, instrument: str, signal: Signal) -> None:
    """Take a signal that was acted on and keep nothing."""


def _nothing(signal: TradingSignal, sender: str, outcome: str) -> None:
    """Take a signal's outcome and keep nothing."""
