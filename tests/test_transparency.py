"""The same raw bytes straight to an upstream and through the proxy: neither end may be able to tell the difference."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.fake_upstream import Call
from tests.proxy_process import ProxyProcess, run_proxy
from tests.raw_http import WAIT_SECONDS, Address, Ending, Headers, Reply, Wire, ask, chunked, connect, request
from tests.scripted_upstream import Received, Script, ScriptedUpstream, Step, always, echo, respond

CHAT = b"/v1/chat/completions"
EMBEDDINGS = b"/v1/embeddings"
MEGABYTES_10 = 10 * 1024 * 1024

# RFC 9110 §7.6.1, and the names that the requests and scripts below put into Connection.
HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"x-hop",
}
REPLACED_IN_REQUESTS = {b"host", b"accept-encoding", b"x-request-id", b"content-length", b"expect", b"x-session-id"}
ADDED_TO_RESPONSES = {b"x-request-id", b"x-session-id", b"x-session-source"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    upstream = ScriptedUpstream()
    yield upstream
    upstream.close()


@pytest.fixture(scope="module")
def proxy(upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with run_proxy(tmp_path_factory.mktemp("proxy"), upstream_url=upstream.url) as proxy:
        yield proxy


@pytest.fixture
def wire(proxy: ProxyProcess) -> Iterator[Wire]:
    """A caller's connection to the proxy."""
    wire = connect(proxy.address)
    yield wire
    wire.close()


# --- what is compared -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """One exchange as both ends saw it."""

    reply: Reply
    received: list[Received]


def play(upstream: ScriptedUpstream, address: Address, script: Script, *pieces: bytes) -> Seen:
    upstream.play(script)
    reply = ask(address, *pieces)
    return Seen(reply, upstream.received)


def play_both(upstream: ScriptedUpstream, proxy: ProxyProcess, script: Script, *pieces: bytes) -> tuple[Seen, Seen]:
    return play(upstream, upstream.address, script, *pieces), play(upstream, proxy.address, script, *pieces)


def end_to_end(headers: Headers, *, without: set[bytes]) -> dict[bytes, list[bytes]]:
    """Names in lower case, each with its values in order: what RFC 9110 lets a recipient rely on."""
    grouped: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name.lower() not in HOP_BY_HOP | without:
            grouped.setdefault(name.lower(), []).append(value)
    return grouped


def origin_form(target: bytes) -> bytes:
    """Without the authority, and without the mark of a query that is empty: ASGI cannot tell it from none."""
    return target.removeprefix(b"http://model.example").removesuffix(b"?")


def assert_same_request(direct: Seen, relayed: Seen) -> None:
    assert len(relayed.received) == len(direct.received) == 1
    sent, arrived = direct.received[0], relayed.received[0]
    assert arrived.method == sent.method
    assert origin_form(arrived.target) == origin_form(sent.target)
    assert end_to_end(arrived.head.headers, without=REPLACED_IN_REQUESTS) == end_to_end(
        sent.head.headers, without=REPLACED_IN_REQUESTS
    )
    assert arrived.head.values(b"accept-encoding") == [b"identity"]
    assert len(arrived.head.values(b"x-request-id")) == 1
    assert arrived.body == sent.body


def assert_same_response(direct: Reply, relayed: Reply) -> None:
    assert relayed.status == direct.status
    # the length may be given up for chunks, never changed
    without = ADDED_TO_RESPONSES - set(end_to_end(direct.head.headers, without=set()))
    if not relayed.head.values(b"content-length"):
        without = without | {b"content-length"}
    assert end_to_end(relayed.head.headers, without=without) == end_to_end(direct.head.headers, without=without)
    assert relayed.body == direct.body
    assert relayed.ending in (Ending.TERMINATED, direct.ending)
    assert len(relayed.head.values(b"x-request-id")) == 1


def assert_transparent(upstream: ScriptedUpstream, proxy: ProxyProcess, script: Script, *pieces: bytes) -> None:
    direct, relayed = play_both(upstream, proxy, script, *pieces)
    assert_same_response(direct.reply, relayed.reply)
    assert_same_request(direct, relayed)


# --- requests ---------------------------------------------------------------------------------------------------------

