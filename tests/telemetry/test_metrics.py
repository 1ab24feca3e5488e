"""Metrics: right for one worker and for several, also when one of them dies."""

import json
import os
import re
import signal
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from proxy.app import open_services
from proxy.demo import MODEL
from proxy.telemetry import metrics
from proxy.telemetry.metrics import MODELS_MAX, Metrics
from proxy.telemetry.observer import Observer
from proxy.wire.chat_reply import Completion
from tests.serving import REPOSITORY, child_of, running_proxy, server_process, settings_for, until
from tests.stored import choice, exchange, outcome, user

Samples = dict[tuple[str, ...], float]


def samples(text: str | bytes) -> Samples:
    content = text if isinstance(text, str) else text.decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }


def chat(client: httpx.Client, url: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    client.post(f"{url}/v1/chat/completions", json=body).raise_for_status()


def test_sums_take_in_the_workers_that_are_gone_and_gauges_do_not(tmp_path: Path) -> None:
    one, two = Metrics(tmp_path, "one"), Metrics(tmp_path, "two")
    for each in (one, two):
        each.add("stellarchat_chats", "completed")
        each.set("stellarchat_chats_in_flight", 3)
        each.set("stellarchat_write_queue_age_seconds", 2)
        each.observe("stellarchat_chat_duration_seconds", 0.3)
        each.observe("stellarchat_chat_duration_seconds", 9999)
        each.add_tokens("a", prompt=2, completion=5)
    two.close()
    try:
        found = samples(one.text())
    finally:
        one.close()
    assert found["stellarchat_chats_total", "completed"] == 2
    assert found["stellarchat_chats_in_flight",] == 3
    assert found["stellarchat_write_queue_age_seconds",] == 2
    assert found["stellarchat_chat_duration_seconds_bucket", "0.25"] == 0
    assert found["stellarchat_chat_duration_seconds_bucket", "0.5"] == 2
    assert found["stellarchat_chat_duration_seconds_bucket", "+Inf"] == 4
    assert found["stellarchat_chat_duration_seconds_count",] == 4
    assert found["stellarchat_tokens_total", "completion", "a"] == 10


def test_only_so_many_models_are_told_apart(tmp_path: Path) -> None:
    one, two = Metrics(tmp_path, "one"), Metrics(tmp_path, "two")
    for number in range(500):
        one.add_tokens(f"{number}" * 200, prompt=1, completion=0)
        two.add_tokens(f"other-{number}\n\ud800", prompt=1, completion=0)
    found = {key: value for key, value in samples(one.text()).items() if key[0] == "stellarchat_tokens_total"}
    one.close()
    two.close()
    assert len(found) <= 2 * MODELS_MAX
    assert sum(found.values()) == 1000


def test_what_servers_that_are_gone_counted_is_forgotten(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    mine = metrics.folder_of(database, workers=1)
    alive = mine.with_name(str(os.getppid()))
    for folder in (mine, alive, mine.with_name("999999999")):
        folder.mkdir(parents=True)
    metrics.clear(database)
    assert list(mine.parent.iterdir()) == [alive]


async def test_the_route_says_what_has_happened(tmp_path: Path) -> None:
    async with running_proxy(settings_for(tmp_path, demo=True)) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        await client.post("/v1/chat/completions", json=body)
        assert (await client.get("/v1/sessions/none")).status_code == 404
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples(answer.text)
        assert found["stellarchat_chats_total", "completed"] == 1
        assert found["stellarchat_requests_total", "4xx"] == 1
        assert found["stellarchat_time_to_first_token_seconds_count",] == 1
        assert found["stellarchat_upstream_latency_seconds_count",] == 1
        assert found["stellarchat_proxy_overhead_seconds_count",] == 1
        assert found["stellarchat_workers",] == 1
        assert found["stellarchat_database_commits_total",] >= 1
        assert found["stellarchat_database_bytes", "database"] > 0
        assert any(key[0] == "stellarchat_tokens_total" and value > 0 for key, value in found.items())
        assert (await client.post("/metrics")).status_code == 405


def test_two_workers_are_summed_and_a_dead_ones_counts_stay(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", "--workers", "2") as server:

        def scraped() -> Samples:
            return samples(httpx.get(f"{server.url}/metrics").raise_for_status().text)

        until(lambda: scraped()["stellarchat_workers",] == 2)
        for _ in range(20):
            with httpx.Client() as client:
                chat(client, server.url)
        assert scraped()["stellarchat_chats_total", "completed"] == 20
        folder = next((tmp_path / "stellarchat.db-metrics").iterdir())
        assert len(list(folder.iterdir())) == 2
        os.kill(child_of(server.pid), signal.SIGKILL)
        until(lambda: len(list(folder.iterdir())) == 3 and _can_scrape(server.url))
        until(lambda: scraped()["stellarchat_workers",] == 2)
        assert scraped()["stellarchat_chats_total", "completed"] == 20
        assert server.stop() == 0


def _can_scrape(url: str) -> bool:
    try:
        return httpx.get(f"{url}/metrics").status_code == 200
    except httpx.TransportError:
        return False


async def test_a_chat_that_ends_after_the_last_measurement_is_still_saved(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    async with open_services(settings) as services:
        observer = Observer(settings, services.recorder)
        observer.start()
        live = services.recorder.open(exchange([user("hi")]), Completion(), size=2)
        await observer.close()
        saved = services.recorder.finish(live, outcome(choice("yes")))
        assert saved is not None
        await saved
        observer.request_ended({"path": "/health", "method": "GET", "headers": []}, status=200, seconds=0.1)


async def test_the_dashboard_shows_what_there_is(tmp_path: Path) -> None:
    dashboard = json.loads((REPOSITORY / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    async with running_proxy(settings_for(tmp_path, demo=True)) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        await client.post("/v1/chat/completions", json=body)
        families = text_string_to_metric_families((await client.get("/metrics")).text)
    labels: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    ours = {name for name in labels if not name.endswith("_created")}
    for expression in asked:
        names = set(re.findall(r"stellarchat_\w+", expression))
        assert names <= ours, expression
        grouped = {label.strip() for found in re.findall(r"by \(([^)]*)\)", expression) for label in found.split(",")}
        assert grouped <= {"instance"}.union(*(labels[name] for name in names)), expression
    shown = set(re.findall(r"stellarchat_\w+", " ".join(asked)))
    assert {re.sub(r"_(sum|count)$", "_bucket", name) for name in ours} == shown
