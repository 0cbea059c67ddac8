"""The recording into a catalog, beside hftbacktest's own converter on the same file.

Sketch: 3.6 MB of gzip become 45 MB of JSON in 0.2 s, parsing them 0.5 s, half a million rows of
Parquet 0.3 s. The converter parses with the standard library and writes a compressed npz.
"""

import contextlib
import io
import itertools
from pathlib import Path

import pytest
from hftbacktest.data.utils import binancefutures
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import market
from benchmarks.reporting import Report
from benchmarks.timing import interleave, whole
from qbtc.data.catalog import Dataset

pytestmark = [pytest.mark.benchmark, pytest.mark.realdata]


def test_import_of_a_recording(
    benchmark: BenchmarkFixture, report: Report, recording: Dataset, tmp_path: Path
) -> None:
    path, fresh = str(market.recording_path()), itertools.count()

    def convert() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            rows = binancefutures.convert(
                path, str(tmp_path / "peer.npz"), opt="t", buffer_size=1_000_000
            )
        return len(rows)

    ours_rows, peer_rows = sum(recording.counts.values()), convert()
    samples = interleave(
        benchmark,
        {
            "ours": whole(lambda: market.recording(tmp_path / str(next(fresh))), ours_rows),
            "peer": whole(convert, peer_rows),
        },
        rounds=3,
        warmup=0,
    )
    report.add(
        "import",
        "raw depth recording to a Nautilus catalog",
        samples["ours"],
        ("hftbacktest converter to npz", samples["peer"]),
        unit="M rows/s",
        note=(
            f"{ours_rows:,} rows of quotes, trades and depth, checked for gaps and clock offset;"
            f" the peer makes {peer_rows:,} rows of the same file."
        ),
    )