ODD_BODIES = {
    "plain": b'{"model":"m","messages":[{"role":"user","content":"hi"}]}',
    "no messages": b'{"model":"m"}',
    "messages of a wrong type": b'{"model":"m","messages":"hi"}',
    "messages holding wrong types": b'{"messages":[1,null,[],{"role":5,"content":{"a":1}},{"content":[1,{"type":7}]}]}',
    "unknown fields": b'{"messages":[],"top_k":5,"chat_template_kwargs":{"x":[1]},"\\u0000":{}}',
    "whitespace around": b'\r\n\t {"messages" :\n [ ] } \r\n\t',
    "escaped slashes and unicode": b'{"messages":[{"role":"user","content":"a\\/b\\u00e9\\u4f60"}]}',
    "Chinese and emoji": '{"messages":[{"role":"user","content":"你好 👩‍👩‍👧‍👦"}]}'.encode(),
    "NaN": b'{"messages":[],"temperature":NaN}',
    "infinities": b'{"messages":[],"a":Infinity,"b":-Infinity}',
    "a float beyond the range": b'{"messages":[],"temperature":1e400}',
    "a float of many digits": b'{"messages":[],"temperature":0.1000000000000000055511151231257827}',
    "big integers": b'{"messages":[],"seed":123456789012345678901234567890,"b":-9223372036854775809}',
    "an integer of 5000 digits": b'{"messages":[],"seed":' + b"9" * 5000 + b"}",
    "duplicate keys": b'{"model":"a","messages":[],"model":"b"}',
    "duplicate messages": b'{"messages":[],"messages":[{"role":"user","content":"hi"}]}',
    "deep nesting": b'{"messages":[],"x":' + b"[" * 500 + b"]" * 500 + b"}",
    "too deep nesting": b'{"messages":[],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "messages nested as deep as a parser goes": b'{"messages":[{"role":"user","content":'
    + b"[" * 1000
    + b"]" * 1000
    + b"}]}",
    "nested messages": b'{"messages":[{"role":"user","content":' + b"[" * 400 + b"]" * 400 + b"}]}",
    "a byte order mark": b'\xef\xbb\xbf{"messages":[]}',
    "UTF-16": '{"messages":[]}'.encode("utf-16"),
    "UTF-32": '{"messages":[]}'.encode("utf-32"),
    "lone surrogates": b'{"messages":[{"role":"user","content":"\\ud800 \\udc00"}]}',
    "a lone surrogate as key": b'{"messages":[],"\\ud800":1}',
    "encoded surrogates": b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "bad UTF-8": b'{"messages":[{"role":"user","content":"\xff\xfe\x80"}]}',
    "overlong UTF-8": b'{"messages":[{"role":"user","content":"\xc0\xaf"}]}',
    "NUL in a string": b'{"messages":[{"role":"user","content":"a\\u0000b"}],"user":"\\u0000"}',
    "raw NUL in a string": b'{"messages":[{"role":"user","content":"a\x00b"}]}',
    "raw control characters": b'{"messages":[{"role":"user","content":"a\nb\x1f"}]}',
    "an array": b'[{"messages":[]}]',
    "a string": b'"messages"',
    "a number": b"17",
    "null": b"null",
    "empty": b"",
    "only spaces": b"   ",
    "trailing garbage": b'{"messages":[]}x',
    "two documents": b'{"messages":[]}{"messages":[]}',
    "a trailing comma": b'{"messages":[],}',
    "single quotes": b"{'messages':[]}",
    "comments": b'{"messages":[] /* none */}',
    "cut short": b'{"messages":[{"role":"us',
    "binary": bytes(range(256)),
    "gzip": gzip.compress(b'{"messages":[]}', mtime=0),
    "form data": b"model=m&messages=hi",
    "known fields of odd types": b'{"messages":[],"stream":"yes","user":5,"metadata":"x","store":"no","n":"2"}',
    "odd metadata": b'{"messages":[],"metadata":{"session_id":null,"thread_id":null,"x":[]},"user":{}}',
    "stream as a number": b'{"messages":[],"stream":1}',
    "stream null": b'{"messages":[],"stream":null,"stream_options":null}',
}


@pytest.mark.parametrize("body", ODD_BODIES.values(), ids=ODD_BODIES)
@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_upstream_judges_the_body(upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, body: bytes) -> None:
    assert_transparent(upstream, proxy, echo, request(target, body))


def verbatim(body: bytes) -> object:
    """A JSON document with numbers as written, and objects as lists of pairs: nothing is lost in comparing it."""
    return json.loads(body, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=list)


EDITED_BODIES = {
    "plain": b'{"model":"m","messages":[{"role":"user","content":"hi"}],%s}',
    "big integers": b'{"seed":123456789012345678901234567890,"messages":[],%s}',
    "floats as written": b'{"messages":[],"a":1e400,"b":1E5,"c":-0.0,"d":0.10,"e":1.0000000000000000001,%s}',
    "duplicate keys": b'{"messages":[],"a":1,"a":{"b":1,"b":2},%s}',
    "Chinese and escapes": '{"messages":[{"role":"user","content":"你好\\u4f60\\/"}],%s}'.encode(),
    "whitespace": b'{ "messages" : [ ] ,\n%s\t}',
    "NUL": b'{"messages":[{"role":"user","content":"\\u0000"}],%s}',
    "the same keys deeper": b'{"messages":[{"role":"user","content":"x","session_id":"in","stream_options":{}}],%s}',
    "deep": b'{"messages":[],"x":' + b"[" * 200 + b"]" * 200 + b",%s}",
}


@pytest.mark.parametrize("body", EDITED_BODIES.values(), ids=EDITED_BODIES)
def test_a_body_with_a_session_id_is_relayed_as_it_is(
    upstream: ScriptedUpstream, proxy: ProxyProcess, body: bytes
) -> None:
    sent = body % b'"session_id":"mine","z":1'
    relayed = play(upstream, proxy.address, echo, request(CHAT, sent))
    assert relayed.reply.status == 200
    assert relayed.received[0].body == sent


@pytest.mark.parametrize("body", EDITED_BODIES.values(), ids=EDITED_BODIES)
def test_asking_for_usage_changes_nothing_else(upstream: ScriptedUpstream, proxy: ProxyProcess, body: bytes) -> None:
    relayed = play(upstream, proxy.address, stream_of(PLAIN_EVENTS), request(CHAT, body % b'"stream":true'))
    received = verbatim(relayed.received[0].body)
    asked = verbatim(body % b'"stream":true,"stream_options":{"include_usage":true}')
    assert isinstance(received, list)
    assert isinstance(asked, list)
    assert sorted(map(repr, received)) == sorted(map(repr, asked))


def test_other_stream_options_stay(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    body = b'{"messages":[],"stream":true,"stream_options":{"x":123456789012345678901,"y":[null]}}'
    relayed = play(upstream, proxy.address, stream_of(PLAIN_EVENTS), request(CHAT, body))
    pairs = verbatim(relayed.received[0].body)
    assert isinstance(pairs, list)
    options = dict(pairs)["stream_options"]
    assert sorted(options) == [("include_usage", True), ("x", "123456789012345678901"), ("y", [None])]


LENIENT_STREAMS = {
    "NaN": b'{"messages":[],"stream":true,"a":NaN}',
    "a lone surrogate": b'{"messages":[],"stream":true,"a":"\\ud800"}',
    "a byte order mark": b'\xef\xbb\xbf{"messages":[],"stream":true}',
    **{
        encoding: '{"messages":[],"stream":true,"a":"你"}'.encode(encoding)
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be")
    },
}


@pytest.mark.parametrize("body", LENIENT_STREAMS.values(), ids=LENIENT_STREAMS)
def test_a_stream_asked_for_in_lenient_json_still_streams(
    upstream: ScriptedUpstream, proxy: ProxyProcess, body: bytes
) -> None:
    direct, relayed = play_both(upstream, proxy, stream_of(PLAIN_EVENTS), request(CHAT, body))
    assert_same_response(direct.reply, relayed.reply)
    received = verbatim(relayed.received[0].body)
    assert isinstance(received, list)
    assert [pair for pair in received if pair[0] != "stream_options"] == verbatim(body)


ODD_HEADERS = {
    "repeated": b"X-Many: 1\r\nX-Other: o\r\nx-many: 2\r\nX-MANY: 3\r\n",
    "empty value": b"X-Empty:\r\nX-Blank:   \r\n",
    "latin-1 value": b"X-Name: caf\xe9 \xff\r\n",
    "UTF-8 value": "X-Name: 你好\r\n".encode(),
    "inner spaces and commas": b"X-List: a,  b ,c\tq=0.5\r\n",
    "one of 8 kB": b"X-Long: " + b"a" * 8000 + b"\r\n",
    "many": b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(90)),
    "odd names": b"!#$%&'*+.^_`|~0: token\r\nx_under_score: 1\r\n",
    "authorization": b"Authorization: Bearer secret\r\nCookie: a=b\r\nCookie: c=d\r\n",
    "named by Connection": b"Connection: x-hop, keep-alive\r\nX-Hop: 1\r\nX-Kept: 2\r\n",
    "hop-by-hop": b"TE: trailers\r\nProxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
    "an upgrade nobody takes": b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "wishes about encodings": b"Accept-Encoding: gzip, br\r\nAccept: text/event-stream\r\n",
    "forwarding headers": b"X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nVia: 1.1 edge\r\n",
    "tracing": b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n",
    "conditional": b'If-None-Match: "a", W/"b"\r\nRange: bytes=0-10\r\n',
}


@pytest.mark.parametrize("headers", ODD_HEADERS.values(), ids=ODD_HEADERS)
@pytest.mark.parametrize(("method", "target"), ((b"POST", CHAT), (b"GET", b"/v1/models")))
def test_end_to_end_request_headers_arrive(
    upstream: ScriptedUpstream, proxy: ProxyProcess, method: bytes, target: bytes, headers: bytes
) -> None:
    body = ODD_BODIES["plain"] if method == b"POST" else b""
    assert_transparent(upstream, proxy, echo, request(target, body, method=method, headers=headers))


@pytest.mark.parametrize("headers", (b"Connection: x-hop\r\nX-Hop: 1\r\n", b"TE: trailers\r\n", b"Keep-Alive: a\r\n"))
def test_hop_by_hop_request_headers_do_not_arrive(
    upstream: ScriptedUpstream, proxy: ProxyProcess, headers: bytes
) -> None:
    relayed = play(upstream, proxy.address, echo, request(b"/v1/models", method=b"GET", headers=headers))
    names = {name.lower() for name, _ in relayed.received[0].head.headers}
    assert not names & {b"x-hop", b"te", b"keep-alive"}


@pytest.mark.parametrize("method", (b"GET", b"POST"))
def test_a_connection_goes_on_after_an_upgrade_nobody_takes(
    upstream: ScriptedUpstream, wire: Wire, method: bytes
) -> None:
    upstream.play(echo)
    body = BODY if method == b"POST" else b""
    for headers in (ODD_HEADERS["an upgrade nobody takes"], b"", b""):
        wire.send(request(EMBEDDINGS, body, method=method, headers=headers))
        assert Reply(wire, method).read_head().read_body().status == 200
    assert [received.body for received in upstream.received] == [body] * 3


def test_a_request_id_is_passed_on_and_comes_back(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    relayed = play(upstream, proxy.address, echo, request(CHAT, b"{}", headers=b"X-Request-Id: from-caller-1\r\n"))
    assert relayed.received[0].head.values(b"x-request-id") == [b"from-caller-1"]
    assert relayed.reply.head.values(b"x-request-id") == [b"from-caller-1"]


METHODS = (b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"HEAD")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", (b"/v1/files/file-1", b"/version", b"/tokenize"))
def test_every_method_is_relayed(upstream: ScriptedUpstream, proxy: ProxyProcess, method: bytes, target: bytes) -> None:
    body = b'{"a":1}' if method in (b"POST", b"PUT", b"PATCH", b"DELETE") else b""
    assert_transparent(upstream, proxy, echo, request(target, body, method=method))


@pytest.mark.parametrize("method", (b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
def test_upstream_judges_other_methods_on_the_chat_route(
    upstream: ScriptedUpstream, proxy: ProxyProcess, method: bytes
) -> None:
    def refuse(received: Received) -> Iterator[bytes | Step]:
        answer = respond(
            b'{"detail":"Method Not Allowed"}', status=b"405 Method Not Allowed", headers=b"Allow: POST\r\n"
        )
        yield answer if received.method != b"HEAD" else answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

    assert_transparent(upstream, proxy, refuse, request(CHAT, method=method))


TARGETS = (
    b"/v1/models?",
    b"/v1/models?a=1&a=2&b=%20+&c",
    b"/v1/models?q=%E4%BD%A0&r=%zz&s=%&t=a%2Fb",
    b'/v1/models?filter[k]=v&x={y}|z^`"',
    b"/v1/models?metadata%5Bk%5D=v&include[]=a&include[]=b",
    b"/v1/models?a=b?c=d/e:f@g",
    b"/v1/models?session_id=kept",
    b"/v1/models/org/name",
    b"/v1/models/org%2Fname",
    b"/v1/models/org%2fname%20with%20spaces",
    b"/v1/models/%E4%BD%A0%E5%A5%BD",
    b"/v1/models/a+b:c@d,e=f,g!$&'()*",
    b"/v1/models/%7E%41~A",
    b"/v1/models/{id}|[x]",
    b"/v1/models/",
    b"/v1/models/x/y/",
    b"/v1/models/" + b"a" * 6000,
    b"http://model.example/v1/models?x=1",
)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:40].decode())
def test_targets_arrive_as_written(upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes) -> None:
    assert_transparent(upstream, proxy, always(respond(b"{}")), request(target, method=b"GET"))


def test_a_target_of_raw_bytes_arrives_or_is_refused_as_bad(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    raw = "/v1/models/你好?q=é".encode()
    relayed = play(upstream, proxy.address, echo, request(raw, method=b"GET"))
    assert relayed.reply.status == 400 or [received.target for received in relayed.received] == [raw]


def test_websocket_is_refused_in_words(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    wish = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    relayed = play(upstream, proxy.address, echo, request(b"/v1/realtime", method=b"GET", headers=wish))
    assert (relayed.reply.status, relayed.received) == (501, [])
    assert b"WebSocket" in relayed.reply.body


DISGUISED_CONTROL_ROUTES = (
    b"/sleep",
    b"/v1/../sleep",
    b"/v1/%2e%2e/sleep",
    b"/v1/%2E%2E%2Fsleep",
    b"/v1/models/../../sleep",
    b"/v1/./load_lora_adapter",
    b"/v1/load_lora_adapter",
    b"/v1/load%5Flora_adapter",
    b"/%73leep",
    b"/v1%2f..%2fsleep",
    b"/./sleep",
    b"//sleep",
    b"/version/../sleep",
    b"/collective_rpc",
    b"/reset_prefix_cache",
    b"/inference/v1/generate",
    b"/openapi.json",
    b"http://model.example/sleep",
    b"/sleep?x=/v1/models",
    b"/sleep;/v1/models",
    b"/sleep%3Fx",
)


@pytest.mark.parametrize("target", DISGUISED_CONTROL_ROUTES, ids=lambda target: target.decode())
@pytest.mark.parametrize("method", (b"POST", b"GET"))
def test_routes_that_control_the_engine_are_not_found_however_written(
    upstream: ScriptedUpstream, proxy: ProxyProcess, method: bytes, target: bytes
) -> None:
    relayed = play(upstream, proxy.address, echo, request(target, b"{}", method=method))
    assert relayed.received == []
    assert relayed.reply.status == 404
    assert set(json.loads(relayed.reply.body)["error"]) == {"message", "type", "param", "code"}


BODY = ODD_BODIES["plain"]
POST_HEAD = b"POST %s HTTP/1.1\r\nHost: model.example\r\nContent-Type: application/json\r\n"
FRAMINGS: dict[str, Callable[[bytes], tuple[bytes, ...]]] = {
    "one chunk": lambda head: (head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY),),
    "a chunk a byte": lambda head: (
        head + b"Transfer-Encoding: chunked\r\n\r\n",
        chunked(*(BODY[i : i + 1] for i in range(len(BODY)))),
    ),
    "extensions": lambda head: (
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY, extension=b';a=1;b="x y"'),
    ),
    "trailers": lambda head: (
        head + b"Transfer-Encoding: chunked\r\nTrailer: X-Hop\r\n\r\n" + chunked(BODY, trailers=b"X-Hop: 1\r\n"),
    ),
    "an empty chunked body": lambda head: (head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(),),
    "a length in many segments": lambda head: (
        head,
        b"Content-Length: %d\r\n" % len(BODY),
        b"\r\n",
        BODY[:1],
        BODY[1:],
    ),
    "an empty length": lambda head: (head + b"Content-Length: 0\r\n\r\n",),
}


@pytest.mark.parametrize("frame", FRAMINGS.values(), ids=FRAMINGS)
@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_a_body_arrives_in_any_framing(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, frame: Callable[[bytes], tuple[bytes, ...]]
) -> None:
    assert_transparent(upstream, proxy, echo, *frame(POST_HEAD % target))


@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_a_caller_who_expects_100_continue_gets_it(upstream: ScriptedUpstream, wire: Wire, target: bytes) -> None:
    upstream.play(echo)
    wire.send(POST_HEAD % target + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY))
    assert b" 100 " in wire.read_head().first_line
    wire.send(BODY)
    assert Reply(wire, b"POST").read_head().read_body().status == 200
    assert upstream.received[0].body == BODY


@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_10_megabytes_travel_up(upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes) -> None:
    body = b'{"messages":[{"role":"user","content":"%s"}]}' % (b"x" * MEGABYTES_10)
    assert_transparent(upstream, proxy, echo, request(target, body))


@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_10_megabytes_travel_down(upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes) -> None:
    small = b"".join(s for s in echo(Received(Call(1, 1, "POST", "/", b""))) if isinstance(s, bytes))
    whole = json.loads(small.partition(b"\r\n\r\n")[2])
    whole["choices"][0]["message"]["content"] = "y" * MEGABYTES_10
    answer = respond(json.dumps(whole).encode())
    assert_transparent(upstream, proxy, always(answer), request(target, BODY))


def test_a_request_body_is_passed_on_while_it_arrives(upstream: ScriptedUpstream, wire: Wire) -> None:
    upstream.play(echo)
    wire.send(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    received = upstream.await_request()
    assert received.body in (b"", b"first")
    wire.send(b"6\r\nsecond\r\n0\r\n\r\n")
    assert Reply(wire, b"POST").read_head().read_body().status == 200
    assert received.body == b"firstsecond"


def test_one_connection_serves_requests_one_after_another(upstream: ScriptedUpstream, wire: Wire) -> None:
    upstream.play(echo)
    for target in (CHAT, EMBEDDINGS, CHAT):
        wire.send(request(target, BODY))
        reply = Reply(wire, b"POST").read_head().read_body()
        assert (reply.status, reply.ending) == (200, Ending.TERMINATED)
        assert target in reply.body


def test_pipelined_requests_are_answered_in_order(upstream: ScriptedUpstream, wire: Wire) -> None:
    upstream.play(echo)
    targets = (b"/v1/models/a", CHAT, b"/v1/models/b", EMBEDDINGS)
    wire.send(b"".join(request(target, BODY) for target in targets))
    replies = [Reply(wire, b"POST").read_head().read_body() for _ in targets]
    assert [target in reply.body for target, reply in zip(targets, replies, strict=True)] == [True] * 4


def test_connection_close_is_honoured(upstream: ScriptedUpstream, wire: Wire) -> None:
    upstream.play(echo)
    wire.send(request(CHAT, BODY, headers=b"Connection: close\r\n"))
    assert Reply(wire, b"POST").read_head().read_body().ending is Ending.TERMINATED
    assert wire.has_ended()


def test_smuggled_requests_do_not_reach_upstream(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    smuggled = b"POST /sleep HTTP/1.1\r\nHost: a\r\n\r\n"
    head = POST_HEAD % EMBEDDINGS + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
    play(upstream, proxy.address, echo, head % (len(smuggled) + 5) + b"0\r\n\r\n" + smuggled)
    assert b"/sleep" not in [received.target for received in upstream.received]


# --- responses --------------------------------------------------------------------------------------------------------

RESPONSE_HEADERS = {
    "repeated": b"Set-Cookie: a=1; Path=/\r\nX-Many: 1\r\nSet-Cookie: b=2\r\nx-many: 2\r\nWWW-Authenticate: Basic\r\n",
    "empty and blank": b"X-Empty:\r\nX-Blank:  \r\n",
    "latin-1": b"X-Name: caf\xe9 \xff\r\n",
    "UTF-8": "X-Name: 你好\r\n".encode(),
    "date and server": b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nServer: raw/1.0\r\n",
    "hop-by-hop": b"Connection: x-hop\r\nX-Hop: secret\r\nKeep-Alive: timeout=5\r\n",
    "caching": b'ETag: W/"a,b"\r\nCache-Control: no-store\r\nVary: Accept\r\nVary: Origin\r\nLast-Modified: x\r\n',
    "CORS": b"Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: X-A, X-B\r\n",
    "many": b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(60)),
    "a long one": b"X-Long: " + b"b" * 8000 + b"\r\n",
    "its own request id": b"X-Request-Id: from-upstream\r\n",
    "rate limits": b"Retry-After: 7\r\nretry-after-ms: 7000\r\nx-ratelimit-remaining-tokens: 0\r\n",
    "no content type": b"",
    "a charset": b"Content-Type: application/json; charset=utf-8\r\n",
    "server-timing": b"Server-Timing: db;dur=53\r\nOpenAI-Processing-Ms: 5\r\nOpenAI-Version: 2020-10-01\r\n",
}


@pytest.mark.parametrize("headers", RESPONSE_HEADERS.values(), ids=RESPONSE_HEADERS)
@pytest.mark.parametrize("target", (CHAT, b"/v1/models"))
def test_end_to_end_response_headers_arrive(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, headers: bytes
) -> None:
    assert_transparent(upstream, proxy, always(respond(b'{"a":1}', headers=headers)), request(target, BODY))


def test_hop_by_hop_response_headers_do_not_arrive(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    answer = respond(b"{}", headers=RESPONSE_HEADERS["hop-by-hop"] + b"Upgrade: h2c\r\n")
    relayed = play(upstream, proxy.address, always(answer), request(CHAT, BODY))
    assert not {name.lower() for name, _ in relayed.reply.head.headers} & {b"x-hop", b"upgrade"}


STATUSES = (
    *(200, 201, 202, 203, 206, 207, 226, 299, 300, 301, 307, 308),
    *(400, 401, 402, 403, 404, 409, 413, 418, 422, 429, 431, 451, 499),
    *(500, 501, 502, 503, 504, 529, 599),
)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_any_status_passes_with_its_body(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, status: int
) -> None:
    error = b'{"error":{"message":"no","type":"t","param":null,"code":%d}}' % status
    answer = respond(error, status=b"%d Whatever" % status, headers=b"Location: /v1/elsewhere\r\nX-A: 1\r\n")
    assert_transparent(upstream, proxy, always(answer), request(target, BODY))


@pytest.mark.parametrize("status", (b"204 No Content", b"304 Not Modified"))
@pytest.mark.parametrize("target", (CHAT, b"/v1/models"))
def test_statuses_without_a_body_pass(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, status: bytes
) -> None:
    answer = b'HTTP/1.1 %s\r\nETag: "x"\r\nX-A: 1\r\n\r\n' % status
    assert_transparent(upstream, proxy, always(answer), request(target, BODY))


def test_head_keeps_the_length_of_the_body_it_stands_for(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nContent-Type: text/plain\r\n\r\n"
    relayed = play(upstream, proxy.address, always(answer), request(b"/v1/files/1", method=b"HEAD"))
    assert relayed.reply.head.values(b"content-length") == [b"1234"]
    assert relayed.reply.body == b""


@pytest.mark.parametrize(
    "interim",
    (
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
    ),
)
@pytest.mark.parametrize("target", (CHAT, b"/v1/models"))
def test_interim_responses_do_not_disturb_the_final_one(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, interim: bytes
) -> None:
    assert_transparent(upstream, proxy, always(interim, respond(b'{"a":1}')), request(target, BODY))


COMPRESSED = gzip.compress(b'{"choices":[]}', mtime=0)
WHOLE_BODIES = {
    "gzip nobody asked for": (respond(COMPRESSED, headers=b"Content-Encoding: gzip\r\n"),),
    "bytes that are not JSON": (respond(bytes(range(256)), headers=b"Content-Type: application/json\r\n"),),
    "empty": (respond(b""),),
    "JSON of another shape": (respond(b'{"choices":[{"message":"x"},5,{"index":"a","message":{}}],"usage":[]}'),),
    "an array": (respond(b"[1,2]"),),
    "a string": (respond(b'"x"'),),
    "null": (respond(b"null"),),
    "odd numbers": (
        respond(
            b'{"choices":[],"usage":{"prompt_tokens":1e400,"completion_tokens":-1,"total_tokens":%s}}' % (b"9" * 400)
        ),
    ),
    "negative and huge indexes": (
        respond(b'{"choices":[{"index":-1,"message":{}},{"index":99999999999999999999,"message":{}}]}'),
    ),
    "lone surrogates": (
        respond(b'{"id":"\\ud800","choices":[{"index":0,"message":{"role":"assistant","content":"\\udfff"}}]}'),
    ),
    "roles that are no strings": (
        respond(
            b'{"choices":[{"message":{"role":["a"],"content":"x"}},{"index":1,"message":{"role":{},"content":"y"}}]}'
        ),
    ),
    "lone surrogates in every name": (
        respond(
            b'{"id":"\\ud800","model":"\\ud800","choices":[{"finish_reason":"\\ud800",'
            b'"message":{"role":"\\ud800","content":"x"}}]}'
        ),
    ),
    "HTML": (respond(b"<html>no</html>", status=b"502 Bad Gateway", headers=b"Content-Type: text/html\r\n"),),
    "a string as error": (respond(b'{"error":"Unauthorized"}', status=b"401 Unauthorized"),),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b'{"choices"', b":[", b"]}"),),
    "chunks with extensions and trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(b"{", b"}", extension=b";x=1", trailers=b"X-Hop: 1\r\n"),
    ),
    "no framing": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b'{"a":1}', Step.CLOSE),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n", b'{"a":1}', Step.CLOSE),
    "events nobody asked for": (
        respond(b'data: {"choices":[]}\n\ndata: [DONE]\n\n', headers=b"Content-Type: text/event-stream\r\n"),
    ),
}


@pytest.mark.parametrize("steps", WHOLE_BODIES.values(), ids=WHOLE_BODIES)
@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_any_whole_body_passes(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, steps: tuple[bytes | Step, ...]
) -> None:
    assert_transparent(upstream, proxy, always(*steps), request(target, BODY))


def test_a_caller_of_http_1_0_gets_a_body_it_can_read(upstream: ScriptedUpstream, proxy: ProxyProcess) -> None:
    whole = play(upstream, proxy.address, echo, request(b"/v1/models", method=b"GET", version=b"HTTP/1.0")).reply
    assert (whole.status, b"/v1/models" in whole.body) == (200, True)
    direct, relayed = play_both(
        upstream, proxy, stream_of(PLAIN_EVENTS, is_chunked=False), request(CHAT, STREAMED, version=b"HTTP/1.0")
    )
    assert relayed.reply.head.values(b"transfer-encoding") == []
    assert relayed.reply.body == direct.reply.body


# --- events -----------------------------------------------------------------------------------------------------------

STREAMED = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
STREAMED_WITH_USAGE = STREAMED[:-1] + b',"stream_options":{"include_usage":true}}'
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Many: 1\r\nX-Many: 2\r\n"
DONE = b"data: [DONE]\n\n"


def delta(content: str, *, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}
    return b"data: %s\n\n" % json.dumps({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}).encode()


PLAIN_EVENTS = (delta("Hel"), delta("lo"), delta("", finish_reason="stop"), DONE)
USAGE_EVENT = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
ERROR_EVENT = b'data: {"error":{"message":"boom","type":"t","param":null,"code":500}}\n\n'

EVENTS: dict[str, tuple[bytes, ...]] = {
    "plain": PLAIN_EVENTS,
    "CRLF": tuple(event.replace(b"\n", b"\r\n") for event in PLAIN_EVENTS),
    "CR": tuple(event.replace(b"\n", b"\r") for event in PLAIN_EVENTS),
    "no space after the colon": tuple(event.replace(b"data: ", b"data:") for event in PLAIN_EVENTS),
    "comments": (b": keep-alive\n\n", PLAIN_EVENTS[0], b":\n\n", b": OPENROUTER PROCESSING\n\n", *PLAIN_EVENTS[1:]),
    "fields besides data": (
        b"id: 1\nevent: chunk\nretry: 5\n" + PLAIN_EVENTS[0],
        b"event: ping\n\n",
        *PLAIN_EVENTS[1:],
    ),
    "data over several lines": (b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"a"}}]}\n\n', *PLAIN_EVENTS),
    "a byte order mark": (b"\xef\xbb\xbf" + PLAIN_EVENTS[0], *PLAIN_EVENTS[1:]),
    "no DONE": PLAIN_EVENTS[:-1],
    "DONE only": (DONE,),
    "no events at all": (),
    "more after DONE": (*PLAIN_EVENTS, b": late\n\n" + delta("late")),
    "an error event": (PLAIN_EVENTS[0], ERROR_EVENT, DONE),
    "an error event with a name": (b'event: error\ndata: {"error":"x"}\n\n',),
    "events that are not JSON": (b"data: hello\n\n", b"data: {\n\n", b"data: \xff\xfe\n\n", b"data\n\n", *PLAIN_EVENTS),
    "events of another shape": (
        b'data: {"choices":"x"}\n\n',
        b'data: {"choices":[null,1,{"delta":5},{"index":"z","delta":{"content":{"a":1}}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{"tool_calls":[7,{"index":-1},{"index":{}}]}}]}\n\n',
        b'data: {"choices":[{"index":2,"delta":{"role":["a"],"content":"x"},"finish_reason":"stop"}]}\n\n',
        b"data: [1]\n\ndata: 5\n\ndata: null\n\n",
        b'data: {"choices":[{"index":1e400,"delta":{"content":"\\ud800"}}],"usage":"none"}\n\n',
        *PLAIN_EVENTS,
    ),
    "a line without an end": (PLAIN_EVENTS[0], b"data: {"),
    "blank lines": (b"\n\n\n", PLAIN_EVENTS[0], b"\r\n\r\n", *PLAIN_EVENTS[1:]),
    "an event of 300 kB": (delta("x" * 300_000), *PLAIN_EVENTS),
    "several events a chunk": (b"".join(PLAIN_EVENTS[:2]), b"".join(PLAIN_EVENTS[2:])),
    "events cut anywhere": tuple(bytes([byte]) for byte in b"".join(PLAIN_EVENTS)),
    "Chinese cut inside a character": (
        (b'data: {"choices":[{"index":0,"delta":{"content":"' + "你".encode()[:1]),
        "你".encode()[1:] + b'"}}]}\n\n',
        DONE,
    ),
    "usage in every chunk": (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"completion_tokens":1}}\n\n',
        DONE,
    ),
    "an empty choices list that is no usage": (b'data: {"choices":[],"prompt_filter_results":[]}\n\n', *PLAIN_EVENTS),
    "an empty choices list with usage null": (b'data: {"choices":[],"usage":null}\n\n', *PLAIN_EVENTS),
}


