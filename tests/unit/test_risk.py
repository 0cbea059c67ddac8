"""No sequence of orders and signals gets past the limits, and nothing keeps a position open."""

from dataclasses import dataclass
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbtc.config import RiskConfig
from qbtc.messages.events import TradingSignal
from qbtc.trading.risk import MINUTE_NS, RiskGate, bus_signal_refusal

PERP = "BTCUSDT-PERP.BINANCE"
LIMITS = RiskConfig(
    order_notional_max=1_000.0, position_notional_max=2_500.0, orders_per_minute_max=4
)
PRICE = Decimal(100)
S = 1_000_000_000


@dataclass
class Desk:
    """Sends orders through a gate, as a strategy would."""

    gate: RiskGate
    now_ns: int = 0
    count: int = 0

    def send(
        self,
        quantity: float,
        *,
        buy: bool = True,
        price: Decimal | None = PRICE,
        worst: Decimal | None = None,
        strategy: str = "A",
        reduce_only: bool = False,
        at_once: bool = True,
    ) -> str | None:
        self.count += 1
        return self.gate.admit(
            f"o{self.count}",
            strategy=strategy,
            instrument=PERP,
            is_buy=buy,
            quantity=Decimal(str(quantity)),
            price=price,
            worst=worst,
            reduce_only=reduce_only,
            at_once=at_once,
            now_ns=self.now_ns,
        )

    def change(self, number: int, quantity: float, *, worst: Decimal | None = None) -> str | None:
        """Ask for a change of an order."""
        count, self.count = self.count, number - 1
        refusal = self.send(quantity, worst=worst, at_once=False)
        self.count = count
        return refusal

    def fill(
        self,
        quantity: float,
        *,
        buy: bool = True,
        price: Decimal = PRICE,
        number: int = 0,
        strategy: str = "A",
    ) -> None:
        self.gate.filled(
            f"o{number or self.count}",
            strategy=strategy,
            instrument=PERP,
            is_buy=buy,
            quantity=Decimal(str(quantity)),
            price=price,
            commission=Decimal("0.1"),
        )


def desk(limits: RiskConfig = LIMITS) -> Desk:
    return Desk(RiskGate(limits, {PERP: Decimal(1)}))


def test_an_order_above_its_notional_is_refused_and_counted() -> None:
    book = desk()
    assert book.send(10) is None
    assert book.send(10.01) == "risk: order of 1001.00 is above order_notional_max 1000.0"
    assert book.gate.refused == {"order_notional_max": 1}


def test_a_limit_price_above_the_market_is_what_the_order_may_cost() -> None:
    refusal = desk().send(9, worst=Decimal(120))
    assert refusal is not None
    assert "order_notional_max" in refusal


def test_orders_on_their_way_count_as_filled_until_they_are_closed() -> None:
    book = desk()
    assert book.send(10) is None
    assert book.send(10) is None
    refusal = book.send(6)
    assert refusal is not None
    assert "position_notional_max" in refusal
    book.gate.closed("o2", instrument=PERP)
    assert book.send(6) is None


def test_the_fifth_order_of_a_minute_waits_for_the_next() -> None:
    book = desk()
    for second in range(4):
        book.now_ns = second * S
        assert book.send(1) is None
    refusal = book.send(1)
    assert refusal is not None
    assert "orders_per_minute_max is 4" in refusal
    book.now_ns = MINUTE_NS
    assert book.send(1) is None


def test_what_only_reduces_a_position_is_never_refused() -> None:
    book = desk(msgspec.structs.replace(LIMITS, orders_per_minute_max=1, drawdown_max=50))
    assert book.send(10) is None
    book.fill(10)
    book.gate.mark(PERP, Decimal(90))
    assert book.gate.latched
    assert book.send(10, buy=False, price=Decimal(90)) is None
    refusal = book.send(1, buy=False, price=Decimal(90))  # beyond the position: it would open
    assert refusal is not None
    assert "drawdown_max" in refusal


def test_the_drawdown_latch_stays_when_the_market_comes_back() -> None:
    book = desk(msgspec.structs.replace(LIMITS, drawdown_max=50))
    assert book.send(10) is None
    book.fill(10)
    book.gate.mark(PERP, Decimal("94"))
    book.gate.mark(PERP, Decimal("120"))
    assert book.send(1) == "risk: equity has fallen by more than drawdown_max"


def test_an_order_without_a_market_price_is_refused() -> None:
    assert desk().send(1, price=None) == "risk: no market price to value the order at"


def test_a_refused_change_leaves_the_order_as_it_was() -> None:
    book = desk()
    assert book.send(5) is None
    book.count = 0
    assert book.send(11) is not None
    book.count = 1
    assert book.send(10) is None
    assert book.send(10) is None  # 5 + 10 + 10: all that the position's limit allows
    assert book.send(0.1) is not None


