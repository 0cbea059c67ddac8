"""An answer becomes the same text and the same calls however it is cut into pieces."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbtc.llm.chat.parser import AnswerParser
from qbtc.messages.language import FinishReason, TextDelta, TokenLogprob, ToolCallDelta


def parse(
    pieces: Iterable[str],
    *,
    reason: FinishReason = "stop",
    tools: bool = True,
    stop: tuple[str, ...] = (),
) -> tuple[str, list[tuple[str, str]], str]:
    """Text, calls as name and arguments, and the reason for the end."""
    ids = (f"call_{number}" for number in itertools.count())
    parser = AnswerParser(choice=0, tools=tools, new_id=lambda: next(ids), stop=stop)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    rest, ended = parser.finish(reason)
    text = ""
    calls: list[list[str]] = []
    for delta in [*deltas, *rest]:
        if isinstance(delta, TextDelta):
            text += delta.text
        else:
            if delta.id is not None:
                assert delta.call == len(calls)
                assert delta.name is not None
                calls.append([delta.name, ""])
            assert delta.call == len(calls) - 1
            calls[-1][1] += delta.arguments
    return text, [(name, arguments) for name, arguments in calls], ended


def written(name: str, arguments: Any) -> str:
    inside = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{inside}\n</tool_call>"


names = st.text(min_size=1, max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=3)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    edges = [0, *places, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(data=st.data(), calls=st.lists(st.tuples(names, objects), max_size=3))
def test_calls_come_out_as_they_were_meant(
    data: st.DataObject, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    said = "Let me see < <tool> "
    answer = said + "\n".join(written(name, arguments) for name, arguments in calls)
    text, found, reason = parse(data.draw(cut(answer)))
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert reason == ("tool_calls" if calls else "stop")
    assert text == (said.rstrip() if calls else said)


PARTS = ["<tool_call>", "</tool_call>", "<tool", '{"name": "f"', '"arguments": {', "}", ", ", " \n"]


@given(data=st.data(), parts=st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12))
def test_any_cut_of_anything_gives_the_same(data: st.DataObject, parts: list[str]) -> None:
    answer = "".join(parts)
    for reason in ("stop", "length"):
        whole = parse([answer], reason=reason)
        assert parse(data.draw(cut(answer)), reason=reason) == whole
        assert parse(answer, reason=reason) == whole


@given(st.text(alphabet="<tool_call>ab \n{}", max_size=60))
def test_without_tools_every_text_is_text(answer: str) -> None:
    assert parse(answer, tools=False) == (answer, [], "stop")


@given(st.text(alphabet="<tolcaxy> \n", max_size=40).filter(lambda text: "<tool_call>" not in text))
def test_text_without_a_tag_loses_nothing(answer: str) -> None:
    assert parse(answer) == (answer, [], "stop")


@pytest.mark.parametrize("end", range(1, len("<tool_call>")))
def test_an_answer_cut_in_the_middle_of_a_tag_shows_none_of_it(end: int) -> None:
    assert parse("Yes. <tool_call>"[: 5 + end], reason="length")[0] == "Yes. "


def test_arguments_stream_once_the_name_is_known() -> None:
    parser = AnswerParser(choice=2, tools=True, new_id=lambda: "call_x")
    seen: list[Any] = []
    for piece in [
        '<tool_call>{"na',
        'me": "f", "arg',
        'uments": {"a": ',
        '"}',
        '"',
        "}}</tool_call>",
    ]:
        seen.extend(parser.feed(piece))
    assert seen == [
        ToolCallDelta(choice=2, call=0, id="call_x", name="f"),
        ToolCallDelta(choice=2, call=0, arguments='{"a": '),
        ToolCallDelta(choice=2, call=0, arguments='"}'),
        ToolCallDelta(choice=2, call=0, arguments='"'),
        ToolCallDelta(choice=2, call=0, arguments="}"),
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('<tool_call>{"name": "f"}</tool_call>', ("", [("f", "{}")])),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ("", [("f", '{"a": 1}')])),
        (
            '<tool_call>{"id": [1, "x"], "name": "f", "arguments": {}}</tool_call>',
            ("", [("f", "{}")]),
        ),
        ('<tool_call>{"name": "f", "arguments": {}}', ("", [("f", "{}")])),
        ("<tool_call>no call</tool_call>", ("<tool_call>no call</tool_call>", [])),
        ('<tool_call>{"name": 5}</tool_call>', ('<tool_call>{"name": 5}</tool_call>', [])),
        ("<tool_call>{}</tool_call>", ("<tool_call>{}</tool_call>", [])),
        (
            '<tool_call>{"name": "f", "arguments": {} oops}</tool_call> and',
            (" and", [("f", "{}")]),
        ),
    ],
)
def test_blocks_that_grammars_never_make_lose_nothing(answer: str, expected: Any) -> None:
    text, calls, _ = parse([answer])
    assert (text, calls) == expected


def test_log_probabilities_go_with_the_text_they_led_to() -> None:
    parser = AnswerParser(choice=0, tools=True, new_id=lambda: "call_x")

    def entry(token: str) -> TokenLogprob:
        return TokenLogprob(token=token, bytes=tuple(token.encode()), logprob=-1.0)

    assert parser.feed("Hi", (entry("Hi"),))[0].logprobs == (entry("Hi"),)  # type: ignore[union-attr]
    assert parser.feed(" <", (entry(" <"),)) == []
    assert parser.feed("b", (entry("b"),)) == [
        TextDelta(choice=0, text=" <b", logprobs=(entry(" <"), entry("b")))
    ]


def before(text: str, stops: Iterable[str]) -> str:
    """The slow version: a text up to the stop text that is complete first."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


