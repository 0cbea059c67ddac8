"""Answers that are kept: which, under what name, and that they are what was computed."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.scripted_engine import (
    FOREVER,
    MODEL,
    Script,
    ScriptedEngine,
    call,
    end,
    text,
)

from qbtc.cache.memory import MemoryCache
from qbtc.llm import cached
from qbtc.llm.cached import CachedEngine, answer_key
from qbtc.llm.engine import Engine
from qbtc.llm.errors import ModelNotFound, RequestError
from qbtc.llm.kept import ANSWER_BYTES_MAX, CacheHit, CacheMiss
from qbtc.messages.language import (
    Alternative,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    Event,
    Finished,
    Prefill,
    ResponseFormat,
    Sampling,
    TextDelta,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    ToolChoice,
    Usage,
)

GREEDY = Sampling(temperature=0.0)
ASKED = ChatRequest(
    model=MODEL, messages=(ChatMessage(role="user", content="Hi"),), sampling=GREEDY
)
SHA = "a" * 64
LOGPROB = TokenLogprob(
    token="Hel", bytes=(72,), logprob=-0.5, top=(Alternative(token="x", bytes=(120,), logprob=-2),)
)


async def answer(engine: Engine, request: ChatRequest | CompletionRequest = ASKED) -> list[Event]:
    asked = engine.chat(request) if isinstance(request, ChatRequest) else engine.complete(request)
    events = [event async for event in asked]
    # An answer goes to the cache beside the loop.
    await asyncio.sleep(0)
    return events


def engines(*scripts: Script, sha256: str = SHA) -> tuple[ScriptedEngine, CachedEngine]:
    scripted = ScriptedEngine(*scripts, sha256=sha256)
    return scripted, CachedEngine(scripted, MemoryCache())


def _plain(events: Sequence[Event]) -> list[Event]:
    """Leave out what may differ between two times the same is computed."""
    plain: list[Event] = []
    for event in events:
        match event:
            case Prefill():
                continue
            case ToolCallDelta(id=str()):
                plain.append(msgspec.structs.replace(event, id="id"))
            case Finished(usage=usage):
                tokens = Usage(
                    prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
                )
                plain.append(msgspec.structs.replace(event, usage=tokens))
            case _:
                plain.append(event)
    return plain


@pytest.mark.parametrize(
    "script",
    [
        [*text("Hel", "lo ", "\N{SNOWMAN}"), end()],
        [TextDelta(choice=0, text="Hel", logprobs=(LOGPROB,)), end("length")],
        [
            *call("look", '{"a":', "1}"),
            *call("see", "{}", number=1, id="call_2"),
            end("tool_calls"),
        ],
        [end(completion=0)],
    ],
)
def test_a_kept_answer_is_the_one_that_was_computed(script: Script) -> None:
    async def work() -> None:
        scripted, engine = engines(script, [*text("another"), end()])
        first = await answer(engine)
        second = await answer(engine)
        assert len(scripted.asked) == 1
        assert _plain(second) == _plain(first)
        assert isinstance(first[0], CacheMiss)
        assert second[0] == CacheHit(done=7, total=7, cached=7)
        ends = [event for event in second if isinstance(event, Finished)]
        assert [event.usage.cached_tokens for event in ends] == [7]
        await engine.close()
        assert scripted.closed

    asyncio.run(work())


def test_an_answer_is_kept_by_the_model_s_own_name() -> None:
    async def work() -> None:
        scripted, engine = engines()
        await answer(engine)
        again = await answer(engine, msgspec.structs.replace(ASKED, model=ASKED.model.upper()))
        assert isinstance(again[0], CacheHit)
        assert len(scripted.asked) == 1
        await engine.close()

    asyncio.run(work())


def test_the_calls_of_a_kept_answer_have_new_ids() -> None:
    async def work() -> None:
        _, engine = engines([*call("look", "{}"), end("tool_calls")])
        ids = {
            event.id
            for _ in range(3)
            for event in await answer(engine)
            if isinstance(event, ToolCallDelta) and event.id is not None
        }
        assert len(ids) == 3

    asyncio.run(work())


def test_texts_continued_are_kept_too() -> None:
    async def work() -> None:
        scripted, engine = engines([*text("a"), end()])
        request = CompletionRequest(model=MODEL, prompt="Hi", sampling=GREEDY)
        first = await answer(engine, request)
        assert _plain(await answer(engine, request)) == _plain(first)
        await answer(engine, msgspec.structs.replace(request, prompt=(1, 2)))
        assert len(scripted.asked) == 2

    asyncio.run(work())


@pytest.mark.parametrize(
    ("request_", "sha256"),
    [
        (msgspec.structs.replace(ASKED, sampling=Sampling(temperature=0.1)), SHA),
        (msgspec.structs.replace(ASKED, sampling=Sampling(temperature=1.0, seed=1)), SHA),
        (ASKED, ""),
    ],
)
def test_what_may_differ_the_next_time_is_not_kept(request_: ChatRequest, sha256: str) -> None:
    async def work() -> None:
        scripted, engine = engines([*text("a"), end()], sha256=sha256)
        for _ in range(2):
            events = await answer(engine, request_)
            assert type(events[0]) is Prefill
        assert len(scripted.asked) == 2

    asyncio.run(work())


@pytest.mark.parametrize(
    "script",
    [
        [*text("half")],
        [*text("half"), RuntimeError("broken")],
        [RequestError("refused")],
        [TextDelta(choice=0, text="x" * ANSWER_BYTES_MAX), end()],
    ],
)
def test_an_answer_without_its_end_or_too_long_is_not_kept(script: Script) -> None:
    async def work() -> None:
        scripted, engine = engines(script)
        seen: list[Any] = []
        for _ in range(2):
            try:
                seen.append(_plain(await answer(engine)))
            except (RuntimeError, RequestError) as error:
                seen.append(str(error))
        assert seen[0] == seen[1]
        assert len(scripted.asked) == 2

    asyncio.run(work())


def test_of_several_answers_all_must_have_come() -> None:
    async def work() -> None:
        both = [*text("a"), *text("b", choice=1), end(choice=1), end()]
        scripted, engine = engines([*text("a"), end()], both, [*text("c"), end()])
        two = msgspec.structs.replace(ASKED, n=2)
        await answer(engine, two)
        second = await answer(engine, two)
        assert _plain(await answer(engine, two)) == _plain(second)
        assert len(scripted.asked) == 2

    asyncio.run(work())


def test_a_client_that_leaves_early_keeps_nothing_and_ends_the_work() -> None:
    async def work() -> None:
        scripted, engine = engines([*text("a"), FOREVER, end()], [*text("b"), end()])
        async with aclosing(engine.chat(ASKED)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        assert scripted.cancelled == 1
        assert TextDelta(choice=0, text="b") in await answer(engine)

    asyncio.run(work())


def test_a_damaged_entry_is_computed_again() -> None:
    async def work() -> None:
        scripted = ScriptedEngine([*text("a"), end()], sha256=SHA)
        cache = MemoryCache()
        engine = CachedEngine(scripted, cache)
        for damage in (b"\xff", b"{}", b"", b'{"type":"TextDelta","choice":0,"text":"z"}'):
            await cache.put(answer_key(ASKED, SHA), damage, ttl_s=60)
            assert TextDelta(choice=0, text="a") in await answer(engine)
        assert len(scripted.asked) == 4

    asyncio.run(work())


def test_an_engine_that_cannot_name_its_models_answers_for_itself() -> None:
    async def work() -> None:
        scripted, engine = engines([*text("a"), end()])

        async def models() -> Any:
            raise ModelNotFound("away")

        scripted.models = models  # type: ignore[method-assign]
        assert TextDelta(choice=0, text="a") in await answer(engine)
        assert len(scripted.asked) == 1

    asyncio.run(work())


def test_a_list_of_models_that_is_late_delays_one_answer_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cached, "MODELS_S_MAX", 0.01)

    async def work() -> None:
        scripted, engine = engines([*text("a"), end()])
        await answer(engine)

        async def late() -> Any:
            await asyncio.Event().wait()

        scripted.models = late  # type: ignore[method-assign]
        await asyncio.sleep(0.02)
        async with asyncio.timeout(30):
            for _ in range(50):
                assert isinstance((await answer(engine))[0], CacheHit)
        monkeypatch.setattr(cached, "MODELS_OLD_S_MAX", 0.0)
        assert type((await answer(engine))[0]) is Prefill, "a list too old is not believed"
        await engine.close()

    asyncio.run(work())


_words = st.text(max_size=4)
_samplings = st.builds(
    Sampling,
    temperature=st.just(0.0),
    top_k=st.integers(0, 3),
    top_p=st.sampled_from([0.5, 1.0]),
    min_p=st.sampled_from([0.0, 0.1]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1]),
    logit_bias=st.dictionaries(st.integers(0, 3), st.sampled_from([-1.0, 1.0]), max_size=1),
    seed=st.none() | st.integers(0, 3),
)
_stops = st.lists(_words, max_size=2).map(tuple)
_schemas = st.none() | st.dictionaries(_words, st.booleans(), max_size=1)
_chats = st.builds(
    ChatRequest,
    model=_words,
    messages=st.lists(
        st.builds(
            ChatMessage,
            role=st.sampled_from(["system", "user"]),
            content=_words,
            name=st.none() | _words,
        ),
        max_size=2,
    ).map(tuple),
    tools=st.lists(st.builds(Tool, name=_words, parameters=_schemas), max_size=2).map(tuple),
    tool_choice=st.builds(ToolChoice, mode=st.sampled_from(["none", "auto"])),
    parallel_tool_calls=st.booleans(),
    response_format=st.builds(ResponseFormat, schema=_schemas, strict=st.booleans()),
    sampling=_samplings,
    max_tokens=st.none() | st.integers(0, 3),
    stop=_stops,
    n=st.integers(1, 2),
    logprobs=st.booleans(),
    top_logprobs=st.integers(0, 2),
)
_texts = st.builds(
    CompletionRequest,
    model=_words,
    prompt=_words | st.lists(st.integers(0, 3), max_size=2).map(tuple),
    suffix=st.none() | _words,
    sampling=_samplings,
    max_tokens=st.none() | st.integers(0, 3),
    stop=_stops,
    n=st.integers(1, 2),
    echo=st.booleans(),
    logprobs=st.booleans(),
    top_logprobs=st.integers(0, 2),
)
_requests = _chats | _texts
_shas = st.sampled_from([SHA, "b" * 64])


@given(_requests, _requests, _shas, _shas)
def test_two_answers_have_one_name_only_if_all_that_shapes_them_is_the_same(
    one: ChatRequest | CompletionRequest,
    other: ChatRequest | CompletionRequest,
    sha: str,
    other_sha: str,
) -> None:
    same = type(one) is type(other) and one == other and sha == other_sha
    assert (answer_key(one, sha) == answer_key(other, other_sha)) == same


@given(_requests, st.data())
def test_a_change_of_any_parameter_is_another_name(
    request_: ChatRequest | CompletionRequest, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(request_.__struct_fields__))
    another = data.draw(_chats if isinstance(request_, ChatRequest) else _texts)
    changed = msgspec.structs.replace(request_, **{name: getattr(another, name)})
    assert (answer_key(changed, SHA) == answer_key(request_, SHA)) == (changed == request_)
