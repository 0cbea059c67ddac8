"""What one node left behind, in plain values: orders, fills and positions out of its cache."""

from dataclasses import dataclass, field
from typing import Any, Literal

import nautilus_trader.model as nt
from nautilus_trader.backtest import BacktestNode

from qbtc.trading.accounting import Fill
from qbtc.trading.market import Market
from qbtc.trading.result import fills_digest
from qbtc.trading.sampling import DurationSampler
from qbtc.trading.signal_actor import SignalActor

__all__ = ["Played", "Status", "take_out"]

type Status = Literal["complete", "partial", "failed"]


@dataclass(slots=True)
class Played:
    """What one node left behind, in plain values: the node itself is gone."""

    name: str
    strategies: list[str]
    """Ids, in the order of the config."""
    events: int = 0
    stopped_ns: int = 0
    """Event time of the last event processed."""
    error: BaseException | None = None
    fills: list[Fill] = field(default_factory=list)
    orders: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """Why orders were rejected or denied, in the order of submission."""
    positions: list[dict[str, Any]] = field(default_factory=list)
    signals: list[SignalActor] = field(default_factory=list)
    sampler: DurationSampler = field(default_factory=DurationSampler)
    build_s: float = 0.0
    run_s: float = 0.0

    @property
    def fills_sha256(self) -> str:
        """Hash of the fills, equal for equal runs."""
        return fills_digest(fill.canonical for fill in self.fills)

    @property
    def status(self) -> Status:
        """How it ended."""
        if self.error is None:
            return "complete"
        return "partial" if isinstance(self.error, KeyboardInterrupt) else "failed"


def take_out(node: BacktestNode, run_id: str, played: Played, market: Market) -> None:
    """Copy orders, fills and positions out of the node's cache."""
    instruments = {item.instrument_id: item.instrument for item in market.sets}
    cache = node.get_engine_cache(run_id)
    orders = sorted(cache.orders(), key=_order_key)
    fills = []
    for order in orders:
        played.orders.append(_order_row(order))
        for number, event in enumerate(order.events()):
            if isinstance(event, nt.OrderFilled):
                key = (event.ts_event, *_order_key(order), number)
                fill = _fill(event, instruments[str(event.instrument_id)], market.currency)
                fills.append((key, fill))
            elif isinstance(event, nt.OrderRejected | nt.OrderDenied):
                played.refusals.append(str(event.reason))
    fills.sort(key=lambda item: item[0])
    played.fills = [fill for _, fill in fills]
    report = node.generate_positions_report(run_id)
    played.positions = [_position_row(row) for row in report.to_dict("records")]
    played.positions.sort(key=lambda row: (row["ts_opened"], row["strategy"], row["instrument"]))


def _order_key(order: Any) -> tuple[int, str, int]:
    """Order of submission: the id ends in the strategy's own count."""
    identity = str(order.client_order_id)
    return order.ts_init, str(order.strategy_id), int(identity.rpartition("-")[2])


def _order_row(order: Any) -> dict[str, Any]:
    price = getattr(order, "price", None)
    return {
        "ts_init": order.ts_init,
        "strategy": str(order.strategy_id),
        "instrument": str(order.instrument_id),
        "side": order.side.name,
        "type": order.order_type.name,
        "quantity": float(order.quantity),
        "filled": float(order.filled_qty),
        "price": None if price is None else float(price),
        "average_price": None if order.avg_px is None else float(order.avg_px),
        "status": order.status.name,
        "ts_last": order.ts_last,
        "order_id": str(order.client_order_id),
    }


def _fill(event: nt.OrderFilled, instrument: Any, currency: str) -> Fill:
    commission = event.commission
    price = float(event.last_px)
    paid = 0.0 if commission is None else float(commission.as_decimal())
    if commission is not None and str(commission.currency) != currency:
        # Spot venues may charge in the asset bought; its worth is the fill's own price.
        assert str(commission.currency) == str(instrument.base_currency), commission
        paid *= price
    strategy = str(event.strategy_id)
    liquidity = event.liquidity_side.name
    return Fill(
        ts_event=event.ts_event,
        strategy=strategy,
        instrument=str(event.instrument_id),
        is_buy=event.is_buy,
        price=price,
        quantity=float(event.last_qty),
        multiplier=float(instrument.multiplier),
        commission=paid,
        is_maker=liquidity == "MAKER",
        order_id=str(event.client_order_id),
        canonical=(
            str(event.ts_event),
            str(event.instrument_id),
            event.order_side.name,
            str(event.last_px),
            str(event.last_qty),
            str(commission),
            liquidity,
            strategy,
        ),
    )


def _position_row(row: dict[str, Any]) -> dict[str, Any]:
    closed = row["ts_closed"]
    sign = 1.0 if str(row["side"]) == "LONG" else -1.0
    close = row["avg_px_close"]
    return {
        "ts_opened": int(row["ts_opened"].value),
        "ts_closed": int(closed.value) if closed == closed and closed is not None else None,
        "strategy": str(row["strategy_id"]),
        "instrument": str(row["instrument_id"]),
        "entry": str(row["entry"]),
        "peak_quantity": float(row["peak_qty"]),
        "average_open": float(row["avg_px_open"]),
        "average_close": None if close is None or close != close else float(close),
        "realized_pnl": float(str(row["realized_pnl"]).split()[0]),
        "open_quantity": sign * float(row["quantity"]) if float(row["quantity"]) else 0.0,
    }
