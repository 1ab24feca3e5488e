"""compose.postgresql.yaml: two proxies that are set up as compose.yaml's is, behind a load balancer that streams."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from proxy.settings import load
from tests.test_compose import COMPOSE as OF_ONE
from tests.test_compose import CONTAINERFILE, ROOT, SCHEMA, seconds

TEXT = (ROOT / "compose.postgresql.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROXIES = [SERVICES[f"stellarchat-{number}"] for number in (1, 2)]
NGINX = COMPOSE["configs"]["balancer"]["content"].replace("$$", "$")


def interpolated(text: str) -> str:
    """The text where only the password is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text.replace("${POSTGRESQL_PASSWORD:?set it in .env}", "secret"))


@pytest.mark.parametrize("text", (TEXT, interpolated(TEXT)))
def test_compose_file_fits_the_compose_specification(text: str) -> None:
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


def test_every_variable_but_the_password_has_a_default() -> None:
    assert "${" not in interpolated(TEXT)


def test_proxies_differ_only_in_their_volumes() -> None:
    one, other = ({**each, "volumes": None} for each in PROXIES)
    assert one == other
    assert not set(PROXIES[0]["volumes"]) & set(PROXIES[1]["volumes"])
    assert [volume.split(":")[1] for volume in PROXIES[0]["volumes"]] == ["/app/data", "/app/logs"]


def test_proxy_is_set_up_as_with_sqlite() -> None:
    alone = OF_ONE["services"]["stellarchat"]
    for proxy in PROXIES:
        for name in ("build", "healthcheck", "read_only", "tmpfs", "cap_drop", "security_opt", "stop_grace_period"):
            assert proxy[name] == alone[name]
        ours = {name: value for name, value in proxy["environment"].items() if name in alone["environment"]}
        assert ours == alone["environment"] | {"DATABASE_URL": proxy["environment"]["DATABASE_URL"]}


def test_settings_are_taken_and_hold_no_password() -> None:
    environment = yaml.safe_load(interpolated(TEXT))["services"]["stellarchat-1"]["environment"]
    loaded = load(environ=environment | {"STELLARCHAT_ADMIN_KEY_FILE": "/dev/null"}, env_file=None)
    assert loaded.is_postgresql
    assert "secret" not in loaded.database_url
    assert loaded.state_path == Path("/app/data")


def test_image_has_the_driver() -> None:
    assert re.search(r"'\.\[[^]]*postgresql[^]]*\]'", CONTAINERFILE)


def test_only_the_balancer_is_published_and_only_proxies_reach_the_database() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["balancer"]
    assert SERVICES["balancer"]["ports"][0].startswith("127.0.0.1:")
    assert SERVICES["postgresql"]["networks"] == ["database"]
    assert [name for name, service in SERVICES.items() if "database" in service.get("networks", ())] == [
        *("stellarchat-1", "stellarchat-2", "postgresql"),
    ]
    assert COMPOSE["networks"]["database"]["internal"] is True


def test_database_stops_in_time_and_keeps_its_data() -> None:
    assert SERVICES["postgresql"]["volumes"] == ["database:/var/lib/postgresql"]
    assert seconds(SERVICES["postgresql"]["stop_grace_period"]) >= 60


def test_balancer_knows_the_proxies_and_passes_streams_on() -> None:
    assert re.findall(r"server (stellarchat-\d):8080", NGINX) == ["stellarchat-1", "stellarchat-2"]
    for directive in ("proxy_buffering off;", "proxy_request_buffering off;", "proxy_set_header Host $http_host;"):
        assert directive in NGINX


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx")
    inner = re.sub(r"stellarchat-\d:", "127.0.0.1:", NGINX).replace("listen 8080", f"listen unix:{tmp_path}/socket")
    whole = f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off; {inner} }}"
    (tmp_path / "nginx.conf").write_text(whole)
    tested = subprocess.run(
        [nginx, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stderr
