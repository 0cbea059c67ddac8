"""API keys: made once, kept as hashes, found in constant time, followed while a server runs."""

import os
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from qbtc.errors import InputError
from qbtc_gateway import commands
from qbtc_gateway.security import keys as keys_module
from qbtc_gateway.security.keys import KeyFile, KeyRing, new_key, parse_key
from qbtc_gateway.security.scopes import SCOPES, SCOPES_DEFAULT, has_scope, scope_of


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "folder" / "keys.json")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a ring look at its file at every request."""
    monkeypatch.setattr(keys_module, "RELOAD_S_MIN", 0.0)


def test_a_key_has_256_random_bits_and_only_its_hash_is_kept(file: KeyFile) -> None:
    texts, private = set(), set()
    for _ in range(20):
        text, key = new_key("me", SCOPES_DEFAULT)
        file.add(key)
        texts.add(text)
        assert parse_key(text) == key.id
        private.add(text.removeprefix(f"qbtc-{key.id}-"))
    kept = file.path.read_text(encoding="utf-8")
    assert len(texts) == 20
    assert {len(secret) for secret in private} == {43}
    assert not any(secret in kept for secret in private)


def test_the_file_is_its_owners_only(file: KeyFile) -> None:
    file.add(new_key("", SCOPES_DEFAULT)[1])
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.path.chmod(0o620)
    with pytest.raises(InputError, match="chmod 600"):
        file.read()


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", '{"version": 2}', '{"keys": [{"id": "a"}]}', '{"keyz": []}'],
)
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(InputError, match=r"keys\.json"):
        KeyRing(KeyFile(path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "keys.json"
    make(path)
    with pytest.raises(InputError, match=r"keys\.json"):
        KeyFile(path).read()


def test_keys_made_at_the_same_time_are_all_kept(file: KeyFile) -> None:
    made = [new_key(str(i), SCOPES_DEFAULT)[1] for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(file.add, made))
    assert {key.id for key in file.read()} == {key.id for key in made}


def test_only_the_whole_key_opens(file: KeyFile) -> None:
    text, key = new_key("", SCOPES_DEFAULT)
    file.add(key)
    ring = KeyRing(file)
    assert ring.find(text) == key
    for wrong in (
        text[:-1],
        text + "a",
        text.upper(),
        f"qbtc-{key.id}-",
        key.id,
        key.sha256,
        "",
        "qbtc--",
        "\udcff",
        "ключ",
        "q" * 100_000,
    ):
        assert ring.find(wrong) is None


@pytest.mark.usefixtures("eager")
def test_a_running_ring_follows_its_file_and_never_opens_up(file: KeyFile) -> None:
    ring = KeyRing(file)
    assert not ring.required
    text, key = new_key("", SCOPES_DEFAULT)
    file.add(key)
    assert ring.find(text) == key
    assert ring.required

    good = file.path.read_bytes()
    file.path.write_bytes(b"{")
    assert ring.find(text) == key, "a damaged file leaves the keys as they were"
    assert ring.problem is not None
    file.path.write_bytes(good)
    assert ring.find(text) == key
    assert ring.problem is None

    file.path.chmod(0o620)
    ring.refresh()
    assert ring.problem is not None
    file.path.chmod(0o600)
    ring.refresh()
    assert ring.problem is None, "what the message says to do is enough"

    file.revoke(key.id)
    assert ring.find(text) is None
    file.path.unlink()
    ring.refresh()
    assert ring.required


def test_the_server_keeps_the_time_of_last_use_beside_the_keys(file: KeyFile) -> None:
    text, key = new_key("", SCOPES_DEFAULT)
    file.add(key)
    before = file.path.read_bytes()
    ring = KeyRing(file)
    ring.find(text)
    ring.save_used()
    assert abs(file.used()[key.id] - time.time()) < 60
    assert file.path.read_bytes() == before


def test_the_command_shows_a_key_once(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    call = CliRunner().invoke
    made = call(commands.keys, ["new", "--name", "laptop", "--scope", "chat", "--keys-file", path])
    text = made.stdout.strip()
    identity = parse_key(text)
    assert identity is not None
    listed = call(commands.keys, ["list", "--json", "--keys-file", path])
    assert text not in listed.output
    row = msgspec.json.decode(listed.stdout)["keys"][0]
    assert (row["id"], row["name"], row["scopes"]) == (identity, "laptop", ["chat"])
    assert row["last_used"] is None
    gone = call(commands.keys, ["revoke", identity, "--keys-file", path])
    assert gone.exit_code == 0
    assert KeyFile(Path(path)).read() == ()
    again = call(commands.keys, ["revoke", identity, "--keys-file", path])
    assert isinstance(again.exception, InputError)


def test_an_empty_name_of_a_file_is_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QBTC_KEYS_FILE", str(tmp_path / "keys.json"))
    made = CliRunner().invoke(commands.keys, ["new", "--keys-file", ""])
    assert made.exit_code == 0
    assert len(KeyFile(tmp_path / "keys.json").read()) == 1


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/", None),
        ("/health/ready", None),
        ("/metrics", "metrics"),
        ("/v1/models", "models"),
        ("/v1/models/a/b", "models"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/chat/completions", "chat"),
        ("/v1/anything", "chat"),
        ("/metrics/", "chat"),
        ("/health/other", "chat"),
    ],
)
def test_every_path_that_is_not_open_needs_a_scope(path: str, scope: str | None) -> None:
    assert scope_of(path) == scope


def test_a_key_has_its_own_scope_and_one_to_chat_sees_the_models_too() -> None:
    found = {(own, needed) for own in SCOPES for needed in SCOPES if has_scope((own,), needed)}
    assert found == {(scope, scope) for scope in SCOPES} | {("chat", "models")}
