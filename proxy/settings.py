"""All settings: names, defaults, validation and meanings. Only this module reads the environment."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from proxy import environment
from proxy.environment import ConfigurationError as ConfigurationError

T = TypeVar("T")

Auth = Literal["auto", "required", "off"]
Durability = Literal["strict", "relaxed"]
StoreFalse = Literal["auto", "skip", "record"]
ResponsesState = Literal["proxy", "upstream"]
OnDisconnect = Literal["abort", "finish"]
Transport = Literal["own", "httpx"]

SESSION_HEADERS = (
    "X-Conversation-Id",
    "x-litellm-session-id",
    "x-litellm-trace-id",
    "Helicone-Session-Id",
    "x-bf-session-id",
    "X-OpenWebUI-Chat-Id",
    "x-session-affinity",
    "x-opencode-session",
    "x-claude-code-session-id",
)


def _setting(name: str, default: T, cast: Callable[[str], T], meaning: str) -> T:
    result: T = field(default=default, metadata={"name": name, "cast": cast, "meaning": meaning})
    return result


def _text(value: str) -> str:
    return value


def _secret(value: str) -> str | None:
    if re.fullmatch(r"[\x21-\x7e]+", value) is None:
        raise ValueError("a key must consist of visible ASCII characters, because it is sent in a header")
    return value


def _switch(value: str) -> bool:
    try:
        return {
            "on": True,
            "true": True,
            "1": True,
            "yes": True,
            "off": False,
            "false": False,
            "0": False,
            "no": False,
        }[value.lower()]
    except KeyError:
        raise ValueError("expected on or off") from None


def _one_of(choices: tuple[str, ...]) -> Callable[[str], Any]:
    def cast(value: str) -> str:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value

    return cast


def _some_of(choices: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def cast(value: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in value.split(",") if name.strip())
        if not set(names) <= set(choices):
            raise ValueError(f"expected some of {', '.join(choices)}, separated by commas")
        return names

    return cast


def _integer(low: int, high: int) -> Callable[[str], int]:
    def cast(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("expected a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return number

    return cast


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError("expected a number of seconds") from None
    if not 0 < number <= 86_400:
        raise ValueError("expected a number of seconds from above 0 to 86400")
    return number


def _share(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("expected a share from 0 to 1")
    return number


def _duration(value: str) -> float:
    """Parses `30m`, `24h` or `7d` into seconds; `off` is 0."""
    if value == "off":
        return 0.0
    try:
        seconds = float(value[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[value[-1:]]
    except (ValueError, KeyError):
        seconds = -1.0
    if not 1 <= seconds <= 3660 * 86_400:
        raise ValueError("expected a time such as 30m, 24h or 7d, or off")
    return seconds


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or not port_is_right
        or re.search(r"[^\x21-\x7e]|\\", value)
    ):
        raise ValueError("expected an address such as http://127.0.0.1:8000")
    return value


def _upstream_url(value: str) -> str:
    path = urlsplit(_http_url(value)).path.rstrip("/")
    if path.endswith(("/completions", "/responses", "/messages", "/models")):
        raise ValueError("expected vLLM's address without a route, such as http://127.0.0.1:8000")
    return value


def _upstream_urls(value: str) -> str:
    if not upstream_addresses(value):
        raise ValueError("expected an address such as http://127.0.0.1:8000")
    return value


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """One upstream of the list. If `model` is set, its model list is not requested."""

    url: str
    model: str | None = None

    @property
    def host(self) -> str:
        """The host name or IP address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port, or the default port of the scheme."""
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)


def upstream_addresses(value: str) -> tuple[UpstreamAddress, ...]:
    """Parses `url,url` or `model@url,...`. Raises ValueError."""
    addresses = []
    for each in filter(None, map(str.strip, value.split(","))):
        model, separator, url = each.partition("@http")
        # An "@" inside the URL, after user and password, always follows "//".
        is_named = bool(separator) and "//" not in model
        url = "http" + url if is_named else each
        addresses.append(UpstreamAddress(_upstream_url(url), model if is_named else None))
    if len(set(addresses)) < len(addresses):
        raise ValueError("an address is listed twice")
    return tuple(addresses)


_POSTGRESQL = ("postgresql://", "postgres://")


def _database_url(value: str) -> str:
    if value.startswith(_POSTGRESQL):
        return value
    if not value.startswith("sqlite:///") or value.endswith("/") or ":memory:" in value:
        raise ValueError("expected sqlite:///PATH (relative), sqlite:////PATH (absolute) or postgresql://…")
    return value


def _names(value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _header_names(value: str) -> tuple[str, ...]:
    for name in _names(value):
        if re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is None:
            raise ValueError(f"{name!r} is not a header name")
    return _names(value)


def _origins(value: str) -> tuple[str, ...]:
    for origin in _names(value):
        if origin != "*" and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin) is None:
            raise ValueError(
                f"{origin!r} is not an origin; expected scheme and host without a path, such as https://chat.example"
            )
    return _names(value)


def _host_names(value: str) -> tuple[str, ...]:
    for name in _names(value):
        if re.fullmatch(r"[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\]", name) is None:
            raise ValueError(f"{name!r} is not a host name; leave out scheme and port")
    return tuple(name.lower() for name in _names(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one process. `load()` reads them; tests construct them."""

    upstream_url: str = _setting(
        "STELLARCHAT_UPSTREAM_URL",
        "http://127.0.0.1:8000",
        _upstream_urls,
        "vLLM's address, with or without /v1; several: url,url or model@url,…",
    )
    upstream_api_key: str | None = _setting(
        "STELLARCHAT_UPSTREAM_API_KEY",
        None,
        _secret,
        "replaces the caller's Authorization towards upstream; or STELLARCHAT_UPSTREAM_API_KEY_FILE",
    )
    database_url: str = _setting(
        "DATABASE_URL", "sqlite:///volume/db/stellarchat.db", _database_url, "where the history is kept"
    )
    host: str = _setting("STELLARCHAT_HOST", "127.0.0.1", _text, "address to listen on")
    port: int = _setting("STELLARCHAT_PORT", 8080, _integer(0, 65535), "port to listen on; 0 chooses a free one")
    workers: int = _setting("STELLARCHAT_WORKERS", 1, _integer(1, 64), "number of processes that share the database")
    log_dir: str = _setting("STELLARCHAT_LOG_DIR", "volume/logs", _text, "folder of the rotating JSON-lines log")
    quiet: bool = _setting(
        "STELLARCHAT_QUIET",
        False,
        _switch,
        "do not print a line per request, or upstream's state (on, off)",
    )
    log_level: str = _setting(
        "STELLARCHAT_LOG_LEVEL", "info", _one_of(("debug", "info", "warning", "error")), "what is logged"
    )
    auth: Auth = _setting(
        "STELLARCHAT_AUTH",
        "auto",
        _one_of(get_args(Auth)),
        "auto: keys are required as soon as one exists or the address is not loopback; required; off",
    )
    admin_key: str | None = _setting(
        "STELLARCHAT_ADMIN_KEY",
        None,
        _secret,
        "an admin key in addition to those in the database; or STELLARCHAT_ADMIN_KEY_FILE",
    )
    durability: Durability = _setting(
        "STELLARCHAT_DURABILITY",
        "strict",
        _one_of(get_args(Durability)),
        "strict: the end of a reply waits for its commit; relaxed: it does not",
    )
    on_disconnect: OnDisconnect = _setting(
        "STELLARCHAT_ON_DISCONNECT",
        "abort",
        _one_of(get_args(OnDisconnect)),
        "if the caller disconnects: abort the upstream request, or finish and save the reply",
    )
    stream_usage: bool = _setting(
        "STELLARCHAT_STREAM_USAGE", True, _switch, "ask upstream for the usage of streams (on, off)"
    )
    demo: bool = _setting("STELLARCHAT_DEMO", False, _switch, "a small built-in echo model in place of vLLM (on, off)")
    stitching: bool = _setting(
        "STELLARCHAT_STITCHING", True, _switch, "find the session of a resent history without an id (on, off)"
    )
    recording: bool = _setting("STELLARCHAT_RECORDING", True, _switch, "off: relay only, save nothing")
    record: tuple[str, ...] = _setting(
        "STELLARCHAT_RECORD",
        ("chat", "responses", "messages"),
        _some_of(("chat", "responses", "messages", "completions")),
        "which endpoints are recorded: chat, responses, messages, completions",
    )
    store_false: StoreFalse = _setting(
        "STELLARCHAT_STORE_FALSE",
        "auto",
        _one_of(get_args(StoreFalse)),
        "what store: false means: skip, record, or auto: chats are not saved; Responses are, but cannot be referred to",
    )
    responses_state: ResponsesState = _setting(
        "STELLARCHAT_RESPONSES_STATE",
        "proxy",
        _one_of(get_args(ResponsesState)),
        "proxy: previous_response_id, conversation and item_reference of ours are resolved here; upstream: never",
    )
    readback: bool = _setting(
        "STELLARCHAT_READBACK",
        True,
        _switch,
        "answer OpenAI's stored completions and conversations from the history; off: upstream does",
    )
    forward_session: bool = _setting(
        "STELLARCHAT_FORWARD_SESSION",
        True,
        _switch,
        "send the conversation's id to upstream in X-Session-Id, unless the caller sends one (on, off)",
    )
    session_headers: tuple[str, ...] = _setting(
        "STELLARCHAT_SESSION_HEADERS", SESSION_HEADERS, _header_names, "request headers that may carry a session id"
    )
    transport: Transport = _setting(
        "STELLARCHAT_TRANSPORT",
        "own",
        _one_of(get_args(Transport)),
        "HTTP client towards upstream: own, or stock httpx, which is slower and sees no refusal before the whole "
        "request is sent",
    )
    body_limit_bytes: int = _setting(
        "STELLARCHAT_BODY_LIMIT_BYTES", 64 * 2**20, _integer(1024, 2**32), "largest request body; above: 413"
    )
    values_limit: int = _setting(
        "STELLARCHAT_VALUES_LIMIT",
        250_000,
        _integer(1000, 2**32),
        "maximum number of JSON values in a parsed body; above: 413",
    )
    head_limit_bytes: int = _setting(
        "STELLARCHAT_HEAD_LIMIT_BYTES",
        64 * 2**10,
        _integer(1024, 2**20),
        "largest request line and headers; above: 431",
    )
    caller_timeout_seconds: float = _setting(
        "STELLARCHAT_CALLER_TIMEOUT_SECONDS",
        60.0,
        _seconds,
        "maximum time to send the request headers, and maximum time without reading any of the response",
    )
    idle_timeout_seconds: float = _setting(
        "STELLARCHAT_IDLE_TIMEOUT_SECONDS", 75.0, _seconds, "how long an idle client connection is kept open"
    )
    concurrency_limit: int = _setting(
        "STELLARCHAT_CONCURRENCY_LIMIT",
        4096,
        _integer(1, 1_000_000),
        "concurrent requests per worker process; above: 429",
    )
    key_concurrency_limit: int = _setting(
        "STELLARCHAT_KEY_CONCURRENCY_LIMIT",
        1024,
        _integer(1, 1_000_000),
        "concurrent requests per key and worker process; above: 429",
    )
    cors_origins: tuple[str, ...] = _setting(
        "STELLARCHAT_CORS_ORIGINS", (), _origins, "origins whose pages may call from a browser, or *; none by default"
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "STELLARCHAT_ALLOWED_HOSTS",
        (),
        _host_names,
        "additional host names accepted by a server on a loopback address without keys",
    )
    connect_timeout_seconds: float = _setting(
        "STELLARCHAT_CONNECT_TIMEOUT_SECONDS", 5.0, _seconds, "wait for a connection to upstream"
    )
    response_timeout_seconds: float = _setting(
        "STELLARCHAT_RESPONSE_TIMEOUT_SECONDS", 600.0, _seconds, "wait for upstream's status"
    )
    read_timeout_seconds: float = _setting(
        "STELLARCHAT_READ_TIMEOUT_SECONDS", 600.0, _seconds, "maximum time without data from upstream within a reply"
    )
    write_timeout_seconds: float = _setting(
        "STELLARCHAT_WRITE_TIMEOUT_SECONDS", 60.0, _seconds, "maximum time for upstream to accept request data"
    )
    upstream_connections: int = _setting(
        "STELLARCHAT_UPSTREAM_CONNECTIONS", 4096, _integer(1, 65535), "maximum number of connections to upstream"
    )
    flush_interval_seconds: float = _setting(
        "STELLARCHAT_FLUSH_INTERVAL_SECONDS", 0.5, _seconds, "how far behind a streaming reply may be on disk"
    )
    commit_timeout_seconds: float = _setting(
        "STELLARCHAT_COMMIT_TIMEOUT_SECONDS", 5.0, _seconds, "maximum time the end of a reply waits for the disk"
    )
    queue_limit: int = _setting(
        "STELLARCHAT_QUEUE_LIMIT", 20_000, _integer(10, 10_000_000), "maximum number of queued writes"
    )
    queue_limit_bytes: int = _setting(
        "STELLARCHAT_QUEUE_LIMIT_BYTES", 512 * 2**20, _integer(2**20, 2**40), "maximum size of queued writes"
    )
    state_dir: str = _setting(
        "STELLARCHAT_STATE_DIR", "", _text, "folder of the spill files; empty: beside the database"
    )
    spill_reserve_bytes: int = _setting(
        "STELLARCHAT_SPILL_RESERVE_BYTES",
        16 * 2**20,
        _integer(0, 2**40),
        "disk space reserved for the spill file, in case the disk is full",
    )
    orphan_limit: int = _setting(
        "STELLARCHAT_ORPHAN_LIMIT",
        100,
        _integer(0, 100_000),
        "maximum number of replies read to the end after their caller has disconnected",
    )
    drain_grace_seconds: float = _setting(
        "STELLARCHAT_DRAIN_GRACE_SECONDS", 30.0, _seconds, "how long open replies may continue at shutdown"
    )

    web: bool = _setting("STELLARCHAT_WEB", True, _switch, "the history page under /ui (on, off)")
    log_file_bytes: int = _setting(
        "STELLARCHAT_LOG_FILE_BYTES",
        20 * 2**20,
        _integer(1024, 2**40),
        "size at which a log file is rotated; 5 are kept",
    )
    access_log_sample: float = _setting(
        "STELLARCHAT_ACCESS_LOG_SAMPLE",
        1.0,
        _share,
        "fraction of requests that are logged, 0 to 1; failures are always logged",
    )
    search_index: bool = _setting("STELLARCHAT_SEARCH_INDEX", True, _switch, "maintain the search index (on, off)")
    backup_every_seconds: float = _setting(
        "STELLARCHAT_BACKUP_EVERY", 0.0, _duration, "time between backups, such as 24h; off: none"
    )
    backup_keep: int = _setting("STELLARCHAT_BACKUP_KEEP", 7, _integer(1, 10_000), "number of backups to keep")
    retention_days: int = _setting(
        "STELLARCHAT_RETENTION_DAYS",
        0,
        _integer(0, 36_600),
        "delete sessions this many days after their last activity; 0: never",
    )

    otlp_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        None,
        _http_url,
        "OpenTelemetry endpoint (OTLP over HTTP) for one span per chat",
    )
    otlp_traces_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        None,
        _http_url,
        "like the above, but used as is, without adding /v1/traces",
    )

    @property
    def traces_endpoint(self) -> str | None:
        """The URL for spans, if tracing is enabled."""
        if self.otlp_traces_endpoint is None and self.otlp_endpoint is not None:
            return self.otlp_endpoint.rstrip("/") + "/v1/traces"
        return self.otlp_traces_endpoint

    @property
    def upstreams(self) -> tuple[UpstreamAddress, ...]:
        """The configured upstreams."""
        return upstream_addresses(self.upstream_url)

    @property
    def is_postgresql(self) -> bool:
        """Whether the database is PostgreSQL."""
        return self.database_url.startswith(_POSTGRESQL)

    @property
    def database_name(self) -> str:
        """The database path or URL without its password, for display."""
        if not self.is_postgresql:
            return str(self.database_path.absolute())
        return re.sub(r"([?&]password=)[^&]*", r"\1***", without_password(self.database_url))

    @property
    def database_path(self) -> Path:
        """The SQLite file; with PostgreSQL, the base name of this host's other files."""
        if self.is_postgresql:
            return Path(self.state_dir or "volume/state") / "postgresql"
        return Path(self.database_url.removeprefix("sqlite:///"))

    @property
    def state_path(self) -> Path:
        """The folder of the spill files. On a separate disk they help if the database's disk fails."""
        return Path(self.state_dir) if self.state_dir else self.database_path.parent

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("127.0.0.1", "localhost", "::1") or self.host.startswith("127.")


