"""The run's data: opened, counted and priced before any of it is replayed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import nautilus_trader.model as nt

from qbtc.config import RunConfig, VenueConfig
from qbtc.data.catalog import Dataset
from qbtc.errors import ConfigError, DataError
from qbtc.trading.plan import Plan
from qbtc.trading.replay import Mids, Replay, read_mids, read_replay

__all__ = ["REPLAY_TYPES", "Market", "Opener", "Progress", "iso", "open_market"]

REPLAY_TYPES = {
    "depth": nt.NautilusDataType.OrderBookDelta,
    "trades": nt.NautilusDataType.TradeTick,
    "quotes": nt.NautilusDataType.QuoteTick,
    "bars": nt.NautilusDataType.Bar,
}
"""In the order of replay at equal times."""

type Opener = Callable[..., Dataset]
type Progress = Callable[[str, float], None]
"""Called with what is being done and its share done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Market:
    """The run's data sets with what is to be replayed of them."""

    sets: tuple[Dataset, ...]
    replays: tuple[Replay, ...]
    mids: dict[str, Mids]
    currency: str
    span_ns: tuple[int, int]

    @property
    def items(self) -> int:
        """What the engine will count."""
        return sum(replay.items for replay in self.replays)

    @property
    def has_trades(self) -> bool:
        """Whether queue positions can be tracked."""
        return any("trades" in replay.counts for replay in self.replays)


def open_market(plan: Plan, opener: Opener, progress: Progress) -> Market:
    """Open every data source of a plan.

    Raises
    ------
    InputError
        A source is missing, damaged or empty between ``start`` and ``end``, or does not go
        together with the venue.
    """
    config = plan.config
    start, end = plan.span_ns
    sets, replays = [], []
    for index, source in enumerate(config.data):
        progress(f"opening {source.instrument}", index / len(config.data))
        dataset = opener(source, plan.base)
        types = tuple(name for name in REPLAY_TYPES if name in dataset.types)
        replay = read_replay(dataset.catalog_path, dataset.instrument_id, types, start, end)
        if replay.span_ns is None:
            raise DataError(
                f"{dataset.instrument_id}: no events between start and end; the data spans "
                f"{iso(dataset.span_ns[0])} to {iso(dataset.span_ns[1])}"
            )
        sets.append(dataset)
        replays.append(replay)
    _check_book(config, sets, replays)
    mids = {
        dataset.instrument_id: read_mids(dataset.catalog_path, dataset.instrument_id, start, end)
        for dataset in sets
    }
    spans = [replay.span_ns for replay in replays if replay.span_ns is not None]
    return Market(
        sets=tuple(sets),
        replays=tuple(replays),
        mids=mids,
        currency=_currency(config.venue, sets),
        span_ns=(min(span[0] for span in spans), max(span[1] for span in spans)),
    )


def _check_book(config: RunConfig, sets: Sequence[Dataset], replays: Sequence[Replay]) -> None:
    """Refuse an L2 venue without depth, before it refuses every order."""
    leads = {entry.lead for entry in config.signals}
    for dataset, replay in zip(sets, replays, strict=True):
        name = dataset.instrument_id
        if config.venue.book == "L2" and "depth" not in replay.counts and name not in leads:
            raise ConfigError(
                f'{name}: the data has no depth, so an L2 book stays empty; write book = "L1" '
                "in [venue]"
            )


def _currency(venue: VenueConfig, sets: Sequence[Dataset]) -> str:
    """Find the one currency of balances and profits."""
    if not venue.starting_balances:
        raise ConfigError('no starting_balances in [venue]; write e.g. ["100000 USDT"]')
    currency = venue.starting_balances[0].split()[-1]
    for dataset in sets:
        quote = str(dataset.instrument.quote_currency)
        if quote != currency:
            raise ConfigError(
                f"{dataset.instrument_id} is quoted in {quote}, the account holds {currency}; "
                "a run has one currency"
            )
    return currency


def iso(ns: int) -> str:
    """UNIX ns as ISO 8601 text, UTC."""
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
