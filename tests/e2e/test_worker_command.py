"""``qbtc worker`` as processes: killed, stopped and started, its clients notice nothing."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.scripted_engine import MODEL, ScriptedEngine
from tests.support.scripted_worker import WORDS
from tests.support.signal_files import write_signal_model
from tests.support.worker_process import REAL, wait_for, worker

from qbtc import cli
from qbtc.bus import Bus, open_bus
from qbtc.bus.admin import remove_topology
from qbtc.errors import BusUnavailable
from qbtc.llm.models import DEFAULT_CHAT_MODEL
from qbtc.llm.remote import BusEngine
from qbtc.messages.envelope import message, new_id
from qbtc.messages.events import TradingRequest, TradingSignal
from qbtc.messages.language import (
    ChatMessage,
    ChatRequest,
    Event,
    Finished,
    ModelInfo,
    Sampling,
    TextDelta,
)
from qbtc.worker import serve

WAIT_S = 120.0
WHOLE = "".join(WORDS)
HELLO = ChatRequest(model=MODEL, messages=(ChatMessage(role="user", content="Hi"),))


@pytest.fixture
def prefix(amqp_url: str, queue_prefix: str) -> Iterator[str]:
    yield queue_prefix
    asyncio.run(remove_topology(amqp_url, queue_prefix))


class Asking:
    """An answer that is read on a thread while the test does something to its worker."""

    def __init__(self, url: str, prefix: str, request: ChatRequest = HELLO) -> None:
        self.events: list[Event] = []
        self._place = (url, prefix)
        self._request = request
        self._error: BaseException | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    def begun(self) -> None:
        """Wait for the first text."""
        assert self._begun.wait(WAIT_S)
        assert self._thread.is_alive()

    def whole(self) -> str:
        """Wait for the end; return the text."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
        assert sum(isinstance(event, Finished) for event in self.events) == self._request.n
        return self.text

    def _run(self) -> None:
        async def go() -> None:
            async with asking(*self._place) as engine:
                async for event in engine.chat(self._request):
                    self.events.append(event)
                    if isinstance(event, TextDelta):
                        self._begun.set()

        try:
            asyncio.run(go())
        except BaseException as error:
            self._error = error
            self._begun.set()


@asynccontextmanager
async def asking(url: str, prefix: str) -> AsyncIterator[BusEngine]:
    bus = await open_bus(url, prefix=prefix, source="qbtc/gateway/test")
    engine = BusEngine(bus, source="qbtc/gateway/test", timeout_s=WAIT_S)
    try:
        yield engine
    finally:
        await engine.close()
        await bus.close()


def test_a_worker_says_what_it_serves_and_from_where(
    amqp_url: str, prefix: str, tmp_path: Path
) -> None:
    model = tmp_path / "leaning.safetensors"
    write_signal_model(model, bias=(0.0, 0.0, 5.0))
    with worker(amqp_url, prefix, "--signal-model", str(model)) as working:
        assert working.line["pid"] == working.process.pid
        assert working.line["queues"] == [f"{prefix}q_llm_requests", f"{prefix}q_trading_requests"]
        assert working.line["models"] == ["scripted", "scripted-embedding"]
        assert working.line["signal_models"] == ["leaning"]
        assert Asking(amqp_url, prefix).whole() == WHOLE
        assert working.stop() == 0
        assert "Ctrl-C stops" in working.process.stderr.read()  # type: ignore[union-attr]


def test_a_worker_for_signals_alone_loads_no_language_model(
    amqp_url: str, prefix: str, tmp_path: Path
) -> None:
    model = tmp_path / "leaning.safetensors"
    write_signal_model(model, bias=(0.0, 0.0, 5.0))
    request = TradingRequest(
        request_id=new_id(), instrument="BTCUSDT.BINANCE", ts_event=1, features={}
    )

    async def ask() -> Any:
        bus = await open_bus(amqp_url, prefix=prefix, source="qbtc/node/test")
        try:
            asked = message(request, source="qbtc/node/test", subject=request.instrument)
            return (await bus.request(asked, timeout_s=WAIT_S)).data
        finally:
            await bus.close()

    options = ("--only", "trading", "--signal-model", str(model))
    with worker(amqp_url, prefix, *options, command=REAL) as working:
        assert working.line["queues"] == [f"{prefix}q_trading_requests"]
        assert working.line["models"] == []
        signal_ = asyncio.run(ask())
        assert isinstance(signal_, TradingSignal)
        assert signal_.action == "BUY"
        assert working.stop() == 0


def test_an_answer_survives_the_death_of_its_worker(amqp_url: str, prefix: str) -> None:
    with worker(amqp_url, prefix, QBTC_TEST_HANG_AFTER="17") as first:
        asked = Asking(amqp_url, prefix)
        asked.begun()
        with worker(amqp_url, prefix):
            first.signal(signal.SIGKILL)
            assert first.ended() == -signal.SIGKILL
            assert asked.whole() == WHOLE
            texts = [event for event in asked.events if isinstance(event, TextDelta)]
            assert len(texts) == len(WORDS)


