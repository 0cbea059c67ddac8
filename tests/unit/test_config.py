"""A config says what is wrong with it and what to write instead."""

from pathlib import Path

import pytest

from qbtc.config import RunConfig, load_config, resolve_path
from qbtc.errors import ConfigError

GOOD = """
name = "t"
strategies = [{path = "a.py:A"}]
[[data]]
source = "recording"
instrument = "BTCUSDT-PERP.BINANCE"
path = "x.gz"
[venue]
maker_fee = "0.0001"
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_a_good_config_keeps_costs_on_by_default(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, GOOD), RunConfig)
    assert config.venue.maker_fee == "0.0001"
    assert config.venue.taker_fee == "0.0005"
    assert config.venue.latency_ms > 0


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("maker_fee", "makr_fee", "did you mean 'maker_fee'"),
        ("strategies", "strategy", "did you mean 'strategies'"),
        ('source = "recording"', 'source = "recordng"', "recordng"),
        ('name = "t"', "", "name"),
        ('name = "t"', 'name = "t', "line 2"),
    ],
)
def test_a_wrong_key_is_named_with_its_remedy(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(_write(tmp_path, GOOD.replace(old, new)), RunConfig)


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    _write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"did you mean .*run\.toml"):
        load_config(tmp_path / "runn.toml", RunConfig)


def test_paths_expand_variables_against_the_config_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QBTC_REAL_DATA", str(tmp_path / "real"))
    assert resolve_path("${QBTC_REAL_DATA}/l2", tmp_path) == tmp_path / "real" / "l2"
    assert resolve_path("a/b", tmp_path) == tmp_path / "a" / "b"
    with pytest.raises(ConfigError, match="QBTC_NO_SUCH"):
        resolve_path("${QBTC_NO_SUCH}/x", tmp_path)
