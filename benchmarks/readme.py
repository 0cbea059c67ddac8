"""Put measured numbers into README.md: ``python -m benchmarks.readme PART ...``.

Reads what the project's own commands wrote and types nothing by hand. ``trading`` takes the model
card of ``qbtc train configs/train-l2.toml``, the newest result of ``qbtc backtest`` for each config
named here, and ``benchmarks/out/report.json`` of ``make bench``; ``language``, ``server`` and
``bus`` take that report; ``soak`` takes ``soak.json`` of ``python -m benchmarks.soak``, ``faults``
takes ``faults.json`` of ``make faults``. Run those first. Each part names its machine or commit.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qbtc.trading.report.rundir import after_training, read_run

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- numbers: python -m benchmarks.readme {} -->\n", "<!-- /numbers: {} -->"
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
LANGUAGE = (
    ("language model, prompt of 512 tokens: 1 thread, against llama.cpp, same file", ">= 6x"),
    ("language model, prompt of 512 tokens: 2 threads, against llama.cpp, same file", ">= 6x"),
    (
        "language model, prompt of 512 tokens: 1 thread, against llama.cpp, its best format",
        ">= 1.5x",
    ),
    (
        "language model, prompt of 512 tokens: 2 threads, against llama.cpp, its best format",
        ">= 1.5x",
    ),
    (
        "language model, prompt of 512 tokens: 1 thread, against ik_llama.cpp, its best format",
        ">= 1.15x",
    ),
    (
        "language model, prompt of 512 tokens: 2 threads, against ik_llama.cpp, its best format",
        ">= 1.15x",
    ),
    ("language model, decoding 128 tokens: 1 thread, against llama.cpp, same file", ">= 2.5x"),
    ("language model, decoding 128 tokens: 2 threads, against llama.cpp, same file", ">= 2.5x"),
    (
        "language model, decoding 128 tokens: 1 thread, against llama.cpp, its best format",
        ">= 1.5x",
    ),
    (
        "language model, decoding 128 tokens: 2 threads, against llama.cpp, its best format",
        ">= 1.5x",
    ),
    (
        "language model, decoding 128 tokens: 1 thread, against ik_llama.cpp, its best format",
        ">= 1.8x",
    ),
    (
        "language model, decoding 128 tokens: 2 threads, against ik_llama.cpp, its best format",
        ">= 1.8x",
    ),
    ("language model, share of the machine: 1 thread, decode", ">= 0.75x"),
    ("language model, share of the machine: 2 threads, decode", ">= 0.75x"),
    ("language model, share of the machine: 1 thread, prompt", ">= 0.75x"),
    ("language model, share of the machine: 2 threads, prompt", ">= 0.75x"),
    ("embeddings, all-MiniLM-L6-v2, 64 texts at once: 2 threads", ""),
)

SERVER = (
    (
        "server, first token, system prompt of 6,000: cached, another question",
        "<= 30 ms",
    ),
    (
        "server, first token, system prompt of 6,000: after a restart",
        "<= 250 ms",
    ),
    ("server, from its start to the first piece of a chat: 2 threads", "<= 2,000 ms"),
    ("server, 8 streams at once: all together", ""),
)

_WORKERS = "workers on RabbitMQ, smollm2-135m, 1 thread each"
BUS = (
    ("bus: request and answer over RabbitMQ", ">= 0.77x (1.3 times its time)"),
    ("bus: 16 requests at once over RabbitMQ", ""),
    ("bus: stream of 200 replies over RabbitMQ", ""),
    ("bus: request and answer in process", ""),
    ("bus: publish, confirmed, many at once: against one by one", ""),
    (f"{_WORKERS}: 16 chats of 32 tokens at once, two workers", ">= 1.2x"),
    (f"{_WORKERS}: time to the first text of one chat", ""),
    (f"{_WORKERS}: one stream of 64 tokens, to its end", ">= 0.8x"),
    ("message: read and check, 1 KB signal", ""),
    ("message: price of checking, 1 KB signal", ""),
    ("records: fills into SQLite, 500 a commit", ""),
    ("records: fills into PostgreSQL, 500 a commit, against executemany", ""),
    ("records: fills into PostgreSQL, 500 a commit, against COPY into a bare table", ""),
    ("records: put of a fill, on the disk first", "<= 20,000 ns"),
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


def _speed(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    report = {row["name"]: row for row in _read(ROOT / "benchmarks/out/report.json", "make bench")}
    first = report[rows[0][0]]
    yield f"**Speed** (`make bench`, commit {first['git'][:12]}; {first['machine']}; "
    yield "above 1x we are ahead):\n\n"
    yield from _rows(report, rows)


def _soak() -> Iterator[str]:
    soak = _read(ROOT / "benchmarks/out/soak.json", "python -m benchmarks.soak --minutes 30")
    met: dict[str, int] = {}
    for answers in soak["statuses"].values():
        for code, count in answers.items():
            met[code] = met.get(code, 0) + count
    codes = ", ".join(f"{code}: {count:,}" for code, count in sorted(met.items()))
    first, rss = soak["first_token_s"], soak["rss_mib"]
    yield (
        f"**Under load** (`python -m benchmarks.soak --minutes {soak['minutes']:g}`, commit"
        f" {soak['commit'][:12]}; {soak['machine']}): streams, hang-ups, floods, slow readers, bad"
        f" input. Answers by status {codes};"
        f" {soak['streams']:,} whole streams, first token p50 {first['p50'] * 1e3:.0f} ms,"
        f" p99 {first['p99'] * 1e3:.0f} ms; memory {rss['warm']:.0f} MiB after the warm-up,"
        f" {rss['end']:.0f} at the end; broken: {sum(soak['broken'].values())}.\n"
    )


def _faults() -> Iterator[str]:
    found = _read(ROOT / "benchmarks/out/faults.json", "make faults")
    controls = [row for row in found["rows"] if row["fault"].startswith("control")]
    rows = [row for row in found["rows"] if row not in controls]
    shown = ", ".join(
        f"{row['fault']} lost {row['lost']:,} and repeated {row['duplicated']:,}"
        for row in controls
    )
    wrong = sum(not row["good"] for row in found["rows"])
    yield (
        f"**Under faults** (`make faults`, commit {found['commit'][:12]}, {found['date']};"
        f" {found['kills']} kills of the broker, and {len(rows) - 1} other ways to break servers"
        f" and connections): {sum(row['accepted'] for row in rows):,} accepted,"
        f" {sum(row['lost'] for row in rows):,} lost,"
        f" {sum(row['duplicated'] for row in rows):,} effects repeated; rows that went wrong:"
        f" {wrong}. The same without the protections: {shown}.\n"
    )


def _rows(report: dict[str, Any], wanted: tuple[tuple[str, str], ...]) -> Iterator[str]:
    yield "| what | ours p50 | p99 | peer | p50 | ratio | target |\n"
    yield "|---|---:|---:|---|---:|---:|---|\n"
    for name, target in wanted:
        row = report[name]
        yield (
            f"| {name} | {row['p50']:,.4g} {row['unit']} | {row['p99']:,.4g} | {row['peer']} "
            f"| {row['peer_value']:,.4g} | {row['ratio']:.2f}x | {target} |\n"
        )


_PARTS = {
    "trading": lambda: [*_models(), *_runs(), *_speed(SPEED)],
    "language": lambda: [*_speed(LANGUAGE)],
    "server": lambda: [*_speed(SERVER)],
    "soak": lambda: [*_soak()],
    "bus": lambda: [*_speed(BUS)],
    "faults": lambda: [*_faults()],
}


def main() -> None:
    """Replace what stands between the marks of each part that was asked for."""
    parts = sys.argv[1:]
    if not parts or not set(parts) <= set(_PARTS):
        sys.exit("usage: python -m benchmarks.readme " + " ".join(f"[{part}]" for part in _PARTS))
    text = README.read_text(encoding="utf-8")
    for part in parts:
        begin, end = BEGIN.format(part), END.format(part)
        head, rest = text.split(begin)
        _, tail = rest.split(end)
        body = "".join(_PARTS[part]())
        text = f"{head}{begin}\n{body}\n{end}{tail}"
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
