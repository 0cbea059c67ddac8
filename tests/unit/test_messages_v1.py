"""Payloads of version 1 are read as the version 2 messages that they mean."""

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.support.schema_values import values

from qbtc.errors import MessageError
from qbtc.messages import contracts, v1
from qbtc.messages.codec import decode, encode
from qbtc.messages.events import LlmRequest, LlmResponse, TradingRequest, TradingSignal
from qbtc.messages.language import ChatMessage

REQUEST = "3f0c8a52-7f0e-4b8e-9a53-6a5d1b1d2c11"


def example(name: str, number: int = 0, **changes: Any) -> dict[str, Any]:
    return {**contracts.load(f"v1/{name}")["examples"][number], **changes}


def read(name: str, number: int = 0, **changes: Any) -> Any:
    return decode(json.dumps(example(name, number, **changes)).encode())


@pytest.mark.parametrize("name", v1.NAMES)
def test_every_schema_of_version_1_is_one_and_its_examples_become_messages(name: str) -> None:
    schema = contracts.load(f"v1/{name}")
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["$id"] == f"urn:qbtc:schema:{name}:1"
    for number in range(len(schema["examples"])):
        message = read(name, number)
        assert contracts.name_of(message.type) == name
        assert message.correlationid == REQUEST
        assert decode(encode(message)) == message


@pytest.mark.parametrize("name", v1.NAMES)
def test_a_copy_is_known_as_a_copy(name: str) -> None:
    first, copy = read(name), read(name, request_id=REQUEST.upper())
    assert (first.id, first.idempotencykey) == (copy.id, copy.idempotencykey)
    assert first.data == copy.data
    other = read(name, request_id="3f0c8a52-7f0e-4b8e-9a53-6a5d1b1d2c12")
    assert other.id != first.id
    assert len({read(each).id for each in v1.NAMES}) == len(v1.NAMES)


def test_a_language_request_becomes_a_chat() -> None:
    data = read("llm_request").data
    assert isinstance(data, LlmRequest)
    assert data.chat is not None
    assert data.chat.model == "qbtc-sota-v1"
    assert data.chat.messages == (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="What is a spread?"),
    )
    assert (data.chat.max_tokens, data.chat.sampling.temperature) == (100, 0.7)
    assert not data.stream


def test_a_language_response_keeps_its_answer_and_its_count() -> None:
    data = read("llm_response").data
    assert isinstance(data, LlmResponse)
    (choice,) = data.choices
    assert (choice.text, choice.finish_reason) == ("Ask minus bid.", "stop")
    assert (choice.usage.prompt_tokens, choice.usage.completion_tokens) == (12, 5)


def test_a_language_error_keeps_its_reason() -> None:
    failure = read("llm_response", 1).data.failure
    assert (failure.kind, failure.message) == ("internal", "no model loaded")
    assert read("llm_response", 1, message=None).data.failure.message


def test_a_trading_request_has_no_features_and_keeps_its_indicators() -> None:
    data = read("trading_request").data
    assert isinstance(data, TradingRequest)
    assert data.instrument == "BTCUSD.V1"
    assert data.ts_event == 1_759_320_000_000_000_000
    assert data.features == {}
    assert data.metadata == {"market": "BTC/USD", "indicators": ["RSI", "MACD", "BollingerBands"]}


def test_times_and_venues_that_are_said_are_kept() -> None:
    data = read("trading_request", 1).data
    assert data.instrument == "ETHUSDT.BINANCE"
    assert data.ts_event == 1_759_320_000_250_000_000


def test_nobody_may_act_on_a_signal_of_version_1() -> None:
    data = read("trading_signal").data
    assert isinstance(data, TradingSignal)
    assert (data.action, data.confidence, data.instrument) == ("BUY", 0.75, "BTCUSD.V1")
    assert data.valid_until is None
    assert data.metadata == {"reason": "RSI below 30", "market": "BTC/USD"}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llm_request", {"messages": []}, "messages: has less than 1"),
        ("llm_request", {"messages": [{"role": "tool", "content": "x"}]}, "messages.0..role"),
        ("llm_request", {"messages": [{"role": "user", "content": ["x"]}]}, "content: is not of"),
        ("llm_request", {"request_id": "7"}, "request_id: does not match"),
        ("llm_request", {"temperature": 2.5}, "temperature: is greater"),
        ("llm_request", {"stream": True}, "unknown field stream"),
        ("llm_response", {"status": "maybe"}, "status: is not one of"),
        ("trading_request", {"indicators": ["EMA"]}, r"indicators\[0\]: is not one of"),
        ("trading_request", {"timestamp": "noon"}, 'timestamp: is not a "date-time"'),
        ("trading_request", {"timestamp": "2016-12-31T23:59:60Z"}, "timestamp"),
        ("trading_request", {"timestamp": "1905-01-01T00:00:00Z"}, "ts_event: is less"),
        ("trading_request", {"market": "/"}, "market"),
        ("trading_request", {"market": "BTC USD"}, "market"),
        ("trading_signal", {"confidence": 75}, "confidence: is greater"),
        ("trading_signal", {"signal": "buy"}, "signal: is not one of"),
    ],
)
def test_what_version_1_did_not_allow_is_refused(
    name: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(MessageError, match=said):
        read(name, **changes)


def test_an_object_that_is_neither_version_is_refused() -> None:
    with pytest.raises(MessageError, match="version 1"):
        decode(b'{"hello":"world"}')


@pytest.mark.parametrize("name", v1.NAMES)
@settings(deadline=None)
@given(data=st.data())
def test_whatever_version_1_allows_becomes_a_message(name: str, data: st.DataObject) -> None:
    old = data.draw(values(contracts.load(f"v1/{name}")))
    # A market without a letter, or a time outside 1970 to 2262, is nothing in version 2.
    assume(old.get("market", "a").strip("/-_"))
    assume("1970" <= old.get("timestamp", "2000") < "2262")
    message = decode(json.dumps(old).encode())
    assert message.correlationid == old["request_id"].lower()
    assert decode(encode(message)) == message
