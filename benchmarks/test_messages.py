"""What it costs that every message is checked: reading and writing one of 1 KB and one of 17 KB.

Sketch: msgspec reads 17 KB in 10 to 30 us, jsonschema-rs walks the 300 values in 15 us and turns
them into its own first, and a second writing (to see keys that are there twice) costs 15 us: about
three times the bare reading. A worker's shortest answer takes a thousand times as long.
"""

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.reporting import Report
from benchmarks.timing import interleave, python_calls
from qbtc.messages import contracts
from qbtc.messages.codec import decode, encode
from qbtc.messages.envelope import Message, message
from qbtc.messages.events import LlmRequest, TradingSignal
from qbtc.messages.language import ChatMessage, ChatRequest

pytestmark = pytest.mark.benchmark

GROUP = "message"
TURNS = 64
ROUNDS = 7


def signal() -> Message:
    example = contracts.load("trading_signal")["examples"][0]
    data = msgspec.convert(
        {**example, "metadata": {"note": "why the model says so, in a line or two " * 5}},
        TradingSignal,
    )
    return message(data, source="qbtc/worker/bench", subject=data.instrument, expires_s=1.0)


def chat() -> Message:
    turns = tuple(
        ChatMessage(role="assistant" if turn % 2 else "user", content="Say it in other words. " * 8)
        for turn in range(TURNS)
    )
    asked = ChatRequest(model="smollm2", messages=turns, max_tokens=256)
    data = LlmRequest(request_id="req_bench", operation="chat", stream=True, chat=asked)
    return message(data, source="qbtc/gateway/bench", subject="smollm2", expires_s=600.0)


class Bare(msgspec.Struct):
    """The envelope, and a payload whose type is known beforehand: nothing is checked but types."""

    id: str
    source: str
    type: str
    time: str
    data: Any


class BareSignal(Bare):
    """A signal."""

    data: TradingSignal


class BareChat(Bare):
    """A chat."""

    data: LlmRequest


@pytest.mark.parametrize(
    ("name", "sent", "bare"),
    [("1 KB signal", signal(), BareSignal), ("17 KB chat", chat(), BareChat)],
    ids=["signal", "chat"],
)
def test_checked_messages(
    benchmark: BenchmarkFixture, report: Report, name: str, sent: Message, bare: type[Bare]
) -> None:
    body = encode(sent)
    typed = msgspec.json.Decoder(bare)
    envelope, payload = (
        jsonschema.Draft202012Validator(contracts.load(part))
        for part in ("envelope", contracts.name_of(sent.type))
    )

    def in_python(body: object) -> None:
        tree = json.loads(body)  # type: ignore[arg-type]
        envelope.validate(tree)
        payload.validate(tree["data"])

    in_python(body)
    assert typed.decode(body).data == decode(body).data == sent.data
    bodies, messages = [body] * 10, [sent] * 10
    samples = interleave(
        benchmark,
        {
            "read": python_calls(decode, bodies, blocks=20, calls=10),
            "bare": python_calls(typed.decode, bodies, blocks=20, calls=10),
            "python": python_calls(in_python, bodies, blocks=2, calls=2),
            "write": python_calls(encode, messages, blocks=20, calls=10),
            "bare write": python_calls(msgspec.json.encode, messages, blocks=20, calls=10),
        },
        rounds=ROUNDS,
    )
    size = f"{len(body):,} bytes"
    report.add(
        GROUP,
        f"read and check, {name}",
        samples["read"],
        ("json and jsonschema", samples["python"]),
        unit="us",
        note=f"{size}; the same schemas in Python, formats and double keys not looked at.",
    )
    report.add(
        GROUP,
        f"price of checking, {name}",
        samples["read"],
        ("msgspec, types only", samples["bare"]),
        unit="us",
        note="Below 1: what lengths, ranges, patterns, formats and double keys cost.",
    )
    report.add(
        GROUP,
        f"check and write, {name}",
        samples["write"],
        ("msgspec, unchecked", samples["bare write"]),
        unit="us",
        note=f"{size}; below 1: what it costs that nothing wrong is sent.",
    )
