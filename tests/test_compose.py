"""compose.yaml and the Containerfile keep what the README promises of them.

`compose-spec.json` is the Compose Specification's schema (Apache-2.0, by the authors of the Compose Specification),
unchanged from the package check-jsonschema 0.39.0 on PyPI.
"""

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
PROXY: dict[str, Any] = COMPOSE["services"]["stellarchat"]
VLLM: dict[str, Any] = COMPOSE["services"]["vllm"]
CONTAINERFILE = re.sub(r"\\\n\s*", "", (ROOT / "Containerfile").read_text())
INSTRUCTIONS = [line.split(maxsplit=1) for line in CONTAINERFILE.splitlines() if line and not line.startswith("#")]
LAST_STAGE = INSTRUCTIONS[max(index for index, (word, _) in enumerate(INSTRUCTIONS) if word == "FROM") :]


def interpolated(value: str) -> str:
    """The value on a machine where none of the variables is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def seconds(duration: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([smh])", duration))


def last_stage(word: str) -> str:
    [value] = [rest for each, rest in LAST_STAGE if each == word]
    return value


def image_environment() -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(last_stage("ENV")))


@pytest.mark.parametrize("text", (TEXT, interpolated(TEXT)))
def test_compose_file_fits_the_compose_specification(text: str) -> None:
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


def test_schema_refuses_what_the_specification_does_not_know() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(COMPOSE | {"services": {"stellarchat": PROXY | {"read_onyl": True}}}, SCHEMA)


def test_every_variable_has_a_default() -> None:
    assert re.findall(r"\$\{\w+\}|\$\w+", TEXT) == []
    assert "${" not in interpolated(TEXT)


def test_volumes_are_the_seeds_and_exist_in_a_checkout() -> None:
    volumes = PROXY["volumes"] + VLLM["volumes"]
    assert volumes == ["./volume/db:/app/data", "./volume/logs:/app/logs", "./volume/models:/app/models"]
    for volume in volumes:
        assert (ROOT / volume.split(":")[0] / ".gitkeep").is_file()


def test_proxy_keeps_its_data_on_the_volumes_and_asks_vllm() -> None:
    environment = PROXY["environment"]
    assert environment["STELLARCHAT_UPSTREAM_URL"] == "http://vllm:8000"
    assert environment["DATABASE_URL"] == "sqlite:////app/data/stellarchat.db"
    assert environment["STELLARCHAT_LOG_DIR"] == "/app/logs"
    assert environment["STELLARCHAT_HOST"] == "0.0.0.0"


def test_proxy_s_port_is_published_on_this_machine_alone() -> None:
    assert [interpolated(port) for port in PROXY["ports"]] == ["127.0.0.1:8080:8080"]
    assert PROXY["environment"]["STELLARCHAT_PORT"] == "8080"


def test_vllm_is_not_published() -> None:
    assert not {"ports", "network_mode"} & set(VLLM)


@pytest.mark.parametrize(("service", "path"), ((PROXY, "/ready"), (VLLM, "/health")))
def test_health_is_asked_of_the_server_itself(service: dict[str, Any], path: str) -> None:
    command, _python, _flag, script = service["healthcheck"]["test"]
    assert command == "CMD"
    assert f'"GET", "{path}"' in script
    compile(script, "healthcheck", "exec")


def test_proxy_starts_once_vllm_is_healthy() -> None:
    assert PROXY["depends_on"]["vllm"]["condition"] == "service_healthy"
    assert seconds(VLLM["healthcheck"]["start_period"]) >= 600, "a first start downloads the model"


def test_proxy_runs_as_nobody_special() -> None:
    user, group = interpolated(PROXY["user"]).split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert PROXY["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in PROXY["security_opt"]
    assert not {"cap_add", "privileged"} & set(PROXY)


def test_proxy_s_root_is_read_only_with_a_place_for_temporary_files() -> None:
    assert PROXY["read_only"] is True
    assert [mount.split(":")[0] for mount in PROXY["tmpfs"]] == ["/tmp"]


def test_proxy_gets_longer_to_stop_than_its_drain_takes() -> None:
    drain = float(PROXY["environment"]["STELLARCHAT_DRAIN_GRACE_SECONDS"])
    assert seconds(PROXY["stop_grace_period"]) >= drain + 10


def test_admin_key_is_a_secret_and_not_in_the_environment() -> None:
    assert PROXY["secrets"] == ["admin_key"]
    assert PROXY["environment"]["STELLARCHAT_ADMIN_KEY_FILE"] == "/run/secrets/admin_key"
    assert "STELLARCHAT_ADMIN_KEY" not in PROXY["environment"]
    assert interpolated(COMPOSE["secrets"]["admin_key"]["file"]) == "/dev/null"


def test_vllm_reserves_a_gpu_and_serves_the_model_of_the_variable() -> None:
    [device] = VLLM["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert VLLM["image"].startswith("vllm/vllm-openai:")
    assert VLLM["entrypoint"] == ["vllm", "serve"]
    assert re.fullmatch(r"\$\{MODEL:-.+\}", VLLM["command"][0])


def test_image_has_two_stages_and_takes_only_the_environment_over() -> None:
    assert [word for word, _ in INSTRUCTIONS].count("FROM") == 2
    copies = [rest for word, rest in LAST_STAGE if word in ("COPY", "ADD")]
    assert copies == ["--from=builder /opt/stellarchat /opt/stellarchat"]
    assert not any("pip" in rest or "apt" in rest for word, rest in LAST_STAGE if word == "RUN")


def test_image_runs_as_a_user_of_its_own() -> None:
    user, group = last_stage("USER").split(":")
    assert (user, group) == ("10001", "10001")


def test_image_starts_the_command_as_its_first_process_and_stops_on_sigterm() -> None:
    assert json.loads(last_stage("ENTRYPOINT")) == ["stellarchat"]
    assert json.loads(last_stage("CMD")) == ["serve"]
    assert last_stage("STOPSIGNAL") == "SIGTERM"


def test_image_s_health_check_is_a_program_that_compiles() -> None:
    command = json.loads(last_stage("HEALTHCHECK").partition(" CMD ")[2])
    assert command[:2] == ["python", "-c"]
    assert "'/health'" in command[2]
    compile(command[2], "healthcheck", "exec")


def test_image_keeps_its_data_where_compose_mounts_it() -> None:
    environment = image_environment()
    for name in ("DATABASE_URL", "STELLARCHAT_LOG_DIR", "STELLARCHAT_HOST", "STELLARCHAT_PORT"):
        assert environment[name] == PROXY["environment"][name]
    assert environment["PATH"].startswith("/opt/stellarchat/bin:")


def test_everything_copied_is_let_through_the_ignore_file() -> None:
    lines = (ROOT / ".containerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    copied = [
        name for word, rest in INSTRUCTIONS if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    ]
    assert copied
    assert all(any(fnmatch(name, pattern) for pattern in allowed) for name in copied)