stop_texts = st.lists(st.text(alphabet="ab <\n", min_size=1, max_size=4), max_size=3).map(tuple)


@given(data=st.data(), text=st.text(alphabet="ab <\n", max_size=30), stop=stop_texts)
def test_text_ends_before_a_stop_text_however_it_is_cut(
    data: st.DataObject, text: str, stop: tuple[str, ...]
) -> None:
    parser = AnswerParser(choice=0, tools=True, new_id=str, stop=stop)
    said = ""
    expected = before(text, stop)
    for piece in data.draw(cut(text)):
        for delta in parser.feed(piece):
            assert isinstance(delta, TextDelta)
            said += delta.text
            assert expected.startswith(said), "a piece of a stop text was sent"
    assert parse(data.draw(cut(text)), stop=stop) == (expected, [], "stop")
    # An answer that was cut may end in the middle of a tag, which is no text.
    if not text.endswith("<"):
        reason = "length" if expected == text else "stop"
        assert parse(data.draw(cut(text)), stop=stop, reason="length") == (expected, [], reason)


@given(data=st.data(), name=names, arguments=objects, stop=st.text(min_size=1, max_size=2))
@pytest.mark.parametrize("said", ["", "I look.\n"])
def test_no_stop_text_cuts_a_call(
    data: st.DataObject, said: str, name: str, arguments: dict[str, Any], stop: str
) -> None:
    stops = (stop, "\n", "<", "tool_call>", "{", "}", '"')
    text, calls, reason = parse(data.draw(cut(said + written(name, arguments))), stop=stops)
    if before(said.rstrip(), stops) != said.rstrip():
        assert (text, calls, reason) == (before(said, stops), [], "stop")
        return
    assert [(name, json.loads(arguments)) for name, arguments in calls] == [(name, arguments)]
    assert (text, reason) == (said.rstrip(), "tool_calls")


def test_the_text_before_a_call_is_not_held_back_for_a_stop_text() -> None:
    answer = "Wait. " + written("f", {})
    assert parse(answer, stop=("t. Then",)) == ("Wait.", [("f", "{}")], "tool_calls")
    assert parse(["Wait"], stop=("t. Then",)) == ("Wait", [], "stop")


@given(data=st.data())
def test_log_probabilities_stop_with_their_text(data: st.DataObject) -> None:
    tokens = ["Y", "es", ". ", "St", "op!", " no"]
    entries = [TokenLogprob(token=each, bytes=tuple(each.encode()), logprob=0) for each in tokens]
    parser = AnswerParser(choice=0, tools=True, new_id=str, stop=("top",))
    found: list[str] = []
    start = 0
    while start < len(tokens):
        end = data.draw(st.integers(start + 1, len(tokens)))
        for delta in parser.feed("".join(tokens[start:end]), tuple(entries[start:end])):
            assert isinstance(delta, TextDelta)
            found += [entry.token for entry in delta.logprobs]
        start = end
    assert found == ["Y", "es", ". ", "St"]
