"""APISIX's files follow from the policy and the routes, and planted errors are found."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from fastapi.openapi.utils import get_openapi

from qbtc.errors import InputError
from qbtc_gateway import apisix
from qbtc_gateway.commands import apisix as command
from qbtc_gateway.settings import Limits, Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "apisix"
POLICY = load_settings(ROOT / "deploy" / "policy.toml", environment={})
HIDDEN = {"/health", "/", "/openapi.json"}
"""Routes that the description of the interface leaves out."""


def resources() -> dict[str, Any]:
    tree = yaml.safe_load((FOLDER / apisix.RESOURCES).read_text())
    assert isinstance(tree, dict)
    return tree


def plugins(name: str) -> dict[str, Any]:
    [found] = [each["plugins"] for each in resources()["plugin_configs"] if each["id"] == name]
    assert isinstance(found, dict)
    return found


def planted(folder: Path, name: str, change: Callable[[str], str]) -> list[str]:
    """What is said about the committed files after a change to one."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    path = folder / name
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    return apisix.check(folder, POLICY, upstream="gateway")


def test_the_committed_files_are_what_the_policy_and_the_routes_give() -> None:
    assert apisix.check(FOLDER, POLICY, upstream="gateway") == []


def test_every_path_of_the_gateway_has_its_route_and_metrics_has_none() -> None:
    app = apisix._application(Settings())
    described = get_openapi(title="", version="", routes=app.routes)["paths"]
    expected = {
        (path.partition("{")[0] + "*" if "{" in path else path, method.upper())
        for path, methods in described.items()
        for method in methods
        if path != "/metrics"
    }
    expected |= {(path, "GET") for path in HIDDEN}
    expected |= {(path, "HEAD") for path, method in expected if method == "GET"}
    routes = resources()["routes"]
    found = [(route["uri"], method) for route in routes for method in route["methods"]]
    assert sorted(found) == sorted(expected)
    assert "/metrics" in described
    assert len({route["id"] for route in routes}) == len(routes)


def test_only_health_the_page_and_the_description_are_open() -> None:
    routes = resources()["routes"]
    open_paths = {route["uri"] for route in routes if route["plugin_config_id"] == "open"}
    assert open_paths == {"/", "/health", "/health/live", "/health/ready", "/openapi.json"}
    assert "key-auth" in plugins("with-key")
    assert "key-auth" not in plugins("open")


def test_its_numbers_are_the_policys() -> None:
    limits = POLICY.limits
    for name in ("with-key", "open"):
        assert plugins(name)["limit-count"]["count"] == limits.requests_per_minute_max
        assert plugins(name)["limit-conn"]["conn"] == limits.requests_open_per_key_max
    config = yaml.safe_load((FOLDER / apisix.CONFIG).read_text())
    http = config["nginx_config"]["http"]
    assert http["client_max_body_size"] == str(limits.body_bytes_max)
    assert http["client_header_timeout"] == f"{limits.header_read_s_max * 1000:.0f}ms"
    assert http["client_body_timeout"] == f"{limits.body_read_s_max * 1000:.0f}ms"
    assert http["keepalive_timeout"] == f"{limits.idle_s_max * 1000:.0f}ms"
    assert http["send_timeout"] == f"{limits.write_s_max * 1000:.0f}ms"


def test_another_policy_gives_other_numbers_and_none_where_a_limit_is_off(tmp_path: Path) -> None:
    limits = Limits(requests_per_minute_max=0, requests_open_per_key_max=7)
    apisix.write(tmp_path, Settings(limits=limits), upstream="10.0.0.7")
    tree = yaml.safe_load((tmp_path / apisix.RESOURCES).read_text())
    for each in tree["plugin_configs"]:
        assert "limit-count" not in each["plugins"]
        assert each["plugins"]["limit-conn"]["conn"] == 7
    assert list(tree["upstreams"][0]["nodes"]) == ["10.0.0.7:8000"]
    shutil.copy(FOLDER / apisix.SCHEMA, tmp_path)
    assert apisix.check(tmp_path, Settings(limits=limits), upstream="10.0.0.7") == []


