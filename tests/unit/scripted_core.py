"""An engine core that says what a test tells it to, through a real event descriptor."""

import os
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

USAGE = (3, 1, 2, 0, 10, 20, 30)
INFO: dict[str, Any] = {
    "architecture": "llama",
    "name": "scripted",
    "context_tokens": 512,
    "vocabulary": 300,
    "parameters": 1_000,
    "quantization": "Q4_1",
    "bytes": 2_000,
    "sha256": "00",
    "isa": "scalar",
    "threads": 1,
    "reads_tools": False,
    "suffix": False,
    "bos": None,
    "end_tokens": (2,),
}


class ScriptedCore:
    """Stands for ``qbtc._core.LanguageEngine``; ``say`` is what its thread would do."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.news: deque[tuple[Any, ...]] = deque()
        self.submitted: list[dict[str, Any]] = []
        self.cancelled: list[int] = []
        self.refuse: Exception | None = None
        self.broken: Exception | None = None
        self.on_submit: Any = None
        self.drains = 0
        self.closed = False

    def say(self, request: int, kind: str, *rest: Any) -> None:
        self.news.append((request, kind, *rest))
        os.eventfd_write(self.fd, 1)

    def text(self, request: int, text: str, tokens: int = 1) -> None:
        self.say(request, "text", text, tokens, None)

    def finish(self, request: int, reason: str = "stop", error: str | None = None) -> None:
        self.say(request, "finished", reason, None, error, USAGE)

    def info(self) -> dict[str, Any]:
        return INFO

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int], *, keep_control: bool = False) -> bytes:
        return bytes(tokens)

    def render(self, messages_json: str, tools_json: str | None, **_: Any) -> str:
        return messages_json

    def submit(self, prompt: Sequence[int], new_tokens_max: int, **options: Any) -> int:
        if self.refuse is not None:
            raise self.refuse
        self.submitted.append({"prompt": prompt, "new_tokens_max": new_tokens_max, **options})
        request = len(self.submitted)
        if self.on_submit is not None:
            self.on_submit(request)
        return request

    def cancel(self, request: int, /) -> None:
        self.cancelled.append(request)

    def drain(self, skip: Collection[int] = (), /) -> list[tuple[Any, ...]]:
        self.drains += 1
        if self.broken is not None:
            raise self.broken
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        taken = [news for news in self.news if news[0] not in skip]
        self.news = deque(news for news in self.news if news[0] in skip)
        return taken

    def wake_fd(self) -> int:
        return self.fd

    def stats(self) -> dict[str, int]:
        return {"active": 0}

    def restored(self) -> tuple[int, str | None]:
        return 0, None

    def save_snapshot(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True
        os.close(self.fd)
