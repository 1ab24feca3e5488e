"""All settings: names, defaults, meanings, types and limits. Other modules get settings only from here."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit

from proxy import environment
from proxy.environment import ConfigurationError as ConfigurationError
from proxy.setting_values import (
    POSTGRESQL,
    UpstreamAddress,
    database_url,
    duration,
    header_names,
    host_names,
    http_url,
    integer,
    one_of,
    origins,
    seconds,
    secret,
    share,
    some_of,
    switch,
    text,
    upstream_addresses,
    upstream_urls,
    without_password,
)

T = TypeVar("T")

Auth = Literal["auto", "required", "off"]
Durability = Literal["strict", "relaxed"]
StoreFalse = Literal["auto", "skip", "record"]
ResponsesState = Literal["proxy", "upstream"]
OnDisconnect = Literal["abort", "finish"]
Transport = Literal["own", "httpx"]

# Headers in which clients, gateways and chat pages send their conversation's id.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of one process. `load()` reads them; tests construct them."""

    upstream_url: str = _setting(
        "STELLARCHAT_UPSTREAM_URL",
        "http://127.0.0.1:8000",
        upstream_urls,
        "vLLM's address, with or without /v1; several: url,url or model@url,…",
    )
    upstream_api_key: str | None = _setting(
        "STELLARCHAT_UPSTREAM_API_KEY",
        None,
        secret,
        "replaces the caller's Authorization towards upstream; or STELLARCHAT_UPSTREAM_API_KEY_FILE",
    )
    database_url: str = _setting(
        "DATABASE_URL", "sqlite:///volume/db/stellarchat.db", database_url, "where the history is kept"
    )
    host: str = _setting("STELLARCHAT_HOST", "127.0.0.1", text, "address to listen on")
    port: int = _setting("STELLARCHAT_PORT", 8080, integer(0, 65535), "port to listen on; 0 chooses a free one")
    workers: int = _setting("STELLARCHAT_WORKERS", 1, integer(1, 64), "number of processes that share the database")
    log_dir: str = _setting("STELLARCHAT_LOG_DIR", "volume/logs", text, "folder of the rotating JSON-lines log")
    quiet: bool = _setting(
        "STELLARCHAT_QUIET",
        False,
        switch,
        "do not print a line per request, or upstream's state (on, off)",
    )
    log_level: str = _setting(
        "STELLARCHAT_LOG_LEVEL",
        "info",
        one_of(("debug", "info", "warning", "error")),
        "lowest level that is logged: debug, info, warning, error",
    )
    auth: Auth = _setting(
        "STELLARCHAT_AUTH",
        "auto",
        one_of(get_args(Auth)),
        "auto: keys are required as soon as one exists or the address is not loopback; required; off",
    )
    admin_key: str | None = _setting(
        "STELLARCHAT_ADMIN_KEY",
        None,
        secret,
        "an admin key in addition to those in the database; or STELLARCHAT_ADMIN_KEY_FILE",
    )
    durability: Durability = _setting(
        "STELLARCHAT_DURABILITY",
        "strict",
        one_of(get_args(Durability)),
        "strict: the end of a reply waits for its commit; relaxed: it does not",
    )
    on_disconnect: OnDisconnect = _setting(
        "STELLARCHAT_ON_DISCONNECT",
        "abort",
        one_of(get_args(OnDisconnect)),
        "if the caller disconnects: abort the upstream request, or finish and save the reply",
    )
    stream_usage: bool = _setting(
        "STELLARCHAT_STREAM_USAGE", True, switch, "request the token usage of streams from upstream (on, off)"
    )
    demo: bool = _setting("STELLARCHAT_DEMO", False, switch, "a small built-in echo model in place of vLLM (on, off)")
    stitching: bool = _setting(
        "STELLARCHAT_STITCHING", True, switch, "find the session of a resent history without an id (on, off)"
    )
    recording: bool = _setting("STELLARCHAT_RECORDING", True, switch, "off: relay only, save nothing")
    record: tuple[str, ...] = _setting(
        "STELLARCHAT_RECORD",
        ("chat", "responses", "messages"),
        some_of(("chat", "responses", "messages", "completions")),
        "which endpoints are recorded: chat, responses, messages, completions",
    )
    store_false: StoreFalse = _setting(
        "STELLARCHAT_STORE_FALSE",
        "auto",
        one_of(get_args(StoreFalse)),
        "what store: false means: skip, record, or auto: chats are not saved; Responses are, but cannot be referred to",
    )
    responses_state: ResponsesState = _setting(
        "STELLARCHAT_RESPONSES_STATE",
        "proxy",
        one_of(get_args(ResponsesState)),
        "proxy: resolves previous_response_id, conversation and item_reference of recorded data; upstream: relays them",
    )
    readback: bool = _setting(
        "STELLARCHAT_READBACK",
        True,
        switch,
        "answer OpenAI's stored completions and conversations from the history; off: upstream does",
    )
    forward_session: bool = _setting(
        "STELLARCHAT_FORWARD_SESSION",
        True,
        switch,
        "send the conversation's id to upstream in X-Session-Id, unless the caller sends one (on, off)",
    )
    session_headers: tuple[str, ...] = _setting(
        "STELLARCHAT_SESSION_HEADERS", SESSION_HEADERS, header_names, "request headers that may carry a session id"
    )
    transport: Transport = _setting(
        "STELLARCHAT_TRANSPORT",
        "own",
        one_of(get_args(Transport)),
        "HTTP client towards upstream: own, or httpx, which is slower and notices an early error response only after "
        "sending the whole request",
    )
    # Images and files are base64 in the body. The body is in memory while its chat lasts.
    body_limit_bytes: int = _setting(
        "STELLARCHAT_BODY_LIMIT_BYTES", 64 * 2**20, integer(1024, 2**32), "largest request body; above: 413"
    )
    # Far more than any model's context holds; parsing that many holds the GIL for up to 40 ms (measured).
    values_limit: int = _setting(
        "STELLARCHAT_VALUES_LIMIT",
        250_000,
        integer(1000, 2**32),
        "maximum number of JSON values in a parsed body; above: 413",
    )
    # Heads beyond this are refused by most servers; a head is kept in memory until it is complete.
    head_limit_bytes: int = _setting(
        "STELLARCHAT_HEAD_LIMIT_BYTES",
        64 * 2**10,
        integer(1024, 2**20),
        "largest request line and headers; above: 431",
    )
    caller_timeout_seconds: float = _setting(
        "STELLARCHAT_CALLER_TIMEOUT_SECONDS",
        60.0,
        seconds,
        "maximum time to send the request headers, and maximum time without reading any of the response",
    )
    # nginx's default, too.
    idle_timeout_seconds: float = _setting(
        "STELLARCHAT_IDLE_TIMEOUT_SECONDS", 75.0, seconds, "how long an idle client connection is kept open"
    )
    concurrency_limit: int = _setting(
        "STELLARCHAT_CONCURRENCY_LIMIT",
        4096,
        integer(1, 1_000_000),
        "concurrent requests per worker process; above: 429",
    )
    # Below the limit of the process, so that one key cannot take all places.
    key_concurrency_limit: int = _setting(
        "STELLARCHAT_KEY_CONCURRENCY_LIMIT",
        1024,
        integer(1, 1_000_000),
        "concurrent requests per key and worker process; above: 429",
    )
    cors_origins: tuple[str, ...] = _setting(
        "STELLARCHAT_CORS_ORIGINS", (), origins, "origins whose pages may call from a browser, or *; none by default"
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "STELLARCHAT_ALLOWED_HOSTS",
        (),
        host_names,
        "additional host names accepted by a server on a loopback address without keys",
    )
    connect_timeout_seconds: float = _setting(
        "STELLARCHAT_CONNECT_TIMEOUT_SECONDS", 5.0, seconds, "wait for a connection to upstream"
    )
    # vLLM may queue a request for long before it answers; OpenAI's SDKs wait 600 s as well.
    response_timeout_seconds: float = _setting(
        "STELLARCHAT_RESPONSE_TIMEOUT_SECONDS", 600.0, seconds, "wait for upstream's status"
    )
    read_timeout_seconds: float = _setting(
        "STELLARCHAT_READ_TIMEOUT_SECONDS", 600.0, seconds, "maximum time without data from upstream within a reply"
    )
    write_timeout_seconds: float = _setting(
        "STELLARCHAT_WRITE_TIMEOUT_SECONDS", 60.0, seconds, "maximum time for upstream to accept request data"
    )
    upstream_connections: int = _setting(
        "STELLARCHAT_UPSTREAM_CONNECTIONS", 4096, integer(1, 65535), "maximum number of connections to upstream"
    )
    # After a kill -9 a stream is at most about this much short: each flush of all streams is one transaction.
    flush_interval_seconds: float = _setting(
        "STELLARCHAT_FLUSH_INTERVAL_SECONDS", 0.5, seconds, "how far behind a streaming reply may be on disk"
    )
    # After this the caller gets its end although it is not on disk: waiting longer would look like a hanging model.
    commit_timeout_seconds: float = _setting(
        "STELLARCHAT_COMMIT_TIMEOUT_SECONDS", 5.0, seconds, "maximum time the end of a reply waits for the disk"
    )
    # Beyond half of these limits writes are spilled to the file; they bound the memory when the file fails, too.
    queue_limit: int = _setting(
        "STELLARCHAT_QUEUE_LIMIT", 20_000, integer(10, 10_000_000), "maximum number of queued writes"
    )
    queue_limit_bytes: int = _setting(
        "STELLARCHAT_QUEUE_LIMIT_BYTES", 512 * 2**20, integer(2**20, 2**40), "maximum size of queued writes"
    )
    state_dir: str = _setting(
        "STELLARCHAT_STATE_DIR", "", text, "folder of the spill files; empty: beside the database"
    )
    # Allocated at the start, because the spill is needed exactly when the disk is full.
    spill_reserve_bytes: int = _setting(
        "STELLARCHAT_SPILL_RESERVE_BYTES",
        16 * 2**20,
        integer(0, 2**40),
        "disk space reserved for the spill file, in case the disk is full",
    )
    # Replies that nobody reads still occupy the engine; beyond this many, they are aborted.
    orphan_limit: int = _setting(
        "STELLARCHAT_ORPHAN_LIMIT",
        100,
        integer(0, 100_000),
        "maximum number of replies read to the end after their caller has disconnected",
    )
    # A reply that takes longer is cut; the part that has arrived is saved.
    drain_grace_seconds: float = _setting(
        "STELLARCHAT_DRAIN_GRACE_SECONDS", 30.0, seconds, "how long open replies may continue at shutdown"
    )

    web: bool = _setting("STELLARCHAT_WEB", True, switch, "the history page under /ui (on, off)")
    log_file_bytes: int = _setting(
        "STELLARCHAT_LOG_FILE_BYTES",
        20 * 2**20,
        integer(1024, 2**40),
        "size at which a log file is rotated; 5 are kept",
    )
    access_log_sample: float = _setting(
        "STELLARCHAT_ACCESS_LOG_SAMPLE",
        1.0,
        share,
        "fraction of requests that are logged, 0 to 1; failures are always logged",
    )
    search_index: bool = _setting("STELLARCHAT_SEARCH_INDEX", True, switch, "maintain the search index (on, off)")
    backup_every_seconds: float = _setting(
        "STELLARCHAT_BACKUP_EVERY", 0.0, duration, "time between backups, such as 24h; off: none"
    )
    backup_keep: int = _setting("STELLARCHAT_BACKUP_KEEP", 7, integer(1, 10_000), "number of backups to keep")
    retention_days: int = _setting(
        "STELLARCHAT_RETENTION_DAYS",
        0,
        integer(0, 36_600),
        "delete sessions this many days after their last activity; 0: never",
    )

    otlp_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        None,
        http_url,
        "OpenTelemetry endpoint (OTLP over HTTP) for one span per chat",
    )
    otlp_traces_endpoint: str | None = _setting(
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        None,
        http_url,
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
        return self.database_url.startswith(POSTGRESQL)

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


_SECRETS = frozenset(each.metadata["name"] for each in fields(Settings) if each.metadata["cast"] is secret)


def load(
    overrides: Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    env_file: str | None = ".env",
) -> Settings:
    """Reads the environment and `.env`; `overrides` (by name) take precedence. Raises ConfigurationError."""
    each_name = {each.metadata["name"]: each for each in fields(Settings)}
    texts = environment.read_texts(each_name, secrets=_SECRETS, environ=environ, env_file=env_file)
    # Command line options take precedence over the environment, which takes precedence over `.env`.
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
