"""``report.html``: one page that lets a newcomer judge a run, made from the run directory alone.

The page is self-contained (plotly.js, styles and figures inline) and asks nobody for anything.
Every figure is taken from ``result.json`` or worked out from the Parquet tables beside it; where
something is thinned, averaged or approximate, the page says so beside it. A run without fills,
signals or baselines, or one that stopped half way, gets a page that says that.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbtc.pages import (
    Html,
    chart,
    details,
    element,
    page,
    preformatted,
    section,
    table,
)
from qbtc.trading.report import charts, quality
from qbtc.trading.report.costs import CostLine, cost_lines
from qbtc.trading.report.rundir import Columns, RunDirectory, after_training, read_run
from qbtc.trading.report.toml_text import to_toml
from qbtc.trading.report.wording import (
    basis_points,
    count,
    data_label,
    duration,
    import_changes,
    method,
    moment,
    money,
    outcome,
    percent,
    replayed_label,
    sample,
    standing,
)
from qbtc.trading.result import DataSetResult, Performance, RunResult, SignalResult

__all__ = ["REPORT_NAME", "write_report"]

REPORT_NAME = "report.html"
_LATE = (
    " The model kept silent over its training span while the baselines traded on: compare them by"
    " the row “after the training span”, in which positions open at its end count from their mark"
    " there."
)


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Parameters
    ----------
    folder
        A run directory: ``result.json`` and its Parquet tables.

    Raises
    ------
    DataError
        The folder is not a run directory of this version.
    """
    path = folder / REPORT_NAME
    path.write_text(render(read_run(folder)), encoding="utf-8")
    return path


def render(run: RunDirectory) -> str:
    """Return the page of a run."""
    result = run.result
    parts = [
        _banners(result),
        _header(run),
        _figures(run),
        _equity(run),
        _prices(run),
        _signals(run),
        _costs(run),
        _latency(result),
        _data(result),
        _reproduce(result),
    ]
    return page(f"{result.name} · QBTC {result.mode}", *parts)


def _banners(result: RunResult) -> Html:
    parts = []
    label = data_label(result)
    if label != "REAL":
        words = {
            "SYNTHETIC": "This market came out of a seeded generator. No price here is real.",
            "PARTLY SYNTHETIC": "Some of this data was made by a seeded generator.",
        }.get(label, "No market data was opened.")
        parts.append(element("div", element("b", label), words, css="banner"))
    if result.status != "complete":
        words = {
            "partial": "The run stopped before the end of its data; figures hold up to there.",
            "failed": "The run failed; figures hold up to the failure.",
        }[result.status]
        detail = f" {result.error}" if result.error else ""
        parts.append(
            element("div", element("b", result.status.upper()), words + detail, css="banner bad")
        )
    return Html("".join(parts))


def _header(run: RunDirectory) -> Html:
    result = run.result
    label = data_label(result)
    badges = [
        element("span", f"{label} data", css="badge" if label == "REAL" else "badge warn"),
        element("span", result.status, css="badge" if result.status == "complete" else "badge bad"),
        element("span", result.mode, css="badge"),
    ]
    return element(
        "header",
        *badges,
        element("h1", result.name),
        element("p", f"{outcome(result)} {standing(result, after_training(run))}", css="verdict"),
        element("p", method(result), " ", sample(result)),
        element(
            "p",
            f"{moment(result.span_ns[0])} to {moment(result.span_ns[1])} · run {result.run_id}"
            f" · started {result.started.replace('T', ' ').replace('+00:00', ' UTC')}"
            f" · {count(result.events)} events",
            css="meta",
        ),
    )


