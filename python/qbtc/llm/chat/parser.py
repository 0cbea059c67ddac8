"""From the text of an answer, in pieces of any size, to text and tool calls.

::

    text ──"<tool_call>"──> object ──"{"──> key ──":"──> name | arguments | other ──┐
     ^                        ^                 ^────────────"," ───────────────────┤
     └────"</tool_call>"──────┴── closing <────────────────── "}" ──────────────────┘

However an answer is cut into pieces, the same text and the same calls come out. What may be the
beginning of a tag is held back until it is clear, so no part of a tag is ever sent as text. The
arguments of a call are sent as they come, once its name is known.

Stop texts are looked for here and not in the core, which knows no calls: they are of the text, and
neither a tag nor an argument is any.

Grammars make every call well-formed; a block that is not one all the same comes out as text.
"""

import json
from collections import deque
from collections.abc import Callable
from typing import Literal

from qbtc.messages.language import FinishReason, TextDelta, TokenLogprob, ToolCallDelta

__all__ = ["CLOSE_TAG", "OPEN_TAG", "AnswerParser"]

OPEN_TAG = "<tool_call>"
CLOSE_TAG = "</tool_call>"
_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")

type Delta = TextDelta | ToolCallDelta
type _State = Literal["text", "object", "key", "colon", "value", "after", "closing", "lost"]


