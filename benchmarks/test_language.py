"""The forward pass against llama.cpp and ik_llama.cpp, on the same file and on their best format.

Sketch (SmolLM2-135M, Q4_1): a decoded token reads 96.6 MB of weights; at 43 GB/s from one core that
is 2.2 ms, 447 tokens/s. A prompt token costs 212 M multiply-adds of 8-bit integers; at 1 TOP/s a
core, 0.2 ms. Everything else (attention, norms, barriers) is overhead to keep small.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.language_peers import PEERS, peer_ns_per_token, requantised
from benchmarks.language_servers import busy_loops
from benchmarks.reporting import Report, Target
from benchmarks.timing import Burst, Samples, interleave
from qbtc import _core

pytestmark = pytest.mark.benchmark

PROMPT, GENERATE, DEPTH = 512, 128, 3072
ROUNDS = 3
THREADS = (1, 2)
FORMATS = ("shipped Q4_1", "Q8_0", "Q4_0")


@pytest.fixture(scope="module")
def files(smollm2: Path) -> dict[str, Path]:
    """Return the shipped file, and the same weights in the peers' faster formats."""
    return {"shipped Q4_1": smollm2} | {kind: requantised(smollm2, kind) for kind in FORMATS[1:]}


@pytest.fixture(scope="module")
def timers(smollm2: Path) -> dict[int, "_core.ForwardTimer"]:
    """Return our forward pass on one and on two threads."""
    return {threads: _core.ForwardTimer(smollm2, threads=threads) for threads in THREADS}


def _prompt(timer: "_core.ForwardTimer") -> Burst:
    return lambda: timer.prompt(PROMPT) / PROMPT


def _decode(timer: "_core.ForwardTimer", depth: int) -> Burst:
    def burst() -> NDArray[np.float64]:
        return timer.decode(depth, GENERATE)

    return burst


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("work", ["prompt", "decode"])
def test_forward_pass_against_peers(
    benchmark: BenchmarkFixture,
    report: Report,
    files: dict[str, Path],
    timers: dict[int, "_core.ForwardTimer"],
    work: str,
    threads: int,
) -> None:
    """Take turns with each peer on each format; quote the same file and their best."""
    sizes = {"prompt": PROMPT} if work == "prompt" else {"generate": GENERATE}
    timer = timers[threads]
    contenders: dict[str, Burst] = {
        "ours": _prompt(timer) if work == "prompt" else _decode(timer, 0)
    }
    for name, peer in PEERS.items():
        for kind, path in files.items():
            contenders[f"{name}, {kind}"] = peer_ns_per_token(peer, path, threads=threads, **sizes)
    samples = interleave(benchmark, contenders, rounds=ROUNDS, warmup=0)  # llama-bench warms up
    group = f"language model, {'prompt of 512' if work == 'prompt' else 'decoding 128'} tokens"
    at = f"{threads} thread{'s' if threads > 1 else ''}"
    same = f"llama.cpp, {FORMATS[0]}"
    bounds = {"prompt": (6.0, 1.5, 1.15), "decode": (2.5, 1.5, 1.8)}[work]
    ours = samples["ours"]
    best = {
        name: min((f"{name}, {kind}" for kind in files), key=lambda each: samples[each].p50)
        for name in PEERS
    }
    for label, peer_name, bound in (
        ("llama.cpp, same file", same, bounds[0]),
        ("llama.cpp, its best format", best["llama.cpp"], bounds[1]),
        ("ik_llama.cpp, its best format", best["ik_llama.cpp"], bounds[2]),
    ):
        report.add(
            group,
            f"{at}, against {label}",
            ours,
            (peer_name, samples[peer_name]),
            unit="tokens/s",
            target=Target("ratio", bound),
        )