def _figures(run: RunDirectory) -> Html:
    result, late = run.result, after_training(run)
    own, unit = result.performance, result.currency
    tiles = (
        ("P&L before costs", money(own.pnl_before_costs, sign=True), unit),
        ("Fees paid", money(own.fees), unit),
        ("P&L after costs", money(own.pnl_after_costs, sign=True), unit),
        ("Largest drawdown", money(own.max_drawdown), unit),
        ("Fills", count(own.fills), f"of {count(own.orders)} orders"),
        ("Turnover", money(own.turnover), unit),
    )
    boxes = (
        element(
            "div",
            element("span", name, css="name"),
            element("span", figure, css="figure"),
            element("span", below, css="unit"),
            css="tile",
        )
        for name, figure, below in tiles
    )
    parts = result.strategies if len(result.strategies) > 1 else ()
    return section(
        "Result beside its baselines",
        element("div", *boxes, css="tiles"),
        _comparison(
            {
                "This run": own,
                **{f"Part {part.name}": part for part in parts},
                **{f"Baseline {base.name}": base for base in result.baselines},
            },
            late,
        ),
        element(
            "p",
            f"Money in {unit}; the account began with {money(result.start_balance)}. Open positions"
            " are marked to the last mid. Each baseline ran alone on the same data, venue and"
            " costs." + ("" if late is None else _LATE),
            css="note",
        ),
        details("What ran, with its parameters", _strategies(result)),
    )


def _strategies(result: RunResult) -> Html:
    """Return a table of strategies and baselines as the config names them."""
    rows = [
        [
            role,
            str(entry.get("path", "")).rpartition(":")[2],
            ", ".join(f"{name} = {value}" for name, value in entry.get("params", {}).items()),
        ]
        for role, key in (("this run", "strategies"), ("baseline", "baselines"))
        for entry in result.config.get(key, ())
    ]
    return table(("", "Strategy", "Parameters"), rows, text_columns=3)


def _comparison(columns: dict[str, Performance], late: dict[str, float] | None) -> Html:
    """Return a table with one column per run, part of it or baseline.

    ``late`` is P&L after the training span by name, a row of its own where there is one.
    """
    lines: dict[str, Callable[[Performance], str]] = {
        "P&L before costs": lambda it: money(it.pnl_before_costs, sign=True),
        "Fees": lambda it: money(it.fees),
        "P&L after costs": lambda it: money(it.pnl_after_costs, sign=True),
        "P&L after costs, of turnover": lambda it: basis_points(it.pnl_after_costs, it.turnover),
        "Largest drawdown": lambda it: money(it.max_drawdown),
        "Orders": lambda it: count(it.orders),
        "Fills": lambda it: count(it.fills),
        "Turnover": lambda it: money(it.turnover),
        "Time with a position": lambda it: percent(it.exposure),
        "Turnover that was resting (maker)": lambda it: percent(it.maker_share),
        "Positions open at the end": lambda it: count(it.open_positions),
    }
    if any(column.status != "complete" for column in columns.values()):
        lines["Status"] = lambda it: it.status
    rows = [[name, *map(show, columns.values())] for name, show in lines.items()]
    if late is not None:
        known = (late.get(column.name) for column in columns.values())
        shown = ("—" if value is None else money(value, sign=True) for value in known)
        rows.insert(3, ["· of it after the training span", *shown])
    return table(("", *columns), rows, strong=2)


def _equity(run: RunDirectory) -> Html:
    result = run.result
    figure = charts.equity(run.equity, result.start_balance, result.currency)
    if figure is None:
        return section("Equity and drawdown", element("p", "No equity was recorded."))
    months = charts.monthly(run.equity)
    more = (
        []
        if months is None
        else [
            element("h3", "Returns by month, %"),
            chart(months, "Heat map of the run's monthly returns"),
            element("p", "Chart of NautilusTrader's tearsheet.", css="note"),
        ]
    )
    return section(
        "Equity and drawdown",
        chart(figure, "Profit and loss over time beside the baselines, drawdown, position"),
        element(
            "p",
            f"The largest drawdown at event resolution is {money(result.performance.max_drawdown)}"
            f" {result.currency}; the curves are thinned for drawing and keep their extremes."
            " Position is net notional at mid.",
            css="note",
        ),
        *more,
        lead="Profit and loss since the start, marked to mid. The gap between the dotted and the"
        " solid blue line is the fees.",
    )


