"""``qbtc data`` end to end: what it prints, what it exits with."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from archive_server import serve
from click.testing import CliRunner, Result

from qbtc.data.commands import data
from qbtc.errors import DataError

START_MS = 1_704_067_200_000  # 2024-01-01


def kline(i: int) -> str:
    opened = START_MS + i * 60_000
    return f"{opened},100.0,101.0,99.0,100.5,1.5,{opened + 59_999},150.0,7,0.5,50.0,0"


def run(*args: str, folder: Path) -> Result:
    result = CliRunner().invoke(data, [*args, "--cache-dir", str(folder / "cache")])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*args: str, folder: Path) -> dict[str, Any]:
    result = run(*args, "--json", folder=folder)
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def csv_of(folder: Path, n: int = 30, name: str = "BTCUSDT-1m-2024-01-01.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(kline(i) for i in range(n)) + "\n")
    return path


def recording_of(folder: Path) -> Path:
    path = folder / "btc"
    event = {"e": "trade", "E": START_MS, "T": START_MS, "s": "BTCUSDT"}
    event |= {"t": 1, "p": "1.5", "q": "2", "m": True}
    path.write_text(f"{START_MS * 1_000_000} {json.dumps(event)}\n")
    return path


def test_fetch_fetches_imports_and_reports(tmp_path: Path) -> None:
    with serve() as server:
        for day in (1, 2):
            first = (day - 1) * 1440
            server.add(
                f"data/spot/daily/klines/BTCUSDT/1m/BTCUSDT-1m-2024-01-0{day}.zip",
                "\n".join(kline(first + i) for i in range(1440)) + "\n",
            )
        args = ("fetch", "--instrument", "BTCUSDT.BINANCE", "--base-url", server.url, "--import")
        args += ("--from", "2024-01-01", "--to", "2024-01-03", "--folder", str(tmp_path / "files"))
        report = run_json(*args, folder=tmp_path)
        assert [file["status"] for file in report["files"]] == ["fetched", "fetched", "never"]
        assert report["dataset"]["counts"]["bars"] == 2880
        shown = run(*args, folder=tmp_path)
        assert shown.stdout == ""
        assert "kept" in shown.stderr
        assert "2,880" in shown.stderr


def test_fetch_of_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    yesterday = f"{datetime.now(UTC).date() - timedelta(days=1):%Y-%m-%d}"
    with serve() as server, pytest.raises(DataError, match="none of the 1 files"):
        run(
            *("fetch", "--instrument", "NEWUSDT-PERP.BINANCE", "--base-url", server.url),
            *("--from", yesterday, "--to", yesterday, "--folder", str(tmp_path)),
            folder=tmp_path,
        )


def test_import_tells_files_apart(tmp_path: Path) -> None:
    files = (str(recording_of(tmp_path)), str(csv_of(tmp_path)))
    report = run_json("import", *files, "--instrument", "BTCUSDT.BINANCE", folder=tmp_path)
    kinds = [facts["source"]["source"] for facts in report["datasets"]]
    assert kinds == ["recording", "archive"]
    assert [facts["counts"]["trades"] for facts in report["datasets"]] == [1, 0]
    shown = run("import", *files, "--instrument", "BTCUSDT.BINANCE", folder=tmp_path).stderr
    for word in ("BTCUSDT.BINANCE", "sha256", "gaps", "in the source", "catalog"):
        assert word in shown


def test_import_asks_what_a_nameless_csv_holds(tmp_path: Path) -> None:
    path = str(csv_of(tmp_path, name="mine.csv"))
    with pytest.raises(DataError, match="give --kind"):
        run("import", path, "--instrument", "BTCUSDT.BINANCE", folder=tmp_path)
    report = run_json(
        *("import", path, "--instrument", "BTCUSDT.BINANCE", "--kind", "klines"), folder=tmp_path
    )
    assert report["datasets"][0]["counts"]["bars"] == 30


def test_list_and_synth_name_what_is_synthetic(tmp_path: Path) -> None:
    assert "no data sets yet" in run("list", folder=tmp_path).stderr
    made = run_json(
        *("synth", "--instrument", "BTCUSDT-PERP.BINANCE", "--duration", "2", "--seed", "9"),
        folder=tmp_path,
    )
    assert made["datasets"][0]["synthetic"] is True
    run("import", str(csv_of(tmp_path)), "--instrument", "BTCUSDT.BINANCE", folder=tmp_path)
    listed = run_json("list", folder=tmp_path)["datasets"]
    assert [facts["synthetic"] for facts in listed] == [True, False]
    shown = run("list", folder=tmp_path).stderr
    assert "synthetic (seed 9, edge 1.0)" in shown
    assert listed[0]["key"] in shown, "a key is never cut, so that it can be copied"


def test_wrong_data_exits_2_with_one_line(tmp_path: Path) -> None:
    path = csv_of(tmp_path)
    path.write_text(f"{kline(0)}\n{kline(0)}\n")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from qbtc.cli import main; main()", "data", "import"),
            *(str(path), "--instrument", "BTCUSDT.BINANCE"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "time repeats at row 2" in done.stderr
    assert "Traceback" not in done.stderr
