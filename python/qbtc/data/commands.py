"""``qbtc data``: fetch, import, list and generate market data.

Tables go to stderr for people, ``--json`` to stdout for programs.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from qbtc.config.data import (
    ArchiveSource,
    DataSource,
    KlinesSource,
    RecordingSource,
    SyntheticSource,
)
from qbtc.data.archive import Kind, parse_name
from qbtc.data.download import (
    ARCHIVE_URL,
    Fetched,
    Market,
    Period,
    Status,
    fetch_files,
    plan_files,
)
from qbtc.data.instruments import split_id
from qbtc.data.rows import INTERVALS
from qbtc.errors import DataError

if TYPE_CHECKING:
    from qbtc.data.catalog import Dataset

__all__ = ["data"]

ARCHIVE_FOLDER = Path(".qbtc") / "archive"
TYPES = ("quotes", "trades", "depth", "bars")

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
_cache = click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where catalogs are kept  [default: .qbtc/catalog]",
)
_instrument = click.option(
    "--instrument",
    "instrument_id",
    required=True,
    help="BTCUSDT.BINANCE is spot, BTCUSDT-PERP.BINANCE is USD-M.",
)
_day = click.DateTime(["%Y-%m-%d"])


@click.group()
def data() -> None:
    """Fetch, import, list and generate market data."""


@data.command()
@_instrument
@click.option(
    "--kind",
    type=click.Choice(["klines", "trades", "aggTrades"]),
    default="klines",
    show_default=True,
)
@click.option(
    "--interval", type=click.Choice(INTERVALS), default="1m", show_default=True, help="Of klines."
)
@click.option("--from", "first", type=_day, required=True, help="First day (UTC), included.")
@click.option("--to", "last", type=_day, required=True, help="Last day (UTC), included.")
@click.option(
    "--period",
    type=click.Choice(["auto", "daily", "monthly"]),
    default="auto",
    show_default=True,
    help="auto: closed whole months as one file, the rest by day.",
)
@click.option("--base-url", default=ARCHIVE_URL, show_default=True, help="The archive.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=ARCHIVE_FOLDER,
    show_default=True,
    help="Where the files go.",
)
@click.option("--import", "and_import", is_flag=True, help="Import what was fetched.")
@_cache
@_json
def fetch(
    instrument_id: str,
    kind: Kind,
    interval: str,
    first: datetime,
    last: datetime,
    period: Period,
    base_url: str,
    folder: Path,
    and_import: bool,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Fetch files of the Binance bulk archive, checked by SHA-256.

    Files that are here already are compared with the archive and kept; a broken transfer goes on
    where it stopped. Days that the archive does not have are reported, not invented.
    """
    symbol, perpetual = split_id(instrument_id)
    market: Market = "um" if perpetual else "spot"
    today = datetime.now(UTC).date()
    files = plan_files(
        symbol, market, kind, interval, first.date(), last.date(), today=today, period=period
    )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        "files",
        DownloadColumn(),
        console=_stderr(),
        transient=True,
    ) as progress:
        done = progress.add_task(f"fetch {symbol} {kind}", total=len(files))
        size = progress.add_task("received", total=None)
        found = asyncio.run(
            fetch_files(
                files,
                folder,
                today=today,
                base_url=base_url,
                on_bytes=lambda n: progress.advance(size, n),
                on_done=lambda _: progress.advance(done),
            )
        )
    paths = [entry.path for entry in found if entry.path is not None]
    if not paths:
        raise DataError(
            f"{instrument_id}: the archive has none of the {len(found)} files from "
            f"{first:%Y-%m-%d} to {last:%Y-%m-%d}; check the symbol and the dates"
        )
    report: dict[str, Any] = {
        "base_url": base_url,
        "folder": str(folder),
        "files": [_fetched(entry) for entry in found],
    }
    if not as_json:
        _show_fetched(found, folder)
    if and_import:
        source = ArchiveSource(
            instrument=instrument_id,
            paths=tuple(str(path.absolute()) for path in paths),
            kind=kind,
            interval=interval,
        )
        dataset = _open(source, cache_dir)
        report["dataset"] = _facts(dataset)
        if not as_json:
            _show_datasets([_facts(dataset)])
    if as_json:
        _print_json(report)


