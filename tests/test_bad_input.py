"""Whatever a caller or an upstream sends: never a 500, always an error in OpenAI's shape, and the server lives on."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.proxy_process import ProxyProcess, run_proxy
from tests.raw_http import Reply, ask, chunked, request
from tests.scripted_upstream import ScriptedUpstream, always, echo, respond

CHAT = b"/v1/chat/completions"
ERROR_KEYS = {"message", "type", "param", "code"}

bounded = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def proxy(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with run_proxy(tmp_path_factory.mktemp("proxy"), upstream_url=upstream.url) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def session_id(proxy: ProxyProcess) -> str:
    created = call(proxy, b"POST", b"/v1/sessions", b'{"user_id":"default_user","title":"known","session_id":"known"}')
    assert created.status == 201
    identifier: str = json.loads(created.body)["session_id"]
    return identifier


def call(proxy: ProxyProcess, method: bytes, target: bytes, body: bytes = b"", *, headers: bytes = b"") -> Reply:
    return ask(proxy.address, request(target, body, method=method, headers=headers))


def assert_well_behaved(reply: Reply, method: bytes) -> None:
    assert 200 <= reply.status < 500, reply.body
    if reply.status >= 400 and method != b"HEAD":
        assert reply.head.values(b"content-type")[0].startswith(b"application/json"), reply.body
        error = json.loads(reply.body)["error"]
        assert set(error) == ERROR_KEYS
        assert isinstance(error["message"], str)
        assert error["message"]


# --- what may be sent -------------------------------------------------------------------------------------------------

SURROGATES = "\ud800\udfff"
texts = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=("Cs", "Cc", "Co", "Lo")), max_size=10),
    st.sampled_from(("", "\0", SURROGATES, "你好", "a" * 5000, "default_user", "known", "user", "%00", "' OR 1=1 --")),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from((0, -1, 1000, 1001, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**400)),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
finite = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
KNOWN_KEYS = (
    *("user_id", "title", "session_id", "metadata", "is_active", "role", "content", "model", "tokens"),
    *("messages", "stream", "user", "safety_identifier", "store", "n", "tools", "stream_options"),
)
ROLES = ("user", "assistant", "system", "tool", "developer", "function")
likely_objects = st.dictionaries(st.sampled_from(KNOWN_KEYS), anything, max_size=6)
likely_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES) | anything, "content": texts | anything},
    optional={"tokens": anything, "metadata": anything, "model": anything, "tool_calls": anything, "name": anything},
)


finite_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": texts | finite},
    optional={"tokens": st.integers(-1, 2**64), "metadata": finite, "tool_calls": finite, "name": finite, "x": finite},
)


def as_json(value: object) -> bytes:
    """JSON as lenient as Python's: NaN, big integers and lone surrogates included."""
    return json.dumps(value).encode()


def as_sent(value: object) -> object:
    """The value as its JSON says it: two surrogates side by side are one character."""
    return json.loads(as_json(value))


bodies = st.one_of(
    st.binary(max_size=60),
    anything.map(as_json),
    likely_objects.map(as_json),
    likely_messages.map(as_json),
    anything.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
)
escaped = st.one_of(
    texts.map(lambda text: quote(text, safe="", errors="surrogatepass")), st.binary(max_size=20).map(quote_from_bytes)
)
unescaped = st.text(st.sampled_from("abc019-_.~!$&'()*+,;=:@%"), min_size=1, max_size=20)
path_parts = escaped.filter(bool) | unescaped
PARAMETERS = (
    *("limit", "offset", "after", "page", "size", "order", "since", "until", "active_only"),
    *("branch", "format", "user_id", "q", "session_id"),
)
TIMES = (
    "2026-01-01T00:00:00.000Z",
    "2026-01-01",
    "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:59+14:00",
    "1e9",
    "now",
    "-1",
)
values = st.one_of(numbers.map(str), escaped, st.sampled_from(("asc", "desc", "openai", "true", "", *TIMES)))
queries = st.lists(st.tuples(st.sampled_from(PARAMETERS) | path_parts, values), max_size=4).map(
    lambda pairs: "&".join(f"{name}={value}" for name, value in pairs).encode()
)
header_values = st.binary(max_size=150).map(
    lambda value: bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F)
)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            (b"X-User-Id", b"X-Session-Id", b"X-Request-Id", b"Authorization", b"X-Conversation-Id", b"Accept")
        ),
        header_values,
    ),
    max_size=3,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: b"".join(b"%s: %s\r\n" % pair for pair in pairs))

