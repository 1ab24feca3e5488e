"""The relays that are compared: how each is started, and what to say where one is not installed."""

import contextlib
import dataclasses
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench import accounting, dialects, wire

ROOT = Path(__file__).parents[2]
OUTPUT = "output.txt"  # what a relay prints


class NotInstalledError(Exception):
    """The relay's command is not there; the text says how to get it."""


class StartError(Exception):
    """The relay did not answer a chat completion in time; the text is the end of what it printed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where one relay is to run: its port, a directory of its own, the upstream, and where commands are looked for."""

    port: int
    directory: Path
    upstream_port: int
    commands: str

    @property
    def upstream(self) -> str:
        return f"http://127.0.0.1:{self.upstream_port}"

    def command(self, name: str, advice: str) -> str:
        found = shutil.which(name, path=self.commands)
        if found is None:
            raise NotInstalledError(f"not installed: {advice}")
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class Launch:
    """A command line, and the environment it needs on top of ours."""

    argv: list[str]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Api:
    """What a relay's clients must send it, and what ends its streams."""

    endpoint: str = dialects.CHAT
    model: str = wire.MODEL
    sends_done: bool = True
    """Whether `[DONE]` ends a stream of chat completions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Relay:
    """One row of the table. Without `launch` the load goes straight to the upstream."""

    key: str
    title: str
    launch: Callable[[Place], Launch] | None
    api: Api = Api()


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A relay that answers. `pid` is None for the upstream itself."""

    port: int
    pid: int | None
    api: Api = Api()


def nginx(place: Place, *, modules: str = "", at_start: str = "", at_request: str = "") -> Launch:
    """nginx, with what else is to stand at the three levels of its configuration."""
    command = place.command("nginx", "apt install nginx-light")
    config = place.directory / "nginx.conf"
    more = {"modules": modules, "at_start": at_start, "at_request": at_request}
    config.write_text(_NGINX.format(port=place.port, upstream=place.upstream_port, user=_nginx_user(), **more))
    return Launch([command, "-p", str(place.directory), "-e", "error.log", "-c", str(config)])


def _nginx_user() -> str:
    return "user root;" if os.geteuid() == 0 else ""


# Buffering off as a proxy of streams must have it; connections to the upstream are kept, as in all the others.
_NGINX = """
{modules}
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid nginx.pid;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy;
    fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    keepalive_requests 1000000000;
    {at_start}
    upstream model {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 300s;
            {at_request}
        }}
    }}
}}
"""


