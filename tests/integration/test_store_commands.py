"""``qbtc db``: what it prints, what it exits with, and that it names what is wrong."""

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pyarrow.parquet as pq
import pytest
from tests.support.records import NOW, fill, interaction, order_event, snapshot
from tests.support.stores import within

from qbtc.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


def db(*words: str, exits: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "qbtc", "db", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "200", **environment},
    )
    assert done.returncode == exits, done.stderr
    return done


def report(*words: str) -> Any:
    return json.loads(db(*words, "--json").stdout)


def filled(url: str) -> None:
    async def work(store: Store) -> None:
        await store.write(
            [
                *(fill(number) for number in range(3)),
                interaction(ts=1, request={"messages": ["héllo"]}),
                order_event(),
                snapshot(body=b"\x00\xff"),
            ]
        )

    within(url, work)


def test_migrate_makes_the_tables_and_status_shows_them(url: str) -> None:
    first = report("migrate", "--url", url)
    assert [state["number"] for state in first["applied"]] == [1]
    again = report("migrate", "--url", url)
    assert again["applied"] == []
    assert again["migrations"] == first["migrations"]
    status = report("status", "--url", url)
    assert status["ready"] is True
    assert status["migrations"] == first["migrations"]
    people = db("status", QBTC_DATABASE_URL=url).stderr
    assert "0001_records" in people
    assert "nothing to do" in db("migrate", "--url", url).stderr


def test_a_database_without_tables_is_not_ready(postgres_url: str) -> None:
    assert report("status", "--url", postgres_url)["ready"] is False
    assert "run: qbtc db migrate" in db("status", "--url", postgres_url).stderr
    shown = db("export", "fills", "--url", postgres_url, exits=1).stderr
    assert "run: qbtc db migrate" in shown


def test_export_writes_the_same_lines_from_every_database(url: str, tmp_path: Path) -> None:
    filled(url)
    lines = db("export", "fills", "--url", url).stdout.splitlines()
    assert [json.loads(line)["price"] for line in lines] == ["60000.10"] * 3
    out = tmp_path / "out.jsonl"
    done = report("export", "interactions", "--url", url, "--out", str(out))
    assert (done["rows"], done["file"]) == (1, str(out))
    assert json.loads(out.read_text())["request"] == {"messages": ["héllo"]}
    (line,) = db("export", "snapshots", "--url", url).stdout.splitlines()
    assert base64.b64decode(json.loads(line)["body"]) == b"\x00\xff"
    bounds = ("--from", "2026-11-01", "--to", "2026-12-01T00:00:00")
    assert report("export", "fills", "--url", url, "--out", str(out), *bounds)["rows"] == 3
    assert report("export", "fills", "--url", url, "--out", str(out), *bounds[:1], "2027-01-01")[
        "rows"
    ] == (0)


def test_export_writes_parquet_with_every_digit(url: str, tmp_path: Path) -> None:
    filled(url)
    out = tmp_path / "fills.parquet"
    assert report("export", "fills", "--url", url, "--out", str(out))["rows"] == 3
    rows = pq.read_table(out).to_pylist()
    assert [(row["trade_id"], row["commission"], row["ts_event"]) for row in rows] == [
        (f"trade-{n}", "30.00005", NOW + n) for n in range(3)
    ]
    out = tmp_path / "events.parquet"
    db("export", "order_events", "--url", url, "--out", str(out))
    (event,) = pq.read_table(out).to_pylist()
    assert json.loads(event["data"]) == {"venue_order_id": "17"}
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []


def test_retain_forgets_what_is_old(url: str) -> None:
    filled(url)
    assert report("retain", "--days", "30", "--url", url)["rows"] == 1
    assert db("export", "interactions", "--url", url).stdout == ""
    assert "0 rows older than 30 days went" in db("retain", "--days", "30", "--url", url).stderr


def test_a_file_that_was_applied_and_changed_since_is_refused(url: str) -> None:
    within(url, nothing)
    change(url, "UPDATE {}migrations SET sha256 = 'other'")
    for command in ("migrate", "status"):
        shown = db(command, "--url", url, exits=1 if command == "migrate" else 0).stderr
    shown = db("migrate", "--url", url, exits=1).stderr
    assert "migration 0001_records was applied with SHA-256 other" in shown


