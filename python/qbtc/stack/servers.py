"""Private servers on loopback: PostgreSQL, Redis and RabbitMQ, each in a folder of its own.

For ``qbtc up``, tests and fault runs. A folder keeps the data, a random password, the port and the
log; a server that is started again in it, also by another process, has them all. Nothing listens
beyond loopback and nothing of the machine's own servers is touched. As root, a server runs as the
user its package made, who must be able to enter the folder. Times are seconds.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self, TypedDict

import msgspec

from qbtc.errors import InputError, RunFailed

__all__ = ["PostgresServer", "RabbitServer", "RedisServer", "Server"]

READY_S_MAX = 60.0
STOP_S_MAX = 20.0
POLL_S = 0.02
USER = "qbtc"
LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
"""For Erlang: its own port listens on every address otherwise."""


class _AsUser(TypedDict, total=False):
    user: int
    group: int
    extra_groups: Sequence[int]


class _State(msgspec.Struct):
    """What ``state.json`` keeps."""

    port: int
    more_ports: list[int] = []
    pids: dict[str, int] = {}
    """Of the processes that were started, by what they are."""
    born: dict[str, str] = {}
    """When each began, in the kernel's words: a process of the same number is another one."""


class Server(ABC):
    """One server in a folder; as a context manager it runs for the length of the block.

    Parameters
    ----------
    folder
        Made if absent.
    port
        On 127.0.0.1; the folder's last one, or any free one, if not given.

    Raises
    ------
    InputError
        What the folder keeps is damaged, or it runs on another port.
    """

    name: str
    package: str
    users: tuple[str, ...]
    more_ports = 0
    stop_signal: signal.Signals = signal.SIGTERM

    def __init__(self, folder: Path, *, port: int | None = None) -> None:
        self.folder = folder.absolute()
        self._account = _account(self.users)
        try:
            self._state = msgspec.json.decode(self._state_path.read_bytes(), type=_State)
        except FileNotFoundError:
            ports = _free_ports(1 + self.more_ports)
            self._state = _State(port=port or ports[0], more_ports=ports[1:])
        except msgspec.DecodeError as error:
            raise InputError(
                f"{self._state_path} is damaged ({error}); end {self.name} yourself if it still"
                f" runs from {self.folder}, remove the file, then try again"
            ) from None
        if port is not None and port != self._state.port:
            if self.pid is not None:
                raise InputError(f"{self.name} runs on port {self._state.port}; stop it first")
            self._state.port = port

    # What a user sees.

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return self._state.port

    @property
    def pid(self) -> int | None:
        """Process id while the server lives."""
        return self._alive("server")

    @property
    def uptime_s(self) -> float | None:
        """How long it has run."""
        if self.pid is None:
            return None
        since_boot = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return since_boot - int(self._state.born["server"]) / os.sysconf("SC_CLK_TCK")

    @property
    def log(self) -> Path:
        """What the server said."""
        return self.folder / "log.txt"

    @property
    def data(self) -> Path:
        """The server's own folder."""
        return self.folder / "data"

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients find it, with user and password."""

    def start(
        self, *, timeout: float = READY_S_MAX, given_up: threading.Event | None = None
    ) -> Self:
        """Start it, on what the folder keeps, unless it runs; return when it answers.

        Parameters
        ----------
        timeout
            How long it may take.
        given_up
            Set by whoever does not want to wait any more.

        Raises
        ------
        InputError
            It is not installed, or its user cannot enter the folder.
        RunFailed
            It ended, did not answer in time or was given up; the end of its log is in a note.
        """
        if self.pid is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own(self.folder / "data", folder=True)
            self._must_be_enterable()
            self._save()
            self._prepare()
            self._spawn("server", self._command())
        self.wait_ready(timeout, given_up=given_up)
        return self

    def wait_ready(
        self, timeout: float = READY_S_MAX, *, given_up: threading.Event | None = None
    ) -> None:
        """Wait until it answers clients.

        Raises
        ------
        RunFailed
            As ``start``.
        """
        end = time.monotonic() + timeout
        while True:
            if self.pid is None:
                raise self._failed("ended before it was ready")
            if given_up is not None and given_up.is_set():
                raise self._failed("was given up before it was ready")
            with contextlib.suppress(OSError):
                if self._answers():
                    return
            if time.monotonic() > end:
                raise self._failed(f"did not answer within {timeout:g} s")
            time.sleep(POLL_S)

    def stop(self, *, timeout: float = STOP_S_MAX) -> None:
        """End it in good order; by force when that takes too long."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self.stop_signal)
            if not self._gone("server", timeout):
                self.kill()
        self._end_helpers()

    def kill(self) -> None:
        """SIGKILL, as a crash would; the data stay as they are on disk."""
        pid = self.pid
        if pid is None:
            return
        # A stopped process starts no child that would be missed, and would keep the port open.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + STOP_S_MAX
        while _state_of(pid) not in ("T", "Z", "") and time.monotonic() < end:
            time.sleep(POLL_S)
        family = [pid, *_children_of(pid)]
        for member in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        while any(_state_of(member) not in ("Z", "") for member in family):
            if time.monotonic() > end:
                raise self._failed(f"is still there {STOP_S_MAX:g} s after SIGKILL")
            time.sleep(POLL_S)
        self._gone("server", STOP_S_MAX)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What each server fills in.

    @abstractmethod
    def _prepare(self) -> None:
        """Write what the server needs in its folder; done before every start."""

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """Program and arguments; the process must stay the server, not fork away."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves clients; an ``OSError`` is a no."""

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.data), "LC_ALL": "C"}

    def _end_helpers(self) -> None:  # noqa: B027 - most servers have none
        """End what was started beside the server."""

    # Folder, secret, processes.

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.json"

    @property
    def _secret(self) -> str:
        path = self.folder / "secret"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(path, secrets.token_urlsafe(24))
        return path.read_text(encoding="ascii")

    def _save(self) -> None:
        # Whole or not at all: it is all that is known of what runs.
        temporary = self._state_path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(self._state))
        temporary.replace(self._state_path)

    def _write(self, path: Path, text: str) -> None:
        """Write a file that only the server's user reads."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        self._own(path)

    def _own(self, path: Path, *, folder: bool = False) -> None:
        if folder:
            path.mkdir(mode=0o700, exist_ok=True)
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _must_be_enterable(self) -> None:
        if self._account is None:
            return
        test = self._run(["test", "-w", self.data], check=False)
        if test.returncode != 0:
            raise InputError(
                f"{self.name} runs as user {self._account.pw_name}, who cannot enter"
                f" {self.folder}; choose a folder whose parents everyone may enter"
            )

    def _run(
        self, command: Sequence[str | Path], *, given: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a short program as the server's user, in the data folder."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=self.data,
            env=self._environment(),
            input=given,
            capture_output=True,
            text=True,
            check=check,
            timeout=READY_S_MAX,
            **self._as_user(),
        )

    def _spawn(self, role: str, command: Sequence[str | Path]) -> None:
        with self.log.open("ab") as log:
            pid = _started(command, self.data, self._environment(), log, self._as_user())
        self._state.pids[role] = pid
        self._state.born[role] = _birth(pid)
        self._save()

    def _as_user(self) -> _AsUser:
        if self._account is None:
            return {}
        return {
            "user": self._account.pw_uid,
            "group": self._account.pw_gid,
            "extra_groups": [],
        }

    def _alive(self, role: str) -> int | None:
        """Process id of what we started, if it lives and is still that process."""
        pid = self._state.pids.get(role)
        if pid is None:
            return None
        birth = _birth(pid)
        if birth == self._state.born[role]:
            return pid
        if not birth:
            # If we started it, the kernel keeps its number until we have asked how it ended.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        del self._state.pids[role]
        return None

    def _gone(self, role: str, timeout: float) -> bool:
        end = time.monotonic() + timeout
        while self._alive(role) is not None:
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)
        return True

    def _failed(self, what: str) -> RunFailed:
        error = RunFailed(f"{self.name} {what}; its log is {self.log}")
        with contextlib.suppress(FileNotFoundError):
            error.add_note(self.log.read_text(encoding="utf-8", errors="replace")[-2000:])
        return error


class PostgresServer(Server):
    """PostgreSQL with a database ``qbtc``; what was committed survives ``kill``."""

    name = "PostgreSQL"
    package = "postgresql"
    users = ("postgres", "nobody")
    stop_signal = signal.SIGINT  # clients are disconnected, not waited for
    initdb_options: tuple[str, ...] = (
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
    )

    def __init__(self, folder: Path, *, port: int | None = None, fsync: bool = True) -> None:
        super().__init__(folder, port=port)
        self._fsync = fsync

    @property
    def url(self) -> str:
        """Of the database ``qbtc``, whose user may do everything."""
        return f"postgresql://{USER}:{self._secret}@127.0.0.1:{self.port}/qbtc"

    def _prepare(self) -> None:
        if self._cluster.exists():
            return
        made = self.data / "new"
        shutil.rmtree(made, ignore_errors=True)  # of an initdb that was cut short
        secret = self.data / "password"
        self._write(secret, self._secret)
        initdb, postgres = self._binary("initdb"), self._binary("postgres")
        self._run([initdb, "-D", made, "-U", USER, "--pwfile", secret, *self.initdb_options])
        self._run([postgres, "--single", "-D", made, "postgres"], given="CREATE DATABASE qbtc")
        made.rename(self._cluster)

    def _binary(self, name: str) -> Path:
        """Find a program of the newest version that is installed; Debian has none on the path."""
        found = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        newest = sorted(found, key=lambda path: int(path.parts[-3]))
        return newest[-1] if newest else _program(self, name)

    @property
    def _cluster(self) -> Path:
        return self.data / "cluster"

    def _command(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "on" if self._fsync else "off",
            "max_connections": 200,
        }
        words = [f"{key}={value}" for key, value in settings.items()]
        return [
            self._binary("postgres"),
            "-D",
            self._cluster,
            *(x for w in words for x in ("-c", w)),
        ]

    def _answers(self) -> bool:
        # The server says so itself, in the last line of its lock file; of a killed one the file
        # is still there, with another number.
        lines = (self._cluster / "postmaster.pid").read_text(encoding="utf-8").split("\n")
        return lines[0] == str(self.pid) and len(lines) > 7 and lines[7].strip() == "ready"


class RedisServer(Server):
    """Redis; with ``appendonly`` what was written survives ``kill``, else it comes up empty."""

    name = "Redis"
    package = "redis-server"
    users = ("redis", "nobody")

    def __init__(self, folder: Path, *, port: int | None = None, appendonly: bool = False) -> None:
        super().__init__(folder, port=port)
        self._appendonly = appendonly

    @property
    def url(self) -> str:
        """Of its first database."""
        return f"redis://:{self._secret}@127.0.0.1:{self.port}/0"

    def _prepare(self) -> None:
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self._appendonly else 'no'}",
            "appendfsync always",
            f"requirepass {self._secret}",
        )
        self._write(self.folder / "redis.conf", "\n".join(lines))

    def _command(self) -> Sequence[str | Path]:
        return [_program(self, "redis-server"), self.folder / "redis.conf"]

    def _answers(self) -> bool:
        command = f"AUTH {self._secret}\r\nPING\r\n"
        return _asked(self.port, command.encode(), until=b"PONG").endswith(b"+PONG\r\n")


class RabbitServer(Server):
    """RabbitMQ with an ``epmd`` of its own, which ends with ``stop``, not with ``kill``."""

    name = "RabbitMQ"
    package = "rabbitmq-server"
    users = ("rabbitmq", "nobody")
    more_ports = 2  # Erlang's distribution and its port mapper

    @property
    def url(self) -> str:
        """Of the virtual host ``/``."""
        return f"amqp://{USER}:{self._secret}@127.0.0.1:{self.port}/"

    def _prepare(self) -> None:
        lines = (
            f"listeners.tcp.local = 127.0.0.1:{self.port}",
            f"default_user = {USER}",
            f"default_pass = {self._secret}",
        )
        self._write(self.data / "rabbitmq.conf", "\n".join(lines) + "\n")
        self._write(self.data / "plugins", "[].\n")
        self._write(self.data / "environment", "")
        if self._alive("epmd") is None:
            epmd = _program(self, "epmd")
            self._spawn("epmd", [epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)])

    def _command(self) -> Sequence[str | Path]:
        # The wrapper on the path changes user and drops the environment; the script does not.
        found = sorted(Path("/usr/lib/rabbitmq/lib").glob("*/sbin/rabbitmq-server"))
        return [found[-1] if found else _program(self, "rabbitmq-server")]

    def control(self, *words: str) -> str:
        """Run ``rabbitmqctl`` on it; return what that printed."""
        beside = self._command()[0]
        return self._run([Path(beside).with_name("rabbitmqctl"), "--quiet", *words]).stdout

    def _environment(self) -> dict[str, str]:
        data = self.data
        return super()._environment() | {
            "RABBITMQ_NODENAME": "qbtc@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(data / "environment"),
            "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(data / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "config"),
            "RABBITMQ_SCHEMA_DIR": str(data / "schema"),
            "RABBITMQ_PID_FILE": str(data / "rabbitmq.pid"),
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_DIST_PORT": str(self._state.more_ports[0]),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": LOOPBACK_ONLY,
            "RABBITMQ_CTL_ERL_ARGS": LOOPBACK_ONLY,
            # The shell is then replaced by the server: our process is the one to signal.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _answers(self) -> bool:
        # A frame of method connection.start, in answer to the protocol's header.
        return _asked(self.port, b"AMQP\x00\x00\x09\x01", until=b"\xce").startswith(b"\x01")

    def _end_helpers(self) -> None:
        pid = self._alive("epmd")
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            self._gone("epmd", STOP_S_MAX)

    @property
    def _epmd_port(self) -> int:
        return self._state.more_ports[1]


def _program(server: Server, *names: str) -> Path:
    """Find a program of a server.

    Raises
    ------
    InputError
        It is not installed.
    """
    for name in names:
        # Debian keeps some servers where only root's path leads.
        found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if found is not None:
            return Path(found)
    raise InputError(
        f"{server.name} is not installed: no {names[0]} on the path; install the package"
        f" {server.package} (apt-get install {server.package})"
    )


def _account(names: Sequence[str]) -> pwd.struct_passwd | None:
    """Who a server runs as; None: who we are."""
    if os.geteuid() != 0:
        return None
    for name in names:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise InputError(f"servers do not run as root, and there is no user {' or '.join(names)}")


def _started(
    command: Sequence[str | Path],
    folder: Path,
    environment: dict[str, str],
    log: IO[bytes],
    user: _AsUser,
) -> int:
    """Start a program in a session of its own, so that Ctrl-C at our terminal is not for it."""
    child = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **user,
    )
    # It may outlive us, and is looked after by its number: nothing of it is left to Popen.
    child.returncode = 0
    return child.pid


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _birth(pid: int) -> str:
    """Return when a process began, in the kernel's words; empty: there is none, or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The name, in brackets, may hold anything; what follows is the state, and the time is 20th.
    words = stat.rpartition(")")[2].split()
    return "" if words[0] in "ZX" else words[19]


def _state_of(pid: int) -> str:
    """Return a process's state: T stopped, Z ended and not yet asked after; empty if there is none.

    See proc_pid_stat(5).
    """
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    return ""


def _children_of(pid: int) -> list[int]:
    """Return the processes that a process started."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(word) for word in text.split()]
    return []


def _asked(port: int, question: bytes, *, until: bytes) -> bytes:
    """Say something to a server; return what it says, up to and past some bytes."""
    said = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as link:
        link.sendall(question)
        while until not in said and (more := link.recv(4096)):
            said += more
    return said
