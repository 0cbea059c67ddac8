"""The house keeps its shape: who imports whom, and what may never be committed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "python" / "qbtc"
TRACKED_BYTES_MAX = 1_000_000
MAY_IMPORT_NAUTILUS = ("trading/", "data/catalog.py", "data/instruments.py")


def _imports(path: Path) -> Iterator[str]:
    """Every module name that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _package_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_only_core_imports_the_compiled_module() -> None:
    outside = [
        path.relative_to(PACKAGE).as_posix()
        for path in _package_files()
        if "qbtc._core" in set(_imports(path)) and path.parent.name != "core"
    ]
    assert outside == []


def test_only_the_host_and_the_catalog_import_nautilus() -> None:
    outside = [
        name
        for path in _package_files()
        if not (name := path.relative_to(PACKAGE).as_posix()).startswith(MAY_IMPORT_NAUTILUS)
        and any(module.split(".")[0] == "nautilus_trader" for module in _imports(path))
    ]
    assert outside == []


def test_strategies_import_only_what_users_may_rely_on() -> None:
    allowed = ("qbtc.core", "qbtc.trading", "qbtc.errors", "qbtc.messages")
    for path in sorted((ROOT / "strategies").glob("*.py")):
        for module in _imports(path):
            top = module.split(".")[0]
            if top == "qbtc":
                assert module.startswith(allowed) or module == "qbtc", (path.name, module)
            else:
                assert top in sys.stdlib_module_names or top in ("nautilus_trader", "msgspec"), (
                    path.name,
                    module,
                )


def test_importing_qbtc_is_light() -> None:
    heavy = ["nautilus_trader", "pandas", "plotly", "pyarrow", "qbtc._core"]
    code = f"import sys, qbtc, qbtc.cli; print([m for m in sys.modules if m in {heavy!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files that git tracks, or skip outside a checkout."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_market_data_or_weights_are_committed(tracked: list[Path]) -> None:
    data = {".parquet", ".gz", ".zip", ".csv", ".safetensors", ".npz", ".gguf", ".arrow"}
    assert [path.name for path in tracked if path.suffix in data] == []
    assert [path.name for path in tracked if path.stat().st_size > TRACKED_BYTES_MAX] == []
    assert not any(path.name == "uv.lock" for path in tracked)


def test_the_root_stays_small(tracked: list[Path]) -> None:
    entries = {path.relative_to(ROOT).parts[0] for path in tracked}
    assert len(entries) <= 26, sorted(entries)
