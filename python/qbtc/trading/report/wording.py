"""A result in words and units: what the report and the terminal summary say alike."""

from datetime import UTC, datetime

from qbtc.trading.result import RUN_SERIES, DataSetResult, RunResult

__all__ = [
    "basis_points",
    "count",
    "data_label",
    "duration",
    "import_changes",
    "method",
    "moment",
    "money",
    "outcome",
    "percent",
    "replayed_label",
    "sample",
    "standing",
    "strategy_names",
]

EVIDENCE_DAYS_MIN = 30
"""A shorter span is called a demonstration."""


def money(value: float, *, sign: bool = False) -> str:
    """``-1,234.50``; four decimals below a cent, none from a million up; no sign on a zero."""
    size = abs(value)
    decimals = 4 if 0 < size < 0.01 else 0 if size >= 1e6 else 2
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    return text if float(text.replace(",", "")) else text.lstrip("+-")


def count(value: int) -> str:
    """``66,089``."""
    return f"{value:,}"


def percent(value: float | None) -> str:
    """``12.3 %`` of a share between 0 and 1; a dash for None."""
    return "—" if value is None else f"{100 * value:.1f} %"


def basis_points(part: float, whole: float) -> str:
    """``part / whole`` in basis points; a dash when there is no whole."""
    return f"{1e4 * part / whole:+,.2f} bp" if whole else "—"


def duration(span_ns: tuple[int, int]) -> str:
    """Two largest units: ``5 min 43 s``, ``365 d 0 h``."""
    seconds = max(0, span_ns[1] - span_ns[0]) * 1e-9
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, below, small in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole} s"


def moment(ts_ns: int) -> str:
    """``2024-08-08 12:00:03 UTC``."""
    return datetime.fromtimestamp(ts_ns // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def data_label(result: RunResult) -> str:
    """SYNTHETIC, REAL, or both; ``unknown`` when no data set was opened."""
    kinds = {data.synthetic for data in result.data}
    if not kinds:
        return "SYNTHETIC" if result.synthetic else "UNKNOWN"
    return {
        frozenset({True}): "SYNTHETIC",
        frozenset({False}): "REAL",
    }.get(frozenset(kinds), "PARTLY SYNTHETIC")


def import_changes(data: DataSetResult, name: str) -> str:
    """Say what the import left out and added of one type of event: ``-259 +1``, or nothing."""
    changes = ((data.left_out, "-"), (data.added, "+"))
    return " ".join(f"{sign}{count(part[name])}" for part, sign in changes if part.get(name))


def replayed_label(result: RunResult) -> str:
    """Name what ``DataSetResult.replayed`` counts: done, or only meant where the run stopped."""
    return "To replay" if result.partial else "Replayed"


def strategy_names(result: RunResult) -> str:
    """Names of the strategies, as prose; without the number in the id where that is clear."""
    names = [strategy.name for strategy in result.strategies] or [result.name]
    short = [name.rpartition("-")[0] or name for name in names]
    names = short if len(set(short)) == len(short) else names
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def method(result: RunResult) -> str:
    """Say what was run on what, in one sentence."""
    instruments = dict.fromkeys(data.instrument for data in result.data)
    kind = {
        "SYNTHETIC": "synthetic market data",
        "REAL": "recorded market data",
        "PARTLY SYNTHETIC": "market data that is partly synthetic",
    }.get(data_label(result), "market data")
    return (
        f"A {result.mode} of {strategy_names(result)} on {duration(result.span_ns)} of {kind}"
        f" ({', '.join(instruments) or 'no instrument'})."
    )


def outcome(result: RunResult) -> str:
    """Say what came of it, in one or two sentences."""
    figures = result.performance
    if not figures.fills:
        tried = f" {count(figures.orders)} orders were sent; none filled." if figures.orders else ""
        return f"Nothing was traded.{tried}"
    after, before = figures.pnl_after_costs, figures.pnl_before_costs
    verb = "lost" if after < 0 else "made" if after > 0 else "came out at"
    unit = result.currency
    why = ""
    if after < 0 <= before:
        why = " Fees turned a gain into a loss."
    elif after < 0:
        why = " It lost before fees, too."
    return (
        f"It {verb} {money(abs(after))} {unit} after costs:"
        f" {money(before, sign=True)} {unit} before costs, less {money(figures.fees)} {unit}"
        f" of fees on {count(figures.fills)} fills.{why}"
    )


def standing(result: RunResult, late: dict[str, float] | None = None) -> str:
    """Say how the run stands beside its baselines.

    ``late`` is P&L after the model's training span (``after_training``), where it kept silent
    before: only that is compared then.
    """
    names = [base.name for base in result.baselines if base.status == "complete"]
    if not names:
        return "No baseline ran beside it." if not result.baselines else "No baseline finished."
    figures = {base.name: base.pnl_after_costs for base in result.baselines}
    own = result.performance.pnl_after_costs
    when, self = "It did", ""
    if late is not None:
        figures, own = late, late[RUN_SERIES]
        when, self = "After the model's training span it did", f"{money(own, sign=True)} beside "
    beaten = sum(own > figures[name] for name in names)
    level = all(own == figures[name] for name in names)
    if beaten == len(names):
        verdict = "better than every baseline"
    elif beaten:
        verdict = f"better than {beaten} of {len(names)} baselines"
    else:
        verdict = "like its baselines" if level else "no better than any baseline"
    listed = ", ".join(f"{name} {money(figures[name], sign=True)}" for name in names)
    return f"{when} {verdict} ({self}{listed}; {result.currency} after costs)."


def sample(result: RunResult) -> str:
    """Say how far the figures carry: in or out of sample, how long, synthetic or not."""
    parts = []
    published = sum(signal.published for signal in result.signals)
    inside = sum(signal.published_in_sample for signal in result.signals)
    skipped = sum(signal.skipped_in_sample for signal in result.signals)
    if published and inside:
        parts.append(
            f"{count(inside)} of {count(published)} signals lie inside their model's training"
            " span: those are in-sample and prove nothing."
        )
    elif published:
        parts.append("Every signal lies after its model's training span (out of sample).")
    if skipped:
        parts.append(f"{count(skipped)} quotes inside the training span were not signalled.")
    if result.synthetic:
        parts.append("Synthetic data says nothing about a real market.")
    days = (result.span_ns[1] - result.span_ns[0]) / 86_400e9
    if days < EVIDENCE_DAYS_MIN:
        parts.append(f"{duration(result.span_ns)} is a demonstration, not evidence.")
    else:
        parts.append("One past span; it does not say what comes next.")
    return " ".join(parts)
