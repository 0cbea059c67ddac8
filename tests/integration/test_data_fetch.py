"""The downloader against a server that does everything wrong that a server can."""

import asyncio
import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from archive_server import ArchiveServer, serve

from qbtc.data.download import (
    ARCHIVE_URL,
    FIRST_DAY,
    ArchiveFile,
    Fetched,
    Limits,
    Status,
    fetch_files,
    plan_files,
)
from qbtc.errors import DataError, RunFailed

TODAY = date(2024, 3, 10)
QUICK = Limits(backoff_s=0.001, backoff_s_max=0.01, attempts_max=4, silence_s_max=3.0)


@pytest.fixture
def server() -> Iterator[ArchiveServer]:
    with serve() as running:
        yield running


def plan(first: date, last: date, **options: Any) -> list[ArchiveFile]:
    settings = {"kind": "klines", "interval": "1m", "market": "spot", "today": TODAY} | options
    symbol = settings.pop("symbol", "BTCUSDT")
    return plan_files(symbol, first=first, last=last, **settings)


def day(number: int = 1) -> list[ArchiveFile]:
    return plan(date(2024, 3, number), date(2024, 3, number))


def fetch(
    server: ArchiveServer, files: list[ArchiveFile], folder: Path, **options: Any
) -> list[Fetched]:
    settings = {"today": TODAY, "limits": QUICK, "rng": random.Random(1)} | options
    return asyncio.run(fetch_files(files, folder, base_url=server.url, **settings))


def stock(server: ArchiveServer, files: list[ArchiveFile], text: str = "1,2,3\n" * 200) -> str:
    """Put files on the server; returns the path of the last."""
    for number, file in enumerate(files):
        server.add(str(file.path), f"{number}\n{text}")
    return str(files[-1].path)


def test_closed_months_come_whole_and_the_rest_by_day() -> None:
    names = [file.path.name for file in plan(date(2024, 1, 30), date(2024, 3, 2))]
    assert names == [
        *("BTCUSDT-1m-2024-01-30.zip", "BTCUSDT-1m-2024-01-31.zip"),
        "BTCUSDT-1m-2024-02.zip",
        *("BTCUSDT-1m-2024-03-01.zip", "BTCUSDT-1m-2024-03-02.zip"),
    ]


