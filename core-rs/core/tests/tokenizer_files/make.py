"""Fill ``tokens.json`` anew: its texts, and the tokens that llama.cpp cuts them into.

Usage: ``python make.py LLAMA_TOKENIZE NAME=GGUF...`` with llama.cpp's ``llama-tokenize`` (b11434)
and, for each name, a file whose vocabulary to use: ``smollm`` is the shipped model; ``qwen2``,
``llama-bpe``, ``gpt-2`` and ``llama-spm`` are in llama.cpp's ``models/`` folder.
"""

import json
import subprocess
import sys
from pathlib import Path

GOLDEN = Path(__file__).with_name("tokens.json")


def ids(program: str, model: str, text: str, *, special: bool) -> list[int]:
    """Tokens of one text."""
    command = [program, "-m", model, "--ids", "--no-bos", "--no-escape", "--stdin", "--log-disable"]
    if not special:
        command.append("--no-parse-special")
    output = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
    found: list[int] = json.loads(output.decode().strip().splitlines()[-1])
    return found


def main() -> None:
    """Ask for every text under every vocabulary, as text and with its special tokens."""
    program, *models = sys.argv[1:]
    texts = json.loads(GOLDEN.read_text())["texts"]
    golden: dict[str, object] = {"texts": texts}
    for model in models:
        name, path = model.split("=", 1)
        golden[name] = {
            kind: [ids(program, path, text, special=special) for text in texts]
            for kind, special in (("as_text", False), ("parse", True))
        }
    lines = json.dumps(golden, separators=(",", ":"), ensure_ascii=True).replace("]],", "]],\n")
    GOLDEN.write_text(lines + "\n")


if __name__ == "__main__":
    main()
