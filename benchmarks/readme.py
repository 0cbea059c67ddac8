"""Put measured numbers into README.md: ``python -m benchmarks.readme``.

Reads what the project's own commands wrote and types nothing by hand: the model card of
``qbtc train configs/train-l2.toml``, the newest result of ``qbtc backtest`` for each config named
here, and ``benchmarks/out/report.json`` of ``make bench``. Run those first.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qbtc.trading.report.rundir import after_training, read_run

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- numbers: python -m benchmarks.readme -->\n", "<!-- /numbers -->"
CARD = ROOT / "models" / "btcusdt-l2-mps8.json"
RUNS = ("btcusdt-l2", "btcusdt-1m", "demo")
SPEED = (
    ("bulk, real depth recording: 26 features and mps8", ">= 10 M events/s"),
    ("inference of one row, no Python: mps8", ">= 10x"),
    ("inference of one row, from Python: mps8 against LightGBM single-row C API", ">= 12x"),
    ("inference of one row, from Python: mps8 against LightGBM Booster.predict", ">= 40x"),
    ("inference of one row, from Python: mps8 against ONNX Runtime, same mlp", ">= 10x"),
    ("inside a backtest: quote, features, mps8, strategy: above the no-op", "<= 1,000 ns"),
    ("inside a backtest: quotes with signals", ">= 0.6x"),
    ("inside a backtest: real recording with signals", ">= 0.6x"),
)


def _read(path: Path, command: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        sys.exit(f"{path.relative_to(ROOT)} is missing: run `{command}` first")


def _models() -> Iterator[str]:
    command = "qbtc train configs/train-l2.toml"
    card = _read(CARD, command)
    rows = sorted(card["outcomes"].values(), key=lambda item: item["test"]["log_loss"])
    test = card["slices"]["test"]
    seconds = (test["end_ns"] - test["start_ns"]) / 1e9
    yield (
        f"**Models** (`{command}`; {card['instrument']}, one second ahead, real data; "
        f"{test['rows']:,} test rows in {seconds:.0f} s, cross-entropy in nats):\n\n"
    )
    yield "| model | validation | test | less the prior's, 95 % | AUC |\n"
    yield "|---|---:|---:|---:|---:|\n"
    for item in rows:
        against = ""
        if item["name"] != "prior":
            gap = item["against"]["prior"]
            against = f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
        yield (
            f"| {item['name']} | {item['validation']['log_loss']:.4f} "
            f"| {item['test']['log_loss']:.4f} | {against} | {item['test']['auc']:.3f} |\n"
        )
    yield f"\n{card['verdict']}\n\n"


def _runs() -> Iterator[str]:
    yield "**Runs** (`qbtc backtest configs/NAME.toml`; USDT, fees, latency and "
    yield "queue on; where a model is silent over its training span, only what follows counts):\n\n"
    yield "| run | data | fills | before costs | fees | after costs | beside |\n"
    yield "|---|---|---:|---:|---:|---:|---|\n"
    for name in RUNS:
        command = f"qbtc backtest configs/{name}.toml"
        found = sorted((ROOT / "runs").glob(f"{name}-2*"))
        result = _read((found[-1] if found else ROOT / "runs" / name) / "result.json", command)
        own = result["performance"]
        # A model is silent over its training span; its baselines are compared after it.
        late = after_training(read_run(found[-1]))
        beside = ", ".join(
            f"{item['name']} {(late or {}).get(item['name'], item['pnl_after_costs']):+,.2f}"
            for item in result["baselines"]
        )
        minutes = (result["span_ns"][1] - result["span_ns"][0]) / 60e9
        span = f"{minutes:.0f} min" if minutes < 1e4 else f"{minutes / 1440:.0f} days"
        yield (
            f"| {name} | {'synthetic' if result['synthetic'] else 'real'}, {span} "
            f"| {own['fills']:,} | {own['pnl_before_costs']:+,.2f} | {own['fees']:,.2f} "
            f"| {own['pnl_after_costs']:+,.2f} | {beside} |\n"
        )
    yield "\n"


def _speed() -> Iterator[str]:
    report = {row["name"]: row for row in _read(ROOT / "benchmarks/out/report.json", "make bench")}
    first = report[SPEED[0][0]]
    yield f"**Speed** (`make bench`, commit {first['git'][:12]}; {first['machine']}; "
    yield "above 1x we are ahead):\n\n"
    yield "| what | ours p50 | p99 | peer | p50 | ratio | target |\n"
    yield "|---|---:|---:|---|---:|---:|---|\n"
    for name, target in SPEED:
        row = report[name]
        yield (
            f"| {name} | {row['p50']:,.4g} {row['unit']} | {row['p99']:,.4g} | {row['peer']} "
            f"| {row['peer_value']:,.4g} | {row['ratio']:.2f}x | {target} |\n"
        )


def main() -> None:
    """Replace what stands between the two marks."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    body = "".join([*_models(), *_runs(), *_speed()])
    README.write_text(f"{head}{BEGIN}\n{body}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