def test_paths_are_the_archives() -> None:
    spot = plan(date(2024, 2, 1), date(2024, 2, 29), kind="aggTrades")
    assert str(spot[0].path) == "data/spot/monthly/aggTrades/BTCUSDT/BTCUSDT-aggTrades-2024-02.zip"
    futures = plan(date(2024, 2, 5), date(2024, 2, 5), market="um", interval="15m")
    assert str(futures[0].path) == (
        "data/futures/um/daily/klines/BTCUSDT/15m/BTCUSDT-15m-2024-02-05.zip"
    )
    month = plan(date(2024, 2, 5), date(2024, 2, 5), interval="1mo")
    assert month[0].path.name == "BTCUSDT-1mo-2024-02.zip"
    assert not month[0].by_day
    days = plan(date(2024, 2, 1), date(2024, 2, 29), period="daily")
    assert len(days) == 29


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"symbol": "../x"}, "not like BTCUSDT"),
        ({"symbol": "btcusdt"}, "writes 'BTCUSDT'"),
        ({"interval": "1M"}, "a month is 1mo"),
        ({"interval": "1s", "market": "um"}, "spot only"),
        ({"first": date(2024, 2, 2)}, "swap them"),
        ({"first": date(2010, 1, 1)}, f"first day, {FIRST_DAY}"),
        ({"last": TODAY}, "is not over; the newest file is of 2024-03-09"),
        ({"first": date(2024, 3, 1), "last": date(2024, 3, 2), "period": "monthly"}, "is not over"),
        (
            {"first": date(2018, 1, 1), "last": date(2024, 1, 1), "period": "daily", "limit": 100},
            "over 100 files",
        ),
    ],
)
def test_a_wish_that_cannot_be_is_refused(
    options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = options.pop("limit", None)
    if limit:
        monkeypatch.setattr("qbtc.data.download.FILES_MAX", limit)
    settings = {"first": date(2024, 2, 1), "last": date(2024, 2, 1)} | options
    with pytest.raises(DataError, match=says):
        plan(**settings)


def test_files_arrive_whole_and_are_kept(server: ArchiveServer, tmp_path: Path) -> None:
    files = plan(date(2024, 3, 1), date(2024, 3, 8))
    stock(server, files)
    first = fetch(server, files, tmp_path)
    assert [found.status for found in first] == [Status.FETCHED] * 8
    for found in first:
        assert found.path is not None
        assert found.path.read_bytes() == server.files[str(found.file.path)]
    assert not list(tmp_path.rglob("*.part"))
    assert server.open_most <= 4
    server.requests.clear()
    again = fetch(server, files, tmp_path)
    assert [found.status for found in again] == [Status.KEPT] * 8
    assert all(path.endswith(".CHECKSUM") for path, _ in server.requests), "no file twice"


def test_a_cut_transfer_goes_on_where_it_stopped(server: ArchiveServer, tmp_path: Path) -> None:
    path = stock(server, day())
    server.faults[path] = ["truncate", "truncate"]
    found = fetch(server, day(), tmp_path)[0]
    assert found.status is Status.FETCHED
    half = len(server.files[path]) // 2
    ranges = server.asked(path)
    assert ranges[:2] == [None, f"bytes={half}-"]
    assert len(ranges) == 3


def test_a_part_of_an_earlier_run_is_continued(server: ArchiveServer, tmp_path: Path) -> None:
    path = stock(server, day())
    content = server.files[path]
    part = tmp_path / f"{path}.part"
    part.parent.mkdir(parents=True)
    for have in (content[:100], content, content + b"more", b"x" * 50):
        part.write_bytes(have)
        (tmp_path / path).unlink(missing_ok=True)
        assert fetch(server, day(), tmp_path)[0].status is Status.FETCHED
        assert (tmp_path / path).read_bytes() == content
        assert not part.exists()


@pytest.mark.parametrize("fault", ["ignore-range", "wrong-range"])
def test_a_server_that_cannot_resume_is_asked_anew(
    server: ArchiveServer, tmp_path: Path, fault: str
) -> None:
    path = stock(server, day())
    server.faults[path] = ["truncate", fault]
    assert fetch(server, day(), tmp_path)[0].status is Status.FETCHED
    assert (tmp_path / path).read_bytes() == server.files[path]


@pytest.mark.parametrize("fault", [500, 503, 429, "corrupt", "slow", "hang", 404])
def test_a_passing_fault_is_tried_again(server: ArchiveServer, tmp_path: Path, fault: Any) -> None:
    path = stock(server, day())
    server.faults[path] = [fault]
    found = fetch(server, day(), tmp_path)[0]
    assert found.path is not None
    assert found.path.read_bytes() == server.files[path]
    assert len(server.asked(path)) == (1 if fault == "slow" else 2)


def test_a_file_that_stays_corrupt_never_gets_its_name(
    server: ArchiveServer, tmp_path: Path
) -> None:
    path = stock(server, day())
    server.faults[path] = ["corrupt"] * 10
    with pytest.raises(DataError, match=r"SHA-256 is not that of its \.CHECKSUM after 4 attempts"):
        fetch(server, day(), tmp_path)
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


@pytest.mark.parametrize("fault", ["bad-checksum", "long-checksum"])
def test_a_checksum_that_is_none_is_an_error(
    server: ArchiveServer, tmp_path: Path, fault: str
) -> None:
    path = stock(server, day())
    server.faults[f"{path}.CHECKSUM"] = [fault] * 10
    with pytest.raises(DataError, match=r"its \.CHECKSUM is"):
        fetch(server, day(), tmp_path)
    server.faults[f"{path}.CHECKSUM"] = [fault]
    assert fetch(server, day(), tmp_path)[0].status is Status.FETCHED


def test_a_server_that_is_down_fails_the_run(server: ArchiveServer, tmp_path: Path) -> None:
    path = stock(server, day())
    server.faults[path] = [503] * 10
    with pytest.raises(RunFailed, match=r"HTTP 503 after 4 attempts; run it again"):
        fetch(server, day(), tmp_path)
    server.faults[path] = [403]
    with pytest.raises(RunFailed, match="HTTP 403; the archive refuses"):
        fetch(server, day(), tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(RunFailed, match="ConnectError"):
        fetch(server, day(), tmp_path)


def test_what_is_missing_is_not_yet_or_never(server: ArchiveServer, tmp_path: Path) -> None:
    files = plan(date(2024, 3, 4), date(2024, 3, 9))
    stock(server, files[1:2])
    statuses = [found.status.value for found in fetch(server, files, tmp_path)]
    assert statuses == ["never", "fetched", "never", "not yet", "not yet", "not yet"]


def test_a_month_that_is_missing_is_fetched_by_day(server: ArchiveServer, tmp_path: Path) -> None:
    month = plan(date(2024, 2, 1), date(2024, 2, 29))
    assert len(month) == 1
    stock(server, plan(date(2024, 2, 1), date(2024, 2, 28), period="daily"))
    found = fetch(server, month, tmp_path)
    assert [entry.status for entry in found] == [Status.FETCHED] * 28 + [Status.NEVER]
    strict = fetch(server, plan(date(2024, 2, 1), date(2024, 2, 29), period="monthly"), tmp_path)
    assert [entry.status for entry in strict] == [Status.NOT_YET]


def test_a_restated_file_is_fetched_anew(server: ArchiveServer, tmp_path: Path) -> None:
    path = stock(server, day())
    fetch(server, day(), tmp_path)
    old = server.files[path]
    server.add(path, "other text of the same length".ljust(10))
    found = fetch(server, day(), tmp_path)[0]
    assert found.status is Status.RESTATED
    assert (tmp_path / path).read_bytes() == server.files[path] != old


def test_sizes_have_a_limit(server: ArchiveServer, tmp_path: Path) -> None:
    stock(server, day())
    with pytest.raises(DataError, match="larger than 100 bytes"):
        fetch(server, day(), tmp_path, limits=Limits(file_bytes_max=100))


def test_other_scripts_are_names_too(server: ArchiveServer, tmp_path: Path) -> None:
    files = plan(date(2024, 3, 1), date(2024, 3, 1), symbol="币安人生USDT")
    stock(server, files)
    assert fetch(server, files, tmp_path)[0].status is Status.FETCHED


def test_a_folder_that_cannot_be_written_is_named(server: ArchiveServer, tmp_path: Path) -> None:
    stock(server, day())
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fetch(server, day(), blocked)


def test_the_base_url_is_checked() -> None:
    assert ARCHIVE_URL.startswith("https://")
    with pytest.raises(DataError, match="http://"):
        asyncio.run(fetch_files([], Path(), today=TODAY, base_url="ftp://x"))
