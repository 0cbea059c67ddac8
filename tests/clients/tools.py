"""Programs of others that clients' tests run: found or installed, or the test is skipped.

They are installed once into ``.tools/clients`` of this checkout, at the versions pinned here and in
``package.json``, where every client is required (``QBTC_REQUIRE_CLIENTS=1``, as in ``.ci/run``):
more than a gigabyte that nobody should meet unasked. There, one that is missing fails its tests.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLIENTS = ROOT / ".tools" / "clients"
INSTALL_S_MAX = 900
INSTALL_PAUSES_S = (5.0, 20.0)
"""Between tries: a registry may be away for a moment."""


def missing(reason: str) -> NoReturn:
    """Skip with a reason, or fail where every client is required."""
    if os.environ.get("QBTC_REQUIRE_CLIENTS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def node_folder() -> Path:
    """Folder whose ``node_modules`` holds the clients of ``package.json``."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing("no node and npm here")
    folder = CLIENTS / "node"
    pinned = [HERE / "package.json", HERE / "package-lock.json"]
    with _once(folder, b"".join(path.read_bytes() for path in pinned)) as needed:
        if needed:
            for path in pinned:
                shutil.copy(path, folder)
            # Not `npm ci`: it wants every platform's packages, which npm leaves out of the lock.
            quiet = ("--no-save", "--ignore-scripts", "--no-audit", "--no-fund")
            _install([npm, "install", *quiet], folder)
    return folder


def npm_package(requirement: str) -> Path:
    """Folder of one package of npm, in a place of its own."""
    name, _, _ = requirement.rpartition("@")
    folder = CLIENTS / name.strip("@").replace("/", "-")
    with _once(folder, requirement.encode()) as needed:
        if needed:
            npm = shutil.which("npm") or missing("no npm here")
            quiet = ("--no-save", "--ignore-scripts", "--no-audit", "--no-fund")
            _install([npm, "install", *quiet, requirement], folder)
    return folder / "node_modules" / name


def python_of(requirement: str, *, older_than: tuple[int, int]) -> Path:
    """Interpreter of an environment of its own, with one requirement inside."""
    folder = CLIENTS / requirement.partition("=")[0]
    python = folder / "venv" / "bin" / "python"
    with _once(folder, requirement.encode()) as needed:
        if needed:
            uv = shutil.which("uv") or shutil.which("uv", path=str(ROOT / ".tools" / "uv" / "bin"))
            if uv is None:
                missing("no uv here")
            base = next((path for path in _interpreters() if _is_older(path, older_than)), None)
            if base is None:
                missing(f"{requirement} needs a Python older than {older_than[0]}.{older_than[1]}")
            _install([uv, "venv", "-q", "--python", str(base), str(folder / "venv")], folder)
            _install([uv, "pip", "install", "-q", "--python", str(python), requirement], folder)
    return python


def run(
    command: Sequence[str | Path],
    folder: Path,
    *,
    home: Path,
    env: Mapping[str, str] | None = None,
    within_s: float = 300.0,
) -> subprocess.CompletedProcess[str]:
    """Run a client in a folder, with a home of its own and no way to anywhere else.

    A proxy that refuses every connection stands where the internet would be.
    """
    closed = "http://127.0.0.1:9"
    own = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "CI": "1",
        "HTTP_PROXY": closed,
        "HTTPS_PROXY": closed,
        "http_proxy": closed,
        "https_proxy": closed,
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        **(env or {}),
    }
    try:
        return subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env=own,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    finally:
        _stop_what_stayed(home)


def _stop_what_stayed(home: Path) -> None:
    """End the daemons that a client left behind; they have its home, which is a test's own."""
    mark = b"HOME=" + os.fsencode(home)
    for process in Path("/proc").glob("[0-9]*"):
        # Others' processes, and ones that end meanwhile, cannot be read.
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                os.kill(int(process.name), signal.SIGTERM)


def run_node(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of ``node/`` with the pinned clients importable."""
    modules = node_folder() / "node_modules"
    (folder / "node_modules").symlink_to(modules)
    shutil.copy(HERE / "node" / script, folder)
    return run(["node", script, *arguments], folder, home=folder)


@contextmanager
def _once(folder: Path, wanted: bytes) -> Iterator[bool]:
    """Say whether something must be installed; remember that it was, unless that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = folder / "installed"
    digest = sha256(wanted).hexdigest()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        needed = not stamp.exists() or stamp.read_text() != digest
        if needed and os.environ.get("QBTC_REQUIRE_CLIENTS") != "1":
            pytest.skip("not installed; QBTC_REQUIRE_CLIENTS=1 installs it")
        yield needed
        if needed:
            stamp.write_text(digest)


def _install(command: Sequence[str], folder: Path) -> None:
    end = time.monotonic() + INSTALL_S_MAX
    for pause_s in (*INSTALL_PAUSES_S, None):
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=max(1.0, end - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired:
            missing(f"{command[0]} did not finish within {INSTALL_S_MAX} s")
        if done.returncode == 0:
            return
        if pause_s is None:
            missing(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout)[-400:]}")
        time.sleep(pause_s)


def _interpreters() -> Iterator[Path]:
    for name in ("python3.12", "python3.11", "python3.10"):
        if found := shutil.which(name):
            yield Path(found)
    yield Path(sys.executable)
    yield from sorted(Path.home().glob(".pyenv/versions/3.1[0-2].*/bin/python"), reverse=True)


def _is_older(python: Path, than: tuple[int, int]) -> bool:
    code = f"import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] < {than})"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
