"""The feature table as text: for a terminal, as JSON, and as ``docs/features.md``."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table

from qbtc.core.features import FeatureInfo, feature_notation, feature_table, schema_sha256

__all__ = ["as_dict", "as_markdown", "as_table"]


def as_dict() -> dict[str, Any]:
    """Return the schema hash and one object per feature."""
    return {
        "schema_sha256": schema_sha256(),
        "features": [asdict(row) for row in feature_table()],
    }


def as_markdown() -> str:
    """Return ``docs/features.md``."""
    lines = [
        "# The 26 features",
        "",
        "Generated from the core by `qbtc features --markdown`; a test keeps it true. How they",
        "were chosen: `benchmarks/feature_table_study.py`.",
        "",
        feature_notation(),
        "",
        "Missing means NaN: the data source does not carry it, it is not warmed up, or its source",
        "has been silent too long. Models integrate missing features out.",
        "",
        *(f"- {_limits(row)}" for row in _first_of_class()),
        "",
    ]
    for group in dict.fromkeys(row.group for row in feature_table()):
        lines += [f"## {group.capitalize()}", ""]
        lines += ["| # | name | changes with | unit | formula |", "|---|---|---|---|---|"]
        for i, row in enumerate(feature_table(), start=1):
            if row.group == group:
                formula = row.formula.replace("|", "\\|")
                lines.append(
                    f"| {i} | `{row.name}` | {row.update_class} | {row.unit} | {formula} |"
                )
        lines.append("")
    return "\n".join([*lines, f"Schema: `{schema_sha256()}`", ""])


def as_table() -> Table:
    """Return the table for a terminal."""
    caption = [
        feature_notation(),
        *(_limits(row) for row in _first_of_class()),
        f"Schema {schema_sha256()}",
    ]
    table = Table(
        title="The 26 features",
        caption="\n".join(caption),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("#", justify="right")
    table.add_column("name", no_wrap=True)
    table.add_column("from")
    table.add_column("unit")
    table.add_column("formula")
    group = ""
    for i, row in enumerate(feature_table(), start=1):
        if row.group != group:
            group = row.group
            table.add_section()
            table.add_row("", f"[bold]{group}[/]")
        table.add_row(str(i), row.name, row.update_class, row.unit, row.formula)
    return table


def _first_of_class() -> list[FeatureInfo]:
    return list({row.update_class: row for row in reversed(feature_table())}.values())[::-1]


def _limits(row: FeatureInfo) -> str:
    return (
        f"Features that change with {row.update_class} events are given after {row.warm_up_s:g} s "
        f"of them and missing after {row.stale_s:g} s of silence."
    )
