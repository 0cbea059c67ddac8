"""What is known of one request while it runs: for its log line, the metrics, and its quota."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from qbtc.llm.kept import CacheHit, CacheMiss
from qbtc.messages.language import Event, Finished, Prefill
from qbtc_gateway.errors import ApiError, api_error
from qbtc_gateway.journal import Notes
from qbtc_gateway.metrics import Metrics
from qbtc_gateway.observe import Observer
from qbtc_gateway.usage import Totals

__all__ = ["Record"]

_LOGGER = logging.getLogger(__name__)


class Record(Observer):
    """One request."""

    __slots__ = (
        "_last_s",
        "_metrics",
        "_pieces",
        "_prompt_tokens_min",
        "_totals",
        "cache",
        "cached_tokens",
        "client",
        "code",
        "completion_tokens",
        "disconnected_early",
        "drafted_tokens",
        "first_token_s",
        "identity",
        "key_id",
        "known",
        "method",
        "model",
        "notes",
        "path",
        "prompt_tokens",
        "queued_s",
        "request_id",
        "session",
        "started_s",
        "status",
        "stream",
        "total_s",
    )

    def __init__(
        self, metrics: Metrics, *, request_id: str, method: str, path: str, client: str
    ) -> None:
        self._metrics = metrics
        self._last_s: dict[int, float] = {}
        self._prompt_tokens_min = 0
        self._pieces: Counter[int] = Counter()
        self._totals = Totals()
        self.request_id = request_id
        self.method = method
        self.path = path
        self.client = client
        self.identity = ""
        self.key_id: str | None = None
        self.known = False
        """Whether the client showed who it is, or need not."""
        self.session = ""
        self.notes: Notes | None = None
        self.cache: str | None = None
        """``hit`` or ``miss``; None: the answer could not be a kept one."""
        self.total_s = 0.0
        self.started_s = time.perf_counter()
        self.status = 0
        self.code: str | None = None
        self.model: str | None = None
        self.stream: bool | None = None
        self.first_token_s: float | None = None
        self.queued_s: float | None = None
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.drafted_tokens = 0
        self.disconnected_early = False

    def parsed(
        self, *, model: str, stream: bool, unknown_fields: Sequence[str], session: str = ""
    ) -> None:
        """Keep what the body said."""
        self.model = model
        self.stream = stream
        self.session = self.session or session
        if unknown_fields:
            self._metrics.ignored_fields.inc(len(unknown_fields))

    def asked(self, *, answers_per_prompt: int) -> None:
        """Keep which answers are to which prompt."""
        self._totals.per_prompt = answers_per_prompt

    def event(self, event: Event) -> None:
        """Take times from pieces of answers and tokens from their ends."""
        if isinstance(event, Prefill):
            self._prompt_tokens_min = max(self._prompt_tokens_min, event.total)
            if isinstance(event, CacheMiss):
                self.cache = "miss"
            elif isinstance(event, CacheHit):
                self.cache = self.cache or "hit"
            return
        if self.notes is not None:
            self.notes.event(event, stream=bool(self.stream))
        now = time.perf_counter()
        if isinstance(event, Finished):
            usage = event.usage
            self._totals.add(usage, event.choice)
            self.prompt_tokens = self._totals.prompt_tokens
            self.cached_tokens = self._totals.cached_tokens
            self.completion_tokens = self._totals.completion_tokens
            self.drafted_tokens += usage.drafted_tokens
            del self._pieces[event.choice]
            if self.queued_s is None:
                self.queued_s = usage.queued_s
                self._metrics.queue_time.observe(usage.queued_s)
            return
        self._pieces[event.choice] += 1
        if self.first_token_s is None:
            self.first_token_s = now - self.started_s
            self._metrics.first_token_time.observe(self.first_token_s)
        last = self._last_s.get(event.choice)
        if last is not None:
            self._metrics.between_tokens_time.observe(now - last)
        self._last_s[event.choice] = now

    def tokens(self) -> int:
        """Return what to charge: what the ends of answers say, and of one that was left at least.

        The prompt is known as soon as the engine has taken it, and no piece is less than a token.
        """
        prompt = max(self.prompt_tokens, self._prompt_tokens_min)
        return prompt + self.completion_tokens + self._pieces.total()

    def embedded(self, *, prompt_tokens: int) -> None:
        """Keep how much was embedded."""
        self.prompt_tokens = prompt_tokens

    def failed(self, error: BaseException) -> None:
        """Keep what kind of error it was; of one that nobody foresaw, where it came from."""
        answer = api_error(error)
        self.code = answer.detail.code or answer.detail.type
        if answer.status >= 500 and not isinstance(error, ApiError):
            _LOGGER.error("request %s failed", self.request_id, exc_info=error)

    def disconnected(self) -> None:
        """Keep that the client left early."""
        self.disconnected_early = True

    def finish(self) -> dict[str, object]:
        """Hand the figures to the metrics; return the log line."""
        self.total_s = time.perf_counter() - self.started_s
        self._metrics.request(
            path=self.path,
            method=self.method,
            status=self.status or 499,
            seconds=self.total_s,
            disconnected=self.disconnected_early,
        )
        self._metrics.tokens(
            prompt=self.prompt_tokens,
            cached=self.cached_tokens,
            completion=self.completion_tokens,
            drafted=self.drafted_tokens,
        )
        if self.cache is not None:
            self._metrics.kept_answers.labels(self.cache).inc()
        return {
            "level": "error" if self.status >= 500 else "info",
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status or 499,
            "code": self.code,
            "client": self.client,
            "key": self.key_id,
            "model": self.model,
            "stream": self.stream,
            "cache": self.cache,
            "disconnected": self.disconnected_early or None,
            "total_ms": round(self.total_s * 1e3, 1),
            "first_token_ms": _ms(self.first_token_s),
            "queued_ms": _ms(self.queued_s),
            "prompt_tokens": self.prompt_tokens or None,
            "cached_tokens": self.cached_tokens or None,
            "completion_tokens": self.completion_tokens or None,
        }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 1)