def test_a_database_of_a_newer_version_is_refused(url: str) -> None:
    within(url, nothing)
    columns = "(number, name, sha256, applied_at)"
    change(
        url,
        f"INSERT INTO {{}}migrations {columns} VALUES (7, 'later', 'x', '2030-01-01T00:00:00Z')",
    )
    shown = db("migrate", "--url", url, exits=1).stderr
    assert "from a newer QBTC (migration 0007_later); update this installation" in shown
    states = report("status", "--url", url)["migrations"]
    assert [state["number"] for state in states] == [1, 7]


async def nothing(_: Store) -> None:
    pass


def change(url: str, statement: str) -> None:
    """Change a database behind the store's back."""
    if url.startswith("sqlite"):
        import sqlite3

        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.execute(statement.format(""))
        connection.close()
        return

    async def go() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute(statement.format("qbtc."))
        await connection.close()

    asyncio.run(go())


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but long enough to be read as one" * 100)
    for words, said, exits in (
        (["migrate", "--url", f"sqlite:///{tmp_path}/notes.db"], "is not a SQLite file", 1),
        (["migrate", "--url", f"sqlite:///{tmp_path}/no/r.db"], "its folder does not exist", 1),
        (["migrate", "--url", f"sqlite:///{tmp_path}"], "Is a directory", 1),
        (["status", "--url", f"sqlite:///{tmp_path}/r.db"], "does not exist; qbtc db migrate", 2),
        (["status", "--url", "mysql://a:secret@h/d"], "mysql:// is no database URL", 2),
        (["status", "--url", "off"], "records are off", 2),
        (["export", "fills", "--out", "fills.csv"], "ends in .jsonl or .parquet", 2),
        (["export", "fills", "--json"], "give --out FILE", 2),
        (["export", "users"], "'users' is not one of", 2),
        (["retain"], "Missing option '--days'", 2),
        (["retain", "--days", "99999999999"], "is not in the range", 2),
    ):
        shown = db(*words, exits=exits, QBTC_DATABASE_URL=f"sqlite:///{tmp_path}/x.db").stderr
        assert said in shown
        assert "secret" not in shown
        assert "Traceback" not in shown


def test_a_file_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/records.db"
    within(url, nothing)
    script = (
        "import os, sys; os.setuid(65534) if os.getuid() == 0 else None;"
        "sys.argv = ['qbtc', 'db', 'migrate', '--url', sys.argv[1]];"
        "from qbtc.cli import main; main()"
    )
    # Imports first: another user may not be able to read this checkout.
    script = "import qbtc.cli, qbtc.store.commands, qbtc.store.sqlite, rich.console;" + script
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    path = tmp_path / "records.db"
    path.chmod(0o444)
    done = subprocess.run(
        [sys.executable, "-c", script, url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert f"{path}: Permission denied" in done.stderr


def test_a_server_that_is_not_there_or_refuses_says_so_without_the_password(
    postgres_url: str,
) -> None:
    parts = urlsplit(postgres_url)
    host = f"{parts.hostname}:{parts.port}"
    for url, said in (
        ("postgresql://u:secret@127.0.0.1:1/d", "does not answer: Connection refused"),
        (f"postgresql://nobody_of_this_name:secret@{host}/d", "check user and password"),
        (f"postgresql://postgres:secret@{host}/nonesuch_db", "create it, or name another"),
    ):
        shown = db("status", "--url", url, exits=1).stderr
        assert said in shown
        assert "secret" not in shown


def test_days_beyond_what_a_row_can_have_are_the_first_and_the_last(url: str) -> None:
    db("migrate", "--url", url)
    filled(url)
    words = ["export", "fills", "--url", url, "--from", "0001-01-01", "--to", "9999-12-31"]
    assert len(db(*words).stdout.splitlines()) == 3


def test_an_export_into_a_full_disk_is_one_line(url: str) -> None:
    db("migrate", "--url", url)
    filled(url)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qbtc", "db", "export", "fills", "--url", url],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "no space left" in done.stderr
