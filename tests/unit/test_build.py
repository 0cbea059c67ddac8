"""The build stamp tells a fresh release build from a stale or debug one."""

from pathlib import Path

import pytest

from qbtc.core import build
from qbtc.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "core-rs" / "core" / "src").mkdir(parents=True)
    (tmp_path / "Cargo.toml").write_text("[workspace]\n")
    (tmp_path / "Cargo.lock").write_text("")
    (tmp_path / "core-rs" / "core" / "src" / "lib.rs").write_text("//! x\n")
    return tmp_path


@pytest.mark.parametrize(
    ("data", "digest"),
    [(b"", 0xCBF29CE484222325), (b"a", 0xAF63DC4C8601EC8C), (b"foobar", 0x85944171F73967E8)],
)
def test_the_hash_is_the_published_fnv1a(data: bytes, digest: int) -> None:
    assert build.fnv1a(data) == digest


def test_python_and_the_build_script_hash_the_same_tree_alike() -> None:
    if not (ROOT / "core-rs").is_dir():
        pytest.skip("no source tree beside the tests")
    assert build.build_info().source_hash == build.source_hash(ROOT)


@pytest.mark.parametrize("name", ["Cargo.lock", "core-rs/core/src/lib.rs", "core-rs/core/src/n.rs"])
def test_any_edit_or_new_source_changes_the_hash(checkout: Path, name: str) -> None:
    before = build.source_hash(checkout)
    (checkout / name).write_text("changed\n")
    assert build.source_hash(checkout) != before


def test_a_folder_sorts_before_a_file_that_only_shares_its_first_letters(checkout: Path) -> None:
    # By components `a/z.rs` comes before `a.rs`; by text it would come after.
    src = checkout / "core-rs" / "core" / "src"
    (src / "a").mkdir()
    (src / "a" / "z.rs").write_text("1")
    (src / "a.rs").write_text("2")
    order = [
        b"Cargo.lock\0\0",
        b"Cargo.toml\0[workspace]\n\0",
        b"core-rs/core/src/a/z.rs\0" + b"1\0",
        b"core-rs/core/src/a.rs\0" + b"2\0",
        b"core-rs/core/src/lib.rs\0//! x\n\0",
    ]
    assert build.source_hash(checkout) == f"{build.fnv1a(b''.join(order)):016x}"


def test_a_stale_build_is_refused_with_the_next_step(checkout: Path) -> None:
    with pytest.raises(InputError, match="make setup"):
        build.require_fresh(checkout)


def test_a_debug_build_is_refused(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = build.BuildInfo(version="0", profile="debug", source_hash="0")
    monkeypatch.setattr(build, "build_info", lambda: stamp)
    with pytest.raises(InputError, match="debug build"):
        build.require_fresh(checkout)