def test_an_answer_of_the_real_model_survives_too(amqp_url: str, prefix: str) -> None:
    request = ChatRequest(
        model=DEFAULT_CHAT_MODEL,
        messages=(ChatMessage(role="user", content="Tell me a story."),),
        sampling=Sampling(temperature=0.8, seed=11),
        max_tokens=300,
        logprobs=True,
        n=2,
    )
    options = ("--embedding-model", "", "--threads", "1")
    with worker(amqp_url, prefix, *options, command=REAL) as first:
        asked = Asking(amqp_url, prefix, request)
        asked.begun()
        first.signal(signal.SIGSTOP)
        kept = asked.text
        with worker(amqp_url, prefix, *options, command=REAL):
            first.signal(signal.SIGKILL)
            assert asked.whole().startswith(kept[:1])
            undisturbed = Asking(amqp_url, prefix, request)
            undisturbed.whole()
    assert _answers(asked.events) == _answers(undisturbed.events)


def _answers(events: list[Event]) -> Any:
    """Return texts, tokens and ends by answer."""
    found: dict[int, list[Any]] = {}
    for event in events:
        if isinstance(event, TextDelta):
            part = found.setdefault(event.choice, ["", [], None])
            part[0] += event.text
            part[1] += [(each.token, each.logprob) for each in event.logprobs]
        elif isinstance(event, Finished):
            usage = event.usage
            part = found.setdefault(event.choice, ["", [], None])
            part[2] = (event.reason, event.seed, usage.completion_tokens)
            assert len(part[1]) == usage.completion_tokens
    return found


def test_a_worker_that_is_stopped_gives_what_it_cannot_finish_to_another(
    amqp_url: str, prefix: str
) -> None:
    with worker(amqp_url, prefix, "--finish-s", "0.2", QBTC_TEST_HANG_AFTER="5") as first:
        asked = Asking(amqp_url, prefix)
        asked.begun()
        with worker(amqp_url, prefix):
            assert first.stop() == 0
            assert asked.whole() == WHOLE


def test_a_second_signal_does_not_wait(amqp_url: str, prefix: str) -> None:
    with worker(amqp_url, prefix, "--finish-s", "600", QBTC_TEST_HANG_AFTER="5") as first:
        asked = Asking(amqp_url, prefix)
        asked.begun()
        with worker(amqp_url, prefix):

            def signalled() -> bool:
                first.signal(signal.SIGINT)
                return first.process.poll() is not None

            wait_for(signalled)
            assert first.ended() == 130
            assert asked.whole() == WHOLE


def test_a_broker_that_is_away_is_waited_for(
    amqp_url: str,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tries = 0

    async def open_later(url: str, **options: Any) -> Bus:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BusUnavailable("cannot reach RabbitMQ")
        return await open_bus(url, **options)

    class Announced(ScriptedEngine):
        async def models(self) -> Sequence[ModelInfo]:
            # Asked once requests are taken: that is what was waited for.
            os.kill(os.getpid(), signal.SIGTERM)
            return await super().models()

    async def load(_: serve.WorkerSettings) -> ScriptedEngine:
        return Announced()

    monkeypatch.setattr(serve, "open_bus", open_later)
    monkeypatch.setattr(serve, "CONNECT_AGAIN_S", 0.01)
    settings = serve.WorkerSettings(model=MODEL, amqp_url=amqp_url, prefix=prefix)
    serve.run(settings, load=load)
    said = capsys.readouterr().err
    assert said.count("cannot reach RabbitMQ; trying for") == 2
    assert "serving scripted" in said


def test_a_broker_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CONNECT_S_MAX", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"amqp://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(BusUnavailable, match="cannot reach RabbitMQ"):
            serve.run(serve.WorkerSettings(model=DEFAULT_CHAT_MODEL, amqp_url=url))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nobody"], "no model 'nobody' here; see: qbtc models list"),
        (["--only", "trading"], "--only trading needs a --signal-model"),
        (["--only", "llm", "--signal-model", "x"], "serves no --signal-model"),
        (["--only", "trading", "--signal-model", "x", "--model", "y"], "serves no --model"),
        (["--only", "trading", "--signal-model", "missing.safetensors"], "missing.safetensors"),
        (["--concurrency", "0"], "0 is not in the range"),
        (["--amqp-url", "http://127.0.0.1/"], "a bus URL begins with amqp://"),
        (["--amqp-url", "amqp://"], "the bus URL is malformed"),
        (["--amqp-url", "memory://"], "Nobody can ask a worker over memory://"),
        (["--prefix", "a b"], "'a b' cannot begin the name of a queue"),
        (["--finish-s", "nan"], "--finish-s is a number"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Nothing listens there: all this is found before anyone looks for the broker.
    monkeypatch.setenv("QBTC_AMQP_URL", "amqp://127.0.0.1:9/")
    monkeypatch.setattr(sys, "argv", ["qbtc", "worker", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert words in " ".join(err.split())