ROUTES = (
    *((method, "/v1/sessions") for method in ("GET", "POST")),
    *((method, "/v1/sessions/{}") for method in ("GET", "PATCH", "PUT", "DELETE")),
    *((method, "/v1/sessions/{}/messages") for method in ("GET", "POST")),
    ("GET", "/v1/sessions/{}/exchanges"),
    ("GET", "/v1/users/{}/history"),
    *((method, "/api/sessions") for method in ("GET", "POST")),
    *((method, "/api/sessions/{}") for method in ("GET", "PUT", "DELETE")),
    *((method, "/api/sessions/{}/messages") for method in ("GET", "POST")),
    *(("GET", path) for path in ("/health", "/ready", "/metrics")),
    ("POST", "/v1/chat/completions"),
    *(("GET", path) for path in ("/v1/models", "/v1/search", "/v1/{}", "/{}", "/api/{}")),
)
routes = pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])


# --- our own routes ---------------------------------------------------------------------------------------------------


@routes
@bounded
@given(part=path_parts, query=queries, body=bodies, sent=headers)
@example(part="a%00b", query=b"limit=%00&offset=1", body=b"{}", sent=b"")
@example(part="%ff%fe", query=b"after=%ff&q=%ff", body=b"\xff", sent=b"X-User-Id: \xff\r\n")
@example(part="%ED%A0%80", query=b"since=%ED%A0%80", body=b'{"title":"\\ud800"}', sent=b"")
@example(part="x", query=b"limit=99999999999999999999&offset=99999999999999999999", body=b"[]", sent=b"")
def test_no_route_answers_500_to_a_stranger(
    upstream: ScriptedUpstream,
    proxy: ProxyProcess,
    method: str,
    path: str,
    part: str,
    query: bytes,
    body: bytes,
    sent: bytes,
) -> None:
    upstream.play(echo)
    target = path.format(part).encode("latin-1") + b"?" + query
    assert_well_behaved(call(proxy, method.encode(), target, body, headers=sent), method.encode())


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if "{}/" in route[1]])
@bounded
@given(query=queries, body=bodies)
def test_no_route_of_a_known_session_answers_500(
    proxy: ProxyProcess, session_id: str, method: str, path: str, query: bytes, body: bytes
) -> None:
    target = path.format(session_id).encode() + b"?" + query
    assert_well_behaved(call(proxy, method.encode(), target, body), method.encode())


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] in ("POST", "PATCH", "PUT")])
@bounded
@given(value=st.one_of(likely_messages, likely_objects))
def test_bodies_that_are_nearly_right_are_never_a_500(
    upstream: ScriptedUpstream, proxy: ProxyProcess, session_id: str, method: str, path: str, value: object
) -> None:
    upstream.play(echo)
    assert_well_behaved(call(proxy, method.encode(), path.format(session_id).encode(), as_json(value)), method.encode())


BAD_PARAMETERS = {
    "/v1/sessions": ("limit=0", "limit=-1", "limit=1001", "limit=x", "limit=1.5", "limit=1e3", "limit="),
    "/v1/sessions?": ("limit=99999999999999999999", "offset=-1", "offset=x", "active_only=maybe"),
    "/v1/sessions/known/messages": ("limit=0", "limit=1001", "offset=-1", "order=sideways", "format=xml", "limit=%00"),
    "/v1/sessions/known/exchanges": ("limit=0", "limit=1001", "offset=-1", "offset=x"),
    "/v1/users/default_user/history": ("limit=0", "limit=1001", "offset=-1", "since=yesterday", "until=x", "since=%ff"),
    "/api/sessions": ("page=0", "page=-1", "page=x", "size=0", "size=x", "size=-5", "active_only=maybe"),
    "/api/sessions/known/messages": ("page=0", "page=x", "size=0"),
}


@pytest.mark.parametrize(
    ("path", "query"), [(path, query) for path, queries in BAD_PARAMETERS.items() for query in queries]
)
def test_a_bad_parameter_is_a_400_that_names_it(proxy: ProxyProcess, session_id: str, path: str, query: str) -> None:
    assert session_id
    reply = call(proxy, b"GET", f"{path.rstrip('?')}?{query}".encode())
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["param"] == query.partition("=")[0]


BAD_SESSIONS: dict[str, tuple[bytes, str | None]] = {
    "no JSON": (b"{", None),
    "nothing": (b"", None),
    "an array": (b"[]", None),
    "bad UTF-8": (b'{"user_id":"\xff"}', None),
    "a number as user": (b'{"user_id":5}', "user_id"),
    "an empty user": (b'{"user_id":""}', "user_id"),
    "a number as title": (b'{"user_id":"u","title":5}', "title"),
    "metadata that is a list": (b'{"user_id":"u","metadata":[]}', "metadata"),
    "an external id with a space": (b'{"user_id":"u","session_id":"a b"}', "session_id"),
    "an external id of 129 characters": (b'{"user_id":"u","session_id":"%s"}' % (b"a" * 129), "session_id"),
    "a number as external id": (b'{"user_id":"u","session_id":7}', "session_id"),
}


