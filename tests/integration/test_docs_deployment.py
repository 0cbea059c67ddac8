"""docs/deployment.md keeps its word: each of its commands runs here, or is named as not run.

What drives containers is not run, as there is no engine: for it, the services, profiles and files
it names must exist, and what it would run inside a container is run outside.
"""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import pytest
import yaml
from tests.support.private_servers import running, server_folder

from qbtc.stack.servers import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
BLOCKS = "".join(re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL))
LINES = [line.partition(" #")[0].strip() for line in BLOCKS.splitlines()]
INLINE = [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", TEXT)]
COMMANDS = [
    each
    for each in dict.fromkeys([*LINES, *INLINE])
    if re.match(r"(qbtc|make|sh|docker compose|curl|\$EDITOR|apt-get) ", f"{each} ")
]
QBTC = sorted({each for each in COMMANDS if each.startswith("qbtc ")})
CONTAINERS = [each for each in COMMANDS if each.startswith("docker compose ")]
OTHERS = [each for each in COMMANDS if each not in QBTC and each not in CONTAINERS]


def run(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


def words_of_the_command(line: str) -> list[str]:
    """``qbtc serve --engine amqp`` is ``serve``, ``qbtc keys revoke ID`` is ``keys revoke``."""
    words = shlex.split(line.partition(" --")[0])[1:]
    return [word for word in words if word.islower() and "/" not in word]


def test_its_commands_are_found() -> None:
    assert {"qbtc up", "qbtc down", "qbtc status", "qbtc apisix check", "qbtc worker"} <= set(QBTC)
    assert len(CONTAINERS) >= 8
    assert OTHERS == [
        "make up",
        "make down",
        "sh deploy/env/new.sh",
        "$EDITOR deploy/env/apisix.env",
        'curl http://127.0.0.1:9080/v1/models -H "Authorization: Bearer $QBTC_API_KEY"',
        "apt-get install --no-install-recommends postgresql redis-server rabbitmq-server",
    ]


@pytest.mark.parametrize("line", QBTC)
def test_its_qbtc_commands_exist(line: str) -> None:
    """That they work is shown where each is tested; `up`, `status`, `down` in test_stack.py."""
    words = words_of_the_command(line)
    done = run(sys.executable, "-m", "qbtc", *words, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: qbtc {' '.join(words)}")
    for option in re.findall(r"--[a-z-]+", line):
        assert option in done.stdout


def test_apisix_is_checked_from_the_repository() -> None:
    done = run(sys.executable, "-m", "qbtc", "apisix", "check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["up", "down"])
def test_make_does_what_qbtc_does(target: str) -> None:
    recipe = (ROOT / "Makefile").read_text().partition(f"\n{target}: setup ")[2]
    assert recipe.splitlines()[1].strip() == f"@.venv/bin/qbtc {target}"


def test_its_secrets_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "deploy" / "env"
    shutil.copytree(ROOT / "deploy" / "env", folder, ignore=shutil.ignore_patterns("*.env"))
    assert run("sh", "deploy/env/new.sh", folder=tmp_path).returncode == 0
    assert "QBTC_API_KEY=" in (folder / "apisix.env").read_text()


@pytest.mark.parametrize("line", CONTAINERS)
def test_what_it_asks_of_containers_exists(line: str) -> None:
    words = shlex.split(line.partition("<")[0].partition(">")[0])[2:]
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    if words[0] == "--profile":
        assert words[1] in profiles
        words = words[2:]
    assert words[0] in {"build", "config", "exec", "ps", "run", "stop", "up"}
    if words[0] in ("run", "exec"):
        service = next(word for word in words[1:] if not word.startswith("-"))
        assert service in SERVICES
    if words[0] == "stop":
        assert set(words[1:]) <= SERVICES.keys()
    if "--scale" in words:
        assert words[words.index("--scale") + 1].partition("=")[0] in SERVICES


def test_the_keys_that_containers_make_are_made_the_same_way_outside(tmp_path: Path) -> None:
    asked = [line.partition(" keys ")[2] for line in CONTAINERS if " run --rm keys " in line]
    assert sorted(words.split()[0] for words in asked) == ["new", "new", "revoke"]
    file = ("--keys-file", str(tmp_path / "keys.json"))
    assert SERVICES["keys"]["entrypoint"] == ["qbtc", "keys"]
    for words in asked:
        if words.startswith("new"):
            done = run(sys.executable, "-m", "qbtc", "keys", *shlex.split(words), *file)
            assert done.returncode == 0, done.stderr
            assert "qbtc-" in done.stdout
    listed = run(sys.executable, "-m", "qbtc", "keys", "list", "--json", *file).stdout
    assert '"apisix"' in listed
    assert '"prometheus"' in listed


def secrets_of(service: str) -> dict[str, str]:
    """What a container of a service finds in its environment, but for the passwords."""
    text = (ROOT / "deploy" / "env" / f"{service}.env.example").read_text()
    return dict(line.split("=", 1) for line in text.splitlines())


class _ContainersPostgres(PostgresServer):
    """A server as the image makes one: same options, and a socket beside its port."""

    initdb_options = tuple(shlex.split(secrets_of("postgres")["POSTGRES_INITDB_ARGS"]))

    def _command(self) -> Sequence[str | Path]:
        return [*super()._command(), "-c", f"unix_socket_directories={self.data}"]

    @property
    def inside(self) -> dict[str, str]:
        """What a program in the container would find in its environment."""
        return secrets_of("postgres") | {
            "POSTGRES_PASSWORD": self._secret,
            "PATH": f"{self._binary('pg_dump').parent}:{os.environ['PATH']}",
            # Where there is a container, these are what clients take by themselves.
            "PGHOST": str(self.data),
            "PGPORT": str(self.port),
        }


@pytest.fixture
def postgres() -> Iterator[_ContainersPostgres]:
    with server_folder() as folder, running(_ContainersPostgres(folder / "postgres")) as server:
        yield server


@pytest.fixture
def docker(postgres: _ContainersPostgres, tmp_path: Path) -> None:
    """A `docker` that runs in place what it is asked to run in the container `postgres`."""
    words = [f"{name}={value}" for name, value in postgres.inside.items()]
    script = tmp_path / "docker"
    script.write_text(
        '#!/bin/sh\n[ "$1 $2 $3 $4" = "compose exec -T postgres" ] || exit 64\nshift 4\n'
        f'exec env -i {shlex.join(words)} "$@"\n'
    )
    script.chmod(0o755)


def typed(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as a user's shell would, which knows no password."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=folder,
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,  # no terminal: a question for a password fails
        check=False,
    )


def fetch(url: str, statement: str) -> list[tuple[object, ...]]:
    async def go() -> list[tuple[object, ...]]:
        link = await asyncpg.connect(url, timeout=10)
        try:
            return [tuple(row) for row in await link.fetch(statement)]
        finally:
            await link.close()

    return asyncio.run(go())


@pytest.mark.usefixtures("docker")
def test_its_backup_brings_rows_back(postgres: _ContainersPostgres, tmp_path: Path) -> None:
    dump, restore = [line for line in CONTAINERS if " exec -T postgres " in line]
    look = "SELECT consumer, message_id FROM qbtc.processed_messages"
    migrated = run(sys.executable, "-m", "qbtc", "db", "migrate", "--url", postgres.url)
    assert migrated.returncode == 0, migrated.stderr
    put = "INSERT INTO qbtc.processed_messages (consumer, message_id, ts) VALUES ('a', 'b', 7)"
    fetch(postgres.url, put)
    done = typed(dump, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for loss in ("DELETE FROM qbtc.processed_messages", "DROP SCHEMA qbtc CASCADE"):
        fetch(postgres.url, loss)
        done = typed(restore, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert fetch(postgres.url, look) == [("a", "b")]


@pytest.mark.usefixtures("docker")
def test_its_restore_changes_nothing_where_it_cannot_do_all(
    postgres: _ContainersPostgres, tmp_path: Path
) -> None:
    dump, restore = [line for line in CONTAINERS if " exec -T postgres " in line]
    fetch(postgres.url, "CREATE TABLE kept (n int)")
    assert typed(dump, tmp_path).returncode == 0
    fetch(postgres.url, "INSERT INTO kept VALUES (7)")

    async def while_connected() -> None:
        link = await asyncpg.connect(postgres.url, timeout=10)
        done = await asyncio.to_thread(typed, restore, tmp_path)
        await link.close()
        assert "being accessed by other users" in done.stderr

    asyncio.run(while_connected())
    (tmp_path / "qbtc.dump").write_bytes(b"")
    assert "too short" in typed(restore, tmp_path).stderr
    assert fetch(postgres.url, "SELECT n FROM kept") == [(7,)]


@pytest.mark.skip(reason="no container engine here: `docker compose` is not run by any test")
def test_containers_run() -> None: ...


def test_every_file_it_names_exists() -> None:
    for name in re.findall(r"`((?:deploy|tests|configs)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists() or (ROOT / f"{name}.example").exists() or ".key" in name, name


def test_every_service_is_in_its_table() -> None:
    rows = "".join(line for line in TEXT.splitlines() if line.startswith("| `"))
    assert all(f"`{name}`" in rows for name in SERVICES)
