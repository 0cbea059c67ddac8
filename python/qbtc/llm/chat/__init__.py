"""Chats for models that only continue text: prompts in, tool calls out.

- ``prompt``: messages and tools become the text that the model's own template makes of them.
- ``grammar``: what an answer must look like, so that every tool call and every JSON is valid.
- ``parser``: an answer, in pieces of any size, becomes text and tool calls.

Tool calls are written as ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, the way that
Qwen and Hermes models learned; templates that know no tools are told so in the system message.
"""

from qbtc.llm.chat.grammar import Constraint, constraint_of, schema_of
from qbtc.llm.chat.parser import AnswerParser
from qbtc.llm.chat.prompt import Prompt, PromptWriter, reads_tool_calls

__all__ = [
    "AnswerParser",
    "Constraint",
    "Prompt",
    "PromptWriter",
    "constraint_of",
    "reads_tool_calls",
    "schema_of",
]
