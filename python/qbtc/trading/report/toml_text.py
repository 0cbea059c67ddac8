"""Write a config back as TOML, so that a report carries what reproduces it."""

import json
from typing import Any

__all__ = ["to_toml"]


def to_toml(tree: dict[str, Any]) -> str:
    """Write a tree of dicts, lists, text, numbers and booleans; None means absent and is left out.

    ``tomllib.loads`` gives the same tree back (without the None values).
    """
    lines = _table(tree, ())
    return "\n".join(lines).strip() + "\n"


def _table(tree: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    plain, tables = [], []
    for name, value in tree.items():
        here = (*path, name)
        title = ".".join(_key(part) for part in here)
        if value is None:
            continue
        if isinstance(value, dict):
            tables += ["", f"[{title}]", *_table(value, here)]
        elif value and isinstance(value, list | tuple) and all(isinstance(v, dict) for v in value):
            for item in value:
                tables += ["", f"[[{title}]]", *_table(item, here)]
        else:
            plain.append(f"{_key(name)} = {_value(value)}")
    return plain + tables


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return name if bare else _text(name)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value if item is not None)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{ {pairs} }}" if pairs else "{}"
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