def stream_of(events: tuple[bytes, ...], *, is_chunked: bool = True) -> Script:
    def script(received: Received) -> Iterator[bytes | Step]:
        if is_chunked:
            yield SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
            yield from (b"%x\r\n%s\r\n" % (len(event), event) for event in events)
            yield b"0\r\n\r\n"
        else:
            yield SSE_HEAD + b"Connection: close\r\n\r\n"
            yield from events
            yield Step.CLOSE

    return script


@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize(("target", "body"), ((CHAT, STREAMED_WITH_USAGE), (b"/v1/completions", STREAMED)))
@pytest.mark.parametrize("is_chunked", (True, False), ids=("chunked", "unframed"))
def test_any_stream_passes_byte_for_byte(
    upstream: ScriptedUpstream,
    proxy: ProxyProcess,
    target: bytes,
    body: bytes,
    events: tuple[bytes, ...],
    is_chunked: bool,
) -> None:
    assert_transparent(upstream, proxy, stream_of(events, is_chunked=is_chunked), request(target, body))


@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
def test_any_stream_passes_to_a_caller_who_did_not_ask_for_usage(
    upstream: ScriptedUpstream, proxy: ProxyProcess, events: tuple[bytes, ...]
) -> None:
    direct, relayed = play_both(upstream, proxy, stream_of(events), request(CHAT, STREAMED))
    assert_same_response(direct.reply, relayed.reply)


