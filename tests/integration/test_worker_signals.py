"""A trading request becomes a signal: to whoever asked, and to everyone who listens."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bus import KINDS, buses
from tests.support.signal_files import HORIZON_NS, write_signal_model

from qbtc.bus import Bus, Delivery, Topic
from qbtc.bus.topology import RESPONSES
from qbtc.core.features import FEATURE_NAMES
from qbtc.core.signal_model import load_model
from qbtc.errors import ModelError
from qbtc.messages.envelope import Message, message, new_id
from qbtc.messages.events import Failure, TradingRequest, TradingSignal
from qbtc.worker.signals import load_signal_models, serve_signals

WAIT_S = 60.0
TIME_NS = 1_795_342_530_123_456_789


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of three models that lean to one class each."""
    folder = tmp_path_factory.mktemp("models")
    leanings = {"seller": (9.0, 0.0, 0.0), "holder": (0.0, 9.0, 0.0), "buyer": (0.0, 0.0, 9.0)}
    for name, bias in leanings.items():
        write_signal_model(folder / f"{name}.safetensors", bias=bias)
    return [folder / f"{name}.safetensors" for name in leanings]


@pytest.fixture(params=KINDS)
def bus_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "in process" else str(request.getfixturevalue("amqp_url"))


def asked(**changes: Any) -> Message:
    values = {
        "request_id": new_id(),
        "instrument": "BTCUSDT.BINANCE",
        "ts_event": TIME_NS,
        "features": {FEATURE_NAMES[0]: 0.5, FEATURE_NAMES[3]: -1.0, FEATURE_NAMES[4]: None},
        "price": "67250.15",
    }
    request = TradingRequest(**values | changes)
    return message(request, source="qbtc/node/test", subject=request.instrument)


@asynccontextmanager
async def working(
    url: str | None, prefix: str, models: list[Path]
) -> AsyncIterator[tuple[Bus, list[Message]]]:
    """A bus with a worker behind it, and what listeners of one instrument hear."""
    heard: list[Message] = []

    async def hear(delivery: Delivery) -> None:
        heard.append(delivery.message)

    async with asyncio.timeout(WAIT_S), buses(url, prefix) as opened:
        here, there = await opened.open("qbtc/node/1"), await opened.open("qbtc/worker/1")
        pattern = "trading.signal.BTCUSDT.BINANCE"
        await here.subscribe(Topic(exchange=RESPONSES, pattern=pattern), hear)
        await serve_signals(there, load_signal_models(models), source="qbtc/worker/1")
        yield here, heard


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(work())  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - nothing to wait for but the condition
            await asyncio.sleep(0.005)


def test_a_request_is_answered_and_everyone_hears_the_signal(
    bus_url: str | None, queue_prefix: str, models: list[Path]
) -> None:
    request = asked(model="buyer", metadata={"note": "x"})

    async def go() -> tuple[Message, list[Message]]:
        async with working(bus_url, queue_prefix, models) as (bus, heard):
            reply = await bus.request(request, timeout_s=WAIT_S)
            await until(lambda: bool(heard))
            return reply, heard

    reply, heard = run(go)
    assert heard == [reply]
    assert reply.correlationid == request.correlationid
    row = np.full(26, np.nan, np.float32)
    row[0], row[3] = 0.5, -1.0
    p_down, p_flat, p_up = load_model(models[2]).infer(row)
    signal = reply.data
    assert signal == TradingSignal(
        signal_id=reply.id,
        instrument="BTCUSDT.BINANCE",
        action="BUY",
        confidence=p_up,
        p_down=p_down,
        p_flat=p_flat,
        p_up=p_up,
        price="67250.15",
        ts_event=TIME_NS,
        ts_init=TIME_NS,
        valid_until=TIME_NS + HORIZON_NS,
        horizon_ns=HORIZON_NS,
        model="buyer",
        model_sha256=hashlib.sha256(models[2].read_bytes()).hexdigest(),
        features_given=2,
        request_id=request.data.request_id,
        metadata={"note": "x"},
    )


def test_the_action_is_the_likeliest_class_and_the_first_model_the_default(
    models: list[Path],
) -> None:
    async def go() -> list[Any]:
        async with working(None, "", models) as (bus, _):
            names = (None, "seller", "holder", "buyer")
            replies = [await bus.request(asked(model=n), timeout_s=WAIT_S) for n in names]
            return [reply.data for reply in replies]

    signals = run(go)
    assert [each.action for each in signals] == ["SELL", "SELL", "HOLD", "BUY"]
    assert all(each.confidence == max(each.p_down, each.p_flat, each.p_up) for each in signals)


def test_a_copy_of_a_request_gets_the_same_signal(
    bus_url: str | None, queue_prefix: str, models: list[Path]
) -> None:
    request = asked()

    async def go() -> list[Message]:
        async with working(bus_url, queue_prefix, models) as (bus, heard):
            first = await bus.request(request, timeout_s=WAIT_S)
            second = await bus.request(request, timeout_s=WAIT_S)
            await until(lambda: len(heard) == 2)
            return [first, second, *heard]

    found = run(go)
    assert {each.id for each in found} == {found[0].id}
    assert len({each.data.signal_id for each in found}) == 1


def test_without_any_feature_the_signal_is_the_model_s_prior(models: list[Path]) -> None:
    async def go() -> Any:
        async with working(None, "", models) as (bus, _):
            return (await bus.request(asked(features={}), timeout_s=WAIT_S)).data

    signal = run(go)
    assert signal.features_given == 0
    assert signal.p_down + signal.p_flat + signal.p_up == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "kind", "param"),
    [
        ({"model": "nobody"}, "model_not_found", "model"),
        ({"features": {"nothing": 1.0}}, "invalid_request", "features.nothing"),
        (
            {"features": {FEATURE_NAMES[2]: 1e300}},
            "invalid_request",
            f"features.{FEATURE_NAMES[2]}",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(
    changes: dict[str, Any],
    kind: str,
    param: str,
    bus_url: str | None,
    queue_prefix: str,
    models: list[Path],
) -> None:
    async def go() -> tuple[Any, list[Message], dict[str, int]]:
        async with working(bus_url, queue_prefix, models) as (bus, heard):
            reply = await bus.request(asked(**changes), timeout_s=WAIT_S)
            return reply.data, heard, bus.counters()

    failure, heard, counters = run(go)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.param) == (kind, param)
    assert heard == []
    assert counters["dead"] == 0


def test_a_late_request_is_dropped(models: list[Path]) -> None:
    async def go() -> dict[str, int]:
        async with buses(None) as opened:
            bus = await opened.open()
            request = asked()
            old = message(
                request.data, source=request.source, subject=request.subject, expires_s=0.0
            )
            await bus.publish(old)
            await serve_signals(bus, load_signal_models(models), source="qbtc/worker/1")
            await until(lambda: bus.counters()["expired"] == 1)
            return bus.counters()

    assert run(go)["expired"] == 1


def test_two_models_of_one_name_are_refused(tmp_path: Path, models: list[Path]) -> None:
    with pytest.raises(ModelError, match="two signal models are named buyer"):
        load_signal_models([models[2], models[2]])
    with pytest.raises(ModelError, match="missing"):
        load_signal_models([tmp_path / "missing.safetensors"])
