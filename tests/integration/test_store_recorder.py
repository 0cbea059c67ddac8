"""Records from places that never wait, also while the database is away or the process is killed."""

import asyncio
import errno
import logging
import os
import signal as signals
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.records import event_message, fill, interaction, order, signal
from tests.support.stores import exported, opened

from qbtc.errors import BusUnavailable, InputError, MessageError, StoreError, Unroutable
from qbtc.messages.envelope import Message
from qbtc.store.recorder import Recorder
from qbtc.store.records import OutboxEntry
from qbtc.store.spool import Journal, read_line, write_line

WAIT_S = 60.0


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/records.db"


@pytest.fixture
def away(tmp_path: Path) -> str:
    """A database that is away until its folder is made."""
    return f"sqlite:///{tmp_path}/later/records.db"


def come_back(away: str) -> None:
    Path(away.removeprefix("sqlite:///")).parent.mkdir()


def ids(url: str, table: str, column: str) -> list[str]:
    async def go() -> list[str]:
        async with opened(url) as store:
            return [row[column] for row in await exported(store, table)]

    return asyncio.run(go())


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def segments(spool: Path) -> list[Path]:
    return sorted(spool.glob("*/*/*.spool"))


def test_what_is_put_reaches_the_database_and_leaves_the_journal(url: str, spool: Path) -> None:
    recorder = Recorder(url, spool=spool)
    for number in range(1200):
        recorder.put(interaction(number))
        recorder.put(fill(number))
    assert recorder.flush(WAIT_S)
    counters = recorder.counters()
    assert counters["written"] == 2400
    assert counters["queued"] == counters["waiting"] == counters["dropped"] == 0
    assert recorder.problem() is None
    recorder.close()
    assert segments(spool) == []
    assert ids(url, "fills", "trade_id") == [f"trade-{n}" for n in range(1200)]
    assert len(ids(url, "interactions", "request_id")) == 1200


def test_while_the_database_is_away_records_wait_on_disk_and_drain_in_order(
    away: str, spool: Path
) -> None:
    recorder = Recorder(away, spool=spool)
    for number in range(1500):
        recorder.put(fill(number))
        recorder.put(signal(number))
    until(lambda: recorder.problem() is not None)
    assert not recorder.flush(0.05)
    assert "records wait" in str(recorder.problem())
    until(lambda: recorder.counters()["spooled"] == 3000)
    assert recorder.counters()["queued"] == 0
    come_back(away)
    assert recorder.flush(WAIT_S)
    counters = recorder.counters()
    assert (counters["drained"], counters["waiting"], counters["dropped"]) == (3000, 0, 0)
    assert recorder.problem() is None
    recorder.put(fill(1500))
    assert recorder.flush(WAIT_S)
    recorder.close()
    assert ids(away, "fills", "trade_id") == [f"trade-{n}" for n in range(1501)]
    assert len(ids(away, "signals", "signal_id")) == 1500


def test_what_waits_at_the_end_is_written_by_the_next_process(away: str, spool: Path) -> None:
    recorder = Recorder(away, spool=spool)
    recorder.put(fill(0))
    recorder.put(interaction(0))
    recorder.close(timeout_s=0.1)
    assert segments(spool) != []
    come_back(away)
    recorder = Recorder(away, spool=spool)
    assert recorder.counters()["waiting"] == 2
    assert recorder.flush(WAIT_S)
    recorder.close()
    assert ids(away, "fills", "trade_id") == ["trade-0"]
    assert ids(away, "interactions", "request_id") == ["req-0"]
    assert segments(spool) == []


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from tests.support.records import fill, interaction
    from qbtc.store.recorder import Recorder

    recorder = Recorder({url!r}, spool=Path({spool!r}))
    for number in range(100_000):
        recorder.put(interaction(number))
        recorder.put_durable(fill(number)).result()
        print(number, flush=True)