def stream_with_usage_if_asked(received: Received) -> Iterator[bytes | Step]:
    usage = (USAGE_EVENT,) if b"include_usage" in received.body else ()
    yield from stream_of((*PLAIN_EVENTS[:-1], *usage, DONE))(received)


@pytest.mark.parametrize("body", (STREAMED, STREAMED_WITH_USAGE), ids=("not asked", "asked"))
def test_usage_reaches_only_a_caller_who_asked(upstream: ScriptedUpstream, proxy: ProxyProcess, body: bytes) -> None:
    direct, relayed = play_both(upstream, proxy, stream_with_usage_if_asked, request(CHAT, body))
    assert_same_response(direct.reply, relayed.reply)
    assert b"include_usage" in relayed.received[0].body
    assert (USAGE_EVENT in relayed.reply.body) is (body is STREAMED_WITH_USAGE)


@pytest.mark.parametrize("cut", range(1, len(USAGE_EVENT), 7))
def test_usage_is_kept_back_wherever_it_is_cut(upstream: ScriptedUpstream, proxy: ProxyProcess, cut: int) -> None:
    head, tail = USAGE_EVENT[:cut], USAGE_EVENT[cut:]
    script = stream_of((PLAIN_EVENTS[0], PLAIN_EVENTS[2] + head, tail + DONE))
    relayed = play(upstream, proxy.address, script, request(CHAT, STREAMED))
    assert relayed.reply.body == PLAIN_EVENTS[0] + PLAIN_EVENTS[2] + DONE


