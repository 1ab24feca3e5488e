"""Metrics: right for one worker and for several, also when one of them dies; and never in the way of a chat."""

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from proxy.app import open_services
from proxy.demo import MODEL
from proxy.settings import Settings
from proxy.storage import shared_files
from proxy.telemetry import worker_files
from proxy.telemetry.metrics import MODELS_MAX, Metrics
from proxy.telemetry.observer import Observer
from proxy.wire.chat_reply import Completion
from tests.fake_upstream import fake_upstream, whole
from tests.serving import REPOSITORY, child_of, running_proxy, server_process, settings_for, until
from tests.stored import choice, exchange, opened, outcome, user

Samples = dict[tuple[str, ...], float]
CHAT = "/v1/chat/completions"


def samples(text: str | bytes) -> Samples:
    content = text if isinstance(text, str) else text.decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }


def chat(client: httpx.Client, url: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    client.post(f"{url}{CHAT}", json=body).raise_for_status()


def tokens(found: Samples) -> Samples:
    return {key: value for key, value in found.items() if key[0] == "stellarchat_tokens_total"}


def test_sums_take_in_the_workers_that_are_gone_and_gauges_do_not(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path)) as one:
        with closing(Metrics(tmp_path)) as two:
            for each in (one, two):
                each.add("stellarchat_chats", "completed")
                each.set("stellarchat_chats_in_flight", 3)
                each.set("stellarchat_write_queue_age_seconds", 2)
                each.set("stellarchat_database_commits", 7)
                each.observe("stellarchat_chat_duration_seconds", 0.3)
                each.observe("stellarchat_chat_duration_seconds", 9999)
                each.add_tokens("a", prompt=2, completion=5)
                each.write()
        found = samples(one.text())
    assert found["stellarchat_chats_total", "completed"] == 2
    assert found["stellarchat_chats_total", "failed"] == 0
    assert found["stellarchat_chats_in_flight",] == 3
    assert found["stellarchat_write_queue_age_seconds",] == 2
    assert found["stellarchat_database_commits_total",] == 14
    assert found["stellarchat_chat_duration_seconds_bucket", "0.25"] == 0
    assert found["stellarchat_chat_duration_seconds_bucket", "0.5"] == 2
    assert found["stellarchat_chat_duration_seconds_bucket", "+Inf"] == 4
    assert found["stellarchat_chat_duration_seconds_count",] == 4
    assert sum(value for key, value in tokens(found).items() if "completion" in key) == 10


def test_a_worker_goes_on_with_the_counts_of_one_that_is_gone(tmp_path: Path) -> None:
    other = Metrics(tmp_path)  # while one lives the counts stay
    for number in range(1, 5):
        with closing(Metrics(tmp_path)) as metrics:
            metrics.add("stellarchat_requests", "2xx")
            metrics.set("stellarchat_database_commits", 10)
            metrics.set("stellarchat_workers", 1)
            metrics.observe("stellarchat_chat_duration_seconds", 1)
            metrics.add_tokens("m", prompt=1, completion=1)
            metrics.write()
            found = samples(metrics.text())
        assert found["stellarchat_requests_total", "2xx"] == number
        assert found["stellarchat_database_commits_total",] == 10 * number
        assert found["stellarchat_workers",] == 1
        assert found["stellarchat_chat_duration_seconds_count",] == number
        assert sum(tokens(found).values()) == 2 * number
    assert len(list(tmp_path.glob("counter_*"))) == 2
    other.close()
    assert not tmp_path.exists()


