"""Plotly figures of a run. Colours and symbols also differ in shape, for colour-blind readers.

Figures carry no text colour, grid colour or background: the page sets those, light or dark, when
it draws. Long series are thinned so that every bucket keeps its first, lowest, highest and last
point, and many fills become sums over time: no extreme is lost and nothing is left out silently.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from qbtc.trading.report.quality import Estimate, HorizonQuality, Reliability
from qbtc.trading.report.rundir import Columns
from qbtc.trading.report.wording import money
from qbtc.trading.result import RUN_SERIES, Histogram

__all__ = [
    "calibration",
    "cost_steps",
    "equity",
    "latency",
    "monthly",
    "price_with_fills",
    "signal_skill",
    "skill_in_bp",
]

POINTS_MAX = 3_000
"""Points of one drawn line."""
MARKERS_MAX = 400
"""Fills drawn one by one; more are drawn as sums per bucket of time."""
BUCKETS = 120
MONTHLY_DAYS_MIN = 60

NO_NAME = "<extra></extra>"
BLUE, ORANGE, GREY, PURPLE, GREEN = "#2f7dc4", "#d8612c", "#868c96", "#8f66bd", "#2f9070"
BASELINE_STYLES = ((GREY, "solid"), (PURPLE, "dash"), (GREEN, "longdash"), ("#a8842c", "dashdot"))

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]


def thin(values: Floats, points_max: int = POINTS_MAX) -> Ints:
    """Choose rows to draw: each bucket's first, lowest, highest and last.

    Parameters
    ----------
    values
        (rows,) what is drawn.
    points_max
        At most about this many rows come back.

    Returns
    -------
    Ascending row numbers.
    """
    rows = len(values)
    if rows <= points_max:
        return np.arange(rows)
    buckets = max(1, points_max // 4)
    edges = np.linspace(0, rows, buckets + 1).astype(np.int64)
    kept = [edges[:-1], edges[1:] - 1]
    kept += [
        np.array([a + int(pick(values[a:b])) for a, b in pairwise(edges)])
        for pick in (np.argmin, np.argmax)
    ]
    return np.unique(np.concatenate(kept))


def equity(table: Columns, start_balance: float, currency: str) -> go.Figure | None:
    """Draw P&L after and before costs beside the baselines, drawdown, and net position."""
    if not table.rows:
        return None
    series = table.split("series")
    figure = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.05,
        row_heights=[0.58, 0.22, 0.20],
    )
    names = [name for name in series if name != RUN_SERIES]
    for name, (colour, dash) in zip(names, _cycle(BASELINE_STYLES, len(names)), strict=True):
        curve = series[name]
        pnl = curve["equity"] - start_balance
        figure.add_trace(_line(curve["ts"], pnl, name, colour, 1.5, dash), 1, 1)
    run = series.get(RUN_SERIES)
    if run is not None:
        pnl = run["equity"] - start_balance
        before = run["pnl_before_costs"]
        drawdown = run["equity"] - np.maximum.accumulate(run["equity"])
        figure.add_trace(_line(run["ts"], before, "before costs", BLUE, 1.3, "dot"), 1, 1)
        figure.add_trace(_line(run["ts"], pnl, "after costs", BLUE, 2.4), 1, 1)
        figure.add_trace(
            _line(run["ts"], drawdown, "drawdown", ORANGE, 1.2, fill="tozeroy", legend=False), 2, 1
        )
        figure.add_trace(
            _line(run["ts"], run["net_position"], "net position", BLUE, 1.0, legend=False).update(
                line_shape="hv"
            ),
            3,
            1,
        )
    figure.update_yaxes(title_text=f"P&L, {currency}", row=1, col=1)
    figure.update_yaxes(title_text="Drawdown", row=2, col=1, rangemode="tozero", nticks=4)
    figure.update_yaxes(title_text="Position", row=3, col=1, nticks=4)
    figure.update_xaxes(title_text="Time, UTC", row=3, col=1)
    return _finish(figure, 560, hover="x unified")


def price_with_fills(prices: Columns, fills: Columns, currency: str) -> go.Figure | None:
    """Draw one instrument's mid with its buys (triangle up) and sells (triangle down).

    More fills than ``MARKERS_MAX`` are drawn below as what was bought and sold over time.
    """
    if not prices.rows and not fills.rows:
        return None
    grouped = grouped_fills(fills)
    figure = make_subplots(
        rows=1 + grouped,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.05,
        row_heights=[0.7, 0.3] if grouped else [1.0],
    )
    if prices.rows:
        figure.add_trace(_line(prices["ts"], prices["mid"], "mid", GREY, 1.3), 1, 1)
    for side, symbol, colour in (("BUY", "triangle-up", BLUE), ("SELL", "triangle-down", ORANGE)):
        mine = fills.where(fills["side"] == side)
        if mine.rows and grouped:
            figure.add_trace(_volumes(mine, fills, side, colour), 2, 1)
        elif mine.rows:
            figure.add_trace(_markers(mine, side.capitalize(), symbol, colour), 1, 1)
    figure.update_yaxes(title_text=f"Price, {currency}", tickformat=",~f", row=1, col=1)
    if grouped:
        figure.update_yaxes(title_text="Quantity", row=2, col=1, nticks=5)
        figure.update_layout(barmode="relative", bargap=0)
    figure.update_xaxes(title_text="Time, UTC", row=1 + grouped, col=1)
    if prices.rows > 1:
        first, last = int(prices["ts"][0]), int(prices["ts"][-1])
        margin = (last - first) // 100
        ends = _times(np.array([first - margin, last + margin]))
        figure.update_xaxes(range=[str(end) for end in ends])
    return _finish(figure, 520 if grouped else 420, hover="closest")


def grouped_fills(fills: Columns) -> bool:
    """Whether ``price_with_fills`` draws sums over time instead of single fills."""
    return fills.rows > MARKERS_MAX


def signal_skill(qualities: Sequence[HorizonQuality]) -> go.Figure:
    """Draw IC, hit rate and log-loss gain by horizon with their intervals."""
    figure = make_subplots(
        rows=1,
        cols=3,
        horizontal_spacing=0.09,
        subplot_titles=("Rank correlation (IC)", "Right direction, of moves", "Log-loss gain"),
    )
    labels = [horizon_label(quality.horizon_s) for quality in qualities]
    gains = [log_loss_gain(quality) for quality in qualities]
    columns = ([q.ic for q in qualities], [q.hit for q in qualities], gains)
    for column, (estimates, nothing) in enumerate(zip(columns, (0.0, 0.5, 0.0), strict=True), 1):
        figure.add_trace(_points(labels, estimates), 1, column)
        figure.add_hline(nothing, line_dash="dot", line_color=GREY, row=1, col=column)
        figure.update_xaxes(type="category", title_text="Horizon", row=1, col=column)
    figure.update_yaxes(tickformat=".0%", row=1, col=2)
    figure.update_yaxes(tickformat=".1%", row=1, col=3)
    return _finish(figure, 300, legend=False)


def log_loss_gain(quality: HorizonQuality) -> Estimate:
    """Share of the constant guess's log-loss that the signal saves; negative is worse than it."""

    def gain(loss: float | None) -> float | None:
        return None if loss is None or not quality.base_loss else 1 - loss / quality.base_loss

    loss = quality.log_loss
    return Estimate(gain(loss.value) or 0.0, gain(loss.high), gain(loss.low))