@pytest.mark.parametrize(("body", "parameter"), BAD_SESSIONS.values(), ids=BAD_SESSIONS)
def test_a_bad_session_is_a_400_that_says_why(proxy: ProxyProcess, body: bytes, parameter: str | None) -> None:
    reply = call(proxy, b"POST", b"/v1/sessions", body)
    assert reply.status == 400
    assert_well_behaved(reply, b"POST")
    if parameter:
        assert json.loads(reply.body)["error"]["param"] == parameter


BAD_MESSAGES: dict[str, tuple[bytes, str | None]] = {
    "no JSON": (b"nope", None),
    "an array": (b"[]", None),
    "no role": (b'{"content":"x"}', "role"),
    "an unknown role": (b'{"role":"king","content":"x"}', "role"),
    "a role that is a list": (b'{"role":["user"],"content":"x"}', "role"),
    "no content": (b'{"role":"user"}', "content"),
    "a number as content": (b'{"role":"user","content":5}', "content"),
    "negative tokens": (b'{"role":"user","content":"x","tokens":-1}', "tokens"),
    "half a token": (b'{"role":"user","content":"x","tokens":1.5}', "tokens"),
    "true tokens": (b'{"role":"user","content":"x","tokens":true}', "tokens"),
    "more tokens than SQLite counts": (b'{"role":"user","content":"x","tokens":9223372036854775808}', "tokens"),
    "a number as model": (b'{"role":"user","content":"x","model":5}', "model"),
    "metadata that is a string": (b'{"role":"user","content":"x","metadata":"m"}', "metadata"),
}


@pytest.mark.parametrize(("body", "parameter"), BAD_MESSAGES.values(), ids=BAD_MESSAGES)
@pytest.mark.parametrize("facade", ("v1", "api"))
def test_a_bad_message_is_a_400_that_says_why(
    proxy: ProxyProcess, session_id: str, facade: str, body: bytes, parameter: str | None
) -> None:
    reply = call(proxy, b"POST", f"/{facade}/sessions/{session_id}/messages".encode(), body)
    assert reply.status == 400
    assert_well_behaved(reply, b"POST")
    if parameter:
        assert json.loads(reply.body)["error"]["param"] == parameter


@pytest.mark.parametrize(
    ("method", "path"),
    (
        ("DELETE", "/v1/sessions"),
        ("POST", "/v1/sessions/known"),
        ("PUT", "/v1/sessions/known/messages"),
        ("DELETE", "/v1/users/default_user/history"),
        ("PATCH", "/api/sessions"),
    ),
)
def test_a_method_a_route_lacks_is_a_405_that_lists_those_it_has(
    proxy: ProxyProcess, session_id: str, method: str, path: str
) -> None:
    assert session_id
    reply = call(proxy, method.encode(), path.encode())
    assert reply.status == 405
    assert reply.head.tokens(b"allow")
    assert_well_behaved(reply, method.encode())


@bounded
@given(title=texts, metadata=st.dictionaries(texts, finite, max_size=3))
def test_a_session_that_is_accepted_reads_back_the_same(
    proxy: ProxyProcess, title: str, metadata: dict[str, Any]
) -> None:
    body = as_json({"user_id": "default_user", "title": title, "metadata": metadata})
    created = call(proxy, b"POST", b"/v1/sessions", body)
    assert_well_behaved(created, b"POST")
    if created.status == 201:
        identifier = json.loads(created.body)["session_id"].encode()
        session = json.loads(call(proxy, b"GET", b"/v1/sessions/" + identifier).body)
        assert session["title"] == as_sent(title)
        assert repr(session["metadata"]) == repr(as_sent(metadata))


@bounded
@given(message=finite_messages)
def test_a_message_that_is_accepted_reads_back_the_same(
    proxy: ProxyProcess, session_id: str, message: dict[str, Any]
) -> None:
    path = f"/v1/sessions/{session_id}/messages".encode()
    created = call(proxy, b"POST", path, as_json(message))
    assert_well_behaved(created, b"POST")
    if created.status == 201:
        newest = call(proxy, b"GET", path + b"?order=desc&limit=1")
        assert newest.status == 200
        stored = json.loads(newest.body)["messages"][0]
        assert (stored["role"], repr(stored["content"])) == (message["role"], repr(as_sent(message["content"])))


# --- the proxy --------------------------------------------------------------------------------------------------------


def is_session_id(value: bytes) -> bool:
    return 1 <= len(value) <= 128 and all(0x21 <= byte <= 0x7E for byte in value)