_SECRETS = frozenset(each.metadata["name"] for each in fields(Settings) if each.metadata["cast"] is _secret)


def load(
    overrides: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    env_file: str | None = ".env",
) -> Settings:
    """Reads the environment and `.env`; `overrides` (by name) take precedence. Raises ConfigurationError."""
    each_name = {each.metadata["name"]: each for each in fields(Settings)}
    texts = environment.read_texts(each_name, secrets=_SECRETS, environ=environ, env_file=env_file)
    texts |= {name: text.strip() for name, text in (overrides or {}).items() if text.strip()}
    loaded = Settings(
        **{
            each.name: _cast(name, texts[name], each.metadata["cast"])
            for name, each in each_name.items()
            if name in texts
        }
    )
    if loaded.upstream_api_key and any(urlsplit(each.url).username is not None for each in loaded.upstreams):
        raise ConfigurationError(
            "STELLARCHAT_UPSTREAM_API_KEY and the user in STELLARCHAT_UPSTREAM_URL both set the Authorization header: "
            "give one of them"
        )
    return loaded


def unknown_names(*, environ: Mapping[str, str] | None = None, env_file: str | None = ".env") -> dict[str, str | None]:
    """Variables that look like our settings but are not, each with the most similar valid name."""
    names = [each.metadata["name"] for each in fields(Settings)]
    return environment.unknown_names(names, secrets=_SECRETS, environ=environ, env_file=env_file)


def _cast(name: str, text: str, cast: Callable[[str], T]) -> T:
    try:
        return cast(text)
    except ValueError as exc:
        value = "" if name in _SECRETS or "@" in text else f"={text!r}"
        raise ConfigurationError(f"{name}{value}: {exc}") from exc


def without_password(url: str) -> str:
    """One or several URLs without credentials, for display."""
    return re.sub(r"(?<=//)[^/\s,]*@", "", url)


def shown(value: Any) -> str:
    """A setting's value in the form used in the environment."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
