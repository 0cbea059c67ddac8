"""Pieces of chat answers that streams and whole answers write alike."""

from typing import Any

from qbtc.messages.language import Alternative, TokenLogprob, ToolCallDelta

__all__ = ["Call", "chat_logprobs", "collect_call"]


class Call:
    """A tool call as its deltas come in."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def add(self, delta: ToolCallDelta) -> None:
        """Take one more delta."""
        self.id = delta.id or self.id
        self.name = delta.name or self.name
        self.arguments.append(delta.arguments)

    def function(self) -> dict[str, str]:
        """Name and arguments."""
        return {"name": self.name, "arguments": "".join(self.arguments)}


def collect_call(calls: dict[int, Call], delta: ToolCallDelta) -> Call:
    """Add a delta to the call it belongs to, and return that call."""
    call = calls.setdefault(delta.call, Call())
    call.add(delta)
    return call


def chat_logprobs(entries: tuple[TokenLogprob, ...] | list[TokenLogprob]) -> dict[str, Any]:
    """Return the object of chat's ``logprobs``."""
    return {
        "content": [
            {**_entry(entry), "top_logprobs": [_entry(other) for other in entry.top]}
            for entry in entries
        ],
        "refusal": None,
    }


def _entry(entry: TokenLogprob | Alternative) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": entry.bytes}