names = st.one_of(
    st.text(max_size=200), st.sampled_from(["模" * 119, "\ud800", "\n", "", "other", "😀" * 300, "a" * 21_000])
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(names, st.integers(0, 2), st.integers(0, 1000), st.booleans()), max_size=300))
def test_every_count_is_right_whatever_the_models_are_called(asked: list[tuple[str, int, int, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workers = [Metrics(Path(folder, "counts")) for _ in range(3)]
        try:
            for name, worker, count, dies in asked:
                workers[worker].add_tokens(name, prompt=count, completion=1)
                workers[worker].add("stellarchat_chats", "completed")
                if dies:  # and another comes in its place
                    workers[worker].close()
                    workers[worker] = Metrics(Path(folder, "counts"))
            for worker_ in workers:
                worker_.write()
            found = samples(workers[0].text())
        finally:
            for worker_ in workers:
                worker_.close()
    assert found["stellarchat_chats_total", "completed"] == len(asked)
    counted = tokens(found)
    assert sum(value for key, value in counted.items() if "prompt" in key) == sum(count for _, _, count, _ in asked)
    assert sum(value for key, value in counted.items() if "completion" in key) == len(asked)


def test_only_so_many_models_are_told_apart_and_no_file_grows(tmp_path: Path) -> None:
    with closing(Metrics(tmp_path)) as one, closing(Metrics(tmp_path)) as two:
        sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.db")}
        for number in range(500):
            one.add_tokens(f"{number}" + "模" * 117, prompt=1, completion=0)
            two.add_tokens(f"{number}😀" + "\x7f" * 200, prompt=1, completion=0)
            one.write()
            two.write()
        found = tokens(samples(one.text()))
        assert {path.name: path.stat().st_size for path in tmp_path.glob("*.db")} == sizes
    assert len(found) == 2 * MODELS_MAX
    assert sum(found.values()) == 1000


@pytest.mark.parametrize(
    "junk", (b"\xff" * 64, b"", b"\x50\x00\x00\x00\x00\x00\x00\x00\x20\x00\x00\x00" + b"\xff" * 90, b"\0\0\0\x7f" * 9)
)
def test_a_damaged_file_hides_no_other_and_is_begun_anew(tmp_path: Path, junk: bytes) -> None:
    with closing(Metrics(tmp_path)) as one:
        one.add("stellarchat_requests", "2xx")
        one.write()
        Metrics(tmp_path).close()
        (tmp_path / "counter_2.db").write_bytes(junk)
        assert samples(one.text())["stellarchat_requests_total", "2xx"] == 1
        with closing(Metrics(tmp_path)) as two:
            two.add("stellarchat_requests", "2xx")
            two.write()
            assert samples(one.text())["stellarchat_requests_total", "2xx"] == 2


def test_what_servers_that_are_gone_counted_is_forgotten(tmp_path: Path) -> None:
    database = tmp_path / "chat.db"
    mine = worker_files.folder_of(database, workers=1)
    alive = mine.with_name(str(os.getppid()))
    for folder in (mine, alive, mine.with_name("999999999")):
        folder.mkdir(parents=True)
    worker_files.clear(database)
    assert list(mine.parent.iterdir()) == [alive]
    alive.rmdir()
    with closing(Metrics(mine)):
        assert list(mine.glob("counter_*"))
    assert not mine.parent.exists()


@pytest.mark.parametrize("trap", ("open", "link", "missing"))
def test_a_folder_that_others_could_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    memory = tmp_path / "shm"
    monkeypatch.setattr(shared_files, "_MEMORY", memory)
    database = tmp_path / "chat.db"
    if trap != "missing":
        memory.mkdir()
        folder = worker_files.folder_of(database, workers=1).parent
        assert folder.parent == memory
        folder.rmdir()
        if trap == "open":
            folder.mkdir()
            folder.chmod(0o777)
        else:
            folder.symlink_to(tmp_path)
    assert worker_files.folder_of(database, workers=1).parent == tmp_path / "chat.db-metrics"


async def test_the_route_says_what_has_happened(tmp_path: Path) -> None:
    async with running_proxy(settings_for(tmp_path, demo=True)) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
        await client.post(CHAT, json=body)
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
        assert any(value > 0 for value in tokens(found).values())
        assert (await client.post("/metrics")).status_code == 405


def _body(**keys: Any) -> dict[str, Any]:
    return {"json": {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **keys}}


@pytest.mark.parametrize(
    ("method", "path", "request_", "counted"),
    (
        ("POST", CHAT, _body(), "completed"),
        ("POST", CHAT, _body(stream=True), "completed"),
        ("POST", CHAT, _body(store=False), "2xx"),
        ("POST", CHAT, _body(store=False, stream=True), "2xx"),
        ("POST", CHAT, _body(model="made-up-name"), "failed"),
        ("POST", CHAT, {"content": b"{bad"}, "4xx"),
        ("POST", CHAT, {"content": b""}, "4xx"),
        ("POST", CHAT, {**_body(), "headers": {"Authorization": "Bearer sk-stellar-guess"}}, "4xx"),
        ("POST", CHAT, {**_body(), "headers": {"Authorization": ""}}, "4xx"),
        ("GET", CHAT, {}, "2xx"),
        ("GET", "/v1/sessions/none", {}, "4xx"),
        ("GET", "/v1/sessions", {"headers": {"Authorization": "Bearer wrong"}}, "4xx"),
        ("GET", "/health", {}, "2xx"),
        ("PUT", "/nothing/here", {}, "4xx"),
        ("OPTIONS", CHAT, {"headers": {"Origin": "http://page", "Access-Control-Request-Method": "POST"}}, "2xx"),
    ),
)
async def test_every_request_is_counted_once_whatever_becomes_of_it(
    tmp_path: Path, method: str, path: str, request_: dict[str, Any], counted: str
) -> None:
    settings_ = settings_for(tmp_path, demo=True, auth="required", admin_key="an-admin-key", cors_origins=("*",))
    key = {"Authorization": "Bearer an-admin-key"}
    async with running_proxy(settings_) as url, httpx.AsyncClient(base_url=url) as client:

        async def totals() -> Counter[str]:
            found = samples((await client.get("/metrics", headers=key)).text)
            return Counter({k[1]: int(v) for k, v in found.items() if k[0] in _COUNTING})

        before = await totals()
        given_ = {"headers": key, **request_}
        await client.request(method, path, **given_)
        after = await totals()
    after["2xx"] -= 1  # the first scrape
    assert after - before == Counter({counted: 1})


_COUNTING = ("stellarchat_chats_total", "stellarchat_requests_total")


async def test_models_that_upstream_refuses_are_no_labels_and_keep_none_out(tmp_path: Path) -> None:
    async with fake_upstream() as upstream:
        refusal = {"error": {"message": "The model does not exist.", "code": 404}}

        async def answer(call: Any, wire: Any) -> None:
            known = json.loads(call.body)["model"] == "real"
            reply = json.dumps({"model": "real", "choices": [choice("yes")], "usage": {"prompt_tokens": 3}})
            content = reply if known else json.dumps(refusal)
            await whole(content.encode(), status=200 if known else 404)(call, wire)

        upstream.on(CHAT, answer)
        configured = settings_for(tmp_path, upstream_url=upstream.url)
        async with running_proxy(configured) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
            for number in range(MODELS_MAX + 6):
                refused = await client.post(CHAT, **_body(model=f"{number:03}" + "模" * 117))
                assert refused.status_code == 404
            for _ in range(3):
                assert (await client.post(CHAT, **_body(model="real"))).status_code == 200
            found = samples((await client.get("/metrics")).text)
    assert {label for key in tokens(found) for label in key[1:]} == {"real", "other", "prompt", "completion"}
    assert sum(tokens(found).values()) == 9
    assert found["stellarchat_chats_total", "failed"] == MODELS_MAX + 6
    with opened(configured.database_path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM exchanges").fetchone() == (MODELS_MAX + 9,)


def test_two_workers_are_summed_and_a_dead_ones_counts_stay(tmp_path: Path) -> None:
    with server_process(tmp_path, "http://127.0.0.1:9", "--demo", "--workers", "2") as server:

        def scraped() -> Samples:
            return samples(httpx.get(f"{server.url}/metrics", timeout=60).raise_for_status().text)

        def are_counted(chats: int) -> bool:
            return scraped()["stellarchat_chats_total", "completed"] == chats

        until(lambda: scraped()["stellarchat_workers",] == 2, seconds=120)
        done = 0
        for _ in range(2):
            for number in range(10):
                with httpx.Client(timeout=60) as client:
                    chat(client, server.url)
                    made_up = {"model": f"m{number}", "messages": [], "store": False}
                    client.post(f"{server.url}{CHAT}", json=made_up)
                done += 1
            # Each worker writes its counts within a tenth of a second.
            until(partial(are_counted, done))
            os.kill(child_of(server.pid), signal.SIGKILL)
            # The new worker loads the program beside other tests, which takes its time on a busy machine.
            until(lambda: _can_scrape(server.url) and scraped()["stellarchat_workers",] == 2, seconds=120)
            assert scraped()["stellarchat_chats_total", "completed"] == done
        folder = worker_files.folder_of(tmp_path / "stellarchat.db", workers=1).parent / str(server.pid)
        assert 2 <= len(list(folder.glob("counter_*"))) <= 3
        assert server.stop() == 0


def _can_scrape(url: str) -> bool:
    try:
        return httpx.get(f"{url}/metrics", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


class _Broken:
    """A recorder's or a log's part that fails."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"no {name}")


@pytest.mark.parametrize("part", ("metrics", "_log", "_traces", "_console", "_recorder"))
async def test_whatever_breaks_in_telemetry_chats_are_answered_and_stored(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken: list[tuple[Observer, Any]] = []
    starting = Observer.start

    def start_broken(self: Observer) -> None:
        starting(self)
        broken.append((self, getattr(self, part)))
        setattr(self, part, _Broken())

    monkeypatch.setattr(Observer, "start", start_broken)
    configured = settings_for(tmp_path, demo=True)
    async with running_proxy(configured) as url, httpx.AsyncClient(base_url=url) as client:
        for stream in (False, True):
            answer = await client.post(CHAT, **_body(stream=stream, user="x" * 2**20))
            assert answer.status_code == 200
            assert not stream or answer.text.endswith("data: [DONE]\n\n")
        assert (await client.get("/health")).status_code == 200
        ((observer, whole_part),) = broken
        setattr(observer, part, whole_part)
    with opened(configured.database_path) as connection:
        counted = connection.execute("SELECT COUNT(*), SUM(status = 'completed') FROM exchanges").fetchone()
    assert counted == (2, 2)


async def test_without_room_for_the_counts_chats_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker_files, "_reserve", full)
    async with (
        running_proxy(settings_for(tmp_path, demo=True)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        assert (await client.post(CHAT, **_body())).status_code == 200
        assert (await client.get("/metrics")).status_code == 503
    assert "nothing is counted" in caplog.text


async def test_a_chat_that_ends_after_the_last_measurement_is_still_saved(tmp_path: Path) -> None:
    configured: Settings = settings_for(tmp_path)
    async with open_services(configured) as services:
        observer = Observer(configured, services.recorder)
        observer.start()
        live = services.recorder.open(exchange([user("hi")]), Completion(), size=2)
        await observer.close()
        saved = services.recorder.finish(live, outcome(choice("yes")))
        assert saved is not None
        await saved
        observer.request_ended({"path": "/health", "method": "GET", "headers": []}, status=200, seconds=0.1)


async def test_a_chat_is_stored_also_where_who_is_told_of_it_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_services(settings_for(tmp_path)) as services:
        live = services.recorder.open(exchange([user("hi")]), Completion(), size=2)

        def fail(*_: object) -> None:
            raise IndexError

        services.recorder.observe = fail
        with caplog.at_level(logging.ERROR):
            saved = services.recorder.finish(live, outcome(choice("yes")))
        assert saved is not None
        await saved
        services.recorder.observe = None


async def test_the_dashboard_shows_what_there_is(tmp_path: Path) -> None:
    dashboard = json.loads((REPOSITORY / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    async with running_proxy(settings_for(tmp_path, demo=True)) as url, httpx.AsyncClient(base_url=url) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
        await client.post(CHAT, json=body)
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


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
async def test_prometheus_understands_the_dashboard_s_queries_and_the_metrics(tmp_path: Path) -> None:
    dashboard = json.loads((REPOSITORY / "docs" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    rules = [
        {"record": f"query:{number}", "expr": expression.replace("$job", ".*").replace("$__rate_interval", "5m")}
        for number, expression in enumerate(asked)
    ]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    async with running_proxy(settings_for(tmp_path, demo=True)) as url, httpx.AsyncClient(base_url=url) as client:
        await client.post(CHAT, **_body())
        text = (await client.get("/metrics")).content
    for arguments, text_in in ((("rules", str(file)), b""), (("metrics",), text)):
        command = ["promtool", "check", *arguments]
        done = await asyncio.to_thread(subprocess.run, command, input=text_in, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
