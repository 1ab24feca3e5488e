"""Which session id a chat carries, and what is no id."""

import json
from typing import Any

import pytest

from proxy.access.attribution import session_of
from proxy.errors import InvalidRequestError
from proxy.settings import SESSION_HEADERS
from proxy.wire.headers import Headers

VENDOR = tuple(name.lower().encode() for name in SESSION_HEADERS)
UUID = "0199f7d0-1111-7222-8333-444455556666"


def found(headers: Headers = (), **request: Any) -> tuple[str, str] | None:  # type: ignore[assignment]
    return session_of(list(headers), request, vendor_headers=VENDOR)


@pytest.mark.parametrize("value", (17, "my chat", "c" * 200, "", None, ["a"], {"a": 1}, "é", "a\n", True))
@pytest.mark.parametrize("key", ("session_id", "thread_id", "conversation_id"))
def test_metadata_that_is_no_id_is_ignored(key: str, value: Any) -> None:
    assert found(metadata={key: value}) is None
    assert found([(b"x-conversation-id", b"one")], metadata={key: value}) == ("one", "vendor")


def test_next_key_of_the_metadata_counts_where_one_is_no_id() -> None:
    assert found(metadata={"session_id": 5, "thread_id": "a b", "conversation_id": "c"}) == ("c", "metadata")


@pytest.mark.parametrize("value", (b"a b", b"t" * 129, b"\xff", b"\t"))
@pytest.mark.parametrize("name", VENDOR)
def test_header_of_another_product_that_holds_no_id_is_ignored(name: bytes, value: bytes) -> None:
    assert found([(name, value)]) is None
    assert found([(name, value), (b"originator", b"codex_cli_rs"), (b"session-id", b"s")]) == ("s", "vendor")


@pytest.mark.parametrize("value", (b"a b", b"x" * 129))
def test_id_that_is_ours_to_define_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidRequestError):
        found([(b"x-session-id", value)], metadata={"session_id": "one"})
    with pytest.raises(InvalidRequestError):
        found(session_id=value.decode())


@pytest.mark.parametrize(
    "headers",
    (
        [(b"originator", b"codex_exec"), (b"session-id", UUID.encode())],
        [(b"user-agent", b"codex_cli_rs/0.171.0 (Linux)"), (b"session-id", UUID.encode())],
        [(b"originator", b"Codex Desktop"), (b"session_id", UUID.encode())],
    ),
)
def test_codex_is_known_by_what_it_calls_itself(headers: Headers) -> None:
    assert found(headers) == (UUID, "vendor")
    assert found([(b"session-id", b"x"), (b"user-agent", b"curl")]) is None


@pytest.mark.parametrize(
    "user_id",
    (
        json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": UUID}),
        f"user_{'d' * 64}_account__session_{UUID}",
        f"user_{'d' * 64}_account_{UUID.replace('0', '1')}_session_{UUID}",
    ),
)
def test_claude_code_names_its_session_in_the_user_id(user_id: str) -> None:
    assert found(metadata={"user_id": user_id}) == (UUID, "vendor")
    assert found([(b"x-claude-code-session-id", b"other")], metadata={"user_id": user_id}) == ("other", "vendor")


@pytest.mark.parametrize("user_id", ("ann", "{", "[]", '{"session_id": 5}', 7, None, "user_x_session_", "5"))
def test_other_user_ids_hold_no_session(user_id: Any) -> None:
    assert found(metadata={"user_id": user_id}) is None


def test_openai_s_prefix_is_taken_off() -> None:
    assert found(metadata={"thread_id": "conv_x"}) == ("x", "metadata")
    assert found([(b"x-session-affinity", b"conv_x")]) == ("x", "vendor")
