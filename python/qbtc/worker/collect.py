"""An engine's events as whole answers."""

from collections import defaultdict
from collections.abc import AsyncIterator

from qbtc.messages.events import Choice
from qbtc.messages.language import (
    Event,
    Finished,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

__all__ = ["collect"]


class _Call:
    def __init__(self, first: ToolCallDelta) -> None:
        self.id = first.id or ""
        self.name = first.name or ""
        self.arguments: list[str] = []


class _Answer:
    def __init__(self) -> None:
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: dict[int, _Call] = {}

    def choice(self, end: Finished) -> Choice:
        return Choice(
            index=end.choice,
            text="".join(self.text),
            tool_calls=tuple(
                ToolCall(id=call.id, name=call.name, arguments="".join(call.arguments))
                for _, call in sorted(self.calls.items())
            ),
            logprobs=tuple(self.logprobs),
            finish_reason=end.reason,
            usage=end.usage,
            seed=end.seed,
        )


async def collect(events: AsyncIterator[Event]) -> tuple[Choice, ...]:
    """Return the whole answers, by their numbers."""
    answers: defaultdict[int, _Answer] = defaultdict(_Answer)
    choices: list[Choice] = []
    async for event in events:
        match event:
            case TextDelta():
                answers[event.choice].text.append(event.text)
                answers[event.choice].logprobs.extend(event.logprobs)
            case ToolCallDelta():
                calls = answers[event.choice].calls
                calls.setdefault(event.call, _Call(event)).arguments.append(event.arguments)
            case Finished():
                choices.append(answers[event.choice].choice(event))
    return tuple(sorted(choices, key=lambda choice: choice.index))