def test_a_smaller_order_counts_as_the_larger_one_until_the_change_is_done() -> None:
    book = desk()
    for _ in range(2):
        assert book.send(10) is None
    book.count = 0
    assert book.send(1) is None  # makes the first one smaller
    book.count = 2
    assert book.send(6) is not None
    book.gate.changed("o1", instrument=PERP, leaves=Decimal(1), worst=None)
    book.count = 2
    assert book.send(6) is None


@pytest.mark.parametrize("quantity", [0, -0.029])
def test_an_order_of_nothing_is_refused_and_does_not_make_room(quantity: float) -> None:
    book = desk()
    refusal = book.send(quantity)
    assert refusal is not None
    assert "nothing to fill" in refusal
    for _ in range(2):
        assert book.send(10) is None
    assert book.send(6) is not None


def test_a_change_that_the_venue_refuses_counts_no_longer() -> None:
    book = desk()
    for _ in range(2):
        assert book.send(5) is None
    assert book.change(1, 10) is None
    book.gate.changed("o1", instrument=PERP, leaves=Decimal(5), worst=None)
    assert book.send(10) is None
    assert book.gate.refused == {}


def test_an_answer_to_one_change_leaves_the_next_one_counted() -> None:
    book = desk(msgspec.structs.replace(LIMITS, orders_per_minute_max=10))
    assert book.send(5) is None
    assert book.change(1, 6) is None
    assert book.change(1, 10) is None
    book.gate.changed("o1", instrument=PERP, leaves=Decimal(6), worst=None)
    assert book.send(10) is None
    assert book.send(6) is not None
    book.gate.changed("o1", instrument=PERP, leaves=Decimal(6), worst=None)  # the other is refused
    assert book.send(6) is None


def test_a_change_of_price_is_valued_with_the_size_that_is_on_its_way() -> None:
    book = desk()
    assert book.send(5) is None
    assert book.change(1, 10) is None
    refusal = book.change(1, 5, worst=Decimal(150))
    assert refusal is not None
    assert "order of 1500.00" in refusal


def test_a_working_order_counts_at_the_price_that_it_names() -> None:
    book = desk()
    for _ in range(2):
        assert book.send(5, worst=Decimal(200)) is None
    refusal = book.send(6)
    assert refusal is not None
    assert "position of 2600.00" in refusal


def test_a_changed_order_counts_at_the_worse_price_until_the_change_is_done() -> None:
    book = desk(msgspec.structs.replace(LIMITS, orders_per_minute_max=10))
    assert book.send(5, worst=Decimal(200)) is None
    assert book.send(10) is None
    assert book.change(1, 5) is None
    assert book.send(6) is not None
    book.gate.changed("o1", instrument=PERP, leaves=Decimal(5), worst=None)
    assert book.send(6) is None


def latched() -> Desk:
    """Make a desk that is long 10 and may open nothing any more."""
    book = desk(msgspec.structs.replace(LIMITS, drawdown_max=50))
    assert book.send(10) is None
    book.fill(10)
    book.gate.mark(PERP, Decimal(90))
    assert book.gate.latched
    return book


def test_a_reduce_only_order_is_never_refused() -> None:
    book = latched()
    for _ in range(6):  # together far more than the position: the venue caps them
        assert book.send(10, buy=False, reduce_only=True, at_once=False) is None
    assert book.gate.refused == {}


def test_reduce_only_orders_take_no_room_from_others() -> None:
    book = desk()
    for _ in range(2):
        assert book.send(10, buy=False, reduce_only=True, at_once=False) is None
    assert book.send(10, buy=False) is None


def test_after_the_latch_an_exit_that_may_rest_must_be_reduce_only() -> None:
    book = latched()
    refusal = book.send(10, buy=False, at_once=False)
    assert refusal is not None
    assert "drawdown_max" in refusal
    assert book.send(10, buy=False, at_once=False, reduce_only=True) is None


def test_after_the_latch_exits_at_once_close_only_what_no_other_exit_does() -> None:
    book = latched()
    assert book.send(4, buy=False, at_once=False, reduce_only=True) is None
    assert book.send(7, buy=False) is not None
    assert book.send(6, buy=False) is None


def test_what_would_turn_a_position_around_later_counts_in_full() -> None:
    """Another order may close the position before."""
    book = desk(msgspec.structs.replace(LIMITS, order_notional_max=5_000))
    assert book.send(20, buy=False) is None
    book.fill(20, buy=False)
    refusal = book.send(40, at_once=False)
    assert refusal is not None
    assert "position of 4000.00" in refusal
    assert book.send(40) is None  # at once: from -20 to 20


def test_what_a_reduce_only_order_closes_is_not_set_off_twice() -> None:
    book = desk(msgspec.structs.replace(LIMITS, order_notional_max=5_000))
    assert book.send(20, buy=False) is None
    book.fill(20, buy=False)
    assert book.send(20, reduce_only=True, at_once=False) is None
    assert book.send(40) is not None


