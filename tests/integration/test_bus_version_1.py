"""What earlier systems put on the broker is done as what it means in version 2."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from tests.support.bus import buses
from tests.support.scripted_engine import MODEL, ScriptedEngine, end, text
from tests.support.signal_files import write_signal_model

from qbtc.bus import Delivery, Topic
from qbtc.bus.topology import REQUESTS, RESPONSES
from qbtc.messages import contracts
from qbtc.messages.codec import decode
from qbtc.messages.envelope import Message
from qbtc.messages.events import LlmResponse, TradingSignal
from qbtc.worker.language import serve_language
from qbtc.worker.signals import load_signal_models, serve_signals

WAIT_S = 60.0
REPLY_TO = "amq.rabbitmq.reply-to"


class OldSystem:
    """Sends bodies of version 1 by aio-pika alone."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel, prefix: str) -> None:
        self._channel = channel
        self._prefix = prefix

    async def send(self, exchange: str, key: str, body: dict[str, Any], **options: Any) -> None:
        target = await self._channel.get_exchange(self._prefix + exchange, ensure=False)
        message = aio_pika.Message(json.dumps(body).encode(), **options)
        await target.publish(message, routing_key=key)

    async def ask(self, key: str, body: dict[str, Any]) -> Message:
        answers: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(answer: aio_pika.abc.AbstractIncomingMessage) -> None:
            answers.put_nowait(answer.body)

        queue = await self._channel.get_queue(REPLY_TO, ensure=False)
        await queue.consume(take, no_ack=True)
        await self.send(REQUESTS, key, body, reply_to=REPLY_TO, correlation_id=body["request_id"])
        return decode(await answers.get())


def example(name: str, **changes: Any) -> dict[str, Any]:
    return {**contracts.load(f"v1/{name}")["examples"][0], **changes}


def test_a_trading_request_is_answered_with_what_a_model_thinks_before_it_sees_anything(
    amqp_url: str, queue_prefix: str, tmp_path: Path
) -> None:
    model = tmp_path / "buyer.safetensors"
    write_signal_model(model, bias=(0.0, 0.0, 9.0))

    async def go() -> Message:
        async with asyncio.timeout(WAIT_S), buses(amqp_url, queue_prefix) as opened:
            bus = await opened.open()
            await serve_signals(bus, load_signal_models([model]), source="qbtc/worker/1")
            async with await aio_pika.connect(amqp_url) as connection:
                old = OldSystem(await connection.channel(), queue_prefix)
                return await old.ask("trading.request", example("trading_request"))

    answer = asyncio.run(go())
    assert isinstance(answer.data, TradingSignal)
    assert (
        answer.correlationid == answer.data.request_id == example("trading_request")["request_id"]
    )
    assert (answer.data.instrument, answer.data.action) == ("BTCUSD.V1", "BUY")
    assert answer.data.features_given == 0


def test_a_language_request_is_answered(amqp_url: str, queue_prefix: str) -> None:
    engine = ScriptedEngine([*text("Ask minus", " bid."), end()])

    async def go() -> Message:
        async with asyncio.timeout(WAIT_S), buses(amqp_url, queue_prefix) as opened:
            bus = await opened.open()
            await serve_language(bus, engine, source="qbtc/worker/1")
            async with await aio_pika.connect(amqp_url) as connection:
                old = OldSystem(await connection.channel(), queue_prefix)
                return await old.ask("llm.request", example("llm_request", model=MODEL))

    answer = asyncio.run(go())
    assert isinstance(answer.data, LlmResponse)
    assert answer.data.status == "success"
    assert [choice.text for choice in answer.data.choices] == ["Ask minus bid."]


@pytest.mark.parametrize("confidence", [0.75, 75])
def test_a_signal_is_heard_if_it_is_right_and_is_never_valid(
    amqp_url: str, queue_prefix: str, confidence: float
) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()

    async def hear(delivery: Delivery) -> None:
        heard.put_nowait(delivery.message)

    async def go() -> Message:
        async with asyncio.timeout(WAIT_S), buses(amqp_url, queue_prefix) as opened:
            bus = await opened.open()
            await bus.subscribe(Topic(exchange=RESPONSES, pattern="trading.signal.#"), hear)
            async with await aio_pika.connect(amqp_url) as connection:
                old = OldSystem(await connection.channel(), queue_prefix)
                first = example("trading_signal", confidence=confidence, signal="SELL")
                await old.send(RESPONSES, "trading.signal.BTC/USD", first)
                await old.send(RESPONSES, "trading.signal.BTC/USD", example("trading_signal"))
                return await heard.get()

    message = asyncio.run(go())
    assert isinstance(message.data, TradingSignal)
    # One that is not what its schema says is not heard, and what follows it is.
    assert message.data.action == ("SELL" if confidence <= 1 else "BUY")
    assert message.data.valid_until is None