"""


@pytest.mark.parametrize("database", ["there", "away"])
def test_fills_that_were_acknowledged_survive_sigkill(
    url: str, away: str, spool: Path, database: str
) -> None:
    target = url if database == "there" else away
    root = str(Path(__file__).parents[2])
    script = textwrap.dedent(KILLED).format(root=root, url=target, spool=str(spool))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        acknowledged = -1
        while acknowledged < 60:
            acknowledged = int(process.stdout.readline())
        os.kill(process.pid, signals.SIGKILL)
        for line in process.stdout.read().splitlines():
            acknowledged = int(line)
    # A line that the kill cut off.
    for segment in segments(spool)[-1:]:
        with segment.open("ab") as file:
            file.write(write_line(fill(99_999))[:-20])
    if database == "away":
        come_back(away)
    recorder = Recorder(target, spool=spool)
    assert recorder.flush(WAIT_S)
    recorder.close()
    found = ids(target, "fills", "trade_id")
    # In the database, in order, each once, and perhaps one that was not acknowledged yet.
    assert found[: acknowledged + 1] == [f"trade-{n}" for n in range(acknowledged + 1)]
    assert len(found) - (acknowledged + 1) in (0, 1)
    assert segments(spool) == []


def test_damaged_lines_of_the_journal_are_left_out_and_counted(url: str, spool: Path) -> None:
    folder = spool / "00" / "orders"
    folder.mkdir(parents=True)
    lines = [write_line(fill(number)) for number in range(5)]
    lines[2] = lines[2].replace(b"60000.10", b"99999.99")
    (folder / "00000007.spool").write_bytes(b"".join(lines) + b"\x00\xff" + lines[0][:9])
    recorder = Recorder(url, spool=spool)
    assert recorder.flush(WAIT_S)
    assert recorder.counters()["damaged"] == 2
    recorder.close()
    assert ids(url, "fills", "trade_id") == ["trade-0", "trade-1", "trade-3", "trade-4"]


def test_a_row_that_the_database_refuses_takes_no_other_with_it(url: str, spool: Path) -> None:
    recorder = Recorder(url, spool=spool)
    recorder.put(fill(0))
    recorder.put(fill(1, price="much"))
    recorder.put(fill(2))
    assert not recorder.flush(WAIT_S), "one was refused"
    counters = recorder.counters()
    assert (counters["written"], counters["refused"], counters["waiting"]) == (2, 1, 0)
    recorder.close()
    assert ids(url, "fills", "trade_id") == ["trade-0", "trade-2"]
    (line,) = (spool / "00" / "refused.spool").read_bytes().splitlines(keepends=True)
    assert read_line(line) == fill(1, price="much")


def test_nothing_that_is_put_raises(url: str, spool: Path) -> None:
    recorder = Recorder(url, spool=spool)
    recorder.put(interaction(request={"object": object()}))
    recorder.put("not a record")  # type: ignore[arg-type]
    refused = recorder.put_durable(interaction(request={"object": object()}))
    assert isinstance(refused.exception(WAIT_S), StoreError)
    recorder.put(interaction(1, request={"text": "\ud800"}))
    assert not recorder.flush(WAIT_S), "three were refused"
    assert recorder.counters()["refused"] == 3
    recorder.close()
    recorder.put(fill())
    assert recorder.counters()["dropped"] == 1
    assert recorder.put_durable(fill()).exception(WAIT_S) is not None
    recorder.close()
    assert ids(url, "interactions", "request_id") == ["req-1"]


def test_a_full_journal_drops_others_and_keeps_every_order(away: str, spool: Path) -> None:
    recorder = Recorder(away, spool=spool, spool_bytes_max=1024 * 1024)
    for number in range(150):
        recorder.put(interaction(number, request={"text": "x" * 10_000}))
    until(lambda: recorder.counters()["dropped"] > 0)
    kept = [recorder.put_durable(order(number)) for number in range(1000)]
    for future in kept:
        assert future.exception(WAIT_S) is None
    counters = recorder.counters()
    assert counters["spool_bytes"] <= 1024 * 1024
    assert "records wait" in str(recorder.problem())
    come_back(away)
    assert not recorder.flush(WAIT_S), "others were dropped"
    counters = recorder.counters()
    recorder.close()
    assert len(ids(away, "orders", "order_id")) == 1000
    others = ids(away, "interactions", "request_id")
    assert 0 < len(others) < 150
    assert counters["dropped"] + counters["written"] == 1150


def test_a_disk_that_cannot_be_read_stops_no_recorder(
    away: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Journal) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Journal, "drop_oldest", broken)
    recorder = Recorder(away, spool=spool, spool_bytes_max=1024 * 1024)
    for number in range(150):
        recorder.put(interaction(number, request={"text": "x" * 10_000}))
    until(lambda: recorder.counters()["dropped"] > 0)
    # There is no room on disk, so these are kept in memory or their sender is told.
    told = [recorder.put_durable(order(number)) for number in range(200)]
    come_back(away)
    assert not recorder.flush(WAIT_S), "others were dropped"
    later = recorder.put_durable(order(200))
    assert later.exception(WAIT_S) is None
    assert recorder.flush(WAIT_S)
    recorder.close()
    assert all(future.done() for future in told)
    kept = {f"order-{number}" for number, future in enumerate(told) if not future.exception()}
    assert set(ids(away, "orders", "order_id")) == kept | {"order-200"}


def test_memory_is_bounded_while_the_database_does_not_answer(url: str, spool: Path) -> None:
    async def make() -> None:
        async with opened(url):
            pass

    asyncio.run(make())
    # Another process in the middle of a write: the database is there and does not answer.
    with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as busy:
        busy.execute("BEGIN IMMEDIATE")
        recorder = Recorder(url, spool=spool, rows_max=1000)
        futures = []
        for start in range(0, 5000, 500):
            futures = [recorder.put_durable(fill(start + n)) for n in range(500)]
            for future in futures:
                assert future.exception(WAIT_S) is None
        assert recorder.counters()["queued"] <= 1000
        assert recorder.counters()["dropped"] == 0
        busy.execute("ROLLBACK")
    busy.close()
    assert recorder.flush(WAIT_S)
    recorder.close()
    assert ids(url, "fills", "trade_id") == [f"trade-{n}" for n in range(5000)]


def test_two_processes_share_a_spool_folder_and_the_last_takes_over_what_is_left(
    away: str, spool: Path
) -> None:
    first, second = Recorder(away, spool=spool), Recorder(away, spool=spool)
    first.put(fill(1))
    second.put(fill(2))
    first.close(timeout_s=0.1)
    second.close(timeout_s=0.1)
    come_back(away)
    third = Recorder(away, spool=spool)
    assert third.flush(WAIT_S)
    third.close()
    assert sorted(ids(away, "fills", "trade_id")) == ["trade-1", "trade-2"]


def test_a_spool_folder_that_cannot_be_made_is_an_error_at_the_start(
    url: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot keep records in"):
        Recorder(url, spool=tmp_path / "file" / "spool")
    with pytest.raises(InputError, match="records are off"):
        Recorder("off", spool=tmp_path / "spool")


def test_while_the_disk_of_the_journal_is_full_records_still_reach_the_database(
    url: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(url, spool=spool)
    recorder.put(fill(0))
    assert recorder.flush(WAIT_S)
    whole = os.pwrite

    def full(file: int, body: bytes, offset: int) -> int:
        whole(file, body[: len(body) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    # Known to be safe only once the database has it.
    assert recorder.put_durable(fill(1)).exception(WAIT_S) is None
    assert ids(url, "fills", "trade_id") == ["trade-0", "trade-1"]
    monkeypatch.undo()
    assert recorder.put_durable(fill(2)).exception(WAIT_S) is None
    assert recorder.flush(WAIT_S)
    assert recorder.counters()["dropped"] == recorder.counters()["damaged"] == 0
    recorder.close()
    assert ids(url, "fills", "trade_id") == ["trade-0", "trade-1", "trade-2"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user cannot mount a small disk: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


class SmallDisk:
    """Takes so many bytes of journals in a folder, in place of ``os.pwrite``."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._left = size
        self._write = os.pwrite

    def __call__(self, file: int, body: bytes, offset: int) -> int:
        used = sum(segment.stat().st_size for segment in segments(self._folder))
        room = self._left - used
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(file, body[:room], offset)