def _vllm_router(place: Place) -> Launch:
    command = place.command("vllm-router", "pip install vllm-router (--relay-bin DIR for a venv of its own)")
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--worker-urls", place.upstream]
    # One worker leaves nothing to choose, so the cheapest policy; the default port of its metrics may be taken.
    how = ["--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port())]
    return Launch([command, *where, *how, "--worker-startup-check-interval", "1"])


def litellm(place: Place, *, callbacks: Sequence[str] = ()) -> Launch:
    command = place.command("litellm", "pip install 'litellm[proxy]' (--relay-bin DIR for a venv of its own)")
    config = place.directory / "litellm.yaml"
    config.write_text(_LITELLM.format(model=wire.MODEL, upstream=place.upstream, callbacks=list(callbacks)))
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--num_workers", "1", "--telemetry", "False"]
    # It is not to fetch its price list, nor to log each request.
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    return Launch([command, "--config", str(config), *where], quiet | {"NO_DOCS": "True", "DISABLE_ADMIN_UI": "True"})


_LITELLM = """
model_list:
  - model_name: {model}
    litellm_params: {{ model: openai/{model}, api_base: "{upstream}/v1", api_key: none }}
litellm_settings: {{ telemetry: false, num_retries: 0, callbacks: {callbacks} }}
# No keys, as in all the other rows: without this it does not start.
general_settings: {{ dangerously_permit_weak_or_unset_master_key: true }}
"""


def stellarchat(place: Place, *, module: str = "proxy", **settings: str) -> Launch:
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--upstream", place.upstream]
    fixed = {
        "DATABASE_URL": f"sqlite:///{place.directory}/x.db",
        "STELLARCHAT_LOG_DIR": str(place.directory),
        "STELLARCHAT_AUTH": "off",
    }
    return Launch([sys.executable, "-m", module, "serve", *where], fixed | settings)


def _stellarchat(**settings: str) -> Callable[[Place], Launch]:
    return lambda place: stellarchat(place, **settings)


RELAYS = (
    Relay("direct", "direct (no relay)", None),
    Relay("nginx", "nginx, buffering off", nginx),
    Relay("vllm-router", "vllm-router", _vllm_router),
    Relay("litellm", "LiteLLM proxy", litellm),
    Relay("httpx", "stock httpx transport", _stellarchat(STELLARCHAT_TRANSPORT="httpx", STELLARCHAT_RECORDING="off")),
    Relay("off", "StellarChat, no recording", _stellarchat(STELLARCHAT_RECORDING="off")),
    Relay("relaxed", "StellarChat, relaxed", _stellarchat(STELLARCHAT_DURABILITY="relaxed")),
    Relay("strict", "StellarChat, strict", _stellarchat(STELLARCHAT_DURABILITY="strict")),
    Relay(
        "nothing",
        "StellarChat, strict, its transactions empty",
        _stellarchat(module="tests.bench.nothing_stored", STELLARCHAT_DURABILITY="strict"),
    ),
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def upstream() -> Iterator[Running]:
    """The paced upstream, in a process of its own."""
    argv = [sys.executable, "-m", "tests.bench.upstream"]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield Running(port=int(process.stdout.readline()), pid=process.pid)
    finally:
        accounting.stop(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def set_pace(upstream_port: int, *, tokens: int, rate: int) -> None:
    """How the upstream streams from now on."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=10)
    try:
        connection.request("GET", f"/bench/pace?tokens={tokens}&rate={rate}")
        connection.getresponse().read()
    finally:
        connection.close()


@contextlib.contextmanager
def running(relay: Relay, *, upstream_port: int, commands: str, work: Path | None, start_s: float) -> Iterator[Running]:
    """Start the relay in a directory of its own and give it out once it answers; stop it and remove the directory."""
    if relay.launch is None:
        yield Running(port=upstream_port, pid=None, api=relay.api)
        return
    with tempfile.TemporaryDirectory(prefix="bench-", dir=work, ignore_cleanup_errors=True) as name:
        place = Place(port=free_port(), directory=Path(name), upstream_port=upstream_port, commands=commands)
        with started(relay, place, start_s=start_s) as one:
            yield one


@contextlib.contextmanager
def started(relay: Relay, place: Place, *, start_s: float) -> Iterator[Running]:
    """Start the relay at this place and give it out once it answers; stop it, and leave what it wrote."""
    assert relay.launch is not None
    launch = relay.launch(place)
    output = place.directory / OUTPUT
    with output.open("wb") as sink:
        environment = {**os.environ, **launch.environment}
        process = subprocess.Popen(
            launch.argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
        )
    try:
        if not _answers(process, place.port, start_s, relay.api):
            raise StartError(f"did not start: {_last_line(output)}")
        yield Running(port=place.port, pid=process.pid, api=relay.api)
    finally:
        accounting.stop(process)


def _answers(process: subprocess.Popen[bytes], port: int, start_s: float, api: Api) -> bool:
    """Whether a completion comes back before the process ends or the time is over."""
    deadline = time.monotonic() + start_s
    while process.poll() is None and time.monotonic() < deadline:
        if _ask(port, api):
            return True
        time.sleep(0.1)
    return False


def _ask(port: int, api: Api) -> bool:
    body = json.dumps({"model": api.model, **dialects.question(api.endpoint, "Are you there?")})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", dialects.path_of(api.endpoint), body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return response.status == 200
    finally:
        connection.close()


def _last_line(output: Path) -> str:
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"
