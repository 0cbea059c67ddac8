"""Completions, embeddings, models and token counts on the wire."""

import base64
import struct
from typing import Any

import pytest
from tests.support.gateway_client import HELLO, frames, send, with_sdk
from tests.support.scripted_engine import (
    DIMENSIONS,
    EMBEDDING_MODEL,
    MODEL,
    ScriptedEngine,
    end,
    text,
)

from qbtc.llm.errors import RequestError
from qbtc.messages.language import Alternative, CompletionRequest, TextDelta, TokenLogprob

pytestmark = pytest.mark.usefixtures("every_way")


def complete(engine: ScriptedEngine, **body: Any) -> Any:
    return send(engine, "/v1/completions", {"model": MODEL, "prompt": "Once"} | body)


def test_a_completion_has_text_and_usage() -> None:
    engine = ScriptedEngine([*text(" upon", " a time"), end("length")])
    answer = complete(engine, max_tokens=3, stop=["."], seed=-1).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"text": " upon a time", "index": 0, "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"]["completion_tokens"] == 3
    asked = engine.asked[0]
    assert isinstance(asked, CompletionRequest)
    assert (asked.max_tokens, asked.stop, asked.sampling.seed) == (3, (".",), -1)


def test_sixteen_tokens_are_the_default_of_completions() -> None:
    engine = ScriptedEngine()
    complete(engine)
    asked = engine.asked[0]
    assert isinstance(asked, CompletionRequest)
    assert asked.max_tokens == 16


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_prompts_are_a_text_texts_tokens_or_arrays_of_tokens(prompt: Any, asked: Any) -> None:
    engine = ScriptedEngine()
    answer = complete(engine, prompt=prompt).json()
    assert [request.prompt for request in engine.asked] == asked  # type: ignore[union-attr]
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(asked)))
    assert answer["usage"]["prompt_tokens"] == 7 * len(asked)


def test_several_prompts_with_several_answers_are_numbered_prompt_by_prompt() -> None:
    first = [*text("a0"), *text("a1", choice=1), end(), end(choice=1)]
    second = [*text("b0"), 0.01, *text("b1", choice=1), end(), end(choice=1)]
    answer = complete(ScriptedEngine(first, second), prompt=["a", "b"], n=2).json()
    assert [choice["text"] for choice in answer["choices"]] == ["a0", "a1", "b0", "b1"]
    assert answer["usage"]["prompt_tokens"] == 14
    assert answer["usage"]["completion_tokens"] == 12


def test_log_probabilities_have_the_older_shape() -> None:
    entries = (
        TokenLogprob(
            token=" up",
            bytes=(32, 117, 112),
            logprob=-0.5,
            top=(Alternative(token=" up", bytes=(32, 117, 112), logprob=-0.5),),
        ),
        TokenLogprob(token="on", bytes=(111, 110), logprob=-0.25),
    )
    engine = ScriptedEngine([TextDelta(choice=0, text=" upon", logprobs=entries), end()])
    answer = complete(engine, logprobs=1).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": [" up", "on"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{" up": -0.5}, {}],
        "text_offset": [0, 3],
    }


def test_tokens_that_are_parts_of_characters_are_named_by_their_bytes() -> None:
    def token(kind: Any, *data: int, logprob: float = -1.0, **more: Any) -> Any:
        text = bytes(data).decode(errors="replace")
        return kind(token=text, bytes=data, logprob=logprob, **more)

    first = token(
        TokenLogprob,
        0x20,
        0xF0,
        0x9F,
        top=(token(Alternative, 0x20, 0xF0, 0x9F), token(Alternative, 0xF0, logprob=-2.0)),
    )
    rest = [token(TokenLogprob, 0x98), token(TokenLogprob, 0x80), token(TokenLogprob, 0x21)]
    pieces: list[Any] = [
        TextDelta(choice=0, text=" ", logprobs=(first,)),
        TextDelta(choice=0, text="\N{GRINNING FACE}!", logprobs=tuple(rest)),
        end(),
    ]
    expected: dict[str, Any] = {
        "tokens": ["bytes: \\xf0\\x9f", "bytes:\\x98", "bytes:\\x80", "!"],
        "token_logprobs": [-1.0] * 4,
        "top_logprobs": [{"bytes: \\xf0\\x9f": -1.0, "bytes:\\xf0": -2.0}, {}, {}, {}],
        "text_offset": [0, 1, 1, 2],
    }
    whole = complete(ScriptedEngine(pieces), logprobs=2).json()
    assert whole["choices"][0]["text"] == " \N{GRINNING FACE}!"
    assert whole["choices"][0]["logprobs"] == expected
    found = [
        chunk["choices"][0]["logprobs"]
        for chunk in frames(complete(ScriptedEngine(pieces), logprobs=2, stream=True))
    ]
    assert {key: [each for part in found for each in part[key]] for key in expected} == expected


