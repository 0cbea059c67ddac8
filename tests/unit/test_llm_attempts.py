"""However attempts at one answer are cut, mixed and broken off, the client sees it once."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbtc.errors import EngineFailed
from qbtc.llm.attempts import Attempts
from qbtc.messages.events import LlmChunk
from qbtc.messages.language import (
    Event,
    Finished,
    Prefill,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)


def chunk(attempt: str, sequence: int, *events: Event) -> LlmChunk:
    return LlmChunk(request_id="r", attempt=attempt, sequence=sequence, events=events)


def said(text: str, *, choice: int = 0, tokens: str = "") -> TextDelta:
    entries = tuple(TokenLogprob(token=x, bytes=(ord(x),), logprob=-1.0) for x in tokens)
    return TextDelta(choice=choice, text=text, logprobs=entries)


def end(reason: Any = "stop", *, choice: int = 0, cached: int = 0) -> Finished:
    usage = Usage(prompt_tokens=1, completion_tokens=1, cached_tokens=cached)
    return Finished(choice=choice, reason=reason, usage=usage, seed=1)


def test_one_attempt_comes_out_as_it_is() -> None:
    events = [
        Prefill(done=0, total=7, cached=0),
        Prefill(done=5, total=7, cached=0),
        said("Let me ", tokens="ab"),
        said("look.", tokens="c"),
        ToolCallDelta(choice=0, call=0, id="call_1", name="look"),
        ToolCallDelta(choice=0, call=0, arguments='{"a":'),
        ToolCallDelta(choice=0, call=0, arguments="1}"),
        end("tool_calls"),
    ]
    answer = Attempts()
    assert [got for n, e in enumerate(events) for got in answer.take(chunk("a", n, e))] == events
    answer.end("a", chunks=len(events))


def test_an_attempt_after_another_gives_only_what_goes_beyond() -> None:
    answer = Attempts()
    answer.take(chunk("a", 0, Prefill(done=0, total=7, cached=0), said("Hel", tokens="hx")))
    call = ToolCallDelta(choice=0, call=0, id="call_a", name="look", arguments="{")
    again = ToolCallDelta(choice=0, call=0, id="call_b", name="look", arguments="{}")
    assert (
        answer.take(chunk("b", 0, Prefill(done=0, total=7, cached=0), said("He", tokens="h"))) == []
    )
    assert answer.take(chunk("b", 1, said("llo", tokens="xyz"))) == [said("lo", tokens="yz")]
    assert answer.take(chunk("b", 2, call)) == [call]
    assert answer.take(chunk("c", 0, said("Hello", tokens="hxyz"), again)) == [
        ToolCallDelta(choice=0, call=0, arguments="}")
    ]
    assert answer.take(chunk("c", 1, end("tool_calls", cached=7))) == [end("tool_calls", cached=7)]
    answer.end("c", chunks=2)


def test_a_chunk_that_comes_twice_is_taken_once() -> None:
    answer = Attempts()
    first = chunk("a", 0, said("He"))
    assert answer.take(first) == [said("He")]
    assert answer.take(first) == []
    assert answer.take(chunk("a", 1, said("llo"))) == [said("llo")]


def test_a_second_end_of_an_answer_is_not_told() -> None:
    answer = Attempts()
    answer.take(chunk("a", 0, said("Hi"), end(cached=0)))
    assert answer.take(chunk("b", 0, said("Hi"), end(cached=7))) == []


@pytest.mark.parametrize(
    "events",
    [
        [said("Hal")],
        [said("He"), said("y")],
        [said("He"), end()],
        [said("Hello"), end("length")],
        [said("Hello"), said("!")],
        [said("Hello", tokens="xb")],
        [said("Hello"), ToolCallDelta(choice=0, call=0, id="c", name="watch")],
        [said("Hello"), ToolCallDelta(choice=0, call=0, id="c", name="look", arguments="[")],
    ],
)
def test_attempts_that_differ_end_the_answer(events: list[Event]) -> None:
    answer = Attempts()
    call = ToolCallDelta(choice=0, call=0, id="c", name="look", arguments="{}")
    answer.take(chunk("a", 0, said("Hello", tokens="ab"), call, end("tool_calls")))
    with pytest.raises(EngineFailed, match="differ"):
        answer.take(chunk("b", 0, *events))


def test_a_missing_part_is_noticed() -> None:
    answer = Attempts()
    with pytest.raises(EngineFailed, match="missing"):
        answer.take(chunk("a", 1, said("x")))
    answer.take(chunk("b", 0, said("x"), end()))
    with pytest.raises(EngineFailed, match="missing"):
        answer.end("b", chunks=2)
    answer.end("b", chunks=1)


# Any cuts, any order


def whole(events: list[Event]) -> Any:
    """Put an answer together as a client does; fails on a part that comes twice."""
    texts: defaultdict[Any, str] = defaultdict(str)
    tokens: defaultdict[int, str] = defaultdict(str)
    names: dict[Any, str] = {}
    ends: list[int] = []
    for event in events:
        match event:
            case TextDelta():
                assert event.choice not in ends
                texts[event.choice] += event.text
                tokens[event.choice] += "".join(each.token for each in event.logprobs)
            case ToolCallDelta():
                part = (event.choice, event.call)
                assert event.choice not in ends
                assert (part in names) == (event.name is None)
                assert (event.id is None) == (event.name is None)
                names.setdefault(part, event.name or "")
                texts[part] += event.arguments
            case Finished():
                ends.append(event.choice)
    assert len(ends) == len(set(ends))
    parts_said = [{k: v for k, v in parts.items() if v} for parts in (texts, tokens)]
    return parts_said, names, sorted(ends)


@st.composite
def cut(draw: Any, text: str) -> list[str]:
    places = draw(st.lists(st.integers(0, len(text)), max_size=6))
    edges = [0, *sorted(places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@st.composite
def attempt(draw: Any, name: str, answers: list[tuple[str, list[str]]]) -> list[LlmChunk]:
    """One attempt: each answer cut anywhere, tokens one a character, answers mixed, in chunks."""
    lines: list[list[Event]] = []
    for choice, (text, calls) in enumerate(answers):
        line: list[Event] = [said(x, choice=choice, tokens=x) for x in draw(cut(text))]
        for number, arguments in enumerate(calls):
            first, *rest = draw(cut(arguments))
            line.append(
                ToolCallDelta(
                    choice=choice, call=number, id=f"{name}{number}", name="f", arguments=first
                )
            )
            line += [ToolCallDelta(choice=choice, call=number, arguments=x) for x in rest]
        lines.append([*line, end(choice=choice, cached=draw(st.integers(0, 9)))])
    turns = draw(st.permutations([n for n, line in enumerate(lines) for _ in line]))
    events = [lines[turn].pop(0) for turn in turns]
    sizes = draw(st.lists(st.integers(1, 4), min_size=len(events), max_size=len(events)))
    chunks = []
    while events:
        size = sizes.pop()
        chunks.append(chunk(name, len(chunks), *events[:size]))
        events = events[size:]
    return chunks


@st.composite
def histories(draw: Any) -> tuple[list[LlmChunk], list[LlmChunk]]:
    """What reaches a client, in order, and the attempt that came to its end."""
    answers = draw(
        st.lists(
            st.tuples(
                st.text("abé𝄞", max_size=12), st.lists(st.text('{"x}', min_size=1), max_size=2)
            ),
            min_size=1,
            max_size=3,
        )
    )
    last = draw(attempt("last", answers))
    broken = []
    for name in draw(st.sampled_from([[], ["a"], ["a", "b"]])):
        chunks = draw(attempt(name, answers))
        broken.append(chunks[: draw(st.integers(0, len(chunks)))])
    queues = [last, *broken]
    turns = draw(st.permutations([n for n, queue in enumerate(queues) for _ in queue]))
    left = [list(queue) for queue in queues]
    order = [left[turn].pop(0) for turn in turns]
    copies = draw(st.lists(st.sampled_from(order), max_size=3)) if order else []
    return [*order, *copies], last


@settings(deadline=None)
@given(histories())
def test_any_mixture_of_attempts_gives_the_answer_exactly_once(
    history: tuple[list[LlmChunk], list[LlmChunk]],
) -> None:
    received, last = history
    answer = Attempts()
    got = [event for each in received for event in answer.take(each)]
    assert whole(got) == whole([event for each in last for event in each.events])
