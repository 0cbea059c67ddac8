"""The synthetic market beside the recording it imitates: one row per statistic.

    python benchmarks/calibrate_synthetic.py

prints the table of docs/synthetic-market.md. The real column needs the recording
``l2/usdm_btcusdt_20240808.gz`` below ``$QBTC_REAL_DATA``; without it the column stays empty.
Units: seconds, basis points (bp), ticks of 0.1, base currency.
"""

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from qbtc import _core

RECORDING = Path("l2/usdm_btcusdt_20240808.gz")
TICK = 0.1
GRID_S = 0.1
HORIZONS_S = (0.1, 0.5, 1.0, 5.0)
START_NS = 1_700_000_000_000_000_000

type Columns = dict[str, NDArray[Any]]


def statistics(columns: Columns) -> dict[str, float]:
    """Measure one market.

    Parameters
    ----------
    columns
        ``ts``, ``kind``, ``side``, ``a``, ``b``, ``c``, ``d`` as in ``EventColumns``.

    Returns
    -------
    dict
        Statistic by name; the name ends in its unit. Returns are of the mid price. ``ic_*`` is
        the correlation of top-of-book imbalance with the return over that horizon, sampled every
        0.1 s.
    """
    kind = columns["kind"]
    seconds = (columns["ts"] - columns["ts"][0]) / 1e9
    quote, trade = kind == 0, kind == 1
    t = seconds[quote]
    bid, bid_size, ask, ask_size = (columns[name][quote] for name in "abcd")
    mid = (bid + ask) / 2
    spread_ticks = np.round((ask - bid) / TICK)
    span = float(seconds[-1])
    moves = np.abs(np.diff(mid))[np.diff(mid) != 0] / TICK
    stay = np.diff(t)
    best = np.concatenate([bid_size, ask_size])
    sizes = columns["b"][trade]
    imbalance = (bid_size - ask_size) / (bid_size + ask_size)
    result = {
        "quotes per s": quote.sum() / span,
        "trades per s": trade.sum() / span,
        "depth rows per s": (kind == 2).sum() / span,
        "volume per s": sizes.sum() / span,
        "spread median, bp": float(np.median((ask - bid) / mid)) * 1e4,
        "quotes with spread of 1 tick": float((spread_ticks == 1).mean()),
        "time with spread of 1 tick": float(stay[spread_ticks[:-1] == 1].sum() / stay.sum()),
        "mid moves per s": len(moves) / span,
        "mid move median, ticks": float(np.median(moves)),
        "mid move 99 %, ticks": float(np.quantile(moves, 0.99)),
        "best size 25 %": float(np.quantile(best, 0.25)),
        "best size median": float(np.median(best)),
        "best size 95 %": float(np.quantile(best, 0.95)),
        "trade size median": float(np.median(sizes)),
        "trade size 95 %": float(np.quantile(sizes, 0.95)),
    }
    for step in (0.1, 1.0, 5.0):
        r = returns_bp(t, mid, np.arange(t[0], t[-1] - step, step), step)
        result[f"return {step:g} s sigma, bp"] = float(r.std())
        result[f"return {step:g} s kurtosis"] = float(((r - r.mean()) ** 4).mean() / r.var() ** 2)
        if step == 1.0:
            result["return 1 s autocorrelation"] = _correlation(r[1:], r[:-1])
            result["return 1 s autocorrelation of size"] = _correlation(abs(r[1:]), abs(r[:-1]))
    for h in HORIZONS_S:
        result[f"imbalance IC {h:g} s"] = information(t, mid, imbalance, h)
    return result


def returns_bp(
    t: NDArray[np.float64], mid: NDArray[np.float64], at: NDArray[Any], horizon_s: float
) -> NDArray[np.float64]:
    """Return of the last known mid over ``horizon_s`` from each time of ``at``, in bp."""
    now = np.searchsorted(t, at, side="right") - 1
    later = np.searchsorted(t, at + horizon_s, side="right") - 1
    return (mid[later] / mid[now] - 1) * 1e4


