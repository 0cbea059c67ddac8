"""``qbtc chat``: talk to a local model in the terminal, or ask one thing from a script.

The answer goes to stdout, everything else (questions, speeds, errors) to stderr, so that a pipe
gets the answer alone.
"""

import asyncio
import sys
import unicodedata
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import click
import msgspec
from rich.console import Console

from qbtc.errors import InputError, QbtcError
from qbtc.llm.commands import obtain_model, open_engine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from qbtc.llm.engine import Engine
    from qbtc.messages.language import ChatMessage, Event, Sampling, Usage

__all__ = ["chat"]

PROMPT_CHARACTERS_MAX = 10_000_000
NOT_TEXT = "what is asked is not UTF-8 text; convert it first, for example with iconv"
HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", help="Id, GGUF file or address  [default: smollm2-135m-instruct]")
@click.option("--system", default="", help="Instructions for the whole conversation.")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.2, show_default=True)
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), help="Of an answer  [default: what fits]")
@click.option("--seed", type=click.IntRange(0), help="The same seed gives the same answer.")
@click.option("--threads", type=click.IntRange(1), help="[default: the machine's]")
@click.option("--json", "as_json", is_flag=True, help="One answer with its figures, as JSON.")
def chat(
    prompt: str | None,
    model: str | None,
    system: str,
    temperature: float,
    top_p: float,
    max_tokens: int | None,
    seed: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Talk to a local language model.

    With PROMPT, or text on stdin, it answers once. What is piped in follows the PROMPT.
    """
    from qbtc.messages.language import Sampling

    console = Console(stderr=True, highlight=False)
    asked = _asked(prompt)
    if as_json and asked is None:
        raise InputError("--json answers once; give a PROMPT or pipe one in")
    found = obtain_model(model, console)
    talk = _Talk(
        model=found.id,
        system=system,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        max_tokens=max_tokens,
    )
    with asyncio.Runner() as runner:
        with console.status(f"loading {found.id}"):
            engine = runner.run(open_engine(found, threads=threads))
        try:
            if asked is not None:
                _once(runner, engine, talk, asked, console, as_json=as_json)
            else:
                _many(runner, engine, talk, console)
        finally:
            runner.run(engine.close())


@dataclass
class _Reply:
    """An answer as far as it came."""

    text: str = ""
    finish: str = "cancelled"
    usage: "Usage | None" = None
    seed: int = 0

    def speed(self) -> float | None:
        """Tokens a second after the first one."""
        usage = self.usage
        if usage is None or usage.completion_tokens < 2:
            return None
        return (usage.completion_tokens - 1) / max(usage.total_s - usage.first_token_s, 1e-9)


@dataclass
class _Talk:
    """A conversation and how to go on with it."""

    model: str
    system: str
    sampling: "Sampling"
    max_tokens: int | None
    turns: list["ChatMessage"] = field(default_factory=list)

    def messages(self) -> tuple["ChatMessage", ...]:
        from qbtc.messages.language import ChatMessage

        system = [ChatMessage(role="system", content=self.system)] if self.system else []
        return (*system, *self.turns)

    def add(self, role: str, content: str) -> None:
        from qbtc.messages.language import ChatMessage

        self.turns.append(msgspec.convert({"role": role, "content": content}, ChatMessage))


def _asked(prompt: str | None) -> str | None:
    """Find what to answer once: the argument, and what is piped in after it."""
    if sys.stdin is None or sys.stdin.isatty():
        return prompt
    try:
        piped = sys.stdin.read(PROMPT_CHARACTERS_MAX + 1)
    except UnicodeDecodeError:
        raise InputError(NOT_TEXT) from None
    if len(piped) > PROMPT_CHARACTERS_MAX:
        raise InputError(f"stdin is longer than {PROMPT_CHARACTERS_MAX} characters")
    parts = [part for part in (prompt, piped.strip()) if part]
    if not parts:
        raise InputError("stdin is empty; give a PROMPT")
    return "\n\n".join(parts)


def _once(
    runner: asyncio.Runner,
    engine: "Engine",
    talk: _Talk,
    asked: str,
    console: Console,
    *,
    as_json: bool,
) -> None:
    talk.add("user", asked)
    reply = _Reply()
    runner.run(_answer(engine, talk, reply, None if as_json else console))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(_figures(talk, reply)), indent=2))
        return
    click.echo()
    _show_speed(console, reply)


def _many(runner: asyncio.Runner, engine: "Engine", talk: _Talk, console: Console) -> None:
    """Ask and answer until the person leaves."""
    # Where there is one, the arrow keys edit the line and find earlier ones.
    with suppress(ImportError):
        import readline  # noqa: F401
    console.print(f"[bold]{talk.model}[/]  [dim]{HELP}[/]", soft_wrap=True)
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            console.print()
            return
        if line in ("/exit", "/quit"):
            return
        if line == "/clear":
            talk.turns.clear()
            console.print("[dim]forgotten[/]")
        elif line.startswith("/"):
            console.print(f"[dim]{HELP}[/]")
        elif line:
            _turn(runner, engine, talk, line, console)


def _turn(
    runner: asyncio.Runner, engine: "Engine", talk: _Talk, line: str, console: Console
) -> None:
    talk.add("user", line)
    reply = _Reply()
    try:
        runner.run(_answer(engine, talk, reply, console))
        click.echo()
        _show_speed(console, reply)
    except KeyboardInterrupt:
        click.echo()
        console.print("[dim]stopped[/]")
    except QbtcError as error:
        talk.turns.pop()
        console.print("[bold red]error:[/] ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        return
    if reply.text:
        talk.add("assistant", reply.text)
    else:
        talk.turns.pop()


async def _answer(engine: "Engine", talk: _Talk, reply: _Reply, console: Console | None) -> None:
    """Stream one answer to stdout, and keep it in ``reply`` as it comes."""
    from qbtc.messages.language import ChatRequest, Finished, Prefill, TextDelta

    try:
        for message in talk.messages():
            message.content.encode()
    except UnicodeEncodeError:
        # Bytes that are no text come in as lone surrogates.
        raise InputError(NOT_TEXT) from None
    request = ChatRequest(
        model=talk.model,
        messages=talk.messages(),
        sampling=talk.sampling,
        max_tokens=talk.max_tokens,
    )
    status = console.status("reading") if console is not None and console.is_terminal else None
    if status is not None:
        status.start()
    try:
        # Every engine's iterator can be closed; the protocol's type does not say so.
        events = cast("AsyncGenerator[Event]", engine.chat(request))
        async with aclosing(events):
            async for event in events:
                match event:
                    case Prefill(done=done, total=total) if status is not None:
                        status.update(f"reading {done:,} of {total:,} tokens")
                    case TextDelta(text=text) if text:
                        if status is not None:
                            status.stop()
                        reply.text += text
                        if console is not None:
                            click.echo(printable(text), nl=False)
                    case Finished():
                        reply.finish, reply.usage = event.reason, event.usage
                        reply.seed = event.seed
    finally:
        if status is not None:
            status.stop()


def printable(text: str) -> str:
    """Return the text without control characters: a model must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _show_speed(console: Console, reply: _Reply) -> None:
    usage, speed = reply.usage, reply.speed()
    if usage is None:
        return
    parts = [f"{usage.completion_tokens} tokens", f"first after {usage.first_token_s * 1e3:.0f} ms"]
    if speed is not None:
        parts.append(f"{speed:.0f} tokens/s")
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens from cache")
    if reply.finish == "length":
        parts.append("cut off at the limit")
    console.print(f"[dim]{', '.join(parts)}[/]", soft_wrap=True)


def _figures(talk: _Talk, reply: _Reply) -> dict[str, object]:
    return {
        "model": talk.model,
        "answer": reply.text,
        "finish": reply.finish,
        "seed": reply.seed,
        "usage": reply.usage,
        "tokens_per_s": reply.speed(),
    }