def test_a_completion_streams() -> None:
    engine = ScriptedEngine([*text(" upon", " a"), end()])
    got = frames(complete(engine, stream=True, stream_options={"include_usage": True}))
    assert [chunk["choices"][0]["text"] for chunk in got[:-1]] == [" upon", " a", ""]
    assert got[-2]["choices"][0]["finish_reason"] == "stop"
    assert got[-1]["choices"] == []
    assert got[-1]["usage"]["total_tokens"] == 10


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"max_tokens": -5}, "max_tokens"),
    ],
)
def test_a_wrong_completion_names_its_parameter(body: dict[str, Any], param: str) -> None:
    response = complete(ScriptedEngine(), **body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_model_that_cannot_fill_in_says_suffix() -> None:
    engine = ScriptedEngine([RequestError("no", param="suffix", code="unsupported_parameter")])
    response = complete(engine, suffix="end")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"


def test_base64_vectors_are_little_endian_float32_equal_to_the_plain_ones() -> None:
    sent = {"model": EMBEDDING_MODEL, "input": ["one", "two"]}
    plain = send(ScriptedEngine(), "/v1/embeddings", sent).json()
    coded = send(ScriptedEngine(), "/v1/embeddings", sent | {"encoding_format": "base64"}).json()
    for index in (0, 1):
        raw = base64.b64decode(coded["data"][index]["embedding"])
        assert list(struct.unpack(f"<{DIMENSIONS}f", raw)) == plain["data"][index]["embedding"]
        assert plain["data"][index]["index"] == index
    assert plain["usage"] == {"prompt_tokens": 6, "total_tokens": 6}


def test_the_sdk_reads_embeddings() -> None:
    found = with_sdk(
        ScriptedEngine(), lambda sdk: sdk.embeddings.create(model=EMBEDDING_MODEL, input=["a", "b"])
    )
    assert [len(each.embedding) for each in found.data] == [DIMENSIONS, DIMENSIONS]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 2}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_wrong_embedding_names_its_parameter(body: dict[str, Any], param: str) -> None:
    response = send(
        ScriptedEngine(), "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "a"} | body
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_the_model_s_own_dimensions_are_accepted() -> None:
    body = {"model": EMBEDDING_MODEL, "input": "a", "dimensions": DIMENSIONS}
    assert send(ScriptedEngine(), "/v1/embeddings", body).status_code == 200


def test_models_are_listed_and_described() -> None:
    listed = send(ScriptedEngine(), "/v1/models", method="GET").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [MODEL, EMBEDDING_MODEL]
    one = send(ScriptedEngine(), f"/v1/models/{MODEL}", method="GET").json()
    assert one == listed["data"][0]
    assert one["context_length"] == 8192
    missing = send(ScriptedEngine(), "/v1/models/some/model", method="GET")
    assert missing.status_code == 404
    error = missing.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["message"].startswith("The model 'some/model' does not exist")
    assert f"'{MODEL}', '{EMBEDDING_MODEL}'" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO}),
        ("/v1/chat/completions/input_tokens", {"messages": HELLO}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/responses/input_tokens", {"input": "Hi"}),
        ("/tokenize", {"prompt": "Hi"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/embeddings", {"input": "Hi", "dimensions": DIMENSIONS}),
        (f"/v1/models/{MODEL.title()}", None),
    ],
)
def test_a_model_is_found_by_its_name_in_any_case(path: str, body: dict[str, Any] | None) -> None:
    model = EMBEDDING_MODEL if path == "/v1/embeddings" else MODEL
    if body is None:
        assert send(ScriptedEngine(), path, method="GET").status_code == 200
        return
    response = send(ScriptedEngine(), path, body | {"model": model.upper()})
    assert response.status_code == 200, response.text
    unknown = send(ScriptedEngine(), path, body | {"model": "another"})
    assert unknown.status_code == 404
    assert f"'{MODEL}'" in unknown.json()["error"]["message"]


def test_other_dimensions_are_refused_in_any_case() -> None:
    body = {"model": EMBEDDING_MODEL.upper(), "input": "Hi", "dimensions": DIMENSIONS + 1}
    response = send(ScriptedEngine(), "/v1/embeddings", body)
    assert response.json()["error"]["param"] == "dimensions"


def test_tokens_go_there_and_back() -> None:
    there = send(ScriptedEngine(), "/tokenize", {"model": MODEL, "prompt": "añ"}).json()
    assert there == {"tokens": list("añ".encode()), "count": 3}
    back = send(ScriptedEngine(), "/detokenize", {"model": MODEL, "tokens": there["tokens"]}).json()
    assert back["prompt"] == "añ"
    chat = send(ScriptedEngine(), "/tokenize", {"messages": HELLO}).json()
    assert chat["count"] == 2
    both = send(ScriptedEngine(), "/tokenize", {"prompt": "a", "messages": HELLO})
    assert both.status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions/input_tokens", {"messages": HELLO}),
        ("/v1/responses/input_tokens", {"input": "Hi"}),
    ],
)
def test_the_tokens_of_a_prompt_are_counted_beforehand(path: str, body: dict[str, Any]) -> None:
    found = send(ScriptedEngine(), path, {"model": MODEL} | body).json()
    assert found == {"object": "response.input_tokens", "input_tokens": 2}


@pytest.mark.parametrize("path", ["/v1/models", f"/v1/models/{MODEL}", "/v1/models/none"])
def test_head_tells_what_get_would(path: str) -> None:
    asked, told = (send(ScriptedEngine(), path, method=each) for each in ("GET", "HEAD"))
    assert (told.status_code, told.headers) == (asked.status_code, asked.headers)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("DELETE", "/v1/models", 405, "method_not_supported"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
    ],
)
def test_a_wrong_path_or_method_is_answered_in_the_same_shape(
    method: str, path: str, status: int, code: str
) -> None:
    response = send(ScriptedEngine(), path, method=method)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