GATED = {
    name: EVENTS[name] for name in ("plain", "CRLF", "comments", "fields besides data", "no DONE", "an error event")
}


def gated(events: tuple[bytes, ...]) -> Script:
    """Each event goes out only when the test has released the one before; what ends the reply need not wait."""

    def script(received: Received) -> Iterator[bytes | Step]:
        yield SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        for event in events:
            yield Step.AWAIT_RELEASE
            yield b"%x\r\n%s\r\n" % (len(event), event)
        yield Step.AWAIT_RELEASE
        yield b"0\r\n\r\n"

    return script


@pytest.mark.parametrize("events", GATED.values(), ids=GATED)
@pytest.mark.parametrize(("target", "body"), ((CHAT, STREAMED), (CHAT, STREAMED_WITH_USAGE), (EMBEDDINGS, STREAMED)))
def test_each_event_arrives_before_the_next_is_sent(
    upstream: ScriptedUpstream, wire: Wire, target: bytes, body: bytes, events: tuple[bytes, ...]
) -> None:
    upstream.play(gated(events))
    wire.send(request(target, body))
    reply = Reply(wire, b"POST").read_head()  # the head comes before any event
    assert reply.status == 200
    pieces = reply.read_pieces()
    for i, event in enumerate(events):
        upstream.release()
        if is_held_until_committed(event):
            break
        while len(reply.body) < len(b"".join(events[: i + 1])):
            assert next(pieces, None) is not None
        assert reply.body == b"".join(events[: i + 1])
    for _ in events:
        upstream.release()
    assert reply.body + b"".join(pieces) == b"".join(events)
    assert reply.ending is Ending.TERMINATED


