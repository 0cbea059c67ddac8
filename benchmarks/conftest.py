"""The benchmark run: refuses a stale or debug core, collects the rows, writes and prints them."""

from collections.abc import Generator
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import market, models
from benchmarks.reporting import Report, commit, machine
from qbtc.core.build import require_fresh
from qbtc.data.catalog import Dataset
from qbtc.errors import InputError
from qbtc.llm.models import find_model

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "out"
_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report(machine(), commit(ROOT))


def pytest_sessionstart(session: pytest.Session) -> None:
    try:
        require_fresh(ROOT)
    except InputError as error:
        pytest.exit(f"benchmarks: {error}", returncode=2)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Return the report of this run; add rows to it."""
    return request.config.stash[_REPORT]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> models.Trained:
    """Return our models and the trees, trained on the same synthetic rows."""
    return models.train(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return the real depth recording as a catalog."""
    return market.recording(tmp_path_factory.mktemp("catalog"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Return the shipped chat model's file."""
    return find_model().path


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Return the shipped embedder's folder."""
    return find_model(kind="embedding").path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    if call.excinfo is not None:
        reason = call.excinfo.exconly().splitlines()[0].removeprefix("Skipped: ")
        item.config.stash[_REPORT].missing.setdefault(item.name, reason)
    return outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    report = session.config.stash[_REPORT]
    if report.entries:
        report.write(OUT)


def pytest_terminal_summary(config: pytest.Config) -> None:
    report = config.stash[_REPORT]
    if not report.entries:
        return
    console = Console(width=max(Console().width, 150))
    console.print(report.table())
    for name, reason in report.missing.items():
        console.print(f"not measured: {name}: {reason}", highlight=False, markup=False)
    console.print(f"wrote {(OUT / 'report.json').relative_to(ROOT)} and report.md")
