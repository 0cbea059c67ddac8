"""A strategy file that does not load says where and why in one line."""

import os
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from qbtc.config import StrategyConfig
from qbtc.errors import ConfigError
from qbtc.trading.loader import load_strategy

GOOD = """
from qbtc.trading.strategy import QbtcStrategy, StrategyParams

class MineParams(StrategyParams, frozen=True):
    instrument: str
    size: float = 1.0

class Mine(QbtcStrategy[MineParams]):
    pass

class Heir(Mine):
    pass

class Plain:
    pass

class Bare(QbtcStrategy):
    pass
"""


def entry(name: str = "Mine", file: str = "mine.py", **params: object) -> StrategyConfig:
    return StrategyConfig(path=f"{file}:{name}", params={"instrument": "X"} | params)


def write(folder: Path, text: str = GOOD, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(dedent(text))
    return path


def test_a_file_is_found_beside_the_config_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    before = list(sys.path)
    monkeypatch.chdir(os.sep)
    loaded = load_strategy(entry(size=2), tmp_path)
    assert loaded.cls.__name__ == "Mine"
    assert loaded.cls.__module__ == "strategies.mine"
    assert sys.modules["strategies.mine"].Mine is loaded.cls
    assert loaded.params.size == 2.0  # type: ignore[attr-defined]
    assert sys.path == before


def test_an_edited_file_is_read_anew(tmp_path: Path) -> None:
    write(tmp_path)
    first = load_strategy(entry(), tmp_path)
    write(tmp_path, GOOD.replace("size: float = 1.0", "size: float = 3.0"))
    assert first.params.size == 1.0  # type: ignore[attr-defined]
    assert load_strategy(entry(), tmp_path).params.size == 3.0  # type: ignore[attr-defined]


def test_two_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    files = []
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        files.append(write(tmp_path / folder, GOOD.replace("1.0", f"{number}.0")))
    loaded = [load_strategy(entry(file=f"{name}/mine.py"), tmp_path) for name in ("a", "b")]
    assert [item.params.size for item in loaded] == [0.0, 1.0]  # type: ignore[attr-defined]
    assert [item.file for item in loaded] == files


def test_an_inherited_strategy_has_its_parents_parameters(tmp_path: Path) -> None:
    write(tmp_path)
    assert type(load_strategy(entry("Heir"), tmp_path).params).__name__ == "MineParams"


def test_a_dotted_path_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, name="dotted_strategy.py")
    monkeypatch.syspath_prepend(tmp_path)
    config = StrategyConfig(path="dotted_strategy:Mine", params={"instrument": "X"})
    assert load_strategy(config, Path("/")).cls.__module__ == "dotted_strategy"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (entry("Mien"), r"mine\.py: no strategy class 'Mien'; did you mean 'Mine'\?"),
        (entry("Nothing"), "it has: Bare, Heir, Mine"),
        (entry("Plain"), "'Plain' is not a strategy; write `class Name"),
        (entry("MineParams"), "not a strategy"),
        (entry("Bare"), r"does not name its parameters; write `class Bare\(QbtcStrategy"),
        (entry(file="mime.py"), r"no such strategy file; did you mean .*mine\.py"),
        (entry(sizee=1), r"params of mine\.py:Mine: unknown key 'sizee'.*did you mean 'size'"),
        (entry(size=float("nan")), "size is not a number; give one"),
        (entry(size="big"), "size: expected a number, got text"),
        (StrategyConfig(path="mine.py:Mine"), "missing key 'instrument'"),
        (StrategyConfig(path="mine.py"), r"write it as file\.py:Class"),
        (StrategyConfig(path="no.such.module:X"), "No module named"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    tmp_path: Path, config: StrategyConfig, says: str
) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=says) as caught:
        load_strategy(config, tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\ndef broken(:\n", r"broken\.py:2: syntax error"),
        ("import os\n\nraise KeyError('a')\n", r"broken\.py:3: KeyError: 'a'"),
        ("import no_such_package\n", r"broken\.py:1: ModuleNotFoundError"),
        ("\0", r"broken\.py"),
    ],
)
def test_a_file_that_does_not_run_says_file_and_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_strategy(entry(file="broken.py"), tmp_path)
    assert "\n" not in str(caught.value)
    assert "strategies.broken" not in sys.modules