def is_held_until_committed(event: bytes) -> bool:
    """The end of a reply may wait for its commit, and so for the bytes that show it is the end."""
    return event.startswith(b"data: [DONE]")


@pytest.mark.parametrize("target", (b"/v1/models", b"/v1/audio/speech"))
def test_each_piece_of_any_other_body_arrives_before_the_next_is_sent(
    upstream: ScriptedUpstream, wire: Wire, target: bytes
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 9\r\n\r\n"
    upstream.play(always(head, Step.AWAIT_RELEASE, b"one", Step.AWAIT_RELEASE, b"two", Step.AWAIT_RELEASE, b"six"))
    wire.send(request(target, BODY))
    reply = Reply(wire, b"POST").read_head()
    pieces = reply.read_pieces()
    for expected in (b"one", b"two", b"six"):
        upstream.release()
        assert next(pieces) == expected
    assert list(pieces) == []
    assert reply.ending is Ending.TERMINATED


# --- endings ----------------------------------------------------------------------------------------------------------

CUTS = {
    "FIN inside a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b'{"a":', Step.CLOSE),
    "RST inside a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b'{"a":', Step.RESET),
    "FIN between chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\n", Step.CLOSE),
    "FIN inside a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"9\r\n{}", Step.CLOSE),
    "RST between chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\n", Step.RESET),
    "a chunk size that is none": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"2\r\n{}\r\nzz\r\n"),
}


