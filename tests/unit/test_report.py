"""The report and the summary: made from a run directory alone, and equal to what lies in it."""

import io
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console
from rundirs import INSTRUMENT, MadeUp, make_run

from qbtc.cli import cli
from qbtc.errors import DataError
from qbtc.trading.report.page import write_report
from qbtc.trading.report.rundir import after_training, read_run
from qbtc.trading.report.summary import print_summary
from qbtc.trading.report.toml_text import to_toml
from qbtc.trading.report.wording import import_changes, money
from qbtc.trading.result import RunResult, write_result

_PLOTLY = re.compile(r'<script id="plotly">.*?</script>', re.DOTALL)


def written(folder: Path, what: MadeUp) -> tuple[RunResult, str]:
    """Make a run, write its report, return result and page without plotly.js."""
    result = make_run(folder, what)
    return result, _PLOTLY.sub("", write_report(folder).read_text(encoding="utf-8"))


def summary(folder: Path) -> str:
    buffer = io.StringIO()
    print_summary(folder, Console(file=buffer, width=160))
    return buffer.getvalue()


def test_the_page_says_what_result_json_says(tmp_path: Path) -> None:
    result, text = written(tmp_path, MadeUp())
    own = result.performance
    shown = (own.pnl_before_costs, own.pnl_after_costs)
    for figure in (*(money(value, sign=True) for value in shown), money(own.fees)):
        assert f">{figure}<" in text
    assert money(own.turnover) in text
    assert money(own.max_drawdown) in text
    assert result.fills_sha256 in text
    assert "2.0.0rc7" in text
    assert "buy_and_hold" in text
    assert f"qbtc backtest {result.name}.toml" in text


def test_the_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    _, text = written(tmp_path, MadeUp(rows=200, fills=5))
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|//cdn|<link|<img|<iframe|@import|url\(|\bsrc=", text)


def test_plotly_is_inlined_once(tmp_path: Path) -> None:
    make_run(tmp_path, MadeUp(rows=200, fills=5))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert len(_PLOTLY.findall(text)) == 1
    assert len(text) < 6_000_000


def test_synthetic_data_is_labelled_in_large(tmp_path: Path) -> None:
    _, text = written(tmp_path, MadeUp(rows=200, fills=5))
    assert '<div class="banner"><b>SYNTHETIC</b>' in text
    assert "SYNTHETIC data" in summary(tmp_path)


def test_real_data_is_not_labelled_synthetic(tmp_path: Path) -> None:
    _, text = written(tmp_path, MadeUp(rows=200, fills=5, synthetic=False))
    assert "SYNTHETIC" not in text
    assert "REAL data" in text
    assert "SYNTHETIC" not in summary(tmp_path)


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "name": "<script>alert(1)</script>",
        "status": "failed",
        "error": "ValueError: </script><b>",
        "traceback": "Traceback <module>",
    }
    _, text = written(tmp_path, MadeUp(rows=200, fills=5, changes=changes))
    assert "<script>alert" not in text
    assert "</script><b>" not in text
    assert "&lt;module&gt;" in text
    assert "ValueError: </script><b>" in summary(tmp_path)


def test_text_inside_chart_data_cannot_end_the_script(tmp_path: Path) -> None:
    result = make_run(tmp_path, MadeUp(rows=200, fills=5))
    evil = msgspec.structs.replace(
        result, latency={"</script><img>": next(iter(result.latency.values()))}
    )
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(evil))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "</script><img>" not in text
    assert "\\u003c/script\\u003e\\u003cimg" in text


@pytest.mark.parametrize("status", ["partial", "failed"])
def test_a_run_that_did_not_finish_says_so_first(tmp_path: Path, status: str) -> None:
    changes = {"status": status, "partial": True, "error": "stopped by Ctrl-C"}
    _, text = written(tmp_path, MadeUp(rows=200, fills=0, changes=changes))
    assert f"<b>{status.upper()}</b>" in text
    assert text.index(status.upper()) < text.index("<h1>")
    assert "To replay" in text
    assert "Replayed" not in text
    assert status.upper() in summary(tmp_path)


def test_a_run_without_fills_signals_or_baselines_has_a_page(tmp_path: Path) -> None:
    _, text = written(tmp_path, MadeUp(rows=50, fills=0, signals=False, baselines=False))
    assert "Nothing was traded. " in text
    assert "No signal model was used" in text
    assert "No fills, so nothing was paid." in text
    assert "Nothing was traded." in summary(tmp_path)