def test_the_exit_of_one_strategy_cannot_take_another_beyond_the_limit() -> None:
    book = desk()
    for strategy, buy in (("A", True), ("B", False)):
        for _ in range(2):
            assert book.send(10, buy=buy, strategy=strategy) is None
            book.fill(10, buy=buy, strategy=strategy)
    assert book.gate.position(PERP) == 0
    assert book.send(10, strategy="A") is not None  # B may leave, and A alone would be above
    book.now_ns = MINUTE_NS
    assert book.send(20, strategy="B", reduce_only=True) is None
    book.fill(20, strategy="B")
    assert book.gate.position(PERP) * PRICE <= 2_500


def test_one_strategy_does_not_reduce_the_position_of_another() -> None:
    book = latched()
    assert book.send(10, buy=False, strategy="B") is not None
    assert book.send(10, buy=False, strategy="A") is None


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["send", "fill", "close", "change"]),
        st.booleans(),
        st.decimals("0.01", "40", places=2),
        st.integers(0, 30),
        st.integers(0, 20 * S),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_no_sequence_gets_past_the_limits(
    actions: list[tuple[str, bool, Decimal, int, int]],
) -> None:
    limits = msgspec.structs.replace(LIMITS, drawdown_max=None)
    gate = RiskGate(limits, {PERP: Decimal(1)})
    working: dict[str, tuple[bool, Decimal]] = {}
    position, now = Decimal(0), 0
    opened: list[int] = []
    for number, (what, buy, quantity, pick, wait) in enumerate(actions):
        now += wait
        chosen = list(working)[pick % len(working)] if working else None
        match what, chosen:
            case ("send", _) | ("change", str()):
                changed = what == "change" and chosen is not None
                order_id = chosen if changed and chosen is not None else f"o{number}"
                buy = working[order_id][0] if changed else buy
                others = sum(
                    (q for name, (b, q) in working.items() if b == buy and name != order_id),
                    Decimal(0),
                )
                signed = position if buy else -position
                reduces = others + quantity <= -signed
                reason = gate.admit(
                    order_id,
                    strategy="A",
                    instrument=PERP,
                    is_buy=buy,
                    quantity=quantity,
                    price=PRICE,
                    worst=None,
                    reduce_only=False,
                    at_once=not changed,
                    now_ns=now,
                )
                if reduces:
                    assert reason is None
                if reason is None:
                    working[order_id] = (buy, quantity)
                    if changed:
                        gate.changed(order_id, instrument=PERP, leaves=quantity, worst=None)
                    if not reduces:
                        opened.append(now)
                        assert quantity * PRICE <= 1_000
            case ("fill", str()):
                assert chosen is not None
                side, leaves = working[chosen]
                done = min(quantity, leaves)
                position += done if side else -done
                gate.filled(
                    chosen,
                    strategy="A",
                    instrument=PERP,
                    is_buy=side,
                    quantity=done,
                    price=PRICE,
                    commission=Decimal(0),
                )
                working[chosen] = (side, leaves - done)
                if leaves == done:
                    del working[chosen]
            case ("close", str()):
                assert chosen is not None
                gate.closed(chosen, instrument=PERP)
                del working[chosen]
        assert gate.position(PERP) == position
        assert abs(position) * PRICE <= 2_500
        assert sum(now - MINUTE_NS < time for time in opened) <= 4


SIGNAL = TradingSignal(
    signal_id="s",
    instrument=PERP,
    action="BUY",
    confidence=0.6,
    price="100",
    ts_event=10 * S,
    ts_init=10 * S,
    valid_until=11 * S,
)


@pytest.mark.parametrize(
    ("changes", "now_ns", "mid", "says"),
    [
        ({}, 10 * S, 100.0, None),
        ({}, 11 * S, 100.0, None),
        ({}, 11 * S + 1, 100.0, "expired"),
        ({"valid_until": None}, 10 * S, 100.0, "expired: it has no valid_until"),
        ({"valid_until": 99 * S}, 11 * S + 1, 100.0, "expired: older than signal_age_ms_max"),
        ({}, 10 * S - 1, 100.0, "risk: it is from the future"),
        ({"price": None}, 10 * S, 100.0, "risk: it names no price"),
        ({}, 10 * S, 100.3, "risk: its price is 29.9 bp off the mid"),
        ({"price": "0"}, 10 * S, 100.0, "risk: its price is 10000.0 bp off the mid"),
    ],
)
def test_a_bus_signal_is_acted_on_only_fresh_and_near_the_market(
    changes: dict[str, object], now_ns: int, mid: float, says: str | None
) -> None:
    signal = msgspec.structs.replace(SIGNAL, **changes)
    assert bus_signal_refusal(signal, LIMITS, now_ns=now_ns, mid=mid) == says
