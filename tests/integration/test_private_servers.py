"""Servers of our own: started, killed and started again on what they kept."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import aio_pika
import asyncpg
import pytest
from redis import Redis
from tests.support.private_servers import running, server_folder

from qbtc.errors import InputError, RunFailed
from qbtc.stack import servers
from qbtc.stack.servers import PostgresServer, RabbitServer, RedisServer, Server


@pytest.fixture
def folder() -> Iterator[Path]:
    with server_folder() as path:
        yield path


def _fetch(url: str, *statements: str) -> list[tuple[object, ...]]:
    async def go() -> list[tuple[object, ...]]:
        link = await asyncpg.connect(url, timeout=10)
        try:
            for statement in statements[:-1]:
                await link.execute(statement)
            return [tuple(row) for row in await link.fetch(statements[-1])]
        finally:
            await link.close()

    return asyncio.run(go())


def _listeners(pid: int) -> set[str]:
    """Addresses that a process listens on, as the kernel writes them."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(link))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.add(words[1].partition(":")[0])
    return found


LOOPBACK = "0100007F"


def test_what_postgresql_committed_survives_its_kill(folder: Path) -> None:
    with running(PostgresServer(folder / "postgres")) as server:
        _fetch(server.url, "CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (7) RETURNING n")
        first = server.pid
        assert first is not None
        assert _listeners(first) == {LOOPBACK}
        port = server.port
        server.kill()
        assert server.pid is None
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        server.start()
        assert server.port == port
        assert server.pid != first
        assert _fetch(server.url, "SELECT n FROM kept") == [(7,)]


def test_redis_keeps_what_it_appended_and_asks_for_its_password(folder: Path) -> None:
    with running(RedisServer(folder / "redis", appendonly=True)) as server:
        with Redis.from_url(server.url) as redis:
            redis.set("kept", "7")
        pid = server.pid
        assert pid is not None
        assert _listeners(pid) == {LOOPBACK}
        server.kill()
        server.start()
        with Redis.from_url(server.url) as redis:
            assert redis.get("kept") == b"7"
        with Redis(port=server.port) as stranger, pytest.raises(Exception, match="authenticated"):
            stranger.get("kept")


def test_rabbitmq_comes_back_on_its_port_after_its_kill(folder: Path) -> None:
    async def declare(url: str, *, passive: bool) -> None:
        async with await aio_pika.connect(url, timeout=20) as link:
            channel = await link.channel()
            await channel.declare_queue(
                "kept", durable=True, passive=passive, arguments={"x-queue-type": "quorum"}
            )

    with running(RabbitServer(folder / "rabbit")) as server:
        asyncio.run(declare(server.url, passive=False))
        first = server.pid
        assert first is not None
        assert Path(f"/proc/{first}/comm").read_text().strip() == "beam.smp"
        assert _listeners(first) == {LOOPBACK}
        server.kill()
        server.start()
        assert server.pid != first
        asyncio.run(declare(server.url, passive=True))
        helper = server._alive("epmd")
        assert helper is not None
        assert _listeners(helper) <= {LOOPBACK, "0" * 24 + "01000000"}
    assert server._alive("epmd") is None


def test_another_process_finds_a_running_server_by_its_folder(folder: Path) -> None:
    with running(RedisServer(folder / "redis")) as first:
        second = RedisServer(folder / "redis")
        assert second.pid == first.pid
        assert second.url == first.url
        assert second.start().pid == first.pid
        with pytest.raises(InputError, match="stop it first"):
            RedisServer(folder / "redis", port=1)
        second.stop()
        assert first.pid is None
        first.stop()  # nothing to do


def test_a_state_that_was_cut_short_is_named_with_what_to_do(folder: Path) -> None:
    path = folder / "redis" / "state.json"
    path.parent.mkdir()
    path.write_bytes(b'{"port": 63')
    with pytest.raises(InputError, match="remove the file") as refused:
        RedisServer(path.parent)
    assert str(path) in str(refused.value)


def test_a_state_is_written_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:5])
        raise OSError("no space left")

    server = RedisServer(folder / "redis")
    server.folder.mkdir()
    server._save()
    monkeypatch.setattr(Path, "write_bytes", cut_short)
    with pytest.raises(OSError, match="no space left"):
        server._save()
    assert RedisServer(folder / "redis").port == server.port


def test_a_server_that_is_given_up_is_not_waited_for(folder: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    server = RedisServer(folder / "redis")
    try:
        with pytest.raises(RunFailed, match="given up"):
            server.start(given_up=given_up)
    finally:
        server.stop()


def test_a_process_number_that_was_given_away_is_left_alone(folder: Path) -> None:
    with running(RedisServer(folder / "redis")) as server:
        server.kill()
        server._state.pids["server"] = os.getpid()
        assert server.pid is None
        server.kill()


def test_a_server_that_is_not_installed_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers.shutil, "which", lambda *_, **__: None)
    with pytest.raises(InputError, match="install the package redis-server"):
        RedisServer(folder / "redis").start()


def test_a_server_that_cannot_start_shows_the_end_of_its_log(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server: Server = RedisServer(folder / "redis", port=taken.getsockname()[1])
        with pytest.raises(RunFailed, match="ended before it was ready") as failed, running(server):
            pass
        assert "Address already in use" in failed.value.__notes__[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes to another user")
def test_a_folder_that_the_servers_user_cannot_enter_is_named(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    with pytest.raises(InputError, match="cannot enter"):
        RedisServer(folder / "closed" / "redis").start()
