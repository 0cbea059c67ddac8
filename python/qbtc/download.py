"""Fetch files over HTTP: checked, resumed, and put in place whole.

Bytes go to ``NAME.part`` first; a later attempt, or a later run, continues it with a ``Range``
request, and only a file whose SHA-256 is right gets its name. Each request is tried
``Limits.attempts_max`` times with random waits that double, or as long as ``Retry-After`` says.

Where nobody states a SHA-256, a part of an earlier run is not trusted, and one of this run is
continued only if the server's ``ETag`` says that it is still the same file.
"""

import asyncio
import hashlib
import os
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from qbtc.errors import DataError, InputError, RunFailed

__all__ = ["Downloader", "Limits", "NotThere", "TryAgain"]

_CONTENT_RANGE = re.compile(r"bytes (?P<start>\d+)-\d+/(\d+|\*)")
PORT_MAX = 65_535
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a fetch may take; tests make them small."""

    connections_max: int = 4
    attempts_max: int = 6
    backoff_s: float = 0.5
    """Longest random wait before the second attempt; doubles with each."""
    backoff_s_max: float = 30.0
    connect_s_max: float = 10.0
    silence_s_max: float = 30.0
    """Longest time without a byte."""
    file_bytes_max: int = 4 * 1024**3
    redirects_max: int = 0


class TryAgain(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, *, wait_s: float = 0.0, damaged: bool = False) -> None:
        super().__init__(reason)
        self.wait_s, self.damaged = wait_s, damaged


class NotThere(Exception):
    """The server has no such file."""


@dataclass(frozen=True, kw_only=True)
class Announced:
    """What a server says of a file before it sends it."""

    sha256: str | None = None
    bytes: int | None = None


@dataclass
class Downloader:
    """Fetches files; the words are for its messages.

    Raises ``error`` where a file is damaged, too large or cannot be written, and ``RunFailed``
    where the server cannot be reached or refuses: parts are kept, so it can be run again.
    """

    client: httpx.AsyncClient
    limits: Limits
    rng: random.Random | None = None
    on_bytes: Callable[[int], None] = lambda _: None
    """Called with the size of every piece."""
    on_start: Callable[[int, int | None], None] = lambda _have, _total: None
    """Called when bytes begin to come: how many are here already, of how many."""
    error: type[InputError] = DataError
    server: str = "the server"
    checksum: str = "the one stated"

    @classmethod
    @asynccontextmanager
    async def open(cls, limits: Limits, **options: object) -> AsyncIterator["Downloader"]:
        """Make one with a client of its own."""
        timeout = httpx.Timeout(limits.silence_s_max, connect=limits.connect_s_max, pool=None)
        async with httpx.AsyncClient(
            timeout=timeout,
            limits=httpx.Limits(max_connections=limits.connections_max),
            headers={"Accept-Encoding": "identity", "User-Agent": "qbtc"},
        ) as client:
            yield cls(client, limits, **options)  # type: ignore[arg-type]

    async def fetch(
        self,
        url: str,
        path: Path,
        sha256: str | None,
        *,
        check: Callable[[Path], None] = lambda _: None,
    ) -> str:
        """Bring a file here and return its SHA-256; ``check`` sees it before it gets its name."""
        part = path.with_name(path.name + ".part")
        etag: list[str] = []
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if sha256 is None:
                _remove(part)
            found = await self.retry(url, lambda: self._complete(url, part, sha256, etag))
            await asyncio.to_thread(check, part)
            os.replace(part, path)
        except OSError as error:
            raise self.error(f"{path}: cannot be written: {error.strerror or error}") from None
        except NotThere:
            raise RunFailed(f"{url}: HTTP 404; {self.server} has no such file") from None
        return found

    async def read(self, url: str, bytes_max: int) -> bytes | None:
        """Read a small file, cut after ``bytes_max``; None where the server has no such file."""
        async with self._get(url, {}) as response:
            if response.status_code == httpx.codes.NOT_FOUND:
                return None
            self._check_status(response, (200,))
            text = b""
            async for piece in response.aiter_raw():
                text += piece
                if len(text) > bytes_max:
                    break
        return text[:bytes_max]

    async def announced(self, url: str) -> Announced:
        """Ask for what is said of a file: Hugging Face states SHA-256 and size on the way to it.

        Raises
        ------
        NotThere
            The server has no such file.
        """
        return await self.retry(url, lambda: self._announced(url))

    async def _announced(self, url: str) -> Announced:
        asked = httpx.URL(url)
        for _ in range(self.limits.redirects_max + 1):
            response = await self.client.head(asked)
            if response.status_code == httpx.codes.NOT_FOUND:
                raise NotThere(url)
            stated = response.headers.get("X-Linked-ETag", "").strip('"').lower()
            if _SHA256.fullmatch(stated):
                size = response.headers.get("X-Linked-Size", "")
                return Announced(sha256=stated, bytes=_number(size))
            if not response.has_redirect_location:
                if response.status_code == httpx.codes.METHOD_NOT_ALLOWED:
                    return Announced()
                self._check_status(response, (200,))
                size = response.headers.get("Content-Length", "")
                return Announced(bytes=_number(size))
            asked = self._next(response)
        raise RunFailed(f"{url}: more than {self.limits.redirects_max} redirects")

    async def retry[T](self, url: str, action: Callable[[], Awaitable[T]]) -> T:
        """Do it, again and again where the failure may pass."""
        rng = self.rng or random.Random()
        ceiling = self.limits.backoff_s
        for attempt in range(1, self.limits.attempts_max + 1):
            try:
                return await action()
            except httpx.TransportError as error:
                failure = TryAgain(f"{type(error).__name__} {error}".strip())
            except TryAgain as error:
                failure = error
            if attempt < self.limits.attempts_max:
                wait = max(rng.uniform(0.0, ceiling), failure.wait_s)
                await asyncio.sleep(min(wait, self.limits.backoff_s_max))
                ceiling = min(2 * ceiling, self.limits.backoff_s_max)
        attempts = f"after {self.limits.attempts_max} attempts"
        if failure.damaged:
            raise self.error(f"{url}: {failure} {attempts}; {self.server} or the line is damaged")
        raise RunFailed(f"{url}: {failure} {attempts}; run it again, what came is kept")

    async def _complete(self, url: str, part: Path, wanted: str | None, etag: list[str]) -> str:
        """Complete the part and check it; a part that is wrong is removed."""
        if wanted is None and not etag:
            _remove(part)
        have = _size_of(part)
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and wanted is None:
            headers["If-Range"] = etag[0]
        async with self._get(url, headers) as response:
            if have and response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                # All of it is here already, or more than there is: only the sum can tell.
                return await self._verify(part, wanted)
            if wanted is not None and response.status_code == httpx.codes.NOT_FOUND:
                raise TryAgain("HTTP 404 although its SHA-256 is known")
            self._check_status(response, (200, 206))
            resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
            if resumed and _start_of(response) != have:
                _remove(part)
                raise TryAgain("answered with another range than asked")
            tag = response.headers.get("ETag", "")
            etag[:] = [tag] if tag.startswith('"') else []
            size = have if resumed else 0
            length = response.headers.get("Content-Length", "")
            more = _number(length)
            total = size + more if more is not None else None
            self._check_size(url, total or size)
            self.on_start(size, total)
            with part.open("ab" if resumed else "wb") as file:
                async for piece in response.aiter_raw():
                    size += len(piece)
                    self._check_size(url, size)
                    file.write(piece)
                    self.on_bytes(len(piece))
        return await self._verify(part, wanted)

    @asynccontextmanager
    async def _get(self, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """Ask for a URL and follow its redirects."""
        asked = httpx.URL(url)
        for _ in range(self.limits.redirects_max + 1):
            async with self.client.stream("GET", asked, headers=headers) as response:
                if self.limits.redirects_max == 0 or not response.has_redirect_location:
                    yield response
                    return
                asked = self._next(response)
        raise RunFailed(f"{url}: more than {self.limits.redirects_max} redirects")

    def _next(self, response: httpx.Response) -> httpx.URL:
        there = response.url.join(response.headers["Location"])
        if there.scheme not in ("http", "https") or (response.url.scheme, there.scheme) == (
            "https",
            "http",
        ):
            raise RunFailed(f"{response.url}: redirects to {there.scheme}; not followed")
        if (there.port or 0) > PORT_MAX:
            raise RunFailed(f"{response.url}: redirects to port {there.port}; there is none")
        return there

    def _check_size(self, url: str, size: int) -> None:
        if size > self.limits.file_bytes_max:
            raise self.error(f"{url}: larger than {self.limits.file_bytes_max} bytes; not fetched")

    def _check_status(self, response: httpx.Response, good: tuple[int, ...]) -> None:
        status = response.status_code
        if status in good:
            return
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise TryAgain(f"HTTP {status}", wait_s=float(_number(after) or 0))
        if status == httpx.codes.NOT_FOUND:
            raise NotThere(str(response.url))
        raise RunFailed(f"{response.url}: HTTP {status}; {self.server} refuses this request")

    async def _verify(self, part: Path, wanted: str | None) -> str:
        found = await asyncio.to_thread(_sha256_of, part)
        if wanted is not None and found != wanted:
            _remove(part)
            raise TryAgain(f"its SHA-256 is not {self.checksum}", damaged=True)
        return found


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _remove(part: Path) -> None:
    part.unlink(missing_ok=True)


def _number(text: str) -> int | None:
    """Read a number of a header; digits that only look like some are none."""
    return int(text) if len(text) <= 18 and text.isascii() and text.isdigit() else None


def _start_of(response: httpx.Response) -> int:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return int(match["start"]) if match else -1