def test_a_run_that_left_only_its_result_has_a_page(tmp_path: Path) -> None:
    make_run(tmp_path, MadeUp(rows=50, fills=2, changes={"latency": {}, "data": ()}))
    for table in tmp_path.glob("*.parquet"):
        table.unlink()
    text = _PLOTLY.sub("", write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No equity was recorded." in text
    assert "No prices were recorded." in text
    assert summary(tmp_path)


def test_a_year_of_bars_gets_months_and_slower_horizons(tmp_path: Path) -> None:
    step_ns = 3_600_000_000_000
    _, text = written(tmp_path, MadeUp(rows=3_000, step_ns=step_ns, fills=700, synthetic=False))
    assert "Returns by month" in text
    assert "the bars are sums over time" in text
    assert "60 min" in text
    assert "is a demonstration" not in text


def test_in_sample_signals_are_left_out_or_marked(tmp_path: Path) -> None:
    made = make_run(tmp_path, MadeUp())
    late = msgspec.structs.replace(made.signals[0], train_end_ns=made.span_ns[1])
    inside = msgspec.structs.replace(late, published_in_sample=late.published)
    changed = msgspec.structs.replace(made, signals=(inside,))
    (tmp_path / "result.json").write_bytes(msgspec.json.encode(changed))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>IN-SAMPLE</b>" in text
    assert "prove nothing" in text


def test_a_model_that_kept_silent_is_compared_from_where_it_spoke(tmp_path: Path) -> None:
    made = make_run(tmp_path, MadeUp())
    half = (made.span_ns[0] + made.span_ns[1]) // 2
    late = msgspec.structs.replace(
        made.signals[0], skipped_in_sample=2_000, out_of_sample_ns=(half, made.span_ns[1])
    )
    write_result(msgspec.structs.replace(made, signals=(late,)), tmp_path)
    run = read_run(tmp_path)
    figures = after_training(run)
    assert figures is not None
    curve = run.equity.split("series")["buy_and_hold"]
    before = curve["equity"][curve["ts"] <= half][-1]
    assert figures["buy_and_hold"] == curve["equity"][-1] - before
    assert figures["flat"] == 0.0
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "of it after the training span" in text
    shown = money(figures["run"], sign=True)
    assert "After the model's training span it did" in text.replace("&#x27;", "'")
    assert "span it did" in summary(tmp_path)
    assert f">{shown}<" in text


def test_a_model_that_spoke_throughout_is_compared_in_whole(tmp_path: Path) -> None:
    make_run(tmp_path, MadeUp(rows=200, fills=5))
    assert after_training(read_run(tmp_path)) is None
    assert "It did no better than" in summary(tmp_path)


def test_the_page_can_be_made_again_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    make_run(tmp_path / "a", MadeUp(rows=200))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (write_report(tmp_path / name).read_bytes() for name in "ab")
    assert first == second
    assert str(tmp_path).encode() not in first


def test_a_folder_without_a_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run here"):
        write_report(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": 1}')
    with pytest.raises(DataError, match="not a result of this version"):
        write_report(tmp_path)


def test_the_report_command_makes_the_page_again(tmp_path: Path) -> None:
    make_run(tmp_path, MadeUp(rows=200, fills=5))
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert done.exit_code == 0
    assert (tmp_path / "report.html").exists()
    assert "report.html" in done.stderr
    assert done.stdout == ""


def test_a_damaged_table_is_an_input_error_that_names_it(tmp_path: Path) -> None:
    make_run(tmp_path, MadeUp(rows=50, fills=2))
    (tmp_path / "fills.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"fills\.parquet: not a readable Parquet table"):
        read_run(tmp_path)


def test_the_config_is_shown_as_toml_that_reads_back() -> None:
    tree = {
        "name": 'a "b" \\ c',
        "start": None,
        "flags": [True, 1, 2.5, "x"],
        "venue": {"fee": "0.1", "fill": {"odd key": 1e-5}},
        "data": [{"source": "synthetic", "params": {"k": {}}}, {"source": "recording"}],
        "empty": [],
    }
    back = tomllib.loads(to_toml(tree))
    del tree["start"]
    assert back == tree


def test_the_summary_is_plain_off_a_terminal_and_ends_with_the_report(tmp_path: Path) -> None:
    result = make_run(tmp_path, MadeUp())
    text = summary(tmp_path)
    assert "\x1b" not in text
    assert text.rstrip().endswith(str(tmp_path / "report.html"))
    assert money(result.performance.pnl_after_costs, sign=True) in text
    assert result.fills_sha256 in text
    assert INSTRUMENT in text


def test_the_import_column_accounts_for_every_event_of_the_source(tmp_path: Path) -> None:
    data = make_run(tmp_path, MadeUp()).data[0]
    data = msgspec.structs.replace(data, left_out={"depth": 259}, added={"depth": 1})
    assert import_changes(data, "depth") == "-259 +1"
    assert import_changes(data, "quotes") == ""