@data.command("import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@_instrument
@click.option(
    "--type",
    "kind_of_file",
    type=click.Choice(["auto", "recording", "klines", "archive"]),
    default="auto",
    show_default=True,
    help="auto: .parquet are packed klines, .zip and .csv archive files, others recordings.",
)
@click.option(
    "--kind", type=click.Choice(["klines", "trades", "aggTrades"]), help="Of archive files."
)
@click.option("--interval", type=click.Choice(INTERVALS), help="Of klines (default 1m).")
@click.option("--clock-offset-ms", type=float, help="Of recordings; default: detected.")
@click.option(
    "--damaged-rows-max",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Damaged rows of a recording to leave out before the import fails.",
)
@_cache
@_json
def import_(
    files: tuple[Path, ...],
    instrument_id: str,
    kind_of_file: Literal["auto", "recording", "klines", "archive"],
    kind: Kind | None,
    interval: str | None,
    clock_offset_ms: float | None,
    damaged_rows_max: int,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Import files into Nautilus catalogs and say what is in them.

    Archive files given together become one data set; every other file its own.
    """
    options = _ImportOptions(
        instrument_id, kind_of_file, kind, interval, clock_offset_ms, damaged_rows_max
    )
    sources = _sources(files, options)
    facts = [_facts(_open(source, cache_dir)) for source in sources]
    if as_json:
        _print_json({"datasets": facts})
    else:
        _show_datasets(facts)


@data.command("list")
@_cache
@_json
def list_(cache_dir: Path | None, as_json: bool) -> None:
    """List the data sets that were imported or generated here."""
    from qbtc.data.catalog import list_catalogs

    catalogs = list_catalogs(cache_dir)
    if as_json:
        _print_json({"datasets": catalogs})
        return
    console = _stderr()
    if not catalogs:
        console.print("no data sets yet; see qbtc data fetch, import and synth")
        return
    table = Table(box=box.SIMPLE)
    table.add_column("data set", overflow="fold")
    table.add_column("from", no_wrap=True)
    for name in ("length", "rows", "key"):
        table.add_column(name, justify="left" if name == "key" else "right", no_wrap=True)
    for facts in catalogs:
        start, end = facts["span_ns"]
        table.add_row(
            f"[bold]{facts['instrument']}[/]\n{_describe_source(facts)}",
            _format_time(start)[:10],
            _format_length(end - start),
            f"{sum(facts['counts'].values()):,}",
            facts["key"],
        )
    console.print(table)


@data.command()
@_instrument
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Same seed, same market."
)
@click.option(
    "--duration", "duration_s", type=float, default=600.0, show_default=True, help="In seconds."
)
@click.option(
    "--edge",
    type=float,
    default=1.0,
    show_default=True,
    help="Strength of the informed flow; 0: nothing can be predicted.",
)
@click.option("--start", default="2024-01-01T00:00:00Z", show_default=True, help="UTC.")
@click.option(
    "--price",
    type=float,
    default=60_000.0,
    show_default=True,
    help="At the start, in quote currency.",
)
@_cache
@_json
def synth(
    instrument_id: str,
    seed: int,
    duration_s: float,
    edge: float,
    start: str,
    price: float,
    cache_dir: Path | None,
    as_json: bool,
) -> None:
    """Generate the synthetic market.

    It is labelled synthetic in everything made from it.
    """
    source = SyntheticSource(
        instrument=instrument_id,
        seed=seed,
        duration_s=duration_s,
        edge=edge,
        start=start,
        price=price,
    )
    facts = _facts(_open(source, cache_dir))
    if as_json:
        _print_json({"datasets": [facts]})
    else:
        _show_datasets([facts])


@dataclass(frozen=True)
class _ImportOptions:
    instrument_id: str
    kind_of_file: str
    kind: Kind | None
    interval: str | None
    clock_offset_ms: float | None
    damaged_rows_max: int


def _sources(files: tuple[Path, ...], options: _ImportOptions) -> list[DataSource]:
    """Make sources of files: archive files together by kind and interval, others one each."""
    sources: list[DataSource] = []
    together: dict[tuple[Kind, str], list[str]] = {}
    for file in files:
        path = str(file.absolute())
        match _kind_of(file, options):
            case "klines":
                sources.append(
                    KlinesSource(
                        instrument=options.instrument_id,
                        path=path,
                        interval=options.interval or "1m",
                    )
                )
            case "archive":
                together.setdefault(_what_of(file, options), []).append(path)
            case _:
                sources.append(
                    RecordingSource(
                        instrument=options.instrument_id,
                        path=path,
                        clock_offset_ms=options.clock_offset_ms,
                        damaged_rows_max=options.damaged_rows_max,
                    )
                )
    for (kind, interval), paths in together.items():
        sources.append(
            ArchiveSource(
                instrument=options.instrument_id,
                paths=tuple(paths),
                kind=kind,
                interval=interval,
            )
        )
    return sources


def _kind_of(file: Path, options: _ImportOptions) -> str:
    if options.kind_of_file != "auto":
        return options.kind_of_file
    return {".parquet": "klines", ".zip": "archive", ".csv": "archive"}.get(
        file.suffix.lower(), "recording"
    )


def _what_of(file: Path, options: _ImportOptions) -> tuple[Kind, str]:
    """Kind and interval of an archive file, as asked or as its name says."""
    name = parse_name(file.name)
    kind = options.kind or (name.kind if name else None)
    if kind is None:
        raise DataError(f"{file}: its name does not say what it holds; give --kind")
    interval = options.interval or (name.interval if name else None) or "1m"
    return kind, interval


def _open(source: DataSource, cache_dir: Path | None) -> "Dataset":
    # Imported here because pandas comes with it, and `qbtc --help` imports this file.
    from qbtc.data.catalog import open_source

    return open_source(source, Path.cwd(), cache_dir=cache_dir)


def _facts(dataset: "Dataset") -> dict[str, Any]:
    """Facts of one data set for people and programs."""
    return dataset.manifest | {"path": str(dataset.catalog_path)}


def _show_datasets(datasets: list[dict[str, Any]]) -> None:
    console = _stderr()
    for facts in datasets:
        console.print(
            f"[bold]{facts['instrument']}[/]  {_describe_source(facts)}",
            highlight=False,
            soft_wrap=True,
        )
        table = Table(box=box.SIMPLE)
        for name in ("", "in the source", "in the catalog"):
            table.add_column(name, justify="right" if name else "left")
        for name in TYPES:
            if facts["source_counts"][name] or facts["counts"][name]:
                table.add_row(
                    name,
                    f"{facts['source_counts'][name]:,}",
                    f"{facts['counts'][name]:,}",
                )
        console.print(table)
        for label, text in _details(facts):
            console.print(f"  [dim]{label:>9}[/]  {text}", highlight=False, soft_wrap=True)
        console.print()


def _details(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what a person should know besides the counts."""
    first, last = (_format_time(ts) for ts in facts["span_ns"])
    rows = [("span", f"{first} to {last} UTC")]
    rows += [("gaps", text) for text in _gaps(facts.get("gaps", {}))]
    clock = facts.get("clock")
    if clock is not None:
        rows.append(("clock", f"offset {clock['offset_ms']:g} ms ({clock['offset']})"))
    depth = facts.get("depth")
    if depth is not None:
        rows.append(
            (
                "book",
                f"{depth['snapshots']} snapshots, {depth['clears_added']} clears added, "
                f"{depth['superseded_levels']} levels older than their snapshot left out, "
                f"{depth['unsynchronised_levels']} after a gap",
            )
        )
        if depth["partial_from_line"] is not None:
            rows.append(("book", f"partial from line {depth['partial_from_line']}: no snapshot"))
    if facts.get("damaged", {}).get("total"):
        rows.append(("damaged", f"{facts['damaged']['total']} rows left out"))
    for reason, count in facts.get("ignored", {}).items():
        rows.append(("ignored", f"{count} x {reason}"))
    if "zero_volume_bars" in facts:
        rows.append(("no trades", f"in {facts['zero_volume_bars']} bars"))
    for file in facts.get("files", [])[:5]:
        rows.append(("sha256", f"{file['sha256'][:16]}  {file['name']}"))
    if len(facts.get("files", [])) > 5:
        rows.append(("", f"and {len(facts['files']) - 5} more files"))
    rows.append(("catalog", facts["path"]))
    return rows


def _gaps(gaps: dict[str, Any]) -> list[str]:
    texts = []
    for name, found in gaps.items():
        missing = found.get("missing_bars")
        more = f", {missing} bars missing" if missing else ""
        texts.append(f"{found['total']} in {name.replace('_', ' ')}{more}")
    return texts


def _describe_source(facts: dict[str, Any]) -> str:
    source = facts.get("source", {})
    if facts["synthetic"]:
        return f"synthetic (seed {source.get('seed')}, edge {source.get('edge')})"
    files = facts.get("files", [])
    names = files[0]["name"] if len(files) == 1 else f"{len(files)} files"
    return f"{source.get('source', 'catalog')}: {names}"


def _fetched(entry: Fetched) -> dict[str, Any]:
    return {
        "name": entry.file.path.name,
        "status": entry.status.value,
        "path": None if entry.path is None else str(entry.path),
        "sha256": entry.sha256,
        "bytes": entry.size,
    }


def _show_fetched(found: list[Fetched], folder: Path) -> None:
    console = _stderr()
    counts = Counter(entry.status for entry in found)
    table = Table(box=box.SIMPLE)
    table.add_column("status")
    table.add_column("files", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("first … last")
    for status in Status:
        entries = [entry for entry in found if entry.status is status]
        if not entries:
            continue
        table.add_row(
            status.value,
            str(counts[status]),
            f"{sum(entry.size for entry in entries) / 1e6:.1f}",
            f"{min(entry.file.first for entry in entries)} … "
            f"{max(entry.file.last for entry in entries)}",
        )
    console.print(table)
    console.print(f"  files in {folder}", highlight=False, soft_wrap=True)


def _format_time(ts_ns: int) -> str:
    return f"{datetime.fromtimestamp(ts_ns / 1e9, tz=UTC):%Y-%m-%d %H:%M:%S}"


def _format_length(span_ns: int) -> str:
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if span_ns >= 2 * seconds * 1_000_000_000:
            return f"{span_ns / 1e9 / seconds:.1f} {unit}"
    return f"{span_ns / 1e9:.1f} s"


def _stderr() -> Console:
    return Console(stderr=True)


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
