"""Fill ``prompts.json`` anew: its cases, and the prompts that Python's Jinja makes of them.

Jinja is set up as ``transformers`` does for chat templates. Usage: ``python make.py GGUF FOLDER``
with the shipped model file (its template lies in it as text) and llama.cpp's ``models/templates``
folder, where the other models' templates are. Templates under ``own`` are in ``prompts.json``.
"""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

GOLDEN = Path(__file__).with_name("prompts.json")
NOW = datetime.datetime(2026, 11, 22, 18, 5, 9, tzinfo=datetime.UTC)


def environment() -> jinja2.Environment:
    """Set Jinja up as ``transformers.utils.chat_template_utils`` does."""

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    return made


def shipped(path: str) -> str:
    """Cut the template out of a GGUF file: its key, the type of a text (8), its length, itself."""
    head = Path(path).read_bytes()[: 8 << 20]
    at = head.index(b"tokenizer.chat_template") + len("tokenizer.chat_template") + 4
    length = int.from_bytes(head[at : at + 8], "little")
    return head[at + 8 : at + 8 + length].decode()


def prompt(template: str, case: dict[str, Any]) -> dict[str, str]:
    """Render one case: its prompt, or that it is refused."""
    arguments = {
        "messages": case["messages"],
        "tools": case.get("tools"),
        "documents": None,
        "add_generation_prompt": case["add_generation_prompt"],
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }
    try:
        return {"prompt": environment().from_string(template).render(arguments)}
    except (jinja2.TemplateError, TypeError) as error:
        return {"refused": str(error)}


def main() -> None:
    """Render every case with every template."""
    golden = json.loads(GOLDEN.read_text())
    model, folder = sys.argv[1:]
    templates = {"shipped": shipped(model)} | golden["own"]
    for name in golden["others"]:
        templates[name] = (Path(folder) / f"{name}.jinja").read_text()
    golden["now_unix_s"] = int(NOW.timestamp())
    golden["prompts"] = {
        name: [prompt(template, case) for case in golden["cases"]]
        for name, template in templates.items()
    }
    GOLDEN.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
