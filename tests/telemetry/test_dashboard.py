"""Grafana's dashboard against a real Prometheus that scrapes a served demo: every query works, and none is empty."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.demo import MODEL
from tests.serving import REPOSITORY, server_process, until

_DASHBOARD = json.loads((REPOSITORY / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
_CONFIG = """\
global: {{scrape_interval: 500ms}}
scrape_configs: [{{job_name: stellarchat, static_configs: [{{targets: ["{target}"]}}]}}]
"""


def queries(panels: list[dict[str, Any]]) -> Iterator[str]:
    """Every expression, with Grafana's variables filled in."""
    for panel in panels:
        yield from queries(panel.get("panels", []))
        for target in panel.get("targets", []):
            text = re.sub(r"\$__rate_interval|\$__interval|\$__range", "1m", target["expr"])
            yield re.sub(r"\$\{?\w+(:\w+)?\}?", ".*", text)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes the server twice a second."""
    (folder / "prometheus.yml").write_text(_CONFIG.format(target=target), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def result(client: httpx.Client, query: str) -> list[Any]:
    """What an instant query gives; nothing where Prometheus does not answer yet."""
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return []
    if answer.status_code == 503:  # it is starting
        return []
    assert answer.status_code == 200, (query, answer.text)
    found: list[Any] = answer.json()["data"]["result"]
    return found


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_every_query_of_the_dashboard_finds_what_was_counted(tmp_path: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    with (
        server_process(tmp_path, "http://127.0.0.1:9", "--demo") as server,
        prometheus(tmp_path, server.url.removeprefix("http://")) as client,
    ):

        def chat_and_count() -> bool:
            for stream in (False, True):
                httpx.post(server.url + "/v1/chat/completions", json={**body, "stream": stream}).raise_for_status()
            return bool(result(client, "rate(stellarchat_chats_total[1m]) > 0"))

        until(chat_and_count, seconds=60)
        asked = list(queries(_DASHBOARD["panels"]))
        assert asked
        assert [query for query in asked if not result(client, query)] == []
