"""The asyncio face of the language engine, on a scripted core and a real event descriptor."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from scripted_core import ScriptedCore

from qbtc import _core
from qbtc.core.language_model import (
    BUFFERED_TOKENS_MAX,
    Finished,
    Generation,
    GenerationRefused,
    LanguageModel,
    Prefill,
    Stream,
    Text,
    Update,
)
from qbtc.errors import EngineBusy, RunFailed

type Scene = Callable[[ScriptedCore, LanguageModel], Awaitable[None]]
ASK = Generation(prompt=(1, 2, 3), new_tokens_max=8)
GRAMMAR = msgspec.structs.replace(ASK, constraint=("json_object", ""))


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    async def run(scene: Scene) -> None:
        core = ScriptedCore()
        async with asyncio.timeout(60), LanguageModel(core, path=Path("x.gguf")) as model:
            await scene(core, model)
        assert core.closed

    def start(scene: Scene) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run(scene))

    return start


async def text_of(stream: Stream) -> str:
    return "".join([update.text async for update in stream if isinstance(update, Text)])


async def settle(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  what the core does sets no event
        await asyncio.sleep(0.001)


def test_an_answer_streams_in_order_and_ends(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        stream = await model.generate(ASK)
        core.say(1, "prefill", 3, 3, 1)
        core.say(1, "text", "ab", 2, [(7, b"ab", -0.5, [(7, b"ab", -0.5), (8, b"c", -1.5)])])
        core.finish(1)
        updates: list[Update] = [update async for update in stream]
        read, text, end = updates
        assert read == Prefill(3, 3, 1)
        assert isinstance(text, Text)
        assert (text.text, text.tokens, text.logprobs[0].top[1].bytes) == ("ab", 2, b"c")
        assert isinstance(end, Finished)
        assert (end.reason, end.usage.cached_tokens, end.usage.total_ns) == ("stop", 1, 30)
        assert [update async for update in stream] == []

    play(scene)


def test_options_reach_the_core_by_name(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        wish = Generation(
            prompt=[1], new_tokens_max=4, temperature=0.0, seed=5, stop=("\n",), logit_bias={3: 1.0}
        )
        await model.generate(wish)
        sent = core.submitted[0]
        assert (sent["prompt"], sent["new_tokens_max"], sent["seed"]) == ([1], 4, 5)
        assert (sent["stop"], sent["logit_bias"], sent["constraint"]) == (("\n",), {3: 1.0}, None)

    play(scene)


def test_one_wake_serves_every_stream(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        streams = [await model.generate(ASK) for _ in range(16)]
        readers = [asyncio.create_task(text_of(stream)) for stream in streams]
        await asyncio.sleep(0)
        before = core.drains
        for stream in streams:
            core.text(stream.id, f"<{stream.id}>")
        await settle(lambda: core.drains > before)
        assert core.drains == before + 1
        for stream in streams:
            core.finish(stream.id)
        assert await asyncio.gather(*readers) == [f"<{stream.id}>" for stream in streams]

    play(scene)


@pytest.mark.parametrize("how", ["close", "drop", "cancel the task"])
def test_leaving_a_stream_cancels_the_work(play: Callable[[Scene], None], how: str) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        stream: Stream | None = await model.generate(ASK)
        assert stream is not None
        if how == "close":
            waiting = asyncio.create_task(text_of(stream))
            await asyncio.sleep(0)
            await stream.aclose()
            assert await waiting == ""
            await stream.aclose()
        elif how == "drop":
            stream = None
            gc.collect()
        else:
            task = asyncio.create_task(text_of(stream))
            stream = None
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            del task
            gc.collect()
        assert core.cancelled == [1]
        core.finish(1, "cancelled")
        other = await model.generate(ASK)
        core.finish(2)
        assert await text_of(other) == ""
        assert core.cancelled == [1]

    play(scene)


def test_a_wait_that_times_out_loses_nothing(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        stream = await model.generate(ASK)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        core.text(1, "late")
        core.finish(1)
        assert await text_of(stream) == "late"
        assert core.cancelled == []

    play(scene)


def test_a_slow_reader_pauses_only_its_own_answer(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        slow, quick = await model.generate(ASK), await model.generate(ASK)
        core.text(1, "a", BUFFERED_TOKENS_MAX)
        await settle(lambda: not core.news)
        core.text(1, "b")
        core.text(2, "c")
        core.finish(1)
        core.finish(2)
        assert await text_of(quick) == "c"
        assert [news[0] for news in core.news] == [1, 1], "held back in the core"
        assert await text_of(slow) == "ab"

    play(scene)


def test_a_slow_reader_that_leaves_gives_its_place_back(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        slow = await model.generate(ASK)
        core.text(1, "a", BUFFERED_TOKENS_MAX)
        await settle(lambda: not core.news)
        core.text(1, "b")
        core.finish(1)
        before = core.drains
        await settle(lambda: core.drains > before)
        assert [news[0] for news in core.news] == [1, 1], "held back in the core"
        await slow.aclose()
        await settle(lambda: not core.news)

    play(scene)


def test_news_that_overtake_their_number_are_kept(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        drained = threading.Event()

        def overtake(request: int) -> None:
            core.text(request, "early")
            core.finish(request)
            model.loop.call_soon_threadsafe(drained.set)
            drained.wait()

        core.on_submit = overtake
        stream = await model.generate(GRAMMAR)
        assert await text_of(stream) == "early"

    play(scene)


def test_news_of_those_who_left_are_not_kept(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        compiled = threading.Event()
        left = await model.generate(ASK)
        core.on_submit = lambda _: compiled.wait()
        task = asyncio.create_task(model.generate(GRAMMAR))
        await settle(lambda: len(core.submitted) == 2)
        await left.aclose()
        core.text(1, "late")
        core.text(2, "early")
        core.finish(1, "cancelled")
        await settle(lambda: not core.news)
        assert (list(model._early), model._left) == ([2], set())
        core.finish(2)
        await settle(lambda: not core.news)
        compiled.set()
        assert await text_of(await task) == "early"

    play(scene)


def test_a_caller_that_leaves_during_compilation_cancels(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        compiled = threading.Event()
        core.on_submit = lambda _: compiled.wait()
        task = asyncio.create_task(model.generate(GRAMMAR))
        await settle(lambda: bool(core.submitted))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        compiled.set()
        await settle(lambda: core.cancelled == [1])

    play(scene)


def test_refusals_name_the_field_and_a_full_queue_says_when(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        for wish in (ASK, GRAMMAR):
            core.refuse = _core.CoreInputError("constraint: no such rule")
            with pytest.raises(GenerationRefused, match="no such rule") as refused:
                await model.generate(wish)
            assert refused.value.field == "constraint"
            core.refuse = _core.CoreBusyError("256 requests wait")
            core.refuse.retry_after_s = 1.5
            with pytest.raises(EngineBusy) as busy:
                await model.generate(wish)
            assert busy.value.retry_after_s == 1.5

    play(scene)


def test_an_engine_that_cannot_go_on_says_why(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        failed, broken = await model.generate(ASK), await model.generate(ASK)
        core.text(1, "half")
        core.finish(1, "failed", "no pages")
        assert isinstance(await anext(failed), Text)
        with pytest.raises(RunFailed, match="no pages"):
            await anext(failed)
        core.refuse = _core.CoreInputError("engine: it is shut down or failed; start a new one")
        with pytest.raises(RunFailed, match="failed"):
            await model.generate(ASK)
        core.broken = ValueError("thread gone")
        core.text(2, "x")
        with pytest.raises(RunFailed, match="thread gone"):
            await anext(broken)
        core.broken = None

    play(scene)


def test_closing_ends_streams_and_refuses_new_ones(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        stream = await model.generate(ASK)
        waiting: asyncio.Task[Any] = asyncio.create_task(text_of(stream))
        await asyncio.sleep(0)
        await model.close()
        with pytest.raises(RunFailed, match="closed"):
            await waiting
        with pytest.raises(RunFailed, match="closed"):
            await model.generate(ASK)
        await stream.aclose()
        assert core.cancelled == []

    play(scene)


def test_two_engines_share_a_loop(play: Callable[[Scene], None]) -> None:
    async def scene(core: ScriptedCore, model: LanguageModel) -> None:
        second = ScriptedCore()
        async with LanguageModel(second, path=Path("y.gguf")) as other:
            one, two = await model.generate(ASK), await other.generate(ASK)
            second.text(1, "two")
            core.text(1, "one")
            second.finish(1)
            core.finish(1)
            assert [await text_of(one), await text_of(two)] == ["one", "two"]

    play(scene)