def _prices(run: RunDirectory) -> Html:
    instruments = dict.fromkeys([*run.prices["instrument"], *run.fills["instrument"]])
    parts: list[str] = []
    for instrument in instruments:
        prices, fills = (
            part.where(part["instrument"] == instrument) for part in (run.prices, run.fills)
        )
        figure = charts.price_with_fills(prices, fills, run.result.currency)
        if figure is None:
            continue
        if len(instruments) > 1:
            parts.append(element("h3", instrument))
        parts.append(chart(figure, f"Price of {instrument} with buys and sells"))
        shown = (
            f"{count(fills.rows)} fills, too many to draw one by one: the bars are sums over time."
            if charts.grouped_fills(fills)
            else f"Every one of the {count(fills.rows)} fills is drawn."
            if fills.rows
            else "No fills."
        )
        parts.append(
            element("p", f"{shown} The mid is thinned and keeps its extremes.", css="note")
        )
    if not parts:
        return section("Price and fills", element("p", "No prices were recorded."))
    return section("Price and fills", *parts, lead="Up is bought, down is sold.")


def _signals(run: RunDirectory) -> Html:
    result = run.result
    if not result.signals:
        return section(
            "Signal quality", element("p", "No signal model was used in this run.", css="lead")
        )
    parts: list[str] = [_signal_table(result)]
    for signal in result.signals:
        rows = run.signals.where(run.signals["instrument"] == signal.instrument)
        parts += _signal_quality(rows, signal, result)
    return section(
        "Signal quality",
        *parts,
        lead="How p(up) minus p(down) relates to where the mid went afterwards. Intervals are"
        " 5 to 95 %, from resampling whole blocks of time, because neighbouring signals overlap.",
    )


def _signal_table(result: RunResult) -> Html:
    head = (
        *("Instrument", "Model", "Trained until", "Out-of-sample span"),
        *("Quotes", "Signals", "In-sample", "Skipped in-sample", "Not warm"),
    )
    rows = [
        [
            signal.instrument,
            signal.model,
            "—" if signal.train_end_ns is None else moment(signal.train_end_ns),
            "none" if signal.out_of_sample_ns is None else duration(signal.out_of_sample_ns),
            count(signal.quotes),
            count(signal.published),
            count(signal.published_in_sample),
            count(signal.skipped_in_sample),
            count(signal.not_warm),
        ]
        for signal in result.signals
    ]
    notes = [element("p", signal.note, css="note") for signal in result.signals if signal.note]
    return element("div", table(head, rows, text_columns=4), *notes)


