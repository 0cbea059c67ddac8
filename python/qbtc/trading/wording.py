"""A result in words and units: what the report and the terminal summary say alike."""

from datetime import UTC, datetime

from qbtc.trading.result import Performance, RunResult

__all__ = [
    "basis_points",
    "count",
    "data_label",
    "duration",
    "method",
    "moment",
    "money",
    "outcome",
    "percent",
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


def standing(result: RunResult) -> str:
    """Say how the run stands beside its baselines."""
    done = [base for base in result.baselines if base.status == "complete"]
    if not done:
        return "No baseline ran beside it." if not result.baselines else "No baseline finished."
    own = result.performance.pnl_after_costs
    beaten = [base for base in done if own > base.pnl_after_costs]
    figures = ", ".join(f"{base.name} {_signed(base)}" for base in done)
    if len(beaten) == len(done):
        verdict = "It ended above every baseline"
    elif not beaten:
        equal = all(own == base.pnl_after_costs for base in done)
        verdict = "It ended level with its baselines" if equal else "It ended above no baseline"
    else:
        verdict = f"It ended above {len(beaten)} of {len(done)} baselines"
    return f"{verdict} ({figures}; {result.currency} after costs)."


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


def _signed(performance: Performance) -> str:
    return money(performance.pnl_after_costs, sign=True)
