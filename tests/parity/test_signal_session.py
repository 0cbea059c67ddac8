"""One call per market event gives the features' and the model's answer, bit for bit."""

import numpy as np
import pytest
import signal_models as models

from qbtc import _core
from qbtc.core.columns import EventColumns
from qbtc.core.features import bulk_features
from qbtc.core.signal_model import SignalModel, bulk_signals, load_model
from qbtc.errors import DataError

START = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SignalModel:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    models.write(path, "mps8")
    return load_model(path)


@pytest.fixture(scope="module")
def columns() -> EventColumns:
    events = _core.simulate_market(seed=3, duration_s=80.0, start_ns=START)
    events.pop("latent")
    return EventColumns(
        **events,
        instrument="SIM",
        price_increment=0.1,
        size_increment=0.001,
        synthetic=True,
    )


def feed(session: _core.SignalSession, columns: EventColumns) -> list[_core.Signal | None]:
    """Every event in order; the answers to quotes."""
    answers = []
    values = (columns.ts, columns.kind, columns.side, columns.a, columns.b, columns.c, columns.d)
    for ts, kind, side, a, b, c, d in zip(*(v.tolist() for v in values), strict=True):
        if kind == 0:
            answers.append(session.on_quote(ts, a, b, c, d))
        elif kind == 1:
            session.on_trade(ts, a, b, side)
        elif kind == 2:
            session.on_depth(ts, side, a, b)
        else:
            session.on_depth_clear(ts)
    return answers


def test_events_one_by_one_and_in_bulk_give_the_same_bits(
    model: SignalModel, columns: EventColumns
) -> None:
    session = model.session(price_increment=0.1, size_increment=0.001)
    answers = feed(session, columns)
    bulk = bulk_signals(columns, model)
    features = bulk_features(columns)
    warm = features.warm
    assert warm.sum() > 100
    assert [a is not None for a in answers] == warm.tolist()
    given = [a for a in answers if a is not None]
    single = np.array([(a.p_down, a.p_flat, a.p_up) for a in given], np.float32)
    assert np.array_equal(bulk.P[warm], single)
    assert np.isnan(bulk.P[~warm]).all()
    assert np.array_equal(bulk.P[warm], model.infer_batch(features.X[warm]))
    assert [a.ts_event for a in given] == bulk.ts[warm].tolist()
    assert [a.mid for a in given] == bulk.mid[warm].tolist()
    counts = session.counts
    kinds = np.bincount(columns.kind, minlength=5)
    assert counts["quotes"] == kinds[0]
    assert counts["trades"] == kinds[1]
    assert counts["depth"] == kinds[2] + kinds[3]
    assert counts["signals"] == warm.sum()
    assert counts["rejected"] == 0


def test_a_signal_says_how_sure_it_is(model: SignalModel, columns: EventColumns) -> None:
    session = model.session(price_increment=0.1, size_increment=0.001)
    signal = next(a for a in reversed(feed(session, columns)) if a is not None)
    p = np.array([signal.p_down, signal.p_flat, signal.p_up])
    assert abs(p.sum() - 1) < 1e-6
    assert signal.entropy == pytest.approx(-(p * np.log(p)).sum(), abs=1e-6)
    assert signal.margin == pytest.approx(np.sort(p)[2] - np.sort(p)[1], abs=1e-6)
    assert signal.ood == model.ood(signal.features)
    assert np.array_equal(signal.explain(), model.explain(signal.features))
    with pytest.raises(AttributeError):
        signal.p_up = 1.0  # type: ignore[misc]


def test_a_refused_event_is_counted_and_changes_nothing(
    model: SignalModel, columns: EventColumns
) -> None:
    session = model.session(price_increment=0.1, size_increment=0.001)
    feed(session, columns)
    before = session.signal()
    now = before.ts_event
    for arguments in [
        (now, 60_000.2, 1.0, 60_000.1, 1.0),
        (now, float("nan"), 1.0, 60_000.1, 1.0),
        (now, 60_000.0, 0.0, 60_000.1, 1.0),
        (now - 1, 60_000.0, 1.0, 60_000.1, 1.0),
    ]:
        with pytest.raises(_core.CoreInputError):
            session.on_quote(*arguments)
    with pytest.raises(_core.CoreInputError):
        session.on_trade(now, 60_000.0, float("inf"), 0)
    assert session.counts["rejected"] == 5
    assert np.array_equal(session.signal().features, before.features, equal_nan=True)


def test_an_impossible_grid_and_bad_columns_are_data_errors(
    model: SignalModel, columns: EventColumns
) -> None:
    with pytest.raises(DataError, match="increment"):
        model.session(price_increment=0.0, size_increment=0.001)
    bad = columns.a.copy()
    bad[np.flatnonzero(columns.kind == 0)[5]] = -1.0
    fields = {name: getattr(columns, name) for name in columns.__dataclass_fields__}
    with pytest.raises(DataError, match=r"SIM: bid.*row"):
        bulk_signals(EventColumns(**{**fields, "a": bad}), model)


def test_host_objects_give_the_same_bits_as_plain_numbers(
    model: SignalModel, columns: EventColumns
) -> None:
    host = pytest.importorskip("nautilus_trader.model")
    instrument = host.InstrumentId.from_str("BTCUSDT-PERP.BINANCE")
    plain = model.session(price_increment=0.1, size_increment=0.001)
    ticks = model.session(price_increment=0.1, size_increment=0.001)
    values = (columns.ts, columns.kind, columns.side, columns.a, columns.b, columns.c, columns.d)
    price = lambda x: host.Price(x, 1)  # noqa: E731
    size = lambda x: host.Quantity(x, 3)  # noqa: E731
    seen = 0
    for n, (ts, kind, side, a, b, c, d) in enumerate(
        zip(*(v.tolist() for v in values), strict=True)
    ):
        if kind == 0:
            one = plain.on_quote(ts, a, b, c, d)
            tick = host.QuoteTick(instrument, price(a), price(c), size(b), size(d), ts - 5, ts)
            two = ticks.on_quote_tick(tick)
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                seen += 1
                assert (one.ts_event, one.p_up, one.p_down) == (two.ts_event, two.p_up, two.p_down)
        elif kind == 1:
            plain.on_trade(ts, a, b, side)
            taker = [host.AggressorSide.BUY, host.AggressorSide.SELL][side]
            trade = host.TradeTick(
                instrument, price(a), size(b), taker, host.TradeId(str(n)), ts - 5, ts
            )
            ticks.on_trade_tick(trade)
        else:
            if kind == 2:
                plain.on_depth_batch(ts, [(side, a, b)])
                action = host.BookAction.UPDATE if b > 0 else host.BookAction.DELETE
                book_side = [host.OrderSide.BUY, host.OrderSide.SELL][side]
                order = host.BookOrder(book_side, price(a), size(b), 0)
                delta = host.OrderBookDelta(instrument, action, order, 0, n, ts - 5, ts)
            else:
                plain.on_depth_clear(ts)
                delta = host.OrderBookDelta.clear(instrument, n, ts - 5, ts)
            ticks.on_book_deltas(host.OrderBookDeltas(instrument, [delta]))
    assert seen > 100
    assert plain.counts == ticks.counts
