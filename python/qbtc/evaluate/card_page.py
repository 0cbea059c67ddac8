"""The HTML page of a model card."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import plotly.graph_objects as go

from qbtc.evaluate.card import Card, Outcome
from qbtc.evaluate.metrics import Interval
from qbtc.pages import Html, chart, details, element, join, page, preformatted, section, table

__all__ = ["card_page", "interval_text", "seeds_text"]

COLOURS = ("#2f7dc4", "#d8612c", "#2f9070", "#8f66bd", "#868c96", "#a8842c")
MARKS = ("circle", "square", "diamond", "cross", "x", "triangle-up")


def card_page(card: Card) -> str:
    """Return the page."""
    kind = "SYNTHETIC data" if card.synthetic else "REAL data"
    lead = f", led by {card.lead}" if card.lead else ""
    title = f"{card.config.name} {card.model}"
    return page(
        title,
        element(
            "header",
            element("span", kind, css="badge warn" if card.synthetic else "badge"),
            element("h1", title),
            element("p", card.verdict, css="verdict"),
            element(
                "p",
                f"Class of the mid of {card.instrument}{lead} after "
                f"{card.label_horizon_ns / 1e9:g} s, beyond ±{card.label_threshold_bp:g} bp. "
                f"Made {card.created} by revision {card.revision}; tensors "
                f"{card.weights_sha256[:16]}.",
                css="meta",
            ),
        ),
        _losses(card),
        _calibration(card),
        _curves(card),
        _slices(card),
        _provenance(card),
    )


def interval_text(interval: Interval) -> str:
    """``-0.0123 [-0.0200, -0.0040]``."""
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def seeds_text(outcome: Outcome) -> str:
    """Mean ± standard deviation of the test loss over all fits; a dash for one fit."""
    losses = outcome.test_losses
    if len(losses) < 2:
        return "—"
    mean = sum(losses) / len(losses)
    deviation = (sum((x - mean) ** 2 for x in losses) / (len(losses) - 1)) ** 0.5
    return f"{mean:.4f} ± {deviation:.4f}"


def _losses(card: Card) -> Html:
    head = (
        "model", "validation", "test loss", "all fits", "accuracy", "AUC", "ECE", "Brier",
        "T", "weights", "fits", "s",
    )  # fmt: skip
    outcomes = sorted(card.outcomes.values(), key=lambda outcome: outcome.test.log_loss)
    rows = [
        (
            outcome.name,
            f"{outcome.validation.log_loss:.4f}",
            f"{outcome.test.log_loss:.4f}",
            seeds_text(outcome),
            f"{outcome.test.accuracy:.3f}",
            f"{outcome.test.auc:.3f}",
            f"{outcome.test.ece:.3f}",
            f"{outcome.test.brier:.4f}",
            f"{outcome.temperature:.2f}",
            f"{outcome.n_params:,}",
            str(outcome.fits),
            f"{outcome.seconds:.1f}",
        )
        for outcome in outcomes
    ]
    gaps = [
        (
            outcome.name,
            *(
                "—" if outcome.name == rival else interval_text(outcome.against[rival])
                for rival in ("logistic", "prior")
            ),
        )
        for outcome in outcomes
    ]
    own = [outcome.name for outcome in outcomes].index(card.model)
    missing = "" if card.lightgbm else " LightGBM did not run."
    return section(
        "Losses on the same rows",
        table(head, rows, strong=own),
        element("h3", "Test loss less a rival's"),
        table(("model", "vs logistic", "vs prior"), gaps, strong=own),
        element(
            "p",
            "Below 0 is better; in brackets the 95 % interval of a bootstrap over blocks of time.",
            css="note",
        ),
        lead="Cross-entropy in nats after temperature (T). Validation chose; this training looked "
        f"at test once, at its end. All fits: mean and spread over seeds or settings.{missing}",
    )


def _calibration(card: Card) -> Html:
    figure = go.Figure(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="perfect", hoverinfo="skip",
            line={"color": "#868c96", "dash": "dot", "width": 1.3},
        )
    )  # fmt: skip
    shown = (outcome for outcome in card.outcomes.values() if outcome.name != "prior")
    for i, outcome in enumerate(shown):
        x, y, rows = zip(*outcome.reliability, strict=True)
        figure.add_scatter(
            x=x, y=y, customdata=rows, name=outcome.name, mode="lines+markers",
            marker={
                "color": COLOURS[i % 6],
                "symbol": MARKS[i % 6],
                "size": [5 + 12 * (n / sum(rows)) ** 0.5 for n in rows],
            },
            line={"color": COLOURS[i % 6], "width": 2.4 if outcome.name == card.model else 1.0},
            hovertemplate="said %{x:.1%}, right %{y:.1%}<br>%{customdata:,} rows",
        )  # fmt: skip
    figure.update_xaxes(title_text="Chance of the likeliest class (said)", tickformat=".0%")
    figure.update_yaxes(title_text="Share that was right", tickformat=".0%")
    return section(
        "Calibration on test",
        chart(_sized(figure), "reliability diagram"),
        lead="A point on the dotted line kept its word; large points hold many rows.",
    )


def _curves(card: Card) -> Html:
    curves = card.outcomes[card.model].curves
    if not curves:
        return section(
            "Training",
            lead="Newton's method to convergence; the penalty is chosen on validation: "
            f"{_settings(card)}.",
        )
    figure = go.Figure()
    for seed, curve in enumerate(curves):
        colour = COLOURS[seed % 6]
        for index, (name, dash) in enumerate((("train", "dot"), ("validation", "solid"))):
            values = [point[index] for point in curve]
            figure.add_scatter(
                x=list(range(len(curve))),
                y=[None if value != value else value for value in values],
                name=f"seed {card.config.seed + seed} {name}",
                mode="lines",
                line={"color": colour, "dash": dash, "width": 1.5},
            )
    figure.update_xaxes(title_text="Epoch (0 is the start)")
    figure.update_yaxes(title_text="Cross-entropy, nats")
    return section(
        "Training",
        chart(_sized(figure), "loss by epoch and seed"),
        lead="Validation is of the averaged weights; the best epoch of the best seed is kept: "
        f"{_settings(card)}.",
    )


def _settings(card: Card) -> str:
    return ", ".join(f"{key} {value}" for key, value in card.outcomes[card.model].settings.items())


def _slices(card: Card) -> Html:
    rows = [
        (
            name,
            _moment(facts.start_ns),
            _moment(facts.end_ns),
            f"{facts.rows:,}",
            *(f"{count / facts.rows:.1%}" for count in facts.classes.values()),
        )
        for name, facts in card.slices.items()
    ]
    absent = ", ".join(f"{name} {share:.1%}" for name, share in card.missing.items())
    return section(
        "Split",
        table(("slice", "first", "last", "rows", "down", "flat", "up"), rows, text_columns=3),
        element("p", f"Missing in training rows: {absent or 'nothing'}.", css="note"),
        lead=f"In the order of time; rows within {card.purge_ns / 1e9:g} s of a border are dropped "
        f"on both sides. Fitting and choosing saw nothing after {_moment(card.seen_until_ns)}.",
    )


def _provenance(card: Card) -> Html:
    parts = [
        details("config", preformatted(_pretty(card.config))),
        *(
            details(f"source {source.config.instrument}", preformatted(_pretty(source)))
            for source in card.sources
        ),
    ]
    return section("Made of", join(parts))


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def _moment(ts_ns: int) -> str:
    moment = datetime.fromtimestamp(ts_ns // 10**9, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ts_ns // 10**6 % 1000:03d} UTC"


def _sized(figure: go.Figure) -> go.Figure:
    figure.update_layout(
        template="none",
        height=380,
        margin={"l": 60, "r": 16, "t": 30, "b": 52},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return figure
