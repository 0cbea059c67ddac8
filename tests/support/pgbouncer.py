"""A private pgbouncer that pools transactions, as Supabase's pooler does."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.services import REQUIRED

READY_S_MAX = 20.0
SERVERS = 3
"""Connections to PostgreSQL, fewer than its clients have."""


@contextlib.contextmanager
def pooling(url: str, folder: Path) -> Iterator[str]:
    """Run pgbouncer before a database; give the URL through it."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        reason = "no pgbouncer; on Debian: apt-get install pgbouncer"
        if REQUIRED:
            pytest.fail(f"{reason}, and QBTC_REQUIRE_SERVICES is set")
        pytest.skip(reason)
    parts = urlsplit(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    users = folder / "users.txt"
    users.write_text(f'"{parts.username}" "{parts.password or ""}"\n')
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"""
        [databases]
        * = host={parts.hostname} port={parts.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = {SERVERS}
        """.replace("\n        ", "\n")
    )
    # It refuses to run as root.
    account = None if os.geteuid() else pwd.getpwnam("nobody")
    if account is not None:
        for file in (users, config):
            os.chown(file, account.pw_uid, account.pw_gid)
            file.chmod(0o600)
    with (
        (folder / "pgbouncer.log").open("wb") as log,
        subprocess.Popen(
            [program, str(config)],
            stdout=subprocess.DEVNULL,
            stderr=log,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
        ) as process,
    ):
        try:
            end = time.monotonic() + READY_S_MAX
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    said = (folder / "pgbouncer.log").read_text()
                    assert process.poll() is None, said
                    assert time.monotonic() < end, said
                    time.sleep(0.02)
            user = f"{parts.username}:{parts.password}"
            yield f"postgresql://{user}@127.0.0.1:{port}{parts.path}?pgbouncer=true"
        finally:
            process.terminate()
            process.wait(READY_S_MAX)