def skill_in_bp(qualities: Sequence[HorizonQuality], round_trips: dict[str, float]) -> go.Figure:
    """Draw what the strongest tenth of signals is worth beside what a round trip costs."""
    figure = go.Figure(
        go.Bar(
            x=[horizon_label(quality.horizon_s) for quality in qualities],
            y=[quality.decile_bp.value for quality in qualities],
            error_y={**_error_bars([q.decile_bp for q in qualities]), "color": GREY},
            marker_color=BLUE,
            width=0.45,
            hovertemplate="%{x}: %{y:.3f} bp<extra></extra>",
        )
    )
    for (name, cost), dash in zip(round_trips.items(), ("dash", "dot"), strict=False):
        figure.add_hline(
            cost,
            line_color=ORANGE,
            line_dash=dash,
            annotation_text=f"{name}: {cost:g} bp",
            annotation_position="top left",
        )
    figure.update_xaxes(type="category", title_text="Horizon")
    figure.update_yaxes(title_text="Basis points", rangemode="tozero")
    return _finish(figure, 300, legend=False)


def calibration(found: Reliability) -> go.Figure:
    """Draw the share of up moves seen against the chance stated."""
    seen = [estimate.value for estimate in found.seen]
    low = min(*found.said, *(e.low if e.low is not None else e.value for e in found.seen))
    high = max(*found.said, *(e.high if e.high is not None else e.value for e in found.seen))
    margin = 0.05 * (high - low)
    span = [max(0.0, low - margin), min(1.0, high + margin)]
    figure = go.Figure(
        [
            go.Scatter(
                x=span,
                y=span,
                mode="lines",
                line={"color": GREY, "dash": "dot", "width": 1.3},
                hoverinfo="skip",
                name="perfect",
            ),
            go.Scatter(
                x=found.said,
                y=seen,
                mode="lines+markers",
                marker={"size": 8, "color": BLUE},
                line={"color": BLUE, "width": 1.2},
                error_y=_error_bars(found.seen),
                customdata=found.counts,
                hovertemplate="said %{x:.1%}, seen %{y:.1%}<br>%{customdata:,} moves" + NO_NAME,
                name="signal",
            ),
        ]
    )
    figure.update_xaxes(title_text="Chance of up, given a move (said)", tickformat=".0%")
    figure.update_yaxes(title_text="Share of up moves (seen)", tickformat=".0%")
    return _finish(figure, 340, legend=False)


