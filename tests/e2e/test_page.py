"""The page at / in a real browser: a chat is streamed, stopped, and never runs what it is told."""

import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from tests.clients.served import Process, serving
from tests.clients.tools import missing
from tests.support.scripted_engine import FOREVER, ScriptedEngine, Step, end, text

from qbtc.llm.errors import RequestError
from qbtc.llm.models import DEFAULT_CHAT_MODEL
from qbtc_gateway.security.keys import KeyFile, new_key

CHROMIUM = os.environ.get("QBTC_CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")

MARKDOWN = """### A heading

The **spread** is the *gap* between `bid` and `ask`; see [the docs](https://example.com/a).

1. One
2. Two

- a
- b

| side | price |
|---|---|
| bid | 99 |

```python
def mid(bid: float, ask: float) -> float:
    return (bid + ask) / 2  # <b>not bold</b>
```
"""
HOSTILE = (
    '<img src=x onerror="document.title=1"><script>document.title=2</script>'
    "[link](javascript:document.title=3) **<svg onload=document.title=4>** "
    "`<iframe srcdoc='<script>parent.document.title=5</script>'>`"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        missing("no Chromium here; install it or set QBTC_CHROMIUM")
    expect.set_options(timeout=30_000)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new page that fails the test for anything on its console or any foreign request."""
    page = browser.new_page(viewport={"width": 1100, "height": 800})
    seen: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and "status of 4" not in message.text:
            seen.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on(
        "request",
        lambda request: (
            None
            if re.match(r"(http://127\.0\.0\.1:|data:)", request.url)
            else seen.append(request.url)
        ),
    )
    yield page
    page.close()
    assert seen == []


def say(page: Page, words: str) -> None:
    page.get_by_label("Message", exact=True).fill(words)
    page.keyboard.press("Enter")


def script(*pieces: str) -> Sequence[Step]:
    steps: list[Step] = []
    for step in text(*pieces):
        steps += [0.01, step]
    return [*steps, end(prompt=40, completion=len(pieces), cached=20)]


def test_a_chat_is_streamed_with_its_speed(page: Page, tmp_path: Path) -> None:
    pieces = re.findall(r"\S+\s*", MARKDOWN)
    engine = ScriptedEngine(script(*pieces), script("Second", " answer"))
    with serving(engine, tmp_path) as url:
        page.goto(url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        say(page, "What is a spread?")
        answer = page.locator("article.model").first
        expect(answer.locator("h4")).to_have_text("A heading")
        expect(answer.locator(".foot")).to_contain_text("tokens/s")
        expect(answer.locator(".foot")).to_contain_text("to first token")
        expect(answer.locator(".foot")).to_contain_text("50 % of the prompt cached")
        expect(answer.locator("ol > li")).to_have_text(["One", "Two"])
        expect(answer.locator("ul > li")).to_have_count(2)
        expect(answer.locator("td")).to_have_text(["bid", "99"])
        expect(answer.locator("strong")).to_have_text("spread")
        expect(answer.locator("a")).to_have_attribute("href", "https://example.com/a")
        expect(answer.locator("pre code")).to_contain_text("# <b>not bold</b>")
        page.get_by_role("button", name="Options").click()
        page.get_by_label("System prompt").fill("Be brief.")
        page.get_by_label("Temperature").fill("0.2")
        say(page, "And again?")
        expect(page.locator("article.model")).to_have_count(2)
        expect(page.locator("article.model").last.locator(".foot")).to_be_visible()
    roles = [message.role for message in engine.asked[1].messages]  # type: ignore[union-attr]
    assert roles == ["system", "user", "assistant", "user"]
    assert engine.asked[1].sampling.temperature == 0.2  # type: ignore[union-attr]


def test_what_a_model_writes_never_runs(page: Page, tmp_path: Path) -> None:
    with serving(ScriptedEngine(script(*HOSTILE)), tmp_path) as url:
        page.goto(url)
        say(page, HOSTILE)
        expect(page.locator(".foot")).to_be_visible()
        assert page.title() == "QBTC chat"
        assert page.locator("#log :is(img, script, svg, iframe)").count() == 0
        assert page.locator("#log a").count() == 0
        assert page.locator("article.user").inner_text() == HOSTILE


@pytest.mark.parametrize("how", ["button", "escape", "new chat"])
def test_an_answer_can_be_stopped(page: Page, tmp_path: Path, how: str) -> None:
    engine = ScriptedEngine([*text("Started"), FOREVER])
    with serving(engine, tmp_path) as url:
        page.goto(url)
        say(page, "Go on for ever.")
        expect(page.locator("article.model")).to_contain_text("Started")
        if how == "button":
            page.get_by_role("button", name="Stop").click()
        elif how == "escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="New chat").click()
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        if how == "new chat":
            expect(page.locator("article")).to_have_count(0)
        else:
            expect(page.locator("article.model .foot")).to_contain_text("stopped")
        # Told by the page: the server's own end would cancel it too.
        until = time.monotonic() + 20
        while engine.cancelled == 0 and time.monotonic() < until:
            page.wait_for_timeout(20)
        assert engine.cancelled == 1


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Page, tmp_path: Path) -> None:
    secret, key = new_key("", ("chat", "models"))
    KeyFile(tmp_path / "keys.json").add(key)
    with serving(ScriptedEngine(script("Hi")), tmp_path) as url:
        page.goto(url)
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        expect(page.locator("#status")).to_contain_text("API key")
        field.fill(secret)
        page.keyboard.press("Tab")
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        say(page, "Hello")
        expect(page.locator("article.model")).to_contain_text("Hi")
        page.reload()
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        assert page.evaluate("localStorage.length") == 0


def test_a_key_to_chat_is_enough_for_the_page(page: Page, tmp_path: Path) -> None:
    secret, key = new_key("", ("chat",))
    KeyFile(tmp_path / "keys.json").add(key)
    with serving(ScriptedEngine(script("Hi")), tmp_path) as url:
        page.goto(url)
        page.get_by_label("API key").fill(secret)
        page.keyboard.press("Tab")
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        say(page, "Hello")
        expect(page.locator("article.model")).to_contain_text("Hi")


def test_an_error_is_told_in_words(page: Page, tmp_path: Path) -> None:
    with serving(ScriptedEngine([*text("Half"), RuntimeError("inside")]), tmp_path) as url:
        page.goto(url)
        say(page, "Fail")
        expect(page.get_by_role("alert")).to_contain_text("error")
        expect(page.locator("article.model")).to_contain_text("Half")
        expect(page.locator("article.user")).to_have_text("Fail")
        expect(page.get_by_label("Message", exact=True)).to_have_value("Fail")


NOTHING: Sequence[Step] = [end(completion=0)]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param([RequestError("no")], "", id="an error"),
        pytest.param([*text("Half"), RuntimeError("later")], "", id="an error half-way"),
        pytest.param(NOTHING, "The answer was empty.", id="nothing"),
    ],
)
def test_a_question_without_an_answer_is_offered_again_and_not_sent_along(
    page: Page, tmp_path: Path, answer: Sequence[Step], told: str
) -> None:
    engine = ScriptedEngine(script("First"), answer, script("Third"))
    field = page.get_by_label("Message", exact=True)
    with serving(engine, tmp_path) as url:
        page.goto(url)
        say(page, "one")
        expect(page.locator("#status")).to_have_text("answer complete")
        say(page, "two")
        expect(field).to_have_value("two")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        expect(page.locator("#status")).to_have_text(told)
        say(page, "three")
        expect(page.locator("article.model").last).to_contain_text("Third")
        expect(page.locator("#status")).to_have_text("answer complete")
        expect(field).to_have_value("")
    sent = [message.content for message in engine.asked[2].messages]  # type: ignore[union-attr]
    assert sent == ["one", "First", "three"]


def test_a_failed_question_does_not_write_over_the_next_one(page: Page, tmp_path: Path) -> None:
    typed = threading.Event()
    with serving(ScriptedEngine([typed, RuntimeError("later")]), tmp_path) as url:
        page.goto(url)
        say(page, "one")
        page.keyboard.type("two")
        typed.set()
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.get_by_label("Message", exact=True)).to_have_value("two")
        expect(page.locator("article.user")).to_have_text("one")


def test_a_question_stopped_before_its_answer_is_as_if_never_asked(
    page: Page, tmp_path: Path
) -> None:
    with serving(ScriptedEngine([FOREVER]), tmp_path) as url:
        page.goto(url)
        say(page, "one")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#status")).to_have_text("stopped")
        expect(page.get_by_label("Message", exact=True)).to_have_value("one")
        expect(page.locator("article")).to_have_count(0)
        expect(page.locator("#ideas")).to_be_visible()


LISTEN = """() => {
  window.states = [];
  window.logged = [];
  const added = (records) => records.flatMap((r) => [...r.addedNodes]);
  const watch = (id, see) => new MutationObserver(see).observe(
    document.getElementById(id), { childList: true, subtree: true, characterData: true });
  watch("status", () => states.push(document.getElementById("status").textContent));
  watch("log", (records) => {
    const log = document.getElementById("log");
    if (log.getAttribute("aria-busy") === "true") return;
    for (const node of added(records))
      if (!(node.closest?.("[aria-live=off]"))) logged.push(node.textContent);
  });
}"""
"""Keeps what a screen reader is told: states, and what comes into a log that is not busy."""


def test_a_screen_reader_hears_the_answer_once_and_no_figures(page: Page, tmp_path: Path) -> None:
    words = [f"{number} " for number in range(40)]
    begin, finish = threading.Event(), threading.Event()
    *spoken, last = script(*words)
    with serving(ScriptedEngine([begin, *spoken, finish, last]), tmp_path) as url:
        page.goto(url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        page.evaluate(LISTEN)
        log = page.get_by_role("log", name="Conversation")
        say(page, "Count.")
        expect(log).to_have_attribute("aria-busy", "true")
        expect(page.locator("#status")).to_have_text("reading")
        begin.set()
        expect(page.locator("#aside")).to_contain_text("tokens/s")
        finish.set()
        expect(log).to_have_attribute("aria-busy", "false")
        expect(page.locator("#status")).to_have_text("answer complete")
        assert page.locator(":is([role=status], [role=log]) #aside").count() == 0
        expect(page.get_by_role("main")).to_contain_text("Count.")
        assert page.evaluate("states") == ["reading", "", "answer complete"]
        assert page.evaluate("logged") == ["".join(words)]


@pytest.mark.parametrize("how", ["send", "idea"])
@pytest.mark.parametrize("end_by", ["itself", "escape"])
def test_the_keyboard_stays_where_the_answer_is_asked_for(
    page: Page, tmp_path: Path, how: str, end_by: str
) -> None:
    looked = threading.Event()
    *spoken, last = script("Hi")
    until = FOREVER if end_by == "escape" else looked
    with serving(ScriptedEngine([*spoken, until, last]), tmp_path) as url:
        page.goto(url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        if how == "send":
            page.keyboard.type("Hello")
            page.keyboard.press("Tab")
            expect(page.get_by_role("button", name="Send")).to_be_focused()
        else:
            page.locator("#ideas button").first.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Stop")).to_be_focused()
        expect(page.locator("article.model")).to_contain_text("Hi")
        looked.set()
        if end_by == "escape":
            page.keyboard.press("Escape")
        expect(page.locator(".foot")).to_be_visible()
        expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_the_end_of_an_answer_takes_the_keyboard_from_nobody(page: Page, tmp_path: Path) -> None:
    moved = threading.Event()
    with serving(ScriptedEngine([moved, *script("Hi")]), tmp_path) as url:
        page.goto(url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        page.keyboard.type("Hello")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Options").focus()
        moved.set()
        expect(page.locator(".foot")).to_be_visible()
        expect(page.get_by_role("button", name="Options")).to_be_focused()


def test_the_keyboard_is_enough(page: Page, tmp_path: Path) -> None:
    with serving(ScriptedEngine(script("Hi")), tmp_path) as url:
        page.goto(url)
        expect(page.get_by_label("Message", exact=True)).to_be_focused()
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        expect(page.locator("article.user")).to_have_text("one\ntwo")
        expect(page.locator(".foot")).to_be_visible()
        reached = set()
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("document.activeElement.id || document.activeElement.textContent")
            )
        assert {"model", "fresh", "toggle", "prompt", "Copy"} <= reached


@pytest.mark.parametrize(
    ("name", "scheme", "width", "height"),
    [("light", "light", 1100, 760), ("dark", "dark", 1100, 760), ("mobile", "light", 390, 780)],
)
def test_it_fits_its_window(
    browser: Browser, tmp_path: Path, name: str, scheme: str, width: int, height: int
) -> None:
    pieces = re.findall(r"\S+\s*", MARKDOWN)
    shots = Path(os.environ.get("QBTC_SCREENSHOTS", tmp_path))
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    with serving(ScriptedEngine(script(*pieces)), tmp_path) as url:
        page.goto(url)
        expect(page.get_by_label("Model", exact=True)).to_have_value("scripted")
        page.screenshot(path=shots / f"{name}-empty.png")
        say(page, "What is a spread?")
        expect(page.locator(".foot")).to_be_visible()
        page.screenshot(path=shots / f"{name}.png")
        page.get_by_role("button", name="Options").click()
        page.screenshot(path=shots / f"{name}-options.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.close()


def test_it_chats_with_the_real_model(
    browser: Browser, real_server: Process, tmp_path: Path
) -> None:
    shots = Path(os.environ.get("QBTC_SCREENSHOTS", tmp_path))
    page = browser.new_page(viewport={"width": 960, "height": 680}, device_scale_factor=1.5)
    page.goto(real_server.url)
    expect(page.get_by_label("Model", exact=True)).to_have_value(DEFAULT_CHAT_MODEL)
    page.get_by_role("button", name="Options").click()
    page.get_by_label("Temperature").fill("0")
    page.keyboard.press("Escape")
    page.mouse.move(0, 300)
    say(page, "Give me three tips for writing clear commit messages.")
    answer = page.locator("article.model")
    expect(answer.locator(".foot")).to_contain_text("tokens/s", timeout=60_000)
    assert len(answer.locator(".text").inner_text()) > 20
    page.screenshot(path=shots / "chat.png")
    page.close()