@bounded
@given(value=header_values.map(lambda value: value.strip(b" \t")).filter(bool))
@example(value=b"a" * 128)
@example(value=b"a" * 129)
@example(value=b"a b")
@example(value=b"caf\xe9")
def test_a_session_id_out_of_form_is_a_400_before_upstream_is_asked(
    upstream: ScriptedUpstream, proxy: ProxyProcess, value: bytes
) -> None:
    upstream.play(echo)
    reply = call(proxy, b"POST", CHAT, b'{"messages":[]}', headers=b"X-Session-Id: %s\r\n" % value)
    assert_well_behaved(reply, b"POST")
    assert reply.status == (200 if is_session_id(value) else 400)
    assert len(upstream.received) == is_session_id(value)


@bounded
@given(value=anything)
@example(value="a\0")
@example(value=SURROGATES)
@example(value=5)
def test_a_session_id_of_any_type_in_the_body_is_no_500(
    upstream: ScriptedUpstream, proxy: ProxyProcess, value: object
) -> None:
    upstream.play(echo)
    for body in ({"session_id": value}, {"metadata": {"session_id": value}}, {"metadata": {"thread_id": value}}):
        assert_well_behaved(call(proxy, b"POST", CHAT, as_json({"messages": []} | body)), b"POST")


session_keys = {"session_id", "metadata"}


@settings(bounded, max_examples=80)
@given(body=likely_objects, messages=st.lists(likely_messages | anything, max_size=4))
def test_a_chat_of_any_shape_gets_the_answer_of_upstream(
    upstream: ScriptedUpstream, proxy: ProxyProcess, body: dict[str, Any], messages: list[object]
) -> None:
    upstream.play(echo)
    asked = {key: value for key, value in body.items() if key not in session_keys} | {"messages": messages}
    reply = call(proxy, b"POST", CHAT, as_json(asked))
    assert reply.status == 200
    assert len(upstream.received) == 1


@bounded
@given(user=header_values.map(lambda value: value.strip(b" \t")))
def test_a_user_of_any_bytes_is_no_500(upstream: ScriptedUpstream, proxy: ProxyProcess, user: bytes) -> None:
    upstream.play(echo)
    sent = b"X-User-Id: %s\r\n" % user
    assert_well_behaved(call(proxy, b"POST", CHAT, b'{"messages":[]}', headers=sent), b"POST")
    assert_well_behaved(call(proxy, b"GET", b"/v1/sessions", headers=sent), b"GET")


choices = st.lists(
    anything
    | st.fixed_dictionaries(
        {"index": st.integers(-1, 3) | anything},
        optional={
            "message": anything | likely_messages,
            "delta": anything | likely_messages,
            "finish_reason": anything,
        },
    ),
    max_size=3,
)
answers = anything | st.fixed_dictionaries(
    {}, optional={"choices": choices, "usage": anything, "id": anything, "model": anything}
)


@settings(bounded, max_examples=80)
@given(answer=answers, status=st.sampled_from((b"200 OK", b"400 Bad Request", b"500 Internal Server Error")))
def test_an_answer_of_any_shape_reaches_the_caller(
    upstream: ScriptedUpstream, proxy: ProxyProcess, answer: object, status: bytes
) -> None:
    upstream.play(always(respond(as_json(answer), status=status)))
    reply = call(proxy, b"POST", CHAT, b'{"messages":[{"role":"user","content":"x"}]}')
    assert (reply.status, reply.body) == (int(status[:3]), as_json(answer))


@settings(bounded, max_examples=80)
@given(events=st.lists(answers.map(as_json) | st.binary(max_size=30), max_size=5), is_usage_asked=st.booleans())
def test_events_of_any_shape_reach_the_caller(
    upstream: ScriptedUpstream, proxy: ProxyProcess, events: list[bytes], is_usage_asked: bool
) -> None:
    stream = [b"data: %s\n\n" % event for event in events]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    upstream.play(always(head + chunked(*stream)))
    body = {"messages": [], "stream": True} | ({"stream_options": {"include_usage": True}} if is_usage_asked else {})
    reply = call(proxy, b"POST", CHAT, as_json(body))
    kept = stream if is_usage_asked else [event for event in stream if b'"usage"' not in event]
    if is_usage_asked or len(kept) == len(stream):
        assert reply.body == b"".join(kept)
    assert reply.status == 200


# --- afterwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ("/v1/sessions?limit=1000", "/v1/users/default_user/history?limit=1000", "/api/sessions?size=100")
)
def test_all_that_was_kept_can_be_listed(proxy: ProxyProcess, path: str) -> None:
    reply = call(proxy, b"GET", path.encode())
    assert reply.status == 200
    assert json.loads(reply.body)["total"] > 0


def test_every_session_that_was_kept_can_be_read(proxy: ProxyProcess) -> None:
    for session in json.loads(call(proxy, b"GET", b"/v1/sessions?limit=1000").body)["sessions"][:200]:
        for part in ("", "/messages", "/messages?format=openai", "/exchanges"):
            assert call(proxy, b"GET", f"/v1/sessions/{session['session_id']}{part}".encode()).status == 200