class AnswerParser:
    """Parses one answer.

    Parameters
    ----------
    choice
        Number of the answer, for its deltas.
    tools
        Whether there are tools; without any, tags are text like any other.
    new_id
        Makes the id of a call.
    stop
        Texts that end the answer and are not part of it, where there are tools; without any, the
        core has looked for them.
    """

    def __init__(
        self, *, choice: int, tools: bool, new_id: Callable[[], str], stop: tuple[str, ...] = ()
    ) -> None:
        self.calls = 0
        self.stopped: str | None = None
        """Stop text that ended the answer; nothing follows."""
        self._choice = choice
        self._tools = tools
        self._new_id = new_id
        self._stop = stop
        self._state: _State = "text"
        self._held = ""
        # Text at whose end a stop text may begin.
        self._unsure = ""
        # Of tokens whose text is not sent, and where it ends among the bytes of text.
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()
        self._heard = self._said = 0
        self._out: list[Delta] = []
        self._start_call()

    def feed(self, text: str, logprobs: tuple[TokenLogprob, ...] = ()) -> list[Delta]:
        """Take the next piece; log-probabilities go with the text that they lead to."""
        if not self._tools:
            return [TextDelta(choice=self._choice, text=text, logprobs=logprobs)]
        if self.stopped is not None:
            return []
        if self._state == "text":
            for each in logprobs:
                self._heard += len(each.bytes)
                self._logprobs.append((self._heard, each))
        self._held += text
        while self._held and self.stopped is None and self._step():
            pass
        return self._take()

    def finish(self, reason: FinishReason) -> tuple[list[Delta], FinishReason]:
        """Take the end; returns what was held back, and the reason as clients know it."""
        if self._state == "text":
            rest = self._held
            if reason == "length":
                # An answer that was cut may end in the middle of a tag.
                rest = rest[: len(rest) - _tag_begun(rest, OPEN_TAG)]
            self._text("" if self.calls and not rest.strip(_SPACE) else rest, last=True)
        elif self._name is None and reason != "length":
            # The model ended a block that never became a call.
            self._text(OPEN_TAG + self._raw + self._held, last=True)
        self._held = ""
        if self.stopped is not None:
            reason = "stop"
        if self.calls and reason == "stop":
            reason = "tool_calls"
        return self._take(), reason

    def _take(self) -> list[Delta]:
        out, self._out = self._out, []
        return out

    def _text(self, text: str, *, last: bool = False) -> None:
        """Send text up to a stop text, or to what may begin one unless it is the ``last``."""
        if self.stopped is not None:
            return
        text = self._unsure + text
        sure, self.stopped = _stop_in(text, self._stop)
        if self.stopped is not None:
            last = True
        elif not last:
            sure -= max((_tag_begun(text, stop) for stop in self._stop), default=0)
        text, self._unsure = text[:sure], "" if last else text[sure:]
        self._said += len(text.encode())
        logprobs = self._logprobs_said(last)
        if text or logprobs:
            self._out.append(TextDelta(choice=self._choice, text=text, logprobs=logprobs))

    def _logprobs_said(self, last: bool) -> tuple[TokenLogprob, ...]:
        """Take those of tokens whose text is sent; of the ``last`` a part of it is enough."""
        found = []
        while self._logprobs:
            end, entry = self._logprobs[0]
            if end > self._said and not (last and end - len(entry.bytes) < self._said):
                break
            found.append(entry)
            self._logprobs.popleft()
        return tuple(found)

    # Each step takes something from what is held and says whether another one may follow.

    def _step(self) -> bool:
        match self._state:
            case "text":
                return self._step_text()
            case "closing":
                return self._step_closing()
            case "lost":
                return self._step_lost()
            case "value":
                return self._step_value()
            case _:
                return self._step_syntax()

    def _step_text(self) -> bool:
        at = self._held.find(OPEN_TAG)
        if at >= 0:
            before = self._held[:at].rstrip(_SPACE)
            self._text(before, last=True)
            self._logprobs.clear()
            self._heard = self._said = 0
            self._held = self._held[at + len(OPEN_TAG) :]
            self._state = "object"
            self._start_call()
            return True
        keep = _tag_begun(self._held, OPEN_TAG)
        sure = self._held[: len(self._held) - keep]
        # Space before a tag belongs to the tag.
        sure = sure.rstrip(_SPACE)
        self._text(sure)
        self._held = self._held[len(sure) :]
        return False

    def _start_call(self) -> None:
        self._raw = ""
        self._key = ""
        self._name: str | None = None
        self._arguments = ""
        self._has_arguments = False
        self._start_value()

    def _start_value(self) -> None:
        self._value_depth = 0
        self._value_begun = False
        self._in_string = False
        self._escaped = False
        self._value = ""

    def _pass(self, count: int) -> str:
        """Take characters of a call."""
        taken, self._held = self._held[:count], self._held[count:]
        if self._name is None:
            self._raw += taken
        return taken

    def _step_syntax(self) -> bool:
        """Take one character between the values of a call, or the beginning of one."""
        char = self._held[0]
        if char in _SPACE:
            self._pass(1)
            return True
        match self._state, char:
            case "object", "{":
                self._state = "key"
            case "key", '"':
                return self._step_key()
            case "key" | "after", "}" if self._name is not None:
                self._end_call()
            case "colon", ":":
                self._state = "value"
                self._start_value()
            case "after", ",":
                self._state = "key"
            case _:
                self._malformed()
                return True
        self._pass(1)
        return True

    def _step_key(self) -> bool:
        end = _string_end(self._held)
        if end is None:
            return False
        try:
            self._key = json.loads(self._pass(end))
        except ValueError:
            self._malformed()
            return True
        self._state = "colon"
        return True

    def _step_value(self) -> bool:
        """Take a value: arguments are sent as they come, all else is needed whole."""
        if not self._value_begun and self._held[0] in _SPACE:
            self._pass(1)
            return True
        count, done = self._scan()
        taken = self._pass(count)
        if self._key in _ARGUMENTS:
            self._has_arguments = True
            self._arguments += taken
            self._send_arguments()
        else:
            self._value += taken
            if done and self._key == "name" and not self._announce():
                self._malformed()
                return True
        if done:
            self._state = "after"
        return done

    def _scan(self) -> tuple[int, bool]:
        """Return how many characters belong to the value, and whether it ends with them."""
        for index, char in enumerate(self._held):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
                    if not self._value_depth:
                        return index + 1, True
            elif char == '"':
                self._value_begun = True
                self._in_string = True
            elif char in "{[":
                self._value_begun = True
                self._value_depth += 1
            elif char in "}]":
                if not self._value_depth:
                    return index, True
                self._value_depth -= 1
                if not self._value_depth:
                    return index + 1, True
            elif not self._value_depth and (char == "," or char in _SPACE):
                return index, True
            else:
                self._value_begun = True
        return len(self._held), False

    def _announce(self) -> bool:
        """Send id and name; returns whether there is a name."""
        try:
            name = json.loads(self._value)
        except ValueError:
            return False
        if not isinstance(name, str) or self._name is not None:
            return False
        self._name = name
        self._out.append(
            ToolCallDelta(choice=self._choice, call=self.calls, id=self._new_id(), name=name)
        )
        self.calls += 1
        self._send_arguments()
        return True

    def _send_arguments(self) -> None:
        if self._name is not None and self._arguments:
            self._out.append(
                ToolCallDelta(choice=self._choice, call=self.calls - 1, arguments=self._arguments)
            )
            self._arguments = ""

    def _end_call(self) -> None:
        if not self._has_arguments:
            self._arguments = "{}"
            self._send_arguments()
        self._state = "closing"

    def _step_closing(self) -> bool:
        self._held = self._held.lstrip(_SPACE)
        if self._held.startswith(CLOSE_TAG):
            self._held = self._held[len(CLOSE_TAG) :]
        elif CLOSE_TAG.startswith(self._held):
            return False
        self._state = "text"
        return True

    def _malformed(self) -> None:
        """Give a block that is no call back as text; of one that was announced, drop the rest."""
        if self._name is not None:
            self._state = "lost"
            return
        self._text(OPEN_TAG)
        self._held = self._raw + self._held
        self._state = "text"

    def _step_lost(self) -> bool:
        at = self._held.find(CLOSE_TAG)
        if at < 0:
            self._held = self._held[len(self._held) - _tag_begun(self._held, CLOSE_TAG) :]
            return False
        self._held = self._held[at + len(CLOSE_TAG) :]
        self._state = "text"
        return True


def _stop_in(text: str, stops: tuple[str, ...]) -> tuple[int, str | None]:
    """Return where the stop text begins that is complete first, the longest of several."""
    found = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return len(text), None
    _, at, stop = min(found)
    return at, stop


def _tag_begun(text: str, tag: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a tag or stop."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0


def _string_end(text: str) -> int | None:
    """Return where the JSON string ends that a text begins with."""
    escaped = False
    for index in range(1, len(text)):
        if escaped:
            escaped = False
        elif text[index] == "\\":
            escaped = True
        elif text[index] == '"':
            return index + 1
    return None