@pytest.mark.parametrize("steps", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("target", (CHAT, EMBEDDINGS))
def test_a_body_cut_by_upstream_does_not_look_whole(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, steps: tuple[bytes | Step, ...]
) -> None:
    relayed = play(upstream, proxy.address, always(*steps), request(target, BODY)).reply
    if relayed.status == 502:  # the proxy had not passed the status on yet
        assert set(json.loads(relayed.body)["error"]) == {"message", "type", "param", "code"}
    else:
        assert relayed.ending in (Ending.FIN_EARLY, Ending.RESET)
        assert b'{"a":'.startswith(relayed.body) or b"{}".startswith(relayed.body)


@pytest.mark.parametrize("cut", (Step.CLOSE, Step.RESET))
@pytest.mark.parametrize("half", (b"", b'data: {"choi'), ids=("between events", "inside an event"))
def test_a_stream_cut_by_upstream_ends_in_an_error_event(
    upstream: ScriptedUpstream, wire: Wire, cut: Step, half: bytes
) -> None:
    event = delta("Hel")
    script = always(
        SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        b"%x\r\n%s\r\n" % (len(event), event),
        Step.AWAIT_RELEASE,
        *((b"%x\r\n%s\r\n" % (len(half), half),) if half else ()),
        cut,
    )
    upstream.play(script)
    wire.send(request(CHAT, STREAMED))
    reply = Reply(wire, b"POST").read_head()
    pieces = reply.read_pieces()
    assert next(pieces) == event
    upstream.release()
    rest = b"".join(pieces)
    error = json.loads(rest[rest.index(b'data: {"error"') + 6 :].strip())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"[DONE]" not in rest
    assert b"finish_reason" not in rest
    assert wire.has_ended()


NO_ANSWERS = {
    "FIN before a byte": (Step.CLOSE,),
    "RST before a byte": (Step.RESET,),
    "FIN inside the head": (b"HTTP/1.1 200 OK\r\nConte", Step.CLOSE),
    "garbage": (b"\x16\x03\x01\x00\xa5 nonsense\r\n\r\n", Step.CLOSE),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", Step.CLOSE),
    "a bad status": (b"HTTP/1.1 abc OK\r\n\r\n", Step.CLOSE),
    "a bad length": (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}", Step.CLOSE),
    "a header line without a colon": (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", Step.CLOSE),
    "a head without an end": (b"HTTP/1.1 200 OK\r\n" + b"X-A: " + b"a" * 2_000_000, Step.CLOSE),
    "only an interim response": (b"HTTP/1.1 100 Continue\r\n\r\n", Step.CLOSE),
}


@pytest.mark.parametrize("steps", NO_ANSWERS.values(), ids=NO_ANSWERS)
@pytest.mark.parametrize(("target", "body"), ((CHAT, BODY), (CHAT, STREAMED), (EMBEDDINGS, BODY)))
def test_no_answer_at_all_is_a_502_in_the_shape_of_openai(
    upstream: ScriptedUpstream, proxy: ProxyProcess, target: bytes, body: bytes, steps: tuple[bytes | Step, ...]
) -> None:
    relayed = play(upstream, proxy.address, always(*steps), request(target, body)).reply
    assert relayed.status == 502
    assert set(json.loads(relayed.body)["error"]) == {"message", "type", "param", "code"}
    assert play(upstream, proxy.address, echo, request(target, BODY)).reply.status == 200


def test_an_idle_connection_that_upstream_closed_costs_the_caller_nothing(
    upstream: ScriptedUpstream, proxy: ProxyProcess
) -> None:
    def answer_once_then_close(received: Received) -> Iterator[bytes | Step]:
        yield respond(b"{}")
        yield Step.CLOSE

    for _ in range(30):
        assert play(upstream, proxy.address, answer_once_then_close, request(CHAT, BODY)).reply.status == 200


@pytest.mark.parametrize(("target", "body"), ((CHAT, STREAMED), (b"/v1/completions", STREAMED)))
@pytest.mark.parametrize("leave", ("close", "reset"))
def test_upstream_sees_a_caller_leave_in_the_middle(
    upstream: ScriptedUpstream, wire: Wire, target: bytes, body: bytes, leave: str
) -> None:
    event = delta("Hel")
    upstream.play(
        always(
            SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"%x\r\n%s\r\n" % (len(event), event), Step.AWAIT_HANGUP
        )
    )
    wire.send(request(target, body))
    assert next(Reply(wire, b"POST").read_head().read_pieces()) == event
    wire.close() if leave == "close" else wire.reset()
    assert wait_until(lambda: upstream.received[0].hung_up, seconds=WAIT_SECONDS)


@pytest.mark.parametrize(("target", "body"), ((CHAT, STREAMED), (CHAT, BODY), (EMBEDDINGS, BODY)))
def test_upstream_sees_a_caller_leave_before_it_has_answered(
    upstream: ScriptedUpstream, wire: Wire, target: bytes, body: bytes
) -> None:
    upstream.play(always(Step.AWAIT_HANGUP))
    wire.send(request(target, body))
    received = upstream.await_request()
    wire.close()
    assert wait_until(lambda: received.hung_up, seconds=WAIT_SECONDS)


def test_a_caller_who_leaves_inside_the_request_starts_nothing(
    upstream: ScriptedUpstream, proxy: ProxyProcess, wire: Wire
) -> None:
    upstream.play(echo)
    wire.send(POST_HEAD % CHAT + b"Content-Length: 1000\r\n\r\n{")
    wire.close()
    assert play(upstream, proxy.address, echo, request(CHAT, BODY)).reply.status == 200
    assert [received.body for received in upstream.received] == [BODY]


def test_a_slow_caller_slows_upstream_and_still_gets_every_byte(upstream: ScriptedUpstream, wire: Wire) -> None:
    size, block = 64 * 1024 * 1024, b"z" * (1 << 18)
    sent = 0

    def flood(received: Received) -> Iterator[bytes | Step]:
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % size
        while sent < size:
            yield block
            sent += len(block)

    upstream.play(flood)
    wire.send(request(b"/v1/files/1/content", method=b"GET"))
    reply = Reply(wire, b"GET").read_head()
    assert not wait_until(lambda: sent == size, seconds=1.0)  # an unread body must not be swallowed whole
    assert sum(len(piece) for piece in reply.read_pieces()) == size


@pytest.mark.parametrize("body", (STREAMED_WITH_USAGE, STREAMED[:-1] + b',"store":false}'), ids=("recorded", "not"))
def test_a_slow_caller_of_a_stream_slows_upstream_and_still_gets_every_event(
    upstream: ScriptedUpstream, wire: Wire, body: bytes
) -> None:
    count, event = 256, b": " + b"z" * (1 << 17) + b"\n\n"
    sent = 0

    def flood(received: Received) -> Iterator[bytes | Step]:
        nonlocal sent
        yield SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        while sent < count:
            yield b"%x\r\n%s\r\n" % (len(event), event)
            sent += 1
        yield b"0\r\n\r\n"

    upstream.play(flood)
    wire.send(request(CHAT, body))
    reply = Reply(wire, b"POST").read_head()
    assert not wait_until(lambda: sent == count, seconds=1.0)
    assert b"".join(reply.read_pieces()) == event * count
    assert reply.ending is Ending.TERMINATED


def test_a_caller_who_leaves_while_it_is_slow_ends_the_stream(upstream: ScriptedUpstream, wire: Wire) -> None:
    event = b": " + b"z" * (1 << 17) + b"\n\n"

    def flood(received: Received) -> Iterator[bytes | Step]:
        yield SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        for _ in range(256):
            yield b"%x\r\n%s\r\n" % (len(event), event)
        yield Step.AWAIT_HANGUP

    upstream.play(flood)
    wire.send(request(CHAT, STREAMED))
    Reply(wire, b"POST").read_head()
    received = upstream.await_request()
    assert not wait_until(lambda: received.hung_up, seconds=0.3)
    wire.reset()
    assert wait_until(lambda: received.hung_up, seconds=WAIT_SECONDS)


def test_pipelined_streams_come_one_after_the_other(upstream: ScriptedUpstream, wire: Wire) -> None:
    upstream.play(stream_of(PLAIN_EVENTS))
    wire.send(request(CHAT, STREAMED) * 3)
    for _ in range(3):
        reply = Reply(wire, b"POST").read_head().read_body()
        assert (reply.ending, reply.body) == (Ending.TERMINATED, b"".join(PLAIN_EVENTS))


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    pause = threading.Event()
    for _ in range(round(seconds / 0.05)):
        if condition():
            return True
        pause.wait(0.05)
    return condition()