def cost_steps(steps: Sequence[tuple[str, float, bool]], currency: str) -> go.Figure:
    """Draw the way from P&L at mid prices to P&L after costs.

    Parameters
    ----------
    steps
        ``(label, amount, is_total)``.
    """
    figure = go.Figure(
        go.Waterfall(
            x=[label for label, _, _ in steps],
            y=[amount for _, amount, _ in steps],
            measure=["absolute" if total else "relative" for _, _, total in steps],
            text=[money(amount, sign=True) for _, amount, _ in steps],
            textposition="outside",
            cliponaxis=False,
            width=0.5,
            increasing_marker_color=GREEN,
            decreasing_marker_color=ORANGE,
            totals_marker_color=BLUE,
            connector_line={"color": GREY, "width": 1, "dash": "dot"},
            hovertemplate="%{x}: %{text} " + currency + "<extra></extra>",
        )
    )
    figure.update_yaxes(title_text=currency)
    return _finish(figure, 320, legend=False)


def latency(histograms: dict[str, Histogram]) -> go.Figure | None:
    """Draw how long each callback took: share of samples per doubling of time."""
    used = {name: item for name, item in histograms.items() if item.samples}
    if not used:
        return None
    filled = [i for item in used.values() for i, n in enumerate(item.counts) if n]
    low, high = min(filled), max(filled)
    labels = [f"{_ns(2**i)}" for i in range(low, high + 1)]
    figure = go.Figure()
    colours = (BLUE, ORANGE, PURPLE, GREEN, GREY)
    for (name, item), colour in zip(used.items(), _cycle(colours, len(used)), strict=True):
        total = sum(item.counts)
        shares = [n / total for n in (*item.counts, *[0] * 64)[low : high + 1]]
        figure.add_trace(
            go.Bar(
                x=labels,
                y=shares,
                name=name,
                marker_color=colour,
                hovertemplate="from %{x}: %{y:.1%}<extra>%{fullData.name}</extra>",
            )
        )
    figure.update_xaxes(type="category", title_text="Duration, at least")
    figure.update_yaxes(title_text="Share of calls", tickformat=".0%")
    figure.update_layout(bargap=0.15, bargroupgap=0.05)
    return _finish(figure, 320)


def monthly(table: Columns) -> go.Figure | None:
    """Draw NautilusTrader's own monthly heat map of the run's daily returns.

    It needs months to say anything: None below ``MONTHLY_DAYS_MIN`` days.
    """
    run = table.where(table["series"] == RUN_SERIES) if table.rows else table
    if run.rows < 2 or run["ts"][-1] - run["ts"][0] < MONTHLY_DAYS_MIN * 86_400e9:
        return None
    from nautilus_trader.analysis.tearsheet import create_monthly_returns_heatmap

    # One ns back, so that a last stamp at midnight does not begin a month.
    level = pd.Series(run["equity"], index=pd.to_datetime(run["ts"] - 1, utc=True))
    returns = level.resample("1D").last().ffill().pct_change().dropna()
    figure = create_monthly_returns_heatmap(returns, title="")
    figure.update_traces(
        text=[
            ["" if np.isnan(value) else f"{value:.2f} %" for value in row]
            for row in np.asarray(figure.data[0].z, dtype=np.float64)
        ],
        colorscale=[[0, ORANGE], [0.5, "#f4f4f2"], [1, BLUE]],
        zmid=0,
        showscale=False,
        texttemplate="%{text}",
        textfont_color="#22272e",
    )
    figure.update_yaxes(type="category", title_text="")
    figure.update_xaxes(title_text="")
    return _finish(figure, 110 + 60 * len(returns.index.year.unique()), legend=False)


