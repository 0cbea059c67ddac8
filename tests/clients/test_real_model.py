"""OpenAI's client, Cline, aider and Continue on the real model: not what it says, but how."""

import json
import math
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from openai import OpenAI
from pydantic import BaseModel
from tests.clients.served import REAL, Process, process
from tests.clients.test_aider import aider
from tests.clients.test_cline import cline, repository
from tests.clients.tools import run_node

from qbtc.llm.models import DEFAULT_CHAT_MODEL, DEFAULT_EMBEDDING_MODEL

HELLO: list[Any] = [{"role": "user", "content": "Say hello to a friend in one sentence."}]


@pytest.fixture(scope="module")
def client(real_server: Process) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{real_server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_chat_is_streamed_and_counted(client: OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": DEFAULT_CHAT_MODEL,
        "messages": HELLO,
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**ask)
    said = whole.choices[0].message.content
    assert said
    chunks = list(
        client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == said, "the same question at temperature 0 has the same answer"
    assert sum(bool(piece) for piece in pieces) > 4
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 0
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert 0 < usage.completion_tokens <= 24


def test_a_seed_repeats_and_logprobs_are_probabilities(client: OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": DEFAULT_CHAT_MODEL,
        "messages": HELLO,
        "max_tokens": 16,
        "temperature": 1.0,
        "seed": 7,
        "logprobs": True,
        "top_logprobs": 3,
    }
    first, second = (client.chat.completions.create(**ask).choices[0] for _ in "ab")
    assert first.message.content == second.message.content
    assert first.logprobs is not None
    tokens = first.logprobs.content
    assert tokens
    assert "".join(token.token for token in tokens) == first.message.content
    for token in tokens:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.0001


class Place(BaseModel):
    city: str
    country: str
    inhabitants: int


def test_json_and_tools_are_valid_whatever_the_model_knows(client: OpenAI) -> None:
    schema = Place.model_json_schema() | {"additionalProperties": False}
    checked = jsonschema_rs.validator_for(schema)
    for seed in range(3):
        answer = client.chat.completions.create(
            model=DEFAULT_CHAT_MODEL,
            messages=[{"role": "user", "content": "Tell me about Rome."}],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "place", "strict": True, "schema": schema},
            },
            seed=seed,
            max_tokens=200,
        ).choices[0]
        if answer.finish_reason == "stop":
            checked.validate(json.loads(answer.message.content or ""))
        called = client.chat.completions.create(
            model=DEFAULT_CHAT_MODEL,
            messages=[{"role": "user", "content": "Remember Rome."}],
            tools=[{"type": "function", "function": {"name": "remember", "parameters": schema}}],
            tool_choice="required",
            seed=seed,
            max_tokens=200,
        ).choices[0]
        if called.finish_reason == "tool_calls":
            (call, *_) = called.message.tool_calls or []
            assert call.type == "function"
            assert call.function.name == "remember"
            checked.validate(json.loads(call.function.arguments))


def test_embeddings_are_unit_vectors_that_know_meaning(client: OpenAI) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on a couch.", "Interest rates rose."]
    found = client.embeddings.create(model=DEFAULT_EMBEDDING_MODEL, input=texts)
    cat, kitten, rates = (entry.embedding for entry in found.data)
    for vector in (cat, kitten, rates):
        assert math.isclose(sum(x * x for x in vector), 1.0, abs_tol=1e-3)

    def near(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert near(cat, kitten) > 0.5 > near(cat, rates)


def test_completions_and_responses_are_answered(client: OpenAI) -> None:
    text = client.completions.create(
        model=DEFAULT_CHAT_MODEL, prompt="One, two, three, four,", max_tokens=8, temperature=0
    )
    assert "five" in text.choices[0].text
    said = client.responses.create(
        model=DEFAULT_CHAT_MODEL, input="Say hello.", max_output_tokens=16
    )
    assert said.output_text


def test_a_prompt_beyond_the_context_is_refused_exactly(real_server: Process) -> None:
    words = [{"role": "user", "content": "price " * 9_000}]
    body = {"model": DEFAULT_CHAT_MODEL, "messages": words}
    answer = httpx.post(f"{real_server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert "8192" in answer.json()["error"]["message"]


def test_leaving_frees_the_engine(real_server: Process) -> None:
    def engine(name: str) -> float:
        text = httpx.get(f"{real_server.url}/metrics", timeout=60).text
        start = f"qbtc_engine_{name} "
        line = next(line for line in text.splitlines() if line.startswith(start))
        return float(line.split()[1])

    asked = 4_000
    made = engine("completion_tokens_total")
    body = {"model": DEFAULT_CHAT_MODEL, "messages": HELLO, "stream": True, "max_tokens": asked}
    body["messages"] = [{"role": "user", "content": "Count from one to a million, in words."}]
    with httpx.stream(
        "POST",
        f"{real_server.url}/v1/chat/completions",
        json=body | {"logit_bias": {"2": -100}},
        timeout=60,
    ) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if '"content":"' in line and '"content":""' not in line)
        assert engine("active") >= 1
    deadline = time.monotonic() + 60
    while engine("active") > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine("active") == 0
    # It was given up, however long that took, and not answered to its end.
    assert engine("completion_tokens_total") - made < asked


def test_the_prefix_cache_outlives_the_process(tmp_path: Path) -> None:
    system = "You are a careful assistant. " + "Be brief and kind to all. " * 100
    body = {
        "model": DEFAULT_CHAT_MODEL,
        "max_tokens": 4,
        "messages": [{"role": "system", "content": system}, *HELLO],
    }
    cached = []
    for _ in range(2):
        with process(tmp_path, command=REAL) as server:
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
            cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
            server.stop()
            assert server.process.returncode == 0
    assert cached[0] == 0
    assert cached[1] > 500


def test_cline_streams_from_the_real_model(real_server: Process, tmp_path: Path) -> None:
    repository(tmp_path)
    _, events, output = cline(tmp_path, real_server.url, DEFAULT_CHAT_MODEL, "Say hello.")
    kinds = {event["event"]["type"] for event in events if event.get("type") == "agent_event"}  # type: ignore[index]
    assert {"content_start", "content_end"} & kinds or "content_update" in kinds, output
    assert any(event.get("type") == "run_result" for event in events), output


def test_aider_chats_with_the_real_model(real_server: Process, tmp_path: Path) -> None:
    repository(tmp_path)
    settings = tmp_path / "models.yml"
    short = [{"name": f"openai/{DEFAULT_CHAT_MODEL}", "extra_params": {"max_tokens": 40}}]
    # JSON is YAML.
    settings.write_text(json.dumps(short), encoding="utf-8")
    code, output = aider(
        tmp_path,
        real_server.url,
        DEFAULT_CHAT_MODEL,
        "What does mid return?",
        "--chat-mode",
        "ask",
        "--model-settings-file",
        str(settings),
    )
    assert code == 0, output
    line = next(
        line for line in real_server.lines[::-1] if line.get("path") == "/v1/chat/completions"
    )
    assert (line["status"], line["stream"]) == (200, True)
    assert 1 < line["completion_tokens"] <= 40
    changed = ["git", "diff", "--stat"]
    done = subprocess.run(
        changed, cwd=tmp_path / "repo", capture_output=True, text=True, check=True
    )
    assert done.stdout == ""


def test_continue_talks_to_the_real_model(real_server: Process, tmp_path: Path) -> None:
    done = run_node(
        "continue.mjs",
        tmp_path,
        f"{real_server.url}/v1/",
        DEFAULT_CHAT_MODEL,
        DEFAULT_EMBEDDING_MODEL,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"]