def orders_outlast_others(recorder: Recorder, away: str) -> None:
    for number in range(600):
        recorder.put(interaction(number, request={"text": "x" * 10_000}))
        if number % 50 == 0:
            time.sleep(0.02)
    until(lambda: recorder.counters()["dropped"] > 0)
    for start in range(0, 500, 50):
        taken = [recorder.put_durable(order(number)) for number in range(start, start + 50)]
        assert [future.exception(WAIT_S) for future in taken] == [None] * 50
    come_back(away)
    assert not recorder.flush(WAIT_S), "others were dropped"
    recorder.put(order(500))
    assert recorder.flush(WAIT_S), "nothing was dropped since"
    counters = recorder.counters()
    recorder.close()
    assert len(ids(away, "orders", "order_id")) == 501
    others = len(ids(away, "interactions", "request_id"))
    assert others + counters["dropped"] == 600
    assert counters["damaged"] == counters["waiting"] == 0


def test_on_a_disk_that_is_full_others_give_way_and_every_order_is_kept(
    away: str, small_disk: Path
) -> None:
    orders_outlast_others(Recorder(away, spool=small_disk / "spool"), away)


def test_when_the_disk_refuses_to_grow_others_give_way_and_every_order_is_kept(
    away: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", SmallDisk(spool, 4_000_000))
    orders_outlast_others(Recorder(away, spool=spool), away)


def test_of_a_batch_that_does_not_fit_the_first_records_are_kept(
    away: str, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(away, spool=spool)
    recorder.put(fill(0))
    until(lambda: recorder.problem() is not None)
    monkeypatch.setattr(os, "pwrite", SmallDisk(spool, 100_000))
    # More than fits in one batch, whenever the recorder takes it.
    large = [recorder.put_durable(fill(number)) for number in range(1, 1000)]
    kept = [future.exception(WAIT_S) is None for future in large]
    assert kept == sorted(kept, reverse=True)
    used = sum(segment.stat().st_size for segment in segments(spool))
    assert 100_000 - len(write_line(fill(999))) < used <= 100_000
    come_back(away)
    assert not recorder.flush(WAIT_S)
    recorder.close()
    assert ids(away, "fills", "trade_id") == [f"trade-{n}" for n in range(1 + sum(kept))]


def test_a_disk_that_stays_full_is_told_of_once_in_a_while(
    away: str, spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("qbtc.store.lane.LOG_S", 600.0)
    monkeypatch.setattr(os, "pwrite", SmallDisk(spool, 0))
    recorder = Recorder(away, spool=spool)
    for number in range(100):
        dropped = recorder.put_durable(fill(number))
        assert isinstance(dropped.exception(WAIT_S), StoreError)
    recorder.close(timeout_s=0.1)
    told = [row.getMessage() for row in caplog.records if row.levelno == logging.ERROR]
    assert len([line for line in told if "cannot be written" in line]) == 1
    assert len([line for line in told if "are dropped" in line]) == 1


def test_what_never_gets_to_the_database_is_told_by_flush_and_in_the_shortfall(
    url: str, spool: Path
) -> None:
    folder = spool / "00" / "orders"
    folder.mkdir(parents=True)
    (folder / "00000001.spool").write_bytes(write_line(fill(0))[:-20])
    recorder = Recorder(url, spool=spool, bytes_max=100_000)
    assert recorder.flush(WAIT_S), "nothing that was put is lost"
    assert recorder.shortfall() == "records that are never written: 1 damaged"
    recorder.put(fill(1, price="much"))
    recorder.put(interaction(request={"text": "x" * 200_000}))
    assert not recorder.flush(WAIT_S)
    said = "records that are never written: 1 dropped, 1 refused, 1 damaged"
    assert recorder.shortfall() == said
    recorder.put(fill(2))
    assert recorder.flush(WAIT_S), "nothing was lost since"
    recorder.close()
    assert recorder.shortfall() == said


def test_what_waits_on_disk_at_the_end_is_in_the_shortfall(away: str, spool: Path) -> None:
    recorder = Recorder(away, spool=spool)
    recorder.put(fill(0))
    until(lambda: recorder.problem() is not None)
    recorder.close(timeout_s=0.1)
    assert "; 1 records wait, and are kept on disk" in str(recorder.shortfall())


def test_large_contents_are_left_to_the_disk_not_kept_in_memory(away: str, spool: Path) -> None:
    recorder = Recorder(away, spool=spool, bytes_max=1_000_000)
    for number in range(200):
        recorder.put_durable(interaction(number, request={"text": "x" * 100_000})).result(WAIT_S)
        assert recorder.counters()["queued"] <= 11
    come_back(away)
    assert recorder.flush(WAIT_S)
    assert recorder.counters()["dropped"] == 0
    recorder.close()
    assert len(ids(away, "interactions", "request_id")) == 200


class ScriptedBus:
    """Fails as often as it is told to, then takes messages."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.sent: list[str] = []
        self.closed = False

    async def publish(self, message: Message, *, timeout_s: float = 30.0) -> None:
        if message.id == "message-3":
            raise MessageError("never")
        if self.failures:
            self.failures -= 1
            raise (Unroutable if self.failures % 2 else BusUnavailable)("away")
        self.sent.append(message.id)

    async def close(self) -> None:
        self.closed = True


def test_the_outbox_is_published_after_its_rows_and_waits_for_the_bus(
    url: str, spool: Path
) -> None:
    bus = ScriptedBus(failures=3)

    async def publisher() -> ScriptedBus:
        return bus

    recorder = Recorder(url, spool=spool, publisher=publisher)
    for number in range(6):
        recorder.put(fill(number))
        recorder.put(OutboxEntry(message=event_message(number)))
    assert recorder.flush(WAIT_S)
    until(lambda: set(bus.sent) == {f"message-{n}" for n in (0, 1, 2, 4, 5)})

    async def waiting() -> int:
        async with opened(url) as store:
            return len(await store.outbox())

    until(lambda: asyncio.run(waiting()) == 0)
    recorder.close()
    assert bus.closed


def test_a_journal_reads_on_where_it_was_and_counts_what_it_gives_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path, sync=False, segment_bytes=1000)
    for number in range(20):
        journal.append([write_line(fill(number))])
    first = journal.read(3, 10**6)
    assert [record for record, _ in first] == [fill(0), fill(1), fill(2)]
    journal.take(first[-1][1])
    gone = journal.drop_oldest()
    rest = journal.read(100, 10**6)
    assert [record for record, _ in rest] == [fill(n) for n in range(3 + gone, 20)]
    assert 0 < gone < 17
    journal.take(rest[-1][1])
    assert journal.empty
    journal.close()
    assert list(tmp_path.iterdir()) == []
