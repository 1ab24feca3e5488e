"""The relays that record what they relay: how each is started, with its own recording of content on.

Where each keeps what it has recorded, in the directory that it runs in, is read by `stores`.
"""

import shlex
import sys
from pathlib import Path

from tests.bench import relays, wire
from tests.bench.relays import Api, Launch, Place, Relay

DATABASE = "x.db"
LINES = "chats.jsonl"
FLOWS = "chats.flows"
OGX_DATABASE = "sql_store.db"

_MODULES = Path("/usr/lib/nginx/modules")  # Debian's


def _nginx_lua(place: Place) -> Launch:
    """Request and response body in a line of JSON each, written when the request is over, and not synced."""
    names = [_MODULES / name for name in ("ndk_http_module.so", "ngx_http_lua_module.so")]
    if not all(name.exists() for name in names):
        raise relays.NotInstalledError("not installed: apt install libnginx-mod-http-lua lua-cjson")
    modules = "".join(f"load_module {name};\n" for name in names)
    at_start = _LUA_AT_START.replace("@file", str(place.directory / LINES))
    return relays.nginx(place, modules=modules, at_start=at_start, at_request=_LUA_AT_REQUEST)


_LUA_AT_START = """
    client_body_buffer_size 1m;
    init_worker_by_lua_block {
        cjson = require "cjson"
        file = io.open("@file", "a")
        file:setvbuf("no")
    }
"""
_LUA_AT_REQUEST = """
            rewrite_by_lua_block { ngx.req.read_body(); ngx.ctx.parts = {} }
            body_filter_by_lua_block {
                local parts = ngx.ctx.parts
                if parts then
                    if ngx.arg[1] ~= "" then parts[#parts + 1] = ngx.arg[1] end
                    if ngx.arg[2] then ngx.ctx.whole = true end
                end
            }
            log_by_lua_block {
                file:write(cjson.encode({
                    at = ngx.req.start_time(), uri = ngx.var.request_uri, status = ngx.status,
                    seconds = ngx.var.request_time, whole = ngx.ctx.whole or false,
                    request = ngx.req.get_body_data(), response = table.concat(ngx.ctx.parts or {}) }) .. "\\n")
            }
"""


def _mitmproxy(place: Place) -> Launch:
    """Without the two options of streaming a reply goes out when it is whole."""
    command = place.command("mitmdump", "pip install mitmproxy (Python 3.12; --relay-bin DIR for a venv of its own)")
    where = ["--mode", f"reverse:{place.upstream}", "--listen-host", "127.0.0.1", "--listen-port", str(place.port)]
    options = {
        "confdir": place.directory,
        "save_stream_file": f"+{place.directory / FLOWS}",
        "stream_large_bodies": 1,
        "store_streamed_bodies": "true",
    }
    settings = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
    return Launch([command, "-q", *where, *settings])


def _observe(place: Place) -> Launch:
    advice = "pip install llm-observe-proxy (--relay-bin DIR for a venv of its own)"
    command = place.command("llm-observe-proxy", advice)
    where = ["--host", "127.0.0.1", "--port", str(place.port), "--upstream-url", f"{place.upstream}/v1"]
    database = ["--database-url", f"sqlite:///{place.directory / DATABASE}"]
    return Launch([command, *where, *database], {"LLM_OBSERVE_LOG_LEVEL": "WARNING"} | _token_encodings(place))


def _token_encodings(place: Place) -> dict[str, str]:
    """tiktoken downloads what it counts tokens with; LiteLLM brings the same files, for a machine with no way out."""
    try:
        environment = Path(place.command("litellm", "")).parent.parent
    except relays.NotInstalledError:
        return {}
    found = next(environment.glob("lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers"), None)
    return {} if found is None else {"TIKTOKEN_CACHE_DIR": str(found)}


def _ogx(place: Place) -> Launch:
    command = place.command("ogx", "pip install ogx (Python 3.12; --relay-bin DIR for a venv of its own)")
    config = place.directory / "config.yaml"
    config.write_text(_OGX.format(directory=place.directory, upstream=place.upstream, port=place.port))
    # It logs each request, always; as JSON that is cheaper than coloured.
    quiet = {"OGX_LOGGING": "all=error", "OGX_LOG_FORMAT": "json", "OTEL_SDK_DISABLED": "true"}
    home = {"HOME": str(place.directory)}
    return Launch([command, "run", str(config), "--port", str(place.port), "--insecure"], quiet | home)


_OGX = f"""
version: 2
distro_name: bench
apis: [inference]
providers:
  inference:
  - provider_id: vllm
    provider_type: remote::vllm
    config: {{{{ base_url: "{{upstream}}/v1", max_tokens: 4096, api_token: none }}}}
storage:
  backends:
    keys: {{{{ type: kv_sqlite, db_path: "{{directory}}/kvstore.db" }}}}
    tables: {{{{ type: sql_sqlite, db_path: "{{directory}}/{OGX_DATABASE}" }}}}
  stores:
    metadata: {{{{ namespace: registry, backend: keys }}}}
    inference: {{{{ table_name: inference_store, backend: tables }}}}
    conversations: {{{{ table_name: openai_conversations, backend: tables }}}}
    prompts: {{{{ table_name: prompts, backend: tables }}}}
    connectors: {{{{ table_name: connectors, backend: tables }}}}
registered_resources:
  models: []
server: {{{{ port: {{port}}, host: 127.0.0.1 }}}}
"""


def _litellm_log(place: Place) -> Launch:
    """Its callback posts batches of exchanges. Its own log needs PostgreSQL, and an engine downloaded at set-up."""
    launch = relays.litellm(place, callbacks=["generic_api"])
    port = relays.free_port()
    sink = [sys.executable, "-m", "tests.bench.sink", str(port), str(place.directory / LINES)]
    line = f"{shlex.join(sink)} & exec {shlex.join(launch.argv)}"
    endpoint = {"GENERIC_LOGGER_ENDPOINT": f"http://127.0.0.1:{port}/"}
    return Launch(["sh", "-c", line], {**launch.environment, **endpoint})


def _agentic(place: Place) -> Launch:
    command = place.command("agentic-server", "pip install agentic-api (--relay-bin DIR for a venv of its own)")
    where = ["--gateway-host", "127.0.0.1", "--gateway-port", str(place.port), "--llm-api-base", place.upstream]
    database = ["--db-url", f"sqlite://{place.directory / DATABASE}?mode=rwc", "--llm-ready-interval-s", "1"]
    quiet = {"HOME": str(place.directory), "OTEL_SDK_DISABLED": "true", "RUST_LOG": "error"}
    return Launch([command, *where, *database], quiet)


_RESPONSES = Api(endpoint="responses")

RELAYS = (
    Relay("strict-responses", "StellarChat, strict, /v1/responses", relays.stellarchat, _RESPONSES),
    Relay("nginx-lua", "nginx + Lua to a file, not synced", _nginx_lua),
    # It stores what comes on /v1/responses, and nothing of a chat completion.
    Relay("agentic", "agentic-api, Rust + SQLite, /v1/responses", _agentic, _RESPONSES),
    Relay("mitm-stream", "mitmproxy, streaming to a flow file", _mitmproxy),
    Relay("ogx", "OGX + SQLite", _ogx, Api(model=f"vllm/{wire.MODEL}", sends_done=False)),
    Relay("observe", "llm-observe-proxy + SQLite", _observe),
    Relay("litellm-log", "LiteLLM, content to a callback", _litellm_log),
)
TABLE = ("nginx", "vllm-router", "off", "relaxed", "strict", *(relay.key for relay in RELAYS))