def _signal_quality(rows: Columns, signal: SignalResult, result: RunResult) -> list[str]:
    title = element("h3", signal.instrument)
    outside = rows
    if signal.train_end_ns is not None:
        outside = rows.where(rows["ts"] > signal.train_end_ns)
    inside = not outside.rows and bool(rows.rows)
    judged = rows if inside else outside
    own_horizon = _label_horizon_s(signal, result)
    horizons = quality.horizons_for(judged["ts"])
    if own_horizon is not None:
        horizons = tuple(sorted({*horizons, own_horizon}))
    qualities = quality.by_horizon(judged, horizons)
    if not qualities:
        return [title, element("p", f"{count(judged.rows)} signals: too few to judge.")]
    parts: list[str] = [title]
    if inside:
        parts.append(
            element(
                "div",
                element("b", "IN-SAMPLE"),
                "Every signal lies inside the training span: these figures flatter the model.",
                css="banner",
            )
        )
    said = quality.reliability(judged, own_horizon or qualities[len(qualities) // 2].horizon_s)
    parts += [
        chart(charts.signal_skill(qualities), "Signal skill by horizon"),
        _quality_table(qualities),
        _quality_note(qualities, own_horizon),
    ]
    worth = element(
        "div",
        element("h3", "Mean move after the strongest tenth of signals"),
        chart(charts.skill_in_bp(qualities, _round_trips(result)), "Signal value beside costs"),
        element(
            "p",
            "In the direction signalled, before costs. A taker strategy needs the bar to clear the"
            " dashed line, a round trip of fees (the spread comes on top).",
            css="note",
        ),
    )
    if said is None:
        return [*parts, worth]
    checked = element(
        "div",
        element("h3", f"Said and seen at {charts.horizon_label(said.horizon_s)}"),
        chart(charts.calibration(said), "Reliability of the stated chances"),
        element("p", "On the dotted line, chances mean what they say.", css="note"),
    )
    return [*parts, element("div", worth, checked, css="pair")]


def _quality_table(qualities: list[quality.HorizonQuality]) -> Html:
    head = (
        *("Horizon", "Signals", "Moves", "IC", "Right direction"),
        *("Log-loss", "Constant guess", "Strongest tenth, bp"),
    )
    rows = [
        [
            charts.horizon_label(item.horizon_s),
            count(item.rows),
            count(item.moves),
            _estimate(item.ic, "+.3f", "+.2f"),
            _estimate(item.hit, ".1%", ".1%"),
            _estimate(item.log_loss, ".4f", ".3f"),
            f"{item.base_loss:.4f}",
            _estimate(item.decile_bp, "+.3f", "+.2f"),
        ]
        for item in qualities
    ]
    return table(head, rows)


def _quality_note(qualities: list[quality.HorizonQuality], own_horizon_s: float | None) -> Html:
    trained = (
        ""
        if own_horizon_s is None
        else f" The model was trained for {charts.horizon_label(own_horizon_s)};"
        " its chances are only meant for that horizon."
    )
    few = (
        " No intervals where there are too few blocks of time."
        if any(item.ic.low is None for item in qualities)
        else ""
    )
    return element(
        "p",
        "IC is Spearman's rank correlation with the mid return. Direction and log-loss (nats) are"
        " of moves only, the latter of p(up)/(p(up)+p(down)) beside the best constant guess in"
        f" hindsight.{trained}{few}",
        css="note",
    )


def _estimate(estimate: quality.Estimate, form: str, bounds: str) -> Html:
    """``+0.123`` with its interval in small behind it."""
    if estimate.low is None or estimate.high is None:
        return Html(f"{estimate.value:{form}}")
    interval = f" [{estimate.low:{bounds}}, {estimate.high:{bounds}}]"
    return Html(f"{estimate.value:{form}}{element('small', interval)}")


def _label_horizon_s(signal: SignalResult, result: RunResult) -> float | None:
    """Horizon the signal's model was trained for, from its metadata."""
    for model in result.models:
        if model.path == signal.model:
            for name, unit in (("label_horizon_ns", 1e-9), ("label_horizon_ms", 1e-3)):
                if name in model.metadata:
                    return float(model.metadata[name]) * unit
    return None


def _round_trips(result: RunResult) -> dict[str, float]:
    """Fees of in and out, basis points, from the config's venue."""
    venue: dict[str, Any] = result.config.get("venue", {})
    try:
        maker, taker = (float(venue[f"{kind}_fee"]) * 2e4 for kind in ("maker", "taker"))
    except (KeyError, TypeError, ValueError):
        return {}
    return {"taker fees in and out": taker, "maker fees in and out": maker}


def _costs(run: RunDirectory) -> Html:
    result, unit = run.result, run.result.currency
    terms = ", ".join(f"{_words(name)} {_term(value)}" for name, value in result.costs.items())
    charged = element("p", f"Charged and simulated: {terms or 'nothing'}.", css="note")
    lines = cost_lines(run)
    if not lines:
        return section("Costs", element("p", "No fills, so nothing was paid."), charged)
    known = [line.spread for line in lines if line.spread is not None]
    spread = sum(known) if len(known) == len(lines) else None
    own = result.performance
    steps = [("P&L before fees", own.pnl_before_costs, True)]
    if spread is not None:
        label = "Spread paid" if spread >= 0 else "Spread earned"
        steps = [
            ("P&L at mid prices", own.pnl_before_costs + spread, True),
            (label, -spread, False),
        ]
    steps += [("Fees", -own.fees, False), ("P&L after costs", own.pnl_after_costs, True)]
    head = (
        "Liquidity",
        "Side",
        "Fills",
        "Notional",
        "Fees",
        "Fees, bp",
        "Spread paid",
        "Spread, bp",
    )
    return section(
        "Costs",
        chart(charts.cost_steps(steps, unit), "From profit at mid prices to profit after costs"),
        table(head, [_cost_row(line) for line in lines], text_columns=2),
        element(
            "p",
            f"Money in {unit}. Spread is the fill price against the mid of the quote a market order"
            " met, or of the last quote before a resting order's fill; negative is earned. Unknown"
            " where the data has no quotes.",
            css="note",
        ),
        charged,
    )


def _cost_row(line: CostLine) -> list[str]:
    spread = line.spread
    return [
        line.liquidity.capitalize(),
        line.side.capitalize(),
        count(line.fills),
        money(line.notional),
        money(line.fees),
        basis_points(line.fees, line.notional),
        "—" if spread is None else money(spread, sign=True),
        "—" if spread is None else basis_points(spread, line.notional),
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _term(value: Any) -> str:
    if isinstance(value, dict):
        return f"({', '.join(f'{_words(name)} {_term(part)}' for name, part in value.items())})"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _latency(result: RunResult) -> Html:
    figure = charts.latency(result.latency)
    if figure is None:
        return Html("")
    rows = [
        [
            name,
            count(item.samples),
            count(item.sampled_every),
            *(f"{value / 1e3:,.1f} µs" for value in (item.p50_ns, item.p99_ns, item.max_ns)),
        ]
        for name, item in result.latency.items()
    ]
    return section(
        "Latency of our callbacks",
        chart(figure, "Share of calls by duration"),
        table(("Callback", "Samples", "One in", "Median", "99th percentile", "Longest"), rows),
        element(
            "p",
            "Wall clock on the machine that ran it, so it varies from run to run. The whole"
            f" run took {result.wall.total_s:.1f} s; the engine did {result.events_per_s:,.0f}"
            " events/s.",
            css="note",
        ),
        lead="Time spent in each callback, from market event to return.",
    )


def _data(result: RunResult) -> Html:
    head = (
        *("Instrument", "Source", "Kind", "Span", "Events"),
        *("In source", "Import", "In catalog", replayed_label(result), ""),
    )
    rows: list[list[str]] = []
    for data in result.data:
        rows += _event_rows(data)
    notes = [f"{data.instrument}: {note}" for data in result.data for note in data.notes]
    notes += result.notes
    hashes = "\n".join(
        f"{digest}  {name}" for data in result.data for name, digest in data.sha256.items()
    )
    parts: list[str] = [table(head, rows, text_columns=5)]
    if result.partial:
        stop = f"The run stopped at {moment(result.span_ns[1])}, {count(result.events)} events in."
        parts.append(element("p", stop))
    if notes:
        parts.append(element("ul", *(element("li", note) for note in notes)))
    if hashes:
        parts.append(details("SHA-256 of the source files", preformatted(hashes)))
    return section(
        "Data",
        *parts,
        lead="Events in the source files beside those the engine was given.",
    )


def _event_rows(data: DataSetResult) -> list[list[str]]:
    kinds = [kind for kind, number in data.source_counts.items() if number] or ["none"]
    rows = []
    for i, kind in enumerate(kinds):
        source, catalog, replayed = (
            counts.get(kind, 0)
            for counts in (data.source_counts, data.catalog_counts, data.replayed)
        )
        first = (
            data.instrument,
            data.source,
            "SYNTHETIC" if data.synthetic else "REAL",
            duration(data.span_ns),
        )
        share = f"{100 * replayed / catalog:.1f} %" if catalog else ""
        rows.append(
            [
                *(first if not i else [""] * 4),
                kind,
                count(source),
                import_changes(data, kind),
                count(catalog),
                count(replayed),
                "all" if catalog == replayed else share,
            ]
        )
    return rows


def _reproduce(result: RunResult) -> Html:
    versions = [[name, version] for name, version in result.versions.items()]
    versions += [[f"sha256 of {path}", digest] for path, digest in result.strategy_sha256.items()]
    built = [[name, str(value)] for name, value in result.build_info.items()]
    models = [
        details(
            f"Model {model.kind}: {model.path}",
            table(
                ("", ""),
                [
                    ["sha256", model.sha256],
                    *([name, str(value)] for name, value in model.metadata.items()),
                ],
                text_columns=2,
            ),
        )
        for model in result.models
    ]
    failure = [details("Traceback", preformatted(result.traceback))] if result.traceback else []
    return section(
        "Run it again",
        element("p", "Save the config below as ", element("code", f"{result.name}.toml"), " and:"),
        preformatted(f"qbtc backtest {result.name}.toml"),
        element(
            "p",
            "The same config, data and seed give the same fills: ",
            element("code", f"fills_sha256 {result.fills_sha256}"),
            css="note",
        ),
        details("Config", preformatted(to_toml(result.config))),
        details("Versions and build", table(("", ""), [*versions, *built], text_columns=2)),
        *models,
        *failure,
        lead="Relative paths in the config are relative to where it was; the seed is in it.",
    )