@pytest.mark.parametrize("threads", THREADS)
def test_share_of_the_machine(
    benchmark: BenchmarkFixture,
    report: Report,
    timers: dict[int, "_core.ForwardTimer"],
    threads: int,
) -> None:
    """Set both against what the machine can do at all, measured in turn with them."""
    timer = timers[threads]
    bytes_per_token, operations_per_token = timer.weight_bytes, timer.prompt_operations

    def reading() -> float:
        return bytes_per_token / _core.read_bandwidth(threads=threads, bytes=bytes_per_token) * 1e9

    def multiplying() -> float:
        return operations_per_token / _core.int8_peak(threads=threads) * 1e9

    samples = interleave(
        benchmark,
        {
            "decode": _decode(timer, 0),
            "reading": reading,
            "prompt": _prompt(timer),
            "multiplying": multiplying,
        },
        rounds=ROUNDS,
    )
    at = f"{threads} thread{'s' if threads > 1 else ''}"
    for work, limit, name in (
        ("decode", "reading", "reading the weights once"),
        ("prompt", "multiplying", "8-bit dot products alone"),
    ):
        report.add(
            "language model, share of the machine",
            f"{at}, {work}",
            samples[work],
            (name, samples[limit]),
            unit="tokens/s",
            target=Target("ratio", 0.75),
            note="the ratio is the share of the measured limit.",
        )


def test_decoding_after_a_long_context(
    benchmark: BenchmarkFixture,
    report: Report,
    files: dict[str, Path],
    timers: dict[int, "_core.ForwardTimer"],
) -> None:
    """Decode after 3,072 tokens, where attention costs as much as the weights."""
    threads = THREADS[-1]
    peers = ("llama.cpp",)  # ik_llama.cpp's llama-bench has no depth
    contenders = {"ours": _decode(timers[threads], DEPTH)} | {
        name: peer_ns_per_token(
            PEERS[name], files[FORMATS[0]], threads=threads, generate=GENERATE, depth=DEPTH
        )
        for name in peers
    }
    samples = interleave(benchmark, contenders, rounds=2, warmup=0)
    for name in peers:
        report.add(
            f"language model, decoding after {DEPTH} tokens",
            f"{threads} threads, against {name}, same file",
            samples["ours"],
            (name, samples[name]),
            unit="tokens/s",
        )


def test_small_batches(
    benchmark: BenchmarkFixture, report: Report, timers: dict[int, "_core.ForwardTimer"]
) -> None:
    """What several rows in one step cost: concurrent streams, or a speculative draft."""
    threads = THREADS[-1]
    timer = timers[threads]

    def rows_of(count: int) -> Burst:
        return lambda: timer.verify(256, count, 16)

    counts = (1, 2, 4, 8, 16)
    samples = interleave(benchmark, {str(n): rows_of(n) for n in counts}, rounds=ROUNDS)
    for count in counts:
        report.add(
            "language model, one step of several rows, all logits",
            f"{threads} threads, {count} row{'s' if count > 1 else ''}",
            samples[str(count)],
            unit="ms",
        )


def test_decoding_on_a_busy_machine(
    benchmark: BenchmarkFixture,
    report: Report,
    files: dict[str, Path],
    timers: dict[int, "_core.ForwardTimer"],
) -> None:
    """Decode on both cores while two other processes compute on them."""
    threads = THREADS[-1]
    contenders = {"ours": _decode(timers[threads], 0)} | {
        name: peer_ns_per_token(peer, files[FORMATS[0]], threads=threads, generate=32)
        for name, peer in PEERS.items()
    }
    quiet = interleave(benchmark, {"ours": contenders["ours"]}, rounds=ROUNDS)
    with busy_loops(2):
        samples = {
            name: Samples(tuple(np.atleast_1d(contender()) for _ in range(3)))
            for name, contender in contenders.items()
        }
    group = "language model, decoding beside two busy loops"
    for name in PEERS:
        report.add(
            group,
            f"{threads} threads, against {name}, same file",
            samples["ours"],
            (name, samples[name]),
            unit="tokens/s",
        )
    report.add(
        group,
        "share of the quiet machine",
        samples["ours"],
        ("ours, quiet", quiet["ours"]),
        unit="tokens/s",
        note="two loops on two cores leave half of them.",
    )