def horizon_label(seconds: float) -> str:
    """``0.5 s``, ``15 min``."""
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def _line(
    ts: Ints,
    values: Floats,
    name: str,
    colour: str,
    width: float,
    dash: str = "solid",
    *,
    fill: str | None = None,
    legend: bool = True,
) -> Any:
    rows = thin(values)
    return go.Scatter(
        x=_times(ts[rows]),
        y=values[rows],
        name=name,
        mode="lines",
        line={"color": colour, "width": width, "dash": dash},
        fill=fill,
        showlegend=legend,
    )


def _markers(fills: Columns, name: str, symbol: str, colour: str) -> Any:
    notes = [
        f"{amount:g} · {strategy} · {liquidity.lower()}"
        for amount, strategy, liquidity in zip(
            fills["quantity"], fills["strategy"], fills["liquidity"], strict=True
        )
    ]
    return go.Scatter(
        x=_times(fills["ts_event"]),
        y=fills["price"],
        name=name,
        mode="markers",
        marker={
            "symbol": symbol,
            "color": colour,
            "size": 9,
            "opacity": 0.85,
            "line": {"width": 0.5, "color": "white"},
        },
        text=notes,
        hovertemplate=f"{name} %{{y:,}}<br>%{{text}}<br>%{{x}}" + NO_NAME,
    )


def _volumes(mine: Columns, every: Columns, side: str, colour: str) -> Any:
    """Sum one side's quantities per bucket of time; sells point down."""
    first, last = int(every["ts_event"][0]), int(every["ts_event"][-1])
    width = (last - first) // BUCKETS + 1
    place = (mine["ts_event"] - first) // width
    sums = np.bincount(place, mine["quantity"], BUCKETS)
    members = np.bincount(place, minlength=BUCKETS)
    middles = first + width * np.arange(BUCKETS, dtype=np.int64) + width // 2
    name = "Bought" if side == "BUY" else "Sold"
    return go.Bar(
        x=_times(middles),
        y=sums if side == "BUY" else -sums,
        name=name,
        marker_color=colour,
        customdata=members,
        hovertemplate=f"{name} %{{y:,.4~f}} in %{{customdata:,}} fills<br>%{{x}}" + NO_NAME,
    )


def _points(labels: list[str], estimates: Sequence[Estimate]) -> Any:
    return go.Scatter(
        x=labels,
        y=[estimate.value for estimate in estimates],
        mode="lines+markers",
        marker={"size": 9, "color": BLUE},
        line={"color": BLUE, "width": 1},
        error_y=_error_bars(estimates),
        hovertemplate="%{x}: %{y:.4f}<extra></extra>",
    )


def _error_bars(estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if e.high is None else e.high - e.value for e in estimates],
        "arrayminus": [0 if e.low is None else e.value - e.low for e in estimates],
        "thickness": 1.4,
        "width": 5,
    }


def _times(ts: Ints) -> Any:
    return ts.astype("datetime64[ns]").astype("datetime64[us]")


def _ns(value: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if value >= size:
            return f"{float(f'{value / size:.2g}'):g} {unit}"
    return f"{value:g} ns"


def _cycle[T](items: Sequence[T], length: int) -> list[T]:
    return [items[i % len(items)] for i in range(length)]


def _finish(figure: Any, height: int, *, hover: str = "closest", legend: bool = True) -> go.Figure:
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 70, "r": 18, "t": 34 if legend else 28, "b": 52},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        hovermode=hover,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        hoverlabel={"namelength": -1},
    )
    figure.update_annotations(font_size=13)
    figure.update_xaxes(automargin=True, title_standoff=8)
    figure.update_yaxes(
        automargin=True, title_standoff=10, exponentformat="none", separatethousands=True
    )
    return figure
