"""Run a small function that a model wrote, in a process of its own that can do nothing else.

Two fences: only a subset of the language passes (no imports, no names or methods beyond those
listed, nothing that begins with an underscore), and what passes runs isolated, with bounded time
and memory. The subset is the fence that counts; the process bounds loops and long lists.
"""

import ast
import subprocess
import sys
from typing import Any

import msgspec

__all__ = ["CodeRefused", "function_of", "run_function"]

RUN_S_MAX = 1
RUN_BYTES_MAX = 512 * 1024**2
OUTPUT_BYTES_MAX = 100_000
CODE_CHARACTERS_MAX = 10_000

_BUILTINS = (
    *("abs", "all", "any", "bool", "dict", "divmod", "enumerate", "float", "int", "len", "list"),
    *("max", "min", "range", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip"),
    *("IndexError", "KeyError", "TypeError", "ValueError"),
)
_METHODS = (
    *("append", "copy", "count", "endswith", "extend", "find", "get", "index", "insert", "isalpha"),
    *("isdigit", "islower", "isspace", "isupper", "items", "join", "keys", "lower", "lstrip"),
    *("pop", "remove", "replace", "reverse", "rstrip", "sort", "split", "startswith", "strip"),
    *("title", "upper", "values"),
)
_NODES = (
    *(ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Assign, ast.AugAssign, ast.For),
    *(ast.AnnAssign, ast.While, ast.If, ast.Break, ast.Continue, ast.Pass, ast.Expr, ast.Raise),
    *(ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Lambda, ast.IfExp, ast.Dict, ast.Set, ast.ListComp),
    *(ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.Compare, ast.Call),
    *(ast.Constant, ast.Attribute, ast.Subscript, ast.Starred, ast.Name, ast.List, ast.Tuple),
    *(ast.Slice, ast.keyword, ast.expr_context, ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
)
_RUNNER = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({seconds}, {seconds}))
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
job = json.load(sys.stdin)
built = __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__)
space = {{"__builtins__": {{name: built[name] for name in job["builtins"]}}}}
exec(compile(job["source"], "answer", "exec"), space)
found = []
for arguments in job["arguments"]:
    try:
        found.append(["is", space[job["call"]](*arguments)])
    except Exception as error:
        found.append(["raised", type(error).__name__ + ": " + str(error)[:200]])
json.dump(found, sys.stdout)
"""


class CodeRefused(Exception):
    """The text holds no such function, or one beyond the subset."""


def function_of(text: str, name: str) -> str:
    """Source of a function in a text; what follows it, such as prose, is left out.

    Raises
    ------
    CodeRefused
        There is none, or it uses what is not allowed.
    """
    lines = text[:CODE_CHARACTERS_MAX].splitlines()
    tree: ast.Module | None = None
    while lines and tree is None:
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError as error:
            # What comes before the place at fault; at least one line less.
            del lines[min(len(lines), error.lineno or 1) - 1 :]
        except (ValueError, RecursionError, MemoryError):
            lines.clear()
    found = [
        node
        for node in (tree.body if tree is not None else ())
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    if not found:
        raise CodeRefused(f"no function {name} that parses")
    function = found[0]
    _check(function)
    return ast.unparse(function)


def _check(function: ast.FunctionDef) -> None:
    for node in ast.walk(function):
        if not isinstance(node, _NODES):
            raise CodeRefused(f"{type(node).__name__} is not allowed here")
        if isinstance(node, ast.Attribute) and node.attr not in _METHODS:
            raise CodeRefused(f"attribute {node.attr} is not allowed here")
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            raise CodeRefused(f"name {node.id} is not allowed here")
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            raise CodeRefused("decorators are not allowed here")


def run_function(source: str, name: str, arguments: list[list[Any]]) -> list[tuple[str, Any]]:
    """Call the function once for each list of arguments.

    Returns
    -------
    list
        ``("is", result)`` or ``("raised", message)`` for each; results as JSON has them.

    Raises
    ------
    CodeRefused
        It took too long or too much memory, or a result is not JSON.
    """
    job = {
        "source": source,
        "call": name,
        "arguments": arguments,
        "builtins": _BUILTINS,
    }
    runner = _RUNNER.format(seconds=RUN_S_MAX, memory=RUN_BYTES_MAX)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", runner],
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=2 * RUN_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CodeRefused(f"did not end within {2 * RUN_S_MAX} s") from None
    if done.returncode != 0 or len(done.stdout) > OUTPUT_BYTES_MAX:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise CodeRefused(f"did not run to its end: {last[0] if last else 'stopped'}")
    try:
        return msgspec.json.decode(done.stdout, type=list[tuple[str, Any]])
    except msgspec.MsgspecError as error:
        raise CodeRefused(f"a result is not plain: {error}") from None
