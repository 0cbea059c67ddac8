"""Tokens of a request, for its client, its log line and its quota."""

from typing import Any

from qbtc.messages.language import Usage

__all__ = ["Totals"]


class Totals:
    """Usage of a request over its answers: a prompt counts once, whatever ``n`` is."""

    def __init__(self) -> None:
        self.per_prompt: int | None = None
        """Answers of each prompt; None: all are to one."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self._prompts: dict[int, tuple[int, int]] = {}

    def add(self, usage: Usage, choice: int) -> None:
        """Count answer number ``choice``."""
        prompt = choice // self.per_prompt if self.per_prompt else 0
        tokens, cached = self._prompts.get(prompt, (usage.prompt_tokens, usage.cached_tokens))
        # Later answers to the same prompt find it in the cache; that saved the client nothing.
        self._prompts[prompt] = (tokens, min(cached, usage.cached_tokens))
        self.prompt_tokens = sum(tokens for tokens, _ in self._prompts.values())
        self.cached_tokens = sum(cached for _, cached in self._prompts.values())
        self.completion_tokens += usage.completion_tokens

    def usage(self) -> dict[str, Any]:
        """Return OpenAI's object, with the name of the cached tokens that Roo reads as well."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            "cache_read_input_tokens": self.cached_tokens,
        }