def test_a_post_is_never_sent_twice_and_an_answer_may_take_its_time() -> None:
    [upstream] = resources()["upstreams"]
    assert upstream["retries"] == 0
    assert upstream["timeout"]["read"] >= 600


def test_no_key_is_in_a_file_and_no_header_but_the_request_id_in_a_log() -> None:
    [consumer] = resources()["consumers"]
    assert consumer["plugins"]["key-auth"]["key"] == "Bearer ${{QBTC_API_KEY}}"
    for name in ("with-key", "open"):
        logged = plugins(name)["file-logger"]["log_format"].values()
        assert [each for each in logged if each.startswith("$http_")] == ["$http_x_request_id"]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            apisix.RESOURCES,
            lambda text: text.replace("count: 600", "count: -1"),
            "limit-count/count",
        ),
        (apisix.RESOURCES, lambda text: text.replace("conn: 32", "conn: many"), "limit-conn/conn"),
        (apisix.RESOURCES, lambda text: text.replace("#END\n", ""), "last line is not #END"),
        (apisix.RESOURCES, lambda text: text + "# more\n", "last line is not #END"),
        (apisix.RESOURCES, lambda text: text.replace("  limit-conn:", "  limit-con:"), "limit-con"),
        (
            apisix.RESOURCES,
            lambda text: text.replace("policy: local\n", "policy: redis\n"),
            "policy",
        ),
        (apisix.RESOURCES, lambda text: text.replace("retries: 0", "retries: 1"), "retries"),
        (apisix.RESOURCES, lambda text: text.replace("      policy: local\n", ""), '"policy"'),
        (
            apisix.RESOURCES,
            lambda text: text.replace("${{QBTC_API_KEY}}", "s3cret"),
            "key-auth/key",
        ),
        (apisix.RESOURCES, lambda text: text.replace("$uri", "$request_uri"), "log_format/path"),
        (
            apisix.RESOURCES,
            lambda text: text.replace("$http_x_request_id", "$http_authorization"),
            "log_format/request_id",
        ),
        (apisix.RESOURCES, lambda text: text.replace("- GET", "- GETS"), "methods/0"),
        (apisix.RESOURCES, lambda text: text.replace("routes:", "routes: ["), "not YAML"),
        (apisix.RESOURCES, lambda text: text.replace("/tokenize", "/tokenise"), "differs"),
        (apisix.CONFIG, lambda text: text.replace("'8388608'", "0"), "client_max_body_size"),
        (apisix.CONFIG, lambda text: text.replace("- key-auth", "- key-aut"), "plugins/1"),
        (
            apisix.CONFIG,
            lambda text: text.replace("enable_admin: false", "enable_admin: true"),
            "enable_admin",
        ),
        (apisix.CONFIG, lambda text: text.replace("10000ms", "20000ms"), "differs"),
    ],
)
def test_a_planted_error_is_found(
    name: str, change: Callable[[str], str], said: str, tmp_path: Path
) -> None:
    wrong = planted(tmp_path, name, change)
    assert wrong
    assert any(line.startswith(f"{name}: ") and said in line for line in wrong), wrong


def test_the_command_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / apisix.RESOURCES).write_text("routes: []\n")
    options = ["--folder", str(tmp_path), "--policy", str(ROOT / "deploy" / "policy.toml")]
    done = CliRunner().invoke(command, ["check", *options])
    assert isinstance(done.exception, InputError)
    assert "qbtc apisix write" in str(done.exception)
    assert any("#END" in note for note in done.exception.__notes__)
    assert CliRunner().invoke(command, ["write", *options]).exit_code == 0
    assert CliRunner().invoke(command, ["check", *options]).exit_code == 0


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plugins\.schema\.json"):
        apisix.check(tmp_path, POLICY, upstream="gateway")
