"""Figures for Prometheus, in a registry of their own.

Times are what a client of this server sees: to the first token from the request's first byte here,
between tokens as pieces are handed to the connection. Labels come from fixed lists, so that no
client can make series.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qbtc.llm.engine import EngineStats

__all__ = ["CONTENT_TYPE", "Metrics", "Part"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_ROUTES: Final = frozenset(
    {
        "/",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/openapi.json",
        "/v1/chat/completions",
        "/v1/chat/completions/input_tokens",
        "/v1/completions",
        "/v1/detokenize",
        "/v1/embeddings",
        "/v1/models",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/tokenize",
        "/detokenize",
        "/tokenize",
    }
)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
_FIRST_TOKEN_S: Final = (
    0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_BETWEEN_S: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_QUEUE_S: Final = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_REQUEST_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)


_GAUGES: Final = frozenset({"outbox", "pending", "queued", "spool_bytes", "waiting"})
"""What parts count that can fall."""


class Part(Protocol):
    """Something beside the engine: a cache, records, the bus."""

    def problem(self) -> str | None:
        """Why it does not work; None: all is well."""
        ...

    def counters(self) -> dict[str, int]:
        """Totals since the start, and what is now."""
        ...


class Metrics:
    """All figures of one server; ``stats`` and ``parts`` are asked at each scrape."""

    def __init__(
        self,
        stats: Callable[[], EngineStats | None],
        parts: Callable[[], Mapping[str, Part]] = dict,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "qbtc_requests",
            "Requests answered, by route, method and status; 499: the client left before.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self._request_time = Histogram(
            "qbtc_request_seconds",
            "From a request's headers to the end of its answer.",
            ("route",),
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self._disconnects = Counter(
            "qbtc_disconnects",
            "Clients that left before the end of their answer.",
            registry=self.registry,
        )
        self._tokens = Counter(
            "qbtc_tokens",
            "Tokens of finished answers; cached ones are also among the prompt's.",
            ("kind",),
            registry=self.registry,
        )
        self.first_token_time = Histogram(
            "qbtc_time_to_first_token_seconds",
            "From a request's headers to the first piece of its answer.",
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self.between_tokens_time = Histogram(
            "qbtc_inter_token_seconds",
            "Between two pieces of one answer.",
            buckets=_BETWEEN_S,
            registry=self.registry,
        )
        self.queue_time = Histogram(
            "qbtc_queue_seconds",
            "From a request's arrival at the engine to its first step.",
            buckets=_QUEUE_S,
            registry=self.registry,
        )
        self.ignored_fields = Counter(
            "qbtc_ignored_fields",
            "Fields of request bodies that nobody knows.",
            registry=self.registry,
        )
        self.kept_answers = Counter(
            "qbtc_kept_answers",
            "Answers that are kept, by whether they were from before: hit or miss.",
            ("result",),
            registry=self.registry,
        )
        self.registry.register(_EngineFigures(stats))
        self.registry.register(_PartFigures(parts))

    def request(
        self, *, path: str, method: str, status: int, seconds: float, disconnected: bool
    ) -> None:
        """Count one request."""
        route = _route(path)
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._request_time.labels(route).observe(seconds)
        if disconnected:
            self._disconnects.inc()

    def tokens(self, *, prompt: int, cached: int, completion: int, drafted: int) -> None:
        """Count the tokens of one request."""
        for kind, count in (
            ("prompt", prompt),
            ("cached", cached),
            ("completion", completion),
            ("drafted", drafted),
        ):
            if count:
                self._tokens.labels(kind).inc(count)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineFigures(Collector):
    """What the engine counts itself, read when asked for."""

    def __init__(self, stats: Callable[[], EngineStats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        for name, value, text in (
            ("active", stats.active, "Answers being computed."),
            ("queued", stats.queued, "Requests that wait for the engine."),
            ("kv_pages", stats.kv_pages, "Pages of keys and values."),
            ("kv_pages_free", stats.kv_pages_free, "Pages of keys and values not in use."),
            ("prefix_pages", stats.prefix_pages, "Pages held by the prefix cache."),
        ):
            yield GaugeMetricFamily(f"qbtc_engine_{name}", text, value)
        for name, value, text in (
            ("steps", stats.steps, "Steps of the engine."),
            ("prompt_tokens", stats.prompt_tokens, "Prompt tokens the engine took."),
            ("cached_tokens", stats.cached_tokens, "Prompt tokens found in the prefix cache."),
            ("completion_tokens", stats.completion_tokens, "Tokens the engine made."),
            ("drafted_tokens", stats.drafted_tokens, "Tokens guessed by lookup and accepted."),
        ):
            yield CounterMetricFamily(f"qbtc_engine_{name}", text, value)


class _PartFigures(Collector):
    """What the parts beside the engine count themselves."""

    def __init__(self, parts: Callable[[], Mapping[str, Part]]) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("qbtc_part_up", "Whether a part works.", labels=("part",))
        for name, part in self._parts().items():
            up.add_metric((name,), float(part.problem() is None))
            for key, value in part.counters().items():
                kind = GaugeMetricFamily if key in _GAUGES else CounterMetricFamily
                yield kind(f"qbtc_{name}_{key}", f"Counted by the {name}.", value)
        yield up


def _route(path: str) -> str:
    if path in _ROUTES:
        return path
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"
