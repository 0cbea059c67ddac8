"""The proxy that other tests rely on misbehaves as told."""

import socket
import threading
from collections.abc import Iterator

import pytest
from tests.support.proxy import Proxy


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(link: socket.socket) -> None:
            with link:
                try:
                    while piece := link.recv(65_536):
                        link.sendall(piece)
                except ConnectionError:
                    return

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(link,), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"echo://someone@127.0.0.1:{server.getsockname()[1]}/path"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def _connect(proxy: Proxy, *, timeout_s: float = 10) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=timeout_s)


def _echoed(link: socket.socket, text: bytes) -> bytes:
    link.sendall(text)
    got = b""
    while len(got) < len(text):
        got += link.recv(65_536)
    return got


def test_it_carries_what_both_sides_say_and_their_ends(echo: str) -> None:
    with Proxy(echo) as proxy, _connect(proxy) as link:
        assert proxy.url == f"echo://someone@127.0.0.1:{proxy.port}/path"
        assert _echoed(link, b"x" * 300_000) == b"x" * 300_000
        link.shutdown(socket.SHUT_WR)
        assert link.recv(1) == b""


def test_a_stalled_connection_says_nothing_until_it_is_resumed(echo: str) -> None:
    with Proxy(echo) as proxy, _connect(proxy) as link:
        proxy.stall()
        link.sendall(b"held")
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(1)
        link.settimeout(10)
        proxy.resume()
        assert link.recv(4) == b"held"


def test_a_half_open_connection_is_accepted_and_never_answered(echo: str) -> None:
    with Proxy(echo) as proxy, _connect(proxy) as before:
        assert _echoed(before, b"a") == b"a"
        proxy.half_open()
        with _connect(proxy, timeout_s=0.2) as link:
            link.sendall(b"hello?")
            with pytest.raises(TimeoutError):
                link.recv(1)
        assert _echoed(before, b"b") == b"b"


def test_a_cut_connection_is_reset_and_the_next_one_works(echo: str) -> None:
    with Proxy(echo) as proxy:
        with _connect(proxy) as link:
            assert _echoed(link, b"a") == b"a"
            assert proxy.open == 1
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                link.recv(1)
        with _connect(proxy) as link:
            assert _echoed(link, b"b") == b"b"
        assert proxy.accepted == 2


def test_slow_and_delayed_bytes_all_arrive(echo: str) -> None:
    with Proxy(echo) as proxy, _connect(proxy) as link:
        proxy.slow(bytes_s=20_000)
        assert _echoed(link, b"y" * 2_000) == b"y" * 2_000
        proxy.resume()
        proxy.delay(0.01)
        assert _echoed(link, b"z" * 100) == b"z" * 100
