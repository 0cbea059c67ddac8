"""``qbtc train`` end to end on the synthetic market, and on data it must refuse."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from qbtc.config import TrainConfig, load_config
from qbtc.core.columns import EventColumns, EventKind
from qbtc.core.features import FEATURE_NAMES, bulk_features
from qbtc.core.market import simulate_market
from qbtc.core.signal_model import load_model
from qbtc.errors import DataError
from qbtc.evaluate.entrants import prepare
from qbtc.evaluate.fits import Silent
from qbtc.evaluate.labels import label_rows
from qbtc.evaluate.metrics import log_losses
from qbtc.evaluate.split import split_rows
from qbtc.evaluate.train import Trained, train, train_columns

CONFIG = """
name = "t"
sample_every = 2
lightgbm = false
[[data]]
source = "synthetic"
instrument = "BTCUSDT-PERP.BINANCE"
seed = 3
duration_s = 120
[mlp]
hidden = 8
epochs = 3
seeds = 2
[[mps]]
epochs = 3
seeds = 2
decay = 10.0
learning_rate = 0.0003
"""


def _config(**changes: object) -> TrainConfig:
    return msgspec.convert({**tomllib.loads(CONFIG), **changes}, TrainConfig)


def _train(columns: EventColumns, folder: Path, **changes: object) -> Trained:
    return train_columns(_config(**changes), columns, lead=None, sources=[], output_dir=folder)


@pytest.fixture(scope="module")
def columns() -> EventColumns:
    made = simulate_market(
        seed=3,
        duration_s=120.0,
        start_ns=1_700_000_000 * 10**9,
        edge=1.0,
        price=60_000.0,
        price_increment=0.1,
        size_increment=0.001,
    )
    arrays = {field: made[field] for field in ("ts", "kind", "side", "a", "b", "c", "d")}
    return EventColumns(
        **arrays,
        instrument="BTCUSDT-PERP.BINANCE",
        price_increment=0.1,
        size_increment=0.001,
        synthetic=True,
    )


@pytest.fixture(scope="module")
def trained(columns: EventColumns, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return _train(columns, tmp_path_factory.mktemp("models"))


def test_every_kind_leaves_a_file_and_two_cards(trained: Trained) -> None:
    assert sorted(trained.files) == ["logistic", "mlp", "mps8"]
    for name, path in trained.files.items():
        assert path.name == f"t-{name}.safetensors"
        card = json.loads(path.with_suffix(".json").read_text())
        assert card["synthetic"] is True
        assert set(card["outcomes"]) == {"prior", "logistic", "mlp", "mps8"}
        page = path.with_suffix(".html").read_text()
        assert "SYNTHETIC" in page
        assert "<link" not in page
        assert " src=" not in page.split('<script id="plotly">')[0]
    left = {path.name for path in trained.files["mlp"].parent.iterdir()}
    assert len(left) == 9, "no temporary file is left"


def test_the_card_tells_the_losses_of_the_file_itself(
    columns: EventColumns, trained: Trained
) -> None:
    config = _config()
    rows = label_rows(bulk_features(columns), config.label, sample_every=config.sample_every)
    split = split_rows(rows, config.split)
    for name, path in trained.files.items():
        model = load_model(path)
        outcome = trained.cards[name].outcomes[name]
        for part, scores in (("validation", outcome.validation), ("test", outcome.test)):
            part_rows = split.slices()[part]
            loss = log_losses(model.infer_batch(part_rows.x), part_rows.y).mean()
            assert loss == pytest.approx(scores.log_loss, abs=2e-6), (name, part)
        weighed = split.validation  # what the candidate was chosen by
        z = np.array([model.core.logits(row) for row in weighed.x], np.float64)
        raw = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        loss = log_losses(raw, weighed.y).mean()
        assert loss == pytest.approx(outcome.validation_raw, abs=1e-5), name
        assert model.metadata.val_logloss == pytest.approx(outcome.validation.log_loss)
        assert set(model.metadata.baseline_logloss) == {"prior", "logistic", "mlp", "mps8"} - {name}


def test_the_file_says_how_far_fitting_could_see(trained: Trained) -> None:
    for name, path in trained.files.items():
        card, metadata = trained.cards[name], load_model(path).metadata
        assert metadata.train_end_ns == card.seen_until_ns
        assert metadata.train_end_ns == card.slices["calibration"].end_ns + 10**9
        assert metadata.train_end_ns < card.slices["test"].start_ns
        assert metadata.synthetic


def test_the_same_config_and_data_give_the_same_weights(
    columns: EventColumns, trained: Trained, tmp_path: Path
) -> None:
    again = _train(columns, tmp_path)
    for name, card in trained.cards.items():
        assert again.cards[name].weights_sha256 == card.weights_sha256
        assert again.cards[name].outcomes[name].test == card.outcomes[name].test
    other = _train(columns, tmp_path, seed=50)
    assert other.cards["mlp"].weights_sha256 != trained.cards["mlp"].weights_sha256


def test_nothing_after_the_calibration_labels_moves_a_weight(
    columns: EventColumns, trained: Trained, tmp_path: Path
) -> None:
    later = columns.ts > trained.cards["mlp"].seen_until_ns
    quotes = later & (columns.kind == EventKind.QUOTE)
    changed = dataclasses.replace(
        columns,
        a=np.where(quotes, columns.a + 30.0, columns.a),
        b=np.where(quotes, 2 * columns.b, columns.b),
        c=np.where(quotes, columns.c + 30.0, columns.c),
    )
    again = _train(changed, tmp_path)
    for name, card in trained.cards.items():
        assert again.cards[name].weights_sha256 == card.weights_sha256
    assert again.cards["mlp"].outcomes["mlp"].test != trained.cards["mlp"].outcomes["mlp"].test


def test_a_source_of_quotes_alone_trains_and_leaves_the_rest_silent(
    columns: EventColumns, tmp_path: Path
) -> None:
    keep = columns.kind == EventKind.QUOTE
    arrays = {n: getattr(columns, n)[keep] for n in ("ts", "kind", "side", "a", "b", "c", "d")}
    trained = _train(dataclasses.replace(columns, **arrays), tmp_path)
    missing = trained.cards["mps8"].missing
    absent = [FEATURE_NAMES.index(name) for name, share in missing.items() if share == 1.0]
    assert absent
    rows = bulk_features(columns)  # a source that does carry them
    x = rows.X[rows.warm]
    hidden = x.copy()
    hidden[:, absent] = np.nan
    for path in trained.files.values():
        model = load_model(path)
        np.testing.assert_allclose(model.infer_batch(x), model.infer_batch(hidden), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": {"threshold_bp": 1000.0}}, "every training row is flat"),
        ({"label": {"horizon_ms": 500_000.0}, "split": {"purge_ms": 500_000.0}}, "give more data"),
        ({"sample_every": 1000}, "slice train has"),
    ],
)
def test_data_that_cannot_train_is_refused_in_one_line(
    columns: EventColumns, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        _train(columns, tmp_path / "models", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_features_that_are_all_missing_are_refused(columns: EventColumns) -> None:
    config = _config()
    rows = label_rows(bulk_features(columns), config.label, sample_every=1)
    rows.x[:] = np.nan
    with pytest.raises(DataError, match="every feature is missing"):
        prepare(split_rows(rows, config.split))


def test_no_events_are_refused(columns: EventColumns, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of 0 quotes"):
        _train(columns.slice_time(0, 1), tmp_path)


def _qbtc(*arguments: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from qbtc.cli import main; main()", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


def test_the_command_prints_json_on_stdout_and_a_verdict_on_stderr(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(CONFIG)
    process = _qbtc("train", "t.toml", "--json", folder=tmp_path)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found["synthetic"] is True
    assert found["outcomes"]["mps8"]["test"]["log_loss"] > 0
    assert sorted(found["files"]) == ["logistic", "mlp", "mps8"]
    assert found["verdict"].split()[0] in err
    assert (tmp_path / "models" / "t-mps8.safetensors").is_file()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[mlp]", "[split]\npurge_ms = 10\n[mlp]", "shorter than label.horizon_ms"),
        ("[mlp]", "[split]\ntrain = 0.9\n[mlp]", "make it 1"),
        ("epochs = 3\nseeds = 2\ndecay", "epoks = 3\nseeds = 2\ndecay", "did you mean 'epochs'"),
        ("sample_every = 2", "sample_every = 0", "sample_every"),
        ("duration_s = 120", "duration_s = -1", "duration_s"),
        ("[mlp]", "[mlp]\nlearning_rate = 9.0\nweight_decay = 1.0", "keep the product below 1"),
    ],
)
def test_a_wrong_config_ends_with_one_line_and_code_2(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    assert old in CONFIG
    (tmp_path / "t.toml").write_text(CONFIG.replace(old, new))
    process = _qbtc("train", "t.toml", folder=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "models").exists()


def test_ctrl_c_leaves_no_model(columns: EventColumns, tmp_path: Path) -> None:
    class Watcher(Silent):
        def stage(self, name: str, total: int) -> None:
            if name == "mlp":
                threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()

    endless = {"epochs": 10**6, "patience": 10**6}
    with pytest.raises(KeyboardInterrupt):
        train_columns(
            _config(mlp=endless),
            columns,
            lead=None,
            sources=[],
            output_dir=tmp_path / "models",
            watcher=Watcher(),
        )
    assert not (tmp_path / "models").exists()


@pytest.mark.realdata
def test_the_real_recording_gives_models_below_the_prior(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    real = Path(os.environ.get("QBTC_REAL_DATA", root.parent / "shared" / "data"))
    if not (real / "l2").is_dir():
        pytest.skip(f"no recordings in {real}; set QBTC_REAL_DATA")
    config = load_config(root / "configs" / "train-l2.toml", TrainConfig)
    config = msgspec.structs.replace(config, lightgbm=False, output_dir=str(tmp_path / "models"))
    trained = train(config, root / "configs", cache_dir=tmp_path / "catalog")
    card = trained.cards["mps8"]
    assert not card.synthetic
    assert card.lead == "BTCUSDT.BINANCE"
    prior = card.outcomes["prior"].test.log_loss
    for name in ("mps8", "mps16", "logistic", "mlp"):
        assert card.outcomes[name].test.log_loss < prior, name
