"""Commands that look at features and models."""

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from qbtc.core.features import feature_notation, feature_table, schema_sha256

__all__ = ["features"]


def features_markdown() -> str:
    """Return ``docs/features.md``, generated from the table in the core."""
    lines = [
        "# The 26 features",
        "",
        "Generated from the core by `qbtc features --markdown`; a test keeps it true.",
        "",
        feature_notation(),
        "",
        "Missing means NaN: the data source does not carry it, it is not warmed up, or its source",
        "has been silent longer than the last column says. Models integrate missing features out.",
        "",
        "| # | name | group | unit | formula | changes with | warm-up s | stale after s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for i, row in enumerate(feature_table(), start=1):
        formula = row.formula.replace("|", "\\|")
        lines.append(
            f"| {i} | `{row.name}` | {row.group} | {row.unit} | {formula} | {row.update_class} "
            f"| {row.warm_up_s:g} | {row.stale_s:g} |"
        )
    return "\n".join([*lines, "", f"Schema: `{schema_sha256()}`", ""])


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON on stdout.")
@click.option("--markdown", is_flag=True, help="Print docs/features.md on stdout.")
def features(as_json: bool, markdown: bool) -> None:
    """List the 26 streaming features: formula, unit, warm-up."""
    if as_json:
        rows = [asdict(row) for row in feature_table()]
        click.echo(json.dumps({"schema_sha256": schema_sha256(), "features": rows}, indent=2))
    elif markdown:
        click.echo(features_markdown(), nl=False)
    else:
        table = Table(title="Features", caption=f"{feature_notation()}\nschema {schema_sha256()}")
        for title in ("#", "name", "unit", "formula", "changes with", "warm-up s", "stale s"):
            table.add_column(title)
        group = ""
        for i, row in enumerate(feature_table(), start=1):
            if row.group != group:
                group = row.group
                table.add_section()
                table.add_row("", f"[bold]{group}[/]")
            table.add_row(
                str(i),
                row.name,
                row.unit,
                row.formula,
                row.update_class,
                f"{row.warm_up_s:g}",
                f"{row.stale_s:g}",
            )
        Console(stderr=True).print(table)
