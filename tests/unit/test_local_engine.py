"""The engine of this process, on a scripted core: what it asks of it and makes of its news."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_core import ScriptedCore

from qbtc import _core
from qbtc.core.language_model import LanguageModel
from qbtc.errors import EngineBusy
from qbtc.llm.errors import ContextLengthExceeded, ModelNotFound, RequestError
from qbtc.llm.local import LocalEngine
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Event,
    Finished,
    ModelInfo,
    Prefill,
    ResponseFormat,
    Sampling,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolChoice,
)

CONTEXT = 4_096
HI = (ChatMessage(role="user", content="Hi"),)
LOOK = Tool(name="look", parameters={"type": "object"})
CHAT = ModelInfo(id="m", kind="chat", created=0, context_tokens=CONTEXT, vocabulary=300)
EMBEDDING = ModelInfo(id="e", kind="embedding", created=0, context_tokens=8, embedding_dimensions=2)


class Embedder:
    dimensions = 2
    context_tokens = 8

    async def count_tokens(self, texts: Any) -> list[int]:
        return [len(text) for text in texts]

    async def embed(self, texts: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)

    async def close(self) -> None:
        pass


def play[T](scene: Callable[[ScriptedCore, LocalEngine], Awaitable[T]]) -> T:
    async def run() -> T:
        core = ScriptedCore()
        model = LanguageModel(core, path=Path("x.gguf"))
        engine = LocalEngine(model, CHAT, embedder=Embedder(), embedder_info=EMBEDDING)
        try:
            async with asyncio.timeout(60):
                return await scene(core, engine)
        finally:
            await engine.close()

    return asyncio.run(run())


def answer(
    events: Callable[[LocalEngine], AsyncIterator[Event]], *pieces: str, reason: str = "stop"
) -> tuple[list[Event], ScriptedCore]:
    """All events of a request that the core answers with the pieces."""

    async def scene(core: ScriptedCore, engine: LocalEngine) -> tuple[list[Event], ScriptedCore]:
        def say(request: int) -> None:
            for piece in pieces:
                core.text(request, piece)
            core.finish(request, reason)

        core.on_submit = say
        return [event async for event in events(engine)], core

    return play(scene)


def chat(**options: Any) -> ChatRequest:
    return ChatRequest(**{"model": "m", "messages": HI} | options)


def test_a_chat_is_a_generation_and_its_news_are_events() -> None:
    request = chat(max_tokens=5, stop=("x",), sampling=Sampling(temperature=0, seed=-1))
    events, core = answer(lambda engine: engine.chat(request), "Hel", "lo")
    assert isinstance(events[0], Prefill)
    assert events[1:3] == [TextDelta(choice=0, text="Hel"), TextDelta(choice=0, text="lo")]
    end = events[3]
    assert isinstance(end, Finished)
    assert (end.reason, end.seed, end.usage.completion_tokens) == ("stop", 2**64 - 1, 2)
    sent = core.submitted[0]
    assert (sent["new_tokens_max"], sent["seed"], sent["stop"]) == (5, 2**64 - 1, ("x",))
    assert sent["constraint"] is None


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    _, core = answer(lambda engine: engine.chat(chat()))
    sent = core.submitted[0]
    assert sent["new_tokens_max"] == CONTEXT - len(sent["prompt"])


def test_seeds_are_drawn_derived_and_reported() -> None:
    events, core = answer(lambda engine: engine.chat(chat(n=3)), "x")
    used = [sent["seed"] for sent in core.submitted]
    assert len(set(used)) == 3
    ends = [event for event in events if isinstance(event, Finished)]
    assert {end.choice: end.seed for end in ends} == dict(enumerate(used))
    _, again = answer(lambda engine: engine.chat(chat(n=3, sampling=Sampling(seed=used[0]))), "x")
    assert [sent["seed"] for sent in again.submitted] == used


def test_tool_calls_are_parsed_and_are_the_reason_for_the_end() -> None:
    events, core = answer(
        lambda engine: engine.chat(chat(tools=(LOOK,))),
        "I ",
        'look.\n<tool_call>\n{"name": "look", "argu',
        'ments": {"a": 1}}\n</tool_call>',
    )
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "I look."
    calls = [event for event in events if isinstance(event, ToolCallDelta)]
    assert calls[0].name == "look"
    assert "".join(call.arguments for call in calls) == '{"a": 1}'
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "tool_calls"
    assert core.submitted[0]["constraint"][0] == "lark"
    assert b"# Tools" in bytes(core.submitted[0]["prompt"])


CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.mark.parametrize("stop", ["\n", "}", "city", "<"])
@pytest.mark.parametrize(
    "choice", [ToolChoice(), ToolChoice(mode="required"), ToolChoice(mode="named", name="look")]
)
def test_a_stop_text_never_cuts_a_call(stop: str, choice: ToolChoice) -> None:
    request = chat(tools=(LOOK,), tool_choice=choice, stop=(stop,))
    events, core = answer(lambda engine: engine.chat(request), *CALL)
    assert core.submitted[0]["stop"] == ()
    assert not [event for event in events if isinstance(event, TextDelta)]
    calls = [event.arguments for event in events if isinstance(event, ToolCallDelta)]
    assert json.loads("".join(calls)) == {"city": "Paris"}
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "tool_calls"


def test_a_stop_text_beside_tools_ends_the_text_and_the_work() -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> tuple[list[Event], list[int]]:
        def say(request: int) -> None:
            core.say(request, "prefill", 9, 9, 4)
            for piece in ("I see", ". S", "top", " that"):
                core.text(request, piece)

        core.on_submit = say
        request = chat(tools=(LOOK,), stop=("Stop",))
        return [event async for event in engine.chat(request)], core.cancelled

    events, cancelled = play(scene)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "I see. "
    assert cancelled == [1], "the core does not go on"
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.stop) == ("stop", "Stop")
    assert (end.usage.completion_tokens, end.usage.cached_tokens) == (3, 4)
    assert end.usage.prompt_tokens > 4


def test_without_a_choice_of_tools_none_are_shown_or_parsed() -> None:
    request = chat(tools=(LOOK,), tool_choice=ToolChoice(mode="none"))
    events, core = answer(lambda engine: engine.chat(request), "<tool_call>")
    assert TextDelta(choice=0, text="<tool_call>") in events
    assert b"# Tools" not in bytes(core.submitted[0]["prompt"])


@pytest.mark.parametrize(
    ("length", "max_tokens", "says"),
    [
        (5_000, None, "maximum context length is 4096 tokens. However, your messages resulted in"),
        (10, 5_000, "5000 in the completion). Please reduce the length of the messages or compl"),
    ],
)
def test_what_does_not_fit_the_context_says_so(
    length: int, max_tokens: int | None, says: str
) -> None:
    request = chat(
        messages=(ChatMessage(role="user", content="x" * length),), max_tokens=max_tokens
    )
    with pytest.raises(ContextLengthExceeded, match=says.replace("(", r"\(").replace(")", r"\)")):
        answer(lambda engine: engine.chat(request))


def test_a_prompt_that_the_memory_does_not_hold_exceeds_the_context() -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> None:
        core.refuse = _core.CoreContextError("prompt: 200 tokens; at most 128 fit")
        with pytest.raises(ContextLengthExceeded, match="200 tokens") as error:
            await anext(engine.chat(chat()))
        assert error.value.param == "messages"

    play(scene)


def test_closing_the_events_cancels_every_answer() -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> list[int]:
        async with aclosing(engine.chat(chat(n=2))) as events:
            await anext(events)
        return core.cancelled

    assert sorted(play(scene)) == [1, 2]


def test_closing_in_the_middle_of_a_wait_cancels_too() -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> list[int]:
        async def read() -> None:
            async for _ in engine.chat(chat(n=2)):
                pass

        task = asyncio.create_task(read())
        while len(core.submitted) < 2:  # noqa: ASYNC110  what the core does sets no event
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return core.cancelled

    assert sorted(play(scene)) == [1, 2]


def test_a_full_queue_refuses_before_the_first_event_and_frees_what_was_taken() -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> list[int]:
        def full(_: int) -> None:
            core.refuse = _core.CoreBusyError("the queue is full")
            core.refuse.retry_after_s = 1.0

        core.on_submit = full
        events = engine.chat(chat(n=2))
        with pytest.raises(EngineBusy):
            await anext(events)
        return core.cancelled

    assert play(scene) == [1]


@pytest.mark.parametrize(
    ("refusal", "options", "param"),
    [
        ("logit_bias: token 400", {}, "logit_bias"),
        ("new_tokens_max: no", {}, "max_tokens"),
        ("prompt: no", {}, "messages"),
        ("constraint: no", {"response_format": ResponseFormat(type="json_object")}, "response_fo"),
        ("constraint: no", {"tools": (LOOK,)}, "tools"),
        (
            "constraint: no",
            {"tools": (LOOK, Tool(name="f", parameters={"properties": 5}))},
            "tools[1].function.parameters",
        ),
    ],
)
def test_a_refusal_of_the_core_names_the_client_s_field(
    refusal: str, options: dict[str, Any], param: str
) -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> None:
        core.refuse = _core.CoreInputError(refusal)
        with pytest.raises(RequestError) as error:
            await anext(engine.chat(chat(**options)))
        assert (error.value.param or "").startswith(param)

    play(scene)


def test_a_text_is_continued_as_it_is() -> None:
    request = CompletionRequest(model="m", prompt="Once", echo=True, n=2)
    events, core = answer(lambda engine: engine.complete(request), " upon")
    assert bytes(core.submitted[0]["prompt"]) == b"Once"
    assert core.submitted[0]["new_tokens_max"] == 16
    texts = ["", ""]
    for event in events:
        if isinstance(event, TextDelta):
            texts[event.choice] += event.text
    assert texts == ["Once upon", "Once upon"]


def test_no_tokens_asked_for_means_none_generated() -> None:
    request = CompletionRequest(model="m", prompt="Once", echo=True, max_tokens=0)
    events, core = answer(lambda engine: engine.complete(request))
    assert core.submitted == []
    assert [type(event) for event in events] == [Prefill, TextDelta, Finished]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (CompletionRequest(model="m", prompt=""), "prompt"),
        (CompletionRequest(model="m", prompt=(1, 300)), "prompt[1]"),
        (CompletionRequest(model="m", prompt="x", suffix="y"), "suffix"),
        (CompletionRequest(model="e", prompt="x"), "model"),
    ],
)
def test_a_text_that_cannot_be_continued_is_refused(
    request_: CompletionRequest, param: str
) -> None:
    with pytest.raises(RequestError) as error:
        answer(lambda engine: engine.complete(request_))
    assert error.value.param == param


def test_texts_are_embedded_in_order() -> None:
    async def scene(_: ScriptedCore, engine: LocalEngine) -> None:
        found = await engine.embed(EmbeddingRequest(model="e", inputs=("a", "bcd")))
        assert [np.frombuffer(v, "<f4").tolist() for v in found.vectors] == [[1, 1], [3, 1]]
        assert found.prompt_tokens == 4
        with pytest.raises(ContextLengthExceeded):
            await engine.embed(EmbeddingRequest(model="e", inputs=("a" * 9,)))
        with pytest.raises(RequestError, match="not token ids"):
            await engine.embed(EmbeddingRequest(model="e", inputs=((1, 2),)))
        with pytest.raises(RequestError, match="no embeddings"):
            await engine.embed(EmbeddingRequest(model="m", inputs=("a",)))
        with pytest.raises(ModelNotFound):
            await engine.embed(EmbeddingRequest(model="x", inputs=("a",)))

    play(scene)


def test_a_model_s_name_may_be_written_in_any_case() -> None:
    async def scene(core: ScriptedCore, engine: LocalEngine) -> None:
        core.on_submit = core.finish
        assert [event async for event in engine.chat(chat(model="M"))]
        assert [event async for event in engine.complete(CompletionRequest(model="M", prompt="x"))]
        assert await engine.tokenize("M", "a") == [97]
        assert await engine.detokenize("M", [97]) == "a"
        assert await engine.tokenize_chat("M", HI)
        assert (await engine.embed(EmbeddingRequest(model="E", inputs=("a",)))).prompt_tokens == 1
        for model in ("E", "other"):
            with pytest.raises(RequestError) as error:
                await engine.tokenize(model, "a")
            assert error.value.param == "model"

    play(scene)


def test_a_name_that_no_model_has_is_refused_with_the_names_there_are() -> None:
    async def scene(_: ScriptedCore, engine: LocalEngine) -> None:
        with pytest.raises(ModelNotFound) as error:
            await engine.tokenize("x", "a")
        assert str(error.value) == (
            "The model 'x' does not exist or you do not have access to it. Served here: 'm', 'e'."
        )
        assert error.value.code == "model_not_found"

    play(scene)


@pytest.mark.parametrize("length", [1, 100])
def test_a_long_system_message_is_pinned(length: int) -> None:
    def render(
        messages: str, tools: str | None, *, add_generation_prompt: bool, now_unix_s: int
    ) -> str:
        del tools, now_unix_s
        turns = "".join(f"{m['role']}:{m['content']};" for m in json.loads(messages))
        return turns + ("assistant:" if add_generation_prompt else "")

    async def scene(core: ScriptedCore, engine: LocalEngine) -> None:
        core.render = render  # type: ignore[method-assign]
        core.on_submit = core.finish
        system = ChatMessage(role="system", content="s" * length)
        for _ in range(2):
            async for _ in engine.chat(chat(messages=(system, *HI))):
                pass
        whole = len(f"system:{system.content};")
        assert [sent["pinned"] for sent in core.submitted] == [whole * (length > 1)] * 2

    play(scene)
