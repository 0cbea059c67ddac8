"""Messages as bytes: what goes in comes out, and nothing that is wrong gets in."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbtc.errors import MessageError
from qbtc.messages import codec, contracts
from qbtc.messages.codec import DEPTH_MAX, MESSAGE_BYTES_MAX, decode, encode
from qbtc.messages.envelope import message
from qbtc.messages.events import TYPES, Cancel, LlmRequest, TradingRequest, TradingSignal
from qbtc.messages.language import ChatMessage, ChatRequest, Sampling, Tool

ROOT = Path(__file__).resolve().parents[2]
SECRET = "my-secret-prompt"
FILL = contracts.load("order_event")["examples"][1]["fill"]
EXAMPLES = [
    pytest.param(type, example, id=f"{contracts.name_of(type)}-{number}")
    for type in TYPES
    for number, example in enumerate(contracts.load(contracts.name_of(type))["examples"])
]


def body(type: str, data: object, **attributes: object) -> bytes:
    """A message as a careless sender might write it."""
    envelope = contracts.load("envelope")["examples"][0]
    return json.dumps({**envelope, "type": type, "data": data, **attributes}, indent=1).encode()


def chat(**options: Any) -> LlmRequest:
    turns = (ChatMessage(role="user", content=SECRET),)
    request = ChatRequest(model="m", messages=turns, **options)
    return LlmRequest(request_id="r", operation="chat", chat=request)


def sent(data: Any) -> Any:
    return message(data, source="qbtc/test/1", subject="m")


def changed(data: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(data, **fields)


@pytest.mark.parametrize(("type", "example"), EXAMPLES)
def test_every_example_is_read_and_written_again(type: str, example: object) -> None:
    first = decode(body(type, example))
    assert type == first.type
    assert isinstance(first.data, TYPES[type])
    assert decode(encode(first)) == first


@pytest.mark.parametrize("name", contracts.NAMES)
def test_every_schema_is_a_schema_with_its_own_name_and_examples_that_fit(name: str) -> None:
    schema = contracts.load(name)
    jsonschema_rs.meta.validate(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"urn:qbtc:schema:{name}:2"
    assert len(schema["examples"]) >= 2
    for example in schema["examples"]:
        contracts.check(name, example, type=name)


def test_the_schemas_at_the_root_are_those_in_the_package() -> None:
    files = {path.stem for path in (ROOT / "schemas").glob("*.json")}
    assert files == set(contracts.NAMES)
    assert (ROOT / "schemas").resolve() == ROOT / "python/qbtc/messages/schemas"


def test_importing_qbtc_does_not_load_the_validator() -> None:
    code = "import sys, qbtc, qbtc.messages.codec; print('jsonschema_rs' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_token_ids_of_a_bias_stay_numbers() -> None:
    asked = chat(sampling=Sampling(logit_bias={5: 1.5, 1_000_000: -100.0}, seed=2**64 - 1))
    assert decode(encode(sent(asked))).data == asked


def test_an_integer_may_be_written_with_a_point() -> None:
    example = contracts.load("trading_request")["examples"][1]
    data = decode(body("qbtc.trading.request.v2", {**example, "ts_event": 1e15})).data
    assert isinstance(data, TradingRequest)
    assert data.ts_event == 10**15
    assert isinstance(data.ts_event, int)


@pytest.mark.parametrize(
    ("type", "change", "said"),
    [
        ("qbtc.cancel.v2", {"request_id": "a b"}, "data.request_id: does not match"),
        ("qbtc.cancel.v2", {"request_id": ""}, "data.request_id: is shorter than 1"),
        ("qbtc.cancel.v2", {"request_id": "é"}, "data.request_id: does not match"),
        ("qbtc.cancel.v2", {"more": 1}, "data: unknown field more"),
        ("qbtc.cancel.v2", {"m" * 99: 1}, f"data: unknown field {'m' * 64}…"),
        ("qbtc.health.v2", {"started_at": "yesterday"}, "data.started_at"),
        ("qbtc.health.v2", {"started_at": "2026-02-30T00:00:00Z"}, 'not a "date-time"'),
        ("qbtc.health.v2", {"started_at": "2026-02-03T00:00:00+01:00"}, "data.started_at"),
        ("qbtc.health.v2", {"interval_s": 0}, "data.interval_s: is less than or equal"),
        ("qbtc.trading.signal.v2", {"confidence": 1.01}, "data.confidence: is greater than"),
        ("qbtc.trading.signal.v2", {"action": "buy"}, "data.action: is not one of"),
        ("qbtc.trading.signal.v2", {"price": "1e5"}, "data.price: does not match"),
        ("qbtc.trading.signal.v2", {"price": 67250.15}, "data.price: is not of type"),
        ("qbtc.trading.signal.v2", {"ts_event": 2**63}, "data.ts_event: is greater than"),
        ("qbtc.trading.signal.v2", {"instrument": "BTC USDT"}, "data.instrument"),
        ("qbtc.trading.request.v2", {"features": {"a b": 1}}, "data.features: a key"),
        ("qbtc.trading.request.v2", {"features": {"a": "1"}}, "data.features.a: is not of type"),
        ("qbtc.order.event.v2", {"kind": "filled"}, 'data: "fill" is a required'),
        ("qbtc.order.event.v2", {"quantity": "-1"}, "data.quantity: does not match"),
        ("qbtc.llm.request.v2", {"chat": None}, "data.chat: is not of type"),
        ("qbtc.llm.request.v2", {"operation": "models"}, "data.chat: is not of type"),
        ("qbtc.llm.request.v2", {"stream": 1}, "data.stream: is not of type"),
        ("qbtc.llm.response.v2", {"status": "error"}, 'data: "failure" is a required'),
        (
            "qbtc.llm.response.v2",
            {"failure": {"kind": "busy", "message": ""}},
            "data.failure: is not of type",
        ),
        ("qbtc.llm.response.v2", {"choices": [{}]}, 'data.choices[0]: "index" is a required'),
        (
            "qbtc.llm.response.v2",
            {"embedded": {"vectors": ["AAAAAA="], "dimensions": 1, "prompt_tokens": 1}},
            "data.embedded.vectors[0]",
        ),
        ("qbtc.failure.v2", {"kind": "tired"}, "data.kind: is not one of"),
        ("qbtc.failure.v2", {"retry_after_s": -1}, "data.retry_after_s: is less than"),
        ("qbtc.order.event.v2", {"fill": FILL}, "data.fill: is not of type"),
        ("qbtc.llm.chunk.v2", {"events": []}, "data.events: has less than 1"),
        ("qbtc.llm.chunk.v2", {"sequence": -1}, "data.sequence: is less than"),
        (
            "qbtc.llm.chunk.v2",
            {"events": [{"type": "TextDelta", "choice": 0, "text": 7}]},
            "data.events[0].text: is not of type",
        ),
    ],
)
def test_an_error_says_the_type_the_place_and_the_rule(
    type: str, change: dict[str, Any], said: str
) -> None:
    example = contracts.load(contracts.name_of(type))["examples"][0]
    with pytest.raises(MessageError) as caught:
        decode(body(type, {**example, **change}))
    assert str(caught.value).startswith(f"{type}: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(("type", "example"), EXAMPLES)
def test_nothing_may_be_missing_of_another_type_or_unknown(
    type: str, example: dict[str, Any]
) -> None:
    schema = contracts.load(contracts.name_of(type))
    changes: list[dict[str, Any]] = [{**example, "unknown": None}]
    changes += [_without(example, name) for name in schema["required"]]
    changes += [{**example, name: [[]]} for name in schema["properties"]]
    for change in changes:
        with pytest.raises(MessageError):
            decode(body(type, change))


def _without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != name}


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"expiresat": "soon"}, "expiresat"),
        ({"time": "2026-11-22T10:15:60Z"}, "time"),
        ({"id": "x" * 129}, "id: is longer than 128"),
        ({"type": "qbtc.nothing.v2"}, "unknown type of message qbtc.nothing.v2; known: "),
        ({"type": "somebody.else"}, "type: does not match"),
        ({"data": []}, "data: is not of type"),
        ({"traceparent": "x"}, "unknown field traceparent"),
    ],
)
def test_a_wrong_envelope_is_refused(attributes: dict[str, Any], said: str) -> None:
    given = {"type": "qbtc.cancel.v2", "data": {"request_id": "a"}, **attributes}
    with pytest.raises(MessageError, match=said):
        decode(body(**given))


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": SECRET},
        {"role": "user", "content": {"text": SECRET}},
        {"role": "user", "content": "", "tool_calls": SECRET},
        {"role": "user", "name": SECRET * 99},
        {"role": "tool", "content": SECRET, "tool_call_id": 7},
    ],
)
def test_no_error_shows_what_was_said(wrong: dict[str, Any]) -> None:
    data = {"request_id": "r", "operation": "chat", "chat": {"model": "m", "messages": [wrong]}}
    with pytest.raises(MessageError) as caught:
        decode(body("qbtc.llm.request.v2", data))
    assert SECRET not in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "bytes_",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":1e999}',
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"\x00",
        "{}".encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"specversion":"1.0","data":' * 5_000 + b"{}" + b"}" * 5_000,
        b"9" * 10_000,
    ],
)
def test_bytes_that_are_no_message_are_refused(bytes_: bytes) -> None:
    with pytest.raises(MessageError):
        decode(bytes_)


def test_a_key_twice_is_refused() -> None:
    good = body("qbtc.cancel.v2", {"request_id": "a"})
    twice = good.replace(b'"request_id"', b'"request_id": "b", "request_id"')
    with pytest.raises(MessageError, match="a key twice"):
        decode(twice)


def test_what_is_open_has_a_depth() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(depth):
            value = {"a": value}
        return value

    example = contracts.load("trading_request")["examples"][1]
    fine = {**example, "metadata": nested(DEPTH_MAX - 1)}
    assert encode(decode(body("qbtc.trading.request.v2", fine)))
    deep = {**example, "metadata": nested(DEPTH_MAX)}
    with pytest.raises(MessageError, match="deeper"):
        decode(body("qbtc.trading.request.v2", deep))
    with pytest.raises(MessageError, match="deeper"):
        encode(sent(chat(tools=(Tool(name="f", parameters=nested(DEPTH_MAX)),))))


def test_every_open_object_of_a_schema_is_one_whose_depth_is_bounded() -> None:
    found: set[str] = set()

    def walk(name: str, node: object) -> None:
        if isinstance(node, dict):
            for field, inner in node.get("properties", {}).items():
                kinds = [inner, *inner.get("anyOf", [])]
                if any(_is_open(kind) for kind in kinds):
                    found.add(f"{name}.{field}")
            for key, inner in node.items():
                # What a condition adds is about fields described elsewhere.
                if key not in ("allOf", "then", "else"):
                    walk(name, inner)
        elif isinstance(node, list):
            for inner in node:
                walk(name, inner)

    for name in contracts.NAMES:
        schema = contracts.load(name)
        walk(name, {key: value for key, value in schema.items() if key != "$defs"})
        for kind, inner in schema.get("$defs", {}).items():
            walk(f"{name}.{kind}", inner)
            if _is_open(inner):
                found.add(f"{name}.{kind}")
    assert found == {
        "envelope.data",
        "llm_request.ResponseFormat.schema",
        "llm_request.Tool.parameters",
        "trading_request.Metadata",
        "trading_signal.Metadata",
    }


def _is_open(schema: dict[str, Any]) -> bool:
    return "object" in schema.get("type", ()) and "additionalProperties" not in schema


def test_a_message_that_is_too_large_is_refused_both_ways() -> None:
    large = "x" * MESSAGE_BYTES_MAX
    with pytest.raises(MessageError, match="at most"):
        decode(large.encode() + b"x")
    with pytest.raises(MessageError, match="at most"):
        encode(sent(LlmRequest(request_id=large, operation="models")))


SIGNAL = TradingSignal(
    signal_id="s", instrument="A.B", action="BUY", confidence=0.5, ts_event=1, ts_init=2
)


@pytest.mark.parametrize(
    "data",
    [
        changed(SIGNAL, confidence=math.nan),
        changed(SIGNAL, p_up=math.nan),
        changed(SIGNAL, p_up=math.inf),
        changed(SIGNAL, metadata={"a": [math.nan]}),
        changed(SIGNAL, metadata={"a": {1j: 2}}),
        changed(SIGNAL, confidence="0.5"),
        changed(SIGNAL, signal_id="\ud800"),
        changed(SIGNAL, action="HODL"),
        TradingRequest(request_id="r", instrument="A.B", ts_event=1, features={"a": math.nan}),
        TradingRequest(request_id="r", instrument="A.B", ts_event=-1, features={}),
        LlmRequest(request_id="r", operation="chat"),
        changed(chat(), stream=None),
        Cancel(request_id=object()),  # type: ignore[arg-type]
    ],
)
def test_what_is_not_right_is_not_sent(data: Any) -> None:
    with pytest.raises(MessageError):
        encode(sent(data))


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_a_message_or_a_message_error(bytes_: bytes) -> None:
    _tried(bytes_)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.data())
def test_any_change_of_a_message_gives_a_message_or_a_message_error(data: st.DataObject) -> None:
    type = data.draw(st.sampled_from(list(TYPES)))
    example = data.draw(st.sampled_from(contracts.load(contracts.name_of(type))["examples"]))
    tree = json.loads(body(type, example))
    node: Any = tree
    while True:
        key = data.draw(
            st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node)))
        )
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        node = inner
    node[key] = data.draw(_JSON)
    _tried(json.dumps(tree).encode("utf-8", "surrogatepass"))


@settings(deadline=None)
@given(st.data())
def test_any_damage_to_the_bytes_gives_a_message_or_a_message_error(data: st.DataObject) -> None:
    good = bytearray(body("qbtc.llm.chunk.v2", contracts.load("llm_chunk")["examples"][0]))
    at = data.draw(st.integers(0, len(good) - 1))
    length = data.draw(st.integers(0, 4))
    good[at : at + length] = data.draw(st.binary(max_size=4))
    _tried(bytes(good))


def _tried(bytes_: bytes) -> None:
    try:
        read = decode(bytes_)
    except MessageError:
        return
    assert decode(encode(read)) == read


def test_what_we_write_has_its_keys_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    written = encode(sent(SIGNAL))
    monkeypatch.delattr(codec.json, "loads")
    assert decode(written).data == SIGNAL
