"""docs/records.md and deploy/postgres keep their word: what they say to run, runs."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.support.private_servers import running, server_folder
from tests.support.records import fill, order, signal
from tests.support.services import REQUIRED
from tests.support.stores import within

from qbtc.stack.servers import PostgresServer
from qbtc.store import Store, open_store
from qbtc.store.tables import TABLES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
ROLES = ROOT / "deploy" / "postgres" / "roles.sql"


def test_its_commands_run_one_after_another(tmp_path: Path) -> None:
    [script] = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    assert script.count("qbtc db ") == 5
    program = f'qbtc() {{ "{sys.executable}" -m qbtc "$@"; }}\nset -e\n{script}'
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "records.db").exists()
    assert (tmp_path / "fills.parquet").exists()


def test_its_query_joins_signal_order_and_fill(tmp_path: Path) -> None:
    import sqlite3

    async def work(store: Store) -> None:
        await store.write([signal(), order(), fill()])

    within(f"sqlite:///{tmp_path}/records.db", work)
    [query] = re.findall(r"```sql\n(SELECT s.*?)```", TEXT, flags=re.DOTALL)
    with sqlite3.connect(tmp_path / "records.db") as connection:
        assert connection.execute(query).fetchall() == [
            ("BUY", 0.75, "order-0", "SUBMITTED", "60000.10", "0.50")
        ]
    connection.close()


def test_it_names_every_table_with_its_key() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| .* \| (.*) \| .* \|$", TEXT, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(TABLES)
    for name, key in rows:
        if name != "outbox":
            assert tuple(re.findall(r"`([a-z_]+)`", key)) == TABLES[name].key


def test_the_roles_of_a_server_of_ones_own_are_made_and_have_the_least_rights() -> None:
    program = shutil.which("psql")
    if program is None:
        assert not REQUIRED, "no psql, and QBTC_REQUIRE_SERVICES is set"
        pytest.skip("no psql; on Debian: apt-get install postgresql-client")
    passwords = {"QBTC_OWNER_PASSWORD": "one", "QBTC_APP_PASSWORD": "two"}
    with server_folder() as folder, running(PostgresServer(folder / "pg", fsync=False)) as server:
        done = subprocess.run(
            [program, "-X", "-f", ROLES, server.url],
            env=os.environ | passwords,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        host = f"127.0.0.1:{urlsplit(server.url).port}"
        owner = f"postgresql://qbtc_owner:one@{host}/qbtc_records"
        app = f"postgresql://qbtc_app:two@{host}/qbtc_records"
        asyncio.run(as_documented(owner, app))


async def as_documented(owner: str, app: str) -> None:
    store = await open_store(owner, ready=False)
    await store.migrate()
    await store.close()
    connection = await asyncpg.connect(owner)
    [allow] = re.findall(r"```sql\n(SELECT qbtc.*?)```", TEXT, flags=re.DOTALL)
    await connection.execute(allow)
    await connection.close()
    store = await open_store(app)
    await store.write([signal(), order(), fill()])
    assert len(await store.trail()) == 1
    await store.close()
    connection = await asyncpg.connect(app)
    for statement in (
        "DELETE FROM qbtc.fills",
        "DROP TABLE qbtc.fills",
        "CREATE TABLE qbtc.mine (a int)",
        "UPDATE qbtc.order_events SET kind = 'x'",
        "INSERT INTO qbtc.migrations VALUES (9, 'x', 'y')",
        "SELECT qbtc.allow('qbtc_app')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    await connection.close()
