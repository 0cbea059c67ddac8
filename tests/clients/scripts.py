"""What the scripted engine says to clients: it answers to the last message."""

from tests.support.scripted_engine import FOREVER, Script, call, end, text

from qbtc.llm.errors import ContextLengthExceeded, EngineBusy
from qbtc.messages.language import ChatRequest


class Talk:
    """Answers by the words of the last message; ``busy`` refuses twice before it answers."""

    def __init__(self) -> None:
        self.refused = 0

    def __call__(self, request: ChatRequest) -> Script:
        words = request.messages[-1].content
        if "too long" in words:
            return [
                ContextLengthExceeded(
                    "This model's maximum context length is 8192 tokens. However, your messages "
                    "resulted in 9000 tokens. Please reduce the length of the messages."
                )
            ]
        if "busy" in words and self.refused < 2:
            self.refused += 1
            return [EngineBusy("The queue is full.", retry_after_s=0.3)]
        if "for ever" in words:
            return [*text("I begin"), FOREVER]
        if "breaks" in words:
            return [*text("I begin"), RuntimeError("the inside broke")]
        if request.response_format.type != "text":
            return [*text('{"city":', ' "Rome"}'), end()]
        if request.tools and request.messages[-1].role == "user" and "weather" in words:
            name = request.tools[0].name
            return [*call(name, '{"city":', ' "Rome"}'), end("tool_calls")]
        return [*text("Hello ", "there"), end()]
