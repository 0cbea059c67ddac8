"""Every kind of bad input, through the command line: one line that says what to do, exit code 2.

What a run does with a strategy that raises, and with Ctrl-C, is in ``test_backtest.py``.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qbtc.core.features import FEATURE_NAMES, schema_sha256
from qbtc.core.signal_model import ModelMetadata, fit_guard, fit_preprocess, save_model
from qbtc.evaluate.commands import _Bars

STRATEGIES = Path(__file__).resolve().parents[2] / "strategies"
PERP = "BTCUSDT-PERP.BINANCE"
SYNTHETIC = f"""
[[data]]
source = "synthetic"
instrument = "{PERP}"
seed = 3
duration_s = 4.0
"""
RECORDING = f"""
[[data]]
source = "recording"
instrument = "{PERP}"
path = "recording"
"""
ARCHIVE = f"""
[[data]]
source = "archive"
instrument = "{PERP}"
kind = "klines"
paths = ["BTCUSDT-1m-2024-12-31.csv"]
"""
STRATEGY = f"""
[[strategies]]
path = "{STRATEGIES}/buy_and_hold.py:BuyAndHold"
params = {{ instrument = "{PERP}", size = 0.01 }}
"""
SIGNALS = f"""
[[signals]]
instrument = "{PERP}"
model = "model.safetensors"
"""
TRAIN = SYNTHETIC.replace("4.0", "120.0") + "[mlp]\nepochs = 2\nseeds = 1\n"
MS = 1_000_000
START_MS = 1_700_000_000_000

type Call = Callable[..., tuple[int, str, str]]


def run_config(*parts: str) -> str:
    return 'name = "t"\n' + "".join(parts)


def refused(here: Call, folder: Path, text: str | bytes, says: str, command: str = "") -> None:
    """Expect exit code 2, nothing on stdout, one line on stderr and no run directory."""
    if isinstance(text, str):
        text = text.encode()
    (folder / "given.toml").write_bytes(text)
    code, out, err = here(*(command or "backtest given.toml --json").split())
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert re.search(says, err), err
    assert not list(folder.glob("runs/*"))
    assert not list(folder.glob("models/*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (run_config(SYNTHETIC, STRATEGY, "[venues]\n"), "unknown key 'venues'.*mean 'venue'"),
        (run_config(SYNTHETIC.replace("seed", "sed"), STRATEGY), r"\[data\[0\]\].*mean 'seed'"),
        (run_config(SYNTHETIC, STRATEGY, "[venue]\ntaker_fee = 0.1\n"), "expected text in quotes"),
        (run_config(SYNTHETIC, STRATEGY, '[venue]\ntaker_fee = "-1"\n'), "a share of the value"),
        (run_config(SYNTHETIC, STRATEGY, "[venue]\nleverage = 0\n"), "a whole number >= 1"),
        (run_config(SYNTHETIC, STRATEGY, "[venue]\nlatency_ms = inf\n"), "a number <="),
        (
            run_config(SYNTHETIC, STRATEGY, '[venue]\naccount = "cash"\n'),
            'write account = "margin"',
        ),
        (run_config(SYNTHETIC, SYNTHETIC, STRATEGY), "two .* entries.*write one per instrument"),
        (run_config('start = "2024-01-02"\nend = "2024-01-01"\n', SYNTHETIC, STRATEGY), "swap"),
        (run_config('start = "0001-01-01"\n', SYNTHETIC, STRATEGY), "not between 1970 and"),
        (run_config('end = "2023-01-01"\n', SYNTHETIC, STRATEGY), "no events between .* spans"),
        (run_config(SYNTHETIC, STRATEGY.replace("PERP", "PRP")), "has no .* entry; the run has"),
        (run_config(SYNTHETIC, STRATEGY, SIGNALS, 'lead = "X.BINANCE"\n'), "wants X.BINANCE"),
        (run_config(SYNTHETIC, STRATEGY, SIGNALS, f'lead = "{PERP}"\n'), "cannot lead itself"),
        (run_config(SYNTHETIC.replace("BTCUSDT", "NOPE"), STRATEGY), "has no|quote currency"),
        (run_config(SYNTHETIC, STRATEGY).replace('"t"', '"a\\u0000b"'), "without a slash"),
        ("name = [", "not TOML: .*mend that place"),
        ("", "missing key 'name'; add it"),
        (bytes(range(256)), "not a text file; give the path of a TOML file"),
    ],
)
def test_a_config(here: Call, tmp_path: Path, text: str | bytes, says: str) -> None:
    refused(here, tmp_path, text, says)
    if "spans" not in says:  # what only the data itself can tell
        refused(here, tmp_path, text, says, command="config check given.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TRAIN + "[split]\ntest = 0.0\n", "split.test: expected a number > 0"),
        (TRAIN + "[split]\ntest = 0.5\n", "make it 1"),
        (TRAIN + "[label]\nhorizon_ms = nan\n", "label.horizon_ms: expected a number > 0"),
        (TRAIN + "[label]\nhorizonms = 1\n", "did you mean 'horizon_ms'"),
        (TRAIN + SYNTHETIC, "cannot lead itself"),
        (TRAIN + "[[mps]]\nlearning_rate = 1.0\ndecay = 5.0\n", "keep the product below 1"),
        (TRAIN.replace("120.0", "3.0"), "give more data"),
        (RECORDING.replace('path = "recording"', ""), "missing key 'path' in .*add it"),
    ],
)
def test_a_training(here: Call, tmp_path: Path, text: str, says: str) -> None:
    refused(here, tmp_path, run_config(text), says, command="train given.toml --json")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("backtest gone.toml", "no such config file; did you mean given.toml"),
        ("train .", "Is a directory; give the path of a TOML file"),
        ("backtest", "Missing argument 'CONFIG'. See qbtc backtest --help"),
        ("backtest given.toml --jsn", "Did you mean '--json'.*See qbtc backtest --help"),
        ("bakctest", "No such command 'bakctest'. See qbtc --help"),
        ("report gone", "no run here.*give a run directory"),
        ("data import gone --instrument BTCUSDT.BINANCE", "no such data file; check the path"),
        ("data import . --instrument BTCUSDT.BINANCE --json", "Is a directory; give a file"),
        ("data import given.toml --instrument btc", "not like BTCUSDT.BINANCE"),
        ("data synth --instrument BTCUSDT.BINANCE --duration -1 --json", "duration_s: must be"),
    ],
)
def test_a_command(here: Call, tmp_path: Path, command: str, says: str) -> None:
    refused(here, tmp_path, run_config(), says, command=command)


def quote(ms: int, bid: str = "100.0", ask: str = "100.1", size: str = "1") -> str:
    at = START_MS + ms
    body = {"e": "bookTicker", "E": at, "T": at, "u": ms, "s": "BTCUSDT"}
    return f"{at * MS} {json.dumps(body | {'b': bid, 'B': size, 'a': ask, 'A': '1'})}\n"


def trade(ms: int, number: int) -> str:
    at = START_MS + ms
    body = {"e": "trade", "E": at, "T": at, "s": "BTCUSDT", "t": number, "p": "100.1"}
    return f"{at * MS} {json.dumps(body | {'q': '0.25', 'm': False})}\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (None, "no such data file; check the path"),
        ("", "empty; record again"),
        (quote(0) + quote(1, bid="100.2"), "line 2: a crossed quote.*mend the file"),
        (quote(0) + quote(1, size="0"), "line 2: .*size that is not positive.*mend the file"),
        (quote(0) + quote(1, bid="NaN"), "line 2: .*not finite.*mend the file"),
        (quote(9) + quote(1), "goes back at line 2; sort the file"),
        (trade(0, 1) + trade(1, 1) + quote(2), "line 2: .*repeats"),
        (quote(0).replace("BTCUSDT", "ETHUSDT"), "no BTCUSDT in it; it holds ETHUSDT"),
    ],
)
def test_a_recording(here: Call, tmp_path: Path, lines: str | None, says: str) -> None:
    if lines is not None:
        (tmp_path / "recording").write_text(lines)
    refused(here, tmp_path, run_config(RECORDING, STRATEGY), says)


def kline(minute: int, close: str = "100.5") -> str:
    at = 1_735_603_200_000 + minute * 60_000
    return f"{at},100.0,101.0,99.0,{close},1.5,{at + 59_999},150.0,7,0.5,50.0,0\n"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (kline(0) + kline(0), "time repeats at row 2"),
        (kline(1) + kline(0), "row 2"),
        (kline(0) + kline(1, close="nan"), "row 2"),
        (kline(0) + kline(1, close="500"), "row 2"),
        ("", "empty; nothing to import"),
        ("<html>", "columns .* are not those of klines"),
    ],
)
def test_an_archive_file(here: Call, tmp_path: Path, lines: str, says: str) -> None:
    (tmp_path / "BTCUSDT-1m-2024-12-31.csv").write_text(lines)
    refused(here, tmp_path, run_config(ARCHIVE, STRATEGY), says)


def test_quotes_of_one_time_are_all_kept_and_gaps_are_told(here: Call, tmp_path: Path) -> None:
    lines = [quote(0), quote(0, ask="100.2"), trade(1, 1), trade(5, 4), quote(60_000)]
    (tmp_path / "recording").write_text("".join(lines))
    (tmp_path / "given.toml").write_text(run_config(RECORDING, STRATEGY))
    code, out, err = here("backtest", "given.toml", "--json")
    assert code == 0, err
    (data,) = json.loads(out)["data"]
    assert data["replayed"] == data["source_counts"]
    assert any("gaps" in note for note in data["notes"])


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    x = np.random.default_rng(0).normal(size=(500, len(FEATURE_NAMES))).astype(np.float32)
    weights = {"weight": np.ones((len(FEATURE_NAMES), 3)), "bias": np.zeros(3)}
    metadata = ModelMetadata(
        feature_names=FEATURE_NAMES,
        feature_schema_sha256=schema_sha256(),
        label_horizon_ns=1_000 * MS,
        label_threshold_bp=0.25,
        train_start_ns=1,
        train_end_ns=2,
        val_logloss=1.0,
        val_ece=0.01,
        baseline_logloss={},
        created="2026-01-02T03:04:05Z",
        synthetic=True,
        instrument=PERP,
        seed=1,
        notes={},
    )
    tensors = weights | fit_preprocess(x) | fit_guard(x) | {"temperature": np.ones(1)}
    save_model(path, kind="logistic", tensors=tensors, metadata=metadata)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda good: good.replace(schema_sha256().encode(), b"0" * 64), "`feature_schema_sha256`"),
        (lambda good: good.replace(b'"version":"1"', b'"version":"9"'), "`version`"),
        (lambda good: good[: len(good) // 2], "`header`"),
        (lambda good: b"", "`header`"),
    ],
)
def test_a_model(
    here: Call, tmp_path: Path, model: bytes, damage: Callable[[bytes], bytes], says: str
) -> None:
    (tmp_path / "model.safetensors").write_bytes(damage(model))
    text = run_config(SYNTHETIC, STRATEGY, SIGNALS)
    refused(here, tmp_path, text, f"model.safetensors: .*{says}.*train the model again")


def test_a_model_that_is_not_there(here: Call, tmp_path: Path) -> None:
    text = run_config(SYNTHETIC, STRATEGY, SIGNALS)
    refused(here, tmp_path, text, "no such model; make it with `qbtc train")
    (tmp_path / "model.safetensors").mkdir()
    refused(here, tmp_path, text, "no such model; make it with `qbtc train")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, "no such strategy file"),
        ("def broken(:\n", r"mine\.py:1: syntax error: .*; mend that line"),
        ("class Mine:\n    pass\n", r"'Mine' is not a strategy; write `class Name"),
        ("\nraise ValueError('a\\nb')\n", r"mine\.py:2: ValueError: a b"),
        ("raise SystemExit(0)\n", r"mine\.py:1: SystemExit"),
        ("import no_such_package\n", r"mine\.py:1: ModuleNotFoundError"),
    ],
)
def test_a_strategy_file(here: Call, tmp_path: Path, code: str | None, says: str) -> None:
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    text = STRATEGY.replace(f"{STRATEGIES}/buy_and_hold.py:BuyAndHold", "mine.py:Mine")
    refused(here, tmp_path, run_config(SYNTHETIC, text), says)


def test_a_size_that_no_order_can_have_is_wrong_input(here: Call, tmp_path: Path) -> None:
    for size in ("0.0", "-1.0"):
        text = STRATEGY.replace("0.01", size)
        (tmp_path / "given.toml").write_text(run_config(SYNTHETIC, text))
        code, out, err = here("backtest", "given.toml", "--json")
        assert code == 2
        assert json.loads(out)["status"] == "failed"
        assert "use a multiple of 0.001" in " ".join(err.split())
        assert "Traceback" not in err


def test_what_a_strategy_prints_stays_out_of_the_json(here: Call, tmp_path: Path) -> None:
    source = (STRATEGIES / "buy_and_hold.py").read_text()
    start = "        self._listen()\n\n    def on_quote"
    assert start in source
    (tmp_path / "mine.py").write_text(
        "print('loaded')\n" + source.replace(start, f"        print('started')\n{start}")
    )
    text = STRATEGY.replace(f"{STRATEGIES}/buy_and_hold.py", "mine.py")
    (tmp_path / "given.toml").write_text(run_config(SYNTHETIC, text))
    code, out, err = here("backtest", "given.toml", "--json")
    assert code == 0, err
    assert json.loads(out)["status"] == "complete"
    assert "loaded\nstarted\n" in err


@pytest.mark.parametrize(
    ("command", "in_the_way", "says"),
    [
        ("backtest given.toml --json", "runs", "run directory runs: .*--output DIR"),
        ("backtest given.toml --output out/deep", "out", "run directory out/deep: .*--output DIR"),
        ("backtest given.toml --json", ".qbtc", r"catalog: cannot be written: .*; make room"),
        ("train train.toml --json", "models", "models cannot go to .*; give another output_dir"),
    ],
)
def test_a_place_that_cannot_be_written_to(
    here: Call, tmp_path: Path, command: str, in_the_way: str, says: str
) -> None:
    (tmp_path / in_the_way).write_text("a file, which stops even root")
    (tmp_path / "train.toml").write_text(run_config(TRAIN))
    refused(here, tmp_path, run_config(SYNTHETIC, STRATEGY), says, command=command)


def test_paths_with_spaces_and_other_scripts_work_from_anywhere(here: Call, tmp_path: Path) -> None:
    folder = tmp_path / "meine Läufe"
    folder.mkdir()
    (folder / "lauf é.toml").write_text(
        run_config(SYNTHETIC, STRATEGY.replace(f"{STRATEGIES}/", "../战略 s/"))
    )
    (tmp_path / "战略 s").mkdir()
    source = (STRATEGIES / "buy_and_hold.py").read_text(encoding="utf-8")
    (tmp_path / "战略 s" / "buy_and_hold.py").write_text(source, encoding="utf-8")
    code, out, err = here(
        "backtest", "meine Läufe/lauf é.toml", "--json", "--output", str(tmp_path / "o ü")
    )
    assert code == 0, err
    assert (tmp_path / "o ü" / json.loads(out)["run_id"] / "report.html").is_file()
    assert "\x1b" not in out + err


def test_ctrl_c_in_a_training_ends_with_130_and_no_model(
    here: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = TRAIN.replace("epochs = 2", "epochs = 1000000\npatience = 1000000")
    (tmp_path / "given.toml").write_text(run_config(endless))
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    step = _Bars.step

    def told(bars: _Bars, name: str, done: int, note: str) -> None:
        step(bars, name, done, note)
        if name == "mlp" and timer.ident is None:
            timer.start()

    monkeypatch.setattr(_Bars, "step", told)
    try:
        code, out, err = here("train", "given.toml", "--json")
    finally:
        timer.cancel()
    assert timer.ident is not None, "it ended before it was interrupted"
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert not (tmp_path / "models").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_behind_stdout_ends_with_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "qbtc", "models", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no space left")
    assert len(ended.stderr.splitlines()) == 1
