"""Settings of the gateway: file, environment and flags, and where it may listen."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from qbtc.errors import ConfigError, InputError
from qbtc_gateway.server import listen
from qbtc_gateway.settings import Limits, Settings, check_bind, is_loopback, load_settings


def _write(folder: Path, text: str) -> Path:
    path = folder / "serve.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_open_to_this_machine_only() -> None:
    settings = load_settings(environment={})
    assert settings == Settings()
    assert is_loopback(settings.host)


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        '[serve]\nhost = "::1"\nport = 1\nthreads = 3\n'
        "[serve.limits]\nbody_bytes_max = 10\nwrite_s_max = 2.5\n",
    )
    settings = load_settings(
        path,
        environment={
            "QBTC_SERVE_PORT": "2",
            "QBTC_SERVE_THREADS": "4",
            "QBTC_SERVE_LIMITS_BODY_BYTES_MAX": "20",
            "QBTC_SERVE_MODEL": "7",
            "HOME": "/",
        },
        flags={"threads": 5, "host": None},
    )
    assert (settings.host, settings.port, settings.threads) == ("::1", 2, 5)
    assert (settings.limits.body_bytes_max, settings.limits.write_s_max) == (20, 2.5)
    assert settings.model == "7"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\nprot = 1\n", "did you mean 'port'"),
        ("[serve.limits]\nbody_bytes = 1\n", "did you mean 'body_bytes_max'"),
        ("[serv]\nport = 1\n", "did you mean 'serve'"),
        ("[serve]\nport = 70000\n", "serve.port"),
        ("[serve]\nthreads = 257\n", "serve.threads"),
        ('[serve]\nengine = "remote"\n', "is not possible"),
        ('[serve]\nrecords = "metadat"\n', "did you mean 'metadata'"),
        ("[serve.limits]\nwrite_s_max = 0\n", "serve.limits.write_s_max"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"serve\.toml") as caught:
        load_settings(_write(tmp_path, text), environment={})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QBTC_SERVE_PROT", "1"),
        ("QBTC_SERVE_PORT", "many"),
        ("QBTC_SERVE_LIMITS_BODY", "1"),
        ("QBTC_SERVE_LIMITS_BODY_BYTES_MAX", "-1"),
    ],
)
def test_a_variable_that_does_not_fit_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load_settings(environment={name: value})


def test_addresses_of_servers_come_from_the_variables_that_all_commands_share(
    tmp_path: Path,
) -> None:
    path = _write(tmp_path, '[serve]\namqp_url = "a"\nredis_url = "b"\ndatabase_url = "c"\n')
    shared = {
        "QBTC_AMQP_URL": "amqp://h/",
        "QBTC_REDIS_URL": "redis://h/0",
        "QBTC_DATABASE_URL": "off",
        "QBTC_BUS_PREFIX": "7",
    }
    settings = load_settings(path, environment=shared)
    assert (settings.amqp_url, settings.redis_url) == ("amqp://h/", "redis://h/0")
    assert (settings.database_url, settings.bus_prefix) == ("off", "7")
    own = shared | {"QBTC_SERVE_REDIS_URL": "redis://mine/0", "QBTC_SERVE_RECORDS": "full"}
    settings = load_settings(path, environment=own, flags={"amqp_url": "amqp://flag/"})
    assert (settings.amqp_url, settings.redis_url) == ("amqp://flag/", "redis://mine/0")
    assert settings.records == "full"


@pytest.mark.parametrize("url", ["", "redis://:hidden@h/0", "memory://", "hidden"])
def test_the_bus_is_not_used_without_an_address_of_it(url: str) -> None:
    with pytest.raises(ConfigError, match="QBTC_AMQP_URL") as refusal:
        load_settings(environment={}, flags={"engine": "amqp", "amqp_url": url})
    assert "hidden" not in str(refusal.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    check_bind(host, keys=0, keys_path=Path("k"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.com", ""])
def test_an_address_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(InputError, match="qbtc keys new"):
        check_bind(host, keys=0, keys_path=Path("k"))
    check_bind(host, keys=1, keys_path=Path("k"))


@pytest.mark.parametrize("host", ["a" * 300, "a..b", "no.such.host.invalid"])
def test_a_name_that_cannot_be_listened_on_is_refused(host: str) -> None:
    with pytest.raises(InputError, match="give another --host or --port"):
        listen(host, 0)


@pytest.mark.parametrize("kind", [Settings, Limits])
def test_the_documentation_names_every_setting_with_its_default(
    kind: type[Settings] | type[Limits],
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", text, flags=re.MULTILINE))
    for field in msgspec.structs.fields(kind):
        if field.name != "limits":
            default = list(field.default) if field.default == () else field.default
            assert tomllib.loads(f"v = {told[field.name]}")["v"] == default, field.name
