"""A config says what is wrong with it and what to write instead."""

import hashlib
from pathlib import Path

import msgspec
import pytest

from qbtc.config import RunConfig, convert, load_config, resolve_path
from qbtc.errors import ConfigError
from qbtc.trading.plan import config_sha256

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
        ('source = "recording"', 'source = "recordng"', "did you mean 'recording'"),
        ('source = "recording"\n', "", "missing key 'source' in .data.0..; add it"),
        ('path = "x.gz"', 'path = "x.gz"\nseed = 1', "unknown key 'seed' in .*valid: .*damaged"),
        ('name = "t"', "", "missing key 'name'; add it"),
        ('name = "t"', "name = 3", "name: expected text in quotes, got a whole number"),
        ('name = "t"', 'name = "a/b"', "write 1 to 80 characters without a slash"),
        ('"0.0001"', "0.0001", "venue.maker_fee: expected text in quotes, got a number"),
        ('"0.0001"', '"-0.1"', "from minus taker_fee to 0.1"),
        ('"0.0001"', '"0.0001"\ntaker_fee = "nan"', "taker_fee = 'nan'; write a share"),
        ("[venue]", "[venue]\nlatency_ms = nan", "venue.latency_ms: expected a number >= 0"),
        ("[venue]", "[venue]\nleverage = 0", "venue.leverage: expected a whole number >= 1"),
        ("[venue]", '[venue]\nbook = "L3"', "venue.book = 'L3' is not possible; did you mean 'L"),
        ("[venue]", '[venue]\nstarting_balances = ["lots"]', "an amount and a currency"),
        ('name = "t"', 'name = "t', "line 2"),
        ("[venue]", '[bus]\nurl = "x"\nqueue = 1\n[venue]', "unknown key 'queue' in .bus."),
        ("[venue]", '[bus]\nrelay = ["quotes"]\n[venue]', "relay.0. = 'quotes' is not possible"),
        ("[venue]", "[risk]\norder_notional_max = 1\n[venue]", "missing .*position_notional_max"),
        ("[venue]", "[replay]\nspeed = -1\n[venue]", "replay.speed: expected a number >= 0"),
        ("[venue]", '[records]\nsignals = "some"\n[venue]', "did you mean 'all'|valid: acted"),
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


def test_sections_for_the_outside_are_off_and_leave_no_mark_on_the_hash() -> None:
    tree = {
        "name": "t",
        "data": [{"source": "synthetic", "instrument": "X.Y", "seed": 1, "duration_s": 1.0}],
        "strategies": [{"path": "a.py:A"}],
    }
    plain = convert(tree, RunConfig, "test")
    outside = (plain.bus, plain.records, plain.risk, plain.replay)
    assert outside == (None,) * 4
    assert plain.bus_signals == ()
    written = msgspec.to_builtins(plain)
    for name in ("bus", "bus_signals", "records", "replay", "risk"):
        del written[name]
    older = hashlib.sha256(msgspec.json.encode(written, order="sorted")).hexdigest()
    assert config_sha256(plain) == older
    paced = convert(tree | {"replay": {"speed": 2.0}}, RunConfig, "test")
    assert config_sha256(paced) != older