def information(
    t: NDArray[np.float64],
    mid: NDArray[np.float64],
    signal: NDArray[Any],
    horizon_s: float,
    delay_s: float = 0.0,
) -> float:
    """Correlation of ``signal`` (per quote) with the return from ``delay_s`` later on."""
    at = np.arange(1.0, t[-1] - horizon_s - delay_s, GRID_S)
    now = np.searchsorted(t, at, side="right") - 1
    return _correlation(signal[now], returns_bp(t, mid, at + delay_s, horizon_s))


def _correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def recording_path() -> Path:
    """Where the recording lies if this machine has it."""
    return Path(os.environ.get("QBTC_REAL_DATA", "../shared/data")) / RECORDING


def recording(path: Path) -> Columns:
    """Read quotes, trades and depth rows of a raw Binance web-socket recording (receive time)."""
    rows = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            stamp, text = line.split(" ", 1)
            data = json.loads(text).get("data", {})
            ts = int(stamp)
            match data.get("e"):
                case "bookTicker":
                    top = (float(data[name]) for name in "bBaA")
                    rows.append((ts, 0, 0, *top))
                case "trade" if data["X"] == "MARKET":
                    rows.append((ts, 1, int(data["m"]), float(data["p"]), float(data["q"]), 0, 0))
                case "depthUpdate":
                    for side, name in enumerate("ba"):
                        levels = data[name]
                        rows.extend((ts, 2, side, float(p), float(q), 0, 0) for p, q in levels)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return dict(zip(("ts", "kind", "side", "a", "b", "c", "d"), columns, strict=True))


def synthetic(seed: int, duration_s: float, edge: float = 1.0) -> Columns:
    """Simulate with the defaults of the calibration."""
    return _core.simulate_market(seed=seed, duration_s=duration_s, edge=edge, start_ns=START_NS)


@click.command()
@click.option("--seeds", default=5, show_default=True, help="Markets to average over.")
@click.option("--duration-s", default=1800.0, show_default=True, help="Length of each.")
def main(seeds: int, duration_s: float) -> None:
    """Print the calibration table in Markdown."""
    began = time.perf_counter()
    markets = [synthetic(seed, duration_s) for seed in range(1, seeds + 1)]
    wall = time.perf_counter() - began
    measured = [statistics(market) for market in markets]
    path = recording_path()
    real = statistics(recording(path)) if path.exists() else {}
    click.echo(f"| statistic | real | synthetic, mean of {seeds} | lowest | highest |")
    click.echo("|---|---|---|---|---|")
    for name in measured[0]:
        values = [m[name] for m in measured]
        beside = f"{real[name]:.3g}" if real else ""
        numbers = (f"{x:.3g}" for x in (np.mean(values), min(values), max(values)))
        click.echo(f"| {name} | {beside} | {' | '.join(numbers)} |")
    click.echo()
    click.echo("| seconds ahead | IC of the signal, edge 1 | edge 0 |")
    click.echo("|---|---|---|")
    without = [synthetic(seed, duration_s, edge=0.0) for seed in range(1, seeds + 1)]
    for delay in (0.0, 1.0, 3.0, 6.0, 12.0):
        ics = [np.mean([signal_ic(m, 1.0, delay) for m in group]) for group in (markets, without)]
        click.echo(f"| {delay:g} to {delay + 1:g} | {ics[0]:.3f} | {ics[1]:.3f} |")
    rows = sum(len(market["ts"]) for market in markets)
    click.echo(f"\n{rows} rows in {wall:.2f} s: {rows / wall * 60 / 1e6:.0f} million a minute")


def signal_ic(market: Columns, horizon_s: float, delay_s: float = 0.0) -> float:
    """IC of the hidden signal, as :func:`information`."""
    quote = market["kind"] == 0
    t = (market["ts"][quote] - market["ts"][0]) / 1e9
    mid = (market["a"][quote] + market["c"][quote]) / 2
    return information(t, mid, market["latent"], horizon_s, delay_s)


if __name__ == "__main__":
    main()
