"""OpenAI's client for Python over a real connection: what it parses, raises and retries."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from tests.clients.scripts import Talk
from tests.clients.served import serving
from tests.support.scripted_engine import DIMENSIONS, EMBEDDING_MODEL, MODEL, ScriptedEngine

from qbtc_gateway.security.keys import KeyFile, new_key
from qbtc_gateway.security.scopes import SCOPES_DEFAULT

HELLO = [{"role": "user", "content": "Hi"}]


class Place(BaseModel):
    """What the model is asked for."""

    city: str


class Served(msgspec.Struct, frozen=True):
    client: OpenAI
    engine: ScriptedEngine


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    engine = ScriptedEngine(Talk())
    with (
        serving(engine, tmp_path) as url,
        OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=2) as client,
    ):
        yield Served(client, engine)


def say(words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": words}]


def test_a_chat_is_answered_whole_and_streamed(served: Served) -> None:
    chats = served.client.chat.completions
    whole = chats.create(model=MODEL, messages=HELLO)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == "Hello there"
    assert whole._request_id.startswith("req_")
    with chats.stream(model=MODEL, messages=HELLO) as stream:  # type: ignore[arg-type]
        assert stream.get_final_completion().choices[0].message.content == "Hello there"


def test_tools_and_json_are_parsed_into_types(served: Served) -> None:
    chats = served.client.chat.completions
    tool = openai.pydantic_function_tool(Place, name="weather")
    called = chats.parse(model=MODEL, messages=say("weather"), tools=[tool])  # type: ignore[arg-type]
    found = called.choices[0].message.tool_calls
    assert found is not None
    assert found[0].function.parsed_arguments == Place(city="Rome")
    answered = chats.parse(model=MODEL, messages=say("json"), response_format=Place)  # type: ignore[arg-type]
    assert answered.choices[0].message.parsed == Place(city="Rome")


def test_embeddings_models_and_responses_are_understood(served: Served) -> None:
    client = served.client
    vectors = client.embeddings.create(model=EMBEDDING_MODEL, input=["a", "b"])
    assert [len(entry.embedding) for entry in vectors.data] == [DIMENSIONS] * 2
    assert MODEL in {model.id for model in client.models.list()}
    assert client.responses.create(model=MODEL, input="Hi").output_text == "Hello there"
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        assert stream.get_final_response().output_text == "Hello there"


def test_errors_become_the_clients_own(served: Served) -> None:
    create = served.client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as missing:
        create(model="none", messages=HELLO)  # type: ignore[call-overload]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context length") as long:
        create(model=MODEL, messages=say("too long"))  # type: ignore[call-overload]
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        create(model=MODEL, messages=HELLO, temperature=-1)  # type: ignore[call-overload]
    assert wrong.value.param == "temperature"
    stream = create(model=MODEL, messages=say("breaks"), stream=True)  # type: ignore[call-overload]
    with pytest.raises(openai.APIError) as broken:
        list(stream)
    assert "inside" not in str(broken.value)


def test_a_full_queue_is_waited_for_as_told(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    sleep = time.sleep

    def wait(seconds: float) -> None:
        waited.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", wait)
    answer = served.client.chat.completions.create(model=MODEL, messages=say("busy"))  # type: ignore[call-overload]
    assert answer.choices[0].message.content == "Hello there"
    assert waited == [0.3, 0.3]


def test_a_client_that_leaves_ends_the_work(served: Served) -> None:
    stream = served.client.chat.completions.create(
        model=MODEL, messages=say("for ever"), stream=True
    )  # type: ignore[call-overload]
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    stream.close()
    deadline = time.monotonic() + 30
    while served.engine.cancelled == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert served.engine.cancelled == 1


def test_keys_are_asked_for_where_there_are_keys(tmp_path: Path) -> None:
    secret, key = new_key("", SCOPES_DEFAULT)
    KeyFile(tmp_path / "keys.json").add(key)
    with serving(ScriptedEngine(Talk()), tmp_path) as url:
        with OpenAI(base_url=f"{url}/v1", api_key=secret) as client:
            assert MODEL in {model.id for model in client.models.list()}
        with (
            OpenAI(base_url=f"{url}/v1", api_key="wrong") as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            client.models.list()
    assert refused.value.code == "invalid_api_key"
