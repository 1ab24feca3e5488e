"""Export and import: nothing is lost on the way, and what is there already stays."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from proxy.cli import cli
from proxy.maintenance import export, imports
from proxy.maintenance.export import Format, Scope
from proxy.settings import ConfigurationError
from tests.engines import environment_of, name_of, on_both_engines
from tests.serving import running_proxy, settings_for
from tests.stored import chat, choice, exchange, fill, opened, outcome, problems_of, say, user

pytestmark = on_both_engines


def exported(path: Path, *, format_: Format = "jsonl", scope: Scope | None = None) -> str:
    with opened(path) as connection:
        return "".join(export.export(connection, scope or Scope(), format_=format_))


def loaded(path: Path, text: str) -> imports.Imported:
    with opened(path) as connection:
        return imports.load(connection, text.encode().splitlines(keepends=True), progress=lambda _: None)


def run(path: Path, *arguments: str, input_: bytes = b"") -> Result:
    return CliRunner().invoke(cli, list(arguments), env=environment_of(path), input=input_)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
    return path


def test_an_export_read_into_an_empty_database_is_exported_again_byte_for_byte(path: Path, tmp_path: Path) -> None:
    text = exported(path)
    other = tmp_path / "other.db"
    imported = loaded(other, text)
    assert exported(other) == text
    assert imported.messages == text.count('"kind":"message"') > 15
    kinds = {json.loads(line)["kind"] for line in text.splitlines()}
    assert kinds == {"stellarchat", "user", "blob", "session", "message", "exchange"}
    assert run(other, "check", "--json").output == run(path, "check", "--json").output.replace(
        name_of(path), name_of(other)
    )


def test_the_commands_do_the_same_by_file_and_by_pipe(path: Path, tmp_path: Path) -> None:
    other, file = tmp_path / "other.db", tmp_path / "all.jsonl"
    assert run(path, "export", str(file)).exit_code == 0
    result = run(other, "import", "--json", input_=file.read_bytes())
    assert json.loads(result.output)["sessions"] > 0
    assert run(other, "export").stdout_bytes == file.read_bytes()
    assert "added: 0 users" in run(other, "import", "--yes", str(file)).output


def test_an_import_that_was_cut_is_finished_by_the_next(path: Path, tmp_path: Path) -> None:
    text = exported(path)
    other = tmp_path / "other.db"
    lines = text.splitlines(keepends=True)
    for end in range(1, len(lines), 5):
        loaded(other, "".join(lines[:end]))
    loaded(other, text)
    assert exported(other) == text


def test_what_is_there_already_stays(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    text = exported(path)
    loaded(other, text)
    with opened(other) as connection:
        say(connection, "more")
        connection.execute("UPDATE sessions SET title = 'renamed here'")
    more = exported(other)
    imported = loaded(other, text)
    assert (imported.users, imported.sessions, imported.messages, imported.exchanges) == (0, 0, 0, 0)
    assert exported(other) == more


def test_a_session_that_went_on_elsewhere_goes_on_here(tmp_path: Path) -> None:
    path, other = tmp_path / "chat.db", tmp_path / "other.db"
    with opened(path) as connection:
        first = [user("one")]
        session_id = chat(connection, exchange(first), outcome(choice("1")))
        loaded(other, exported(path))
        turns = [*first, {"role": "assistant", "content": "1"}, user("two")]
        chat(connection, exchange(turns, session_id=session_id), outcome(choice("2")))
    loaded(other, exported(path))
    assert exported(other) == exported(path)


def test_a_clients_id_that_is_taken_is_left_out(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with opened(other) as connection:
        fill(connection)
    loaded(other, exported(path))
    sessions = [json.loads(line) for line in exported(other).splitlines() if '"kind":"session"' in line]
    assert len([each for each in sessions if each["external_id"] == "my-chat"]) == 1
    assert len(sessions) == 2 * exported(path).count('"kind":"session"')


@pytest.mark.parametrize(
    ("text", "reason"),
    (
        ("", "empty"),
        ('{"messages":[]}\n', "line 1"),
        ('{"kind":"stellarchat","version":99}\n', "version"),
        ("not json\n", "line 1"),
        ("[1]\n", "line 1"),
        ("SQLite format 3\0" + "x" * 10_000, "restore"),
    ),
)
def test_what_is_no_export_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        loaded(tmp_path / "chat.db", text)


def changed(text: str, kind: str, **values: Any) -> str:
    """The export with some columns of the first row of a kind replaced; `...` leaves one out."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if json.loads(line)["kind"] == kind)
    row = {**json.loads(lines[at]), **values}
    lines[at] = json.dumps({key: value for key, value in row.items() if value is not ...})
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("kind", "values"),
    (
        ("user", {"user_id": None}),
        ("user", {"created_at": "yesterday"}),
        ("user", {"username": ...}),
        ("user", {"last_active": 2**70}),
        ("blob", {"data": "data:another"}),
        ("session", {"user_id": "bob-of-the-database"}),
        ("session", {"metadata": "[1]"}),
        ("session", {"is_active": "yes"}),
        ("session", {"title": ["x"]}),
        ("message", {"extra": "{"}),
        ("message", {"extra": "[" * 5000}),
        ("message", {"parent_id": "not-there"}),
        ("message", {"parent_id": "THEIRS"}),
        ("message", {"message_id": "THEIRS"}),
        ("message", {"session_id": "THEIRS"}),
        ("message", {"exchange_id": "THEIRS"}),
        ("message", {"chain_hash": "zz"}),
        ("message", {"content": None}),
        ("message", {"content": "\ud800"}),
        ("message", {"status": "great"}),
        ("message", {"tokens": -1}),
        ("message", {"metadata": "null"}),
        ("message", {"blobs": ["ab" * 32], "content_form": "json"}),
        ("exchange", {"leaf_id": "THEIRS"}),
        ("exchange", {"context": [[0, "THEIRS"]]}),
        ("exchange", {"user_id": "bob-of-the-database"}),
        ("exchange", {"exchange_id": "THEIRS"}),
        ("exchange", {"parameters": "[]"}),
        ("exchange", {"duration_ms": "long"}),
        ("exchange", {"status": "in_progress", "fragments": ["?"]}),
        ("what", {}),
    ),
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_wrong_line_is_named_and_left_out_and_reaches_nobody_else(
    path: Path, tmp_path: Path, kind: str, values: dict[str, Any]
) -> None:
    other = tmp_path / "other.db"
    with opened(other) as connection:
        theirs = say(connection, "a secret", user_id="bob-of-the-database")
        message, exchange_ = connection.execute(
            "SELECT m.message_id, e.exchange_id FROM messages AS m JOIN exchanges AS e USING (session_no)"
        ).fetchone()
        of_bob = exported(other, scope=Scope(user_id="bob-of-the-database"))
    ids = {"session_id": theirs, "exchange_id": exchange_}
    text = exported(path)
    if kind == "what":
        text = text.replace('"kind":"user"', '"kind":"what"', 1)
    else:
        text = changed(
            text,
            kind,
            **json.loads(
                json.dumps({k: v for k, v in values.items() if v is not ...}).replace(
                    "THEIRS", ids.get(next(iter(values)), message)
                )
            ),
            **{k: v for k, v in values.items() if v is ...},
        )
    imported = loaded(other, text)
    assert imported.refused_count >= 1
    assert all(len(reason) < 300 and reason.startswith("line ") for reason in imported.refused)
    assert exported(other, scope=Scope(user_id="bob-of-the-database")) == of_bob
    assert imported.sessions >= 1
    assert [problem for problem in problems_of(other) if problem.kind not in ("stray_blobs", "unfinished")] == []


def cycle_of(message: dict[str, Any]) -> list[str]:
    """Two messages each of which has the other as its parent, and one that is its own."""
    ids = ("cycle-1", "cycle-2", "cycle-3")
    parents = ("cycle-2", "cycle-1", "cycle-3")
    pairs = zip(ids, parents, strict=True)
    return [json.dumps({**message, "message_id": id_, "parent_id": parent}) for id_, parent in pairs]


def test_of_a_file_with_broken_lines_of_every_kind_all_the_rest_comes_in(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "LINE_BYTES_MAX", 2**16)
    good = exported(path).splitlines()
    messages = [json.loads(line) for line in good if json.loads(line)["kind"] == "message"]
    message = messages[0]
    last = next(number for number, line in enumerate(good) if json.loads(line) == message)
    broken = [
        *(
            "{",
            "[]",
            "17",
            "null",
            '"text"',
            "\0\0\0",
            '{"kind":"message"',
            "\ufffd" * 9,
            '{"kind":17}',
            '{"kind":["user"]}',
        ),
        *('{"kind":"message","message_id":"\\u0000"}', "[" * 50_000, json.dumps({**message, "extra": "x" * 2**17})),
        *cycle_of(message),
        json.dumps({**message, "message_id": "dangling", "parent_id": "nowhere"}),
        json.dumps({**message, "message_id": "of-no-exchange", "exchange_id": 17}),
        *(json.dumps({key: value for key, value in message.items() if key != name}) for name in ("role", "chain_hash")),
        *(json.dumps({**message, "message_id": f"new-{name}", name: {}}) for name in ("role", "content", "tokens")),
    ]
    # Each among the lines of the session that its message would belong to; a line twice is there already, and no fault.
    lines = [*good[: last + 1], *broken, good[last], *good[last + 1 :]]
    other = tmp_path / "other.db"
    imported = loaded(other, "\n".join(lines) + "\n")
    assert imported.refused_count == len(broken)
    numbers = [int(reason.split(":")[0].removeprefix("line ")) for reason in imported.refused]
    assert numbers == list(range(last + 2, last + 2 + len(broken)))[: len(numbers)]
    assert exported(other) == exported(path)


def test_the_command_names_what_it_left_out_and_asks_before_it_adds(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    text = changed(exported(path), "message", extra="{" + "x" * 2**20)
    result = run(other, "import", input_=text.encode())
    assert result.exit_code == 1
    assert "line " in result.output
    assert "extra is not what it should be" in result.output
    assert len(result.output) < 3000
    again = run(other, "import", input_=text.encode())
    assert again.exit_code == 2
    assert "--yes" in again.output
    backup = run(tmp_path / "third.db", "import", input_=b"SQLite format 3\0" + bytes(4096))
    assert backup.exit_code == 2
    assert "stellarchat restore" in backup.output
    assert len(backup.output) < 300


def test_one_users_export_holds_nothing_of_another(path: Path, tmp_path: Path) -> None:
    text = exported(path, scope=Scope(user_id="bo"))
    rows = [json.loads(line) for line in text.splitlines()]
    assert {row["user_id"] for row in rows if "user_id" in row} == {"bo"}
    other = tmp_path / "other.db"
    loaded(other, text)
    assert exported(other) == text


def test_every_branch_is_a_line_of_openai_messages(path: Path) -> None:
    lines = [json.loads(line)["messages"] for line in exported(path, format_="openai").splitlines()]
    assert [{"role": "system", "content": "Be brief."}, user("Hello 世界 😀")] in [line[:2] for line in lines]
    ends = [line[-1].get("content") for line in lines]
    assert {"Hey", "Ho", "done", "half a", "a picture"} <= {end for end in ends if isinstance(end, str)}


def test_completed_only_leaves_out_what_has_no_whole_reply(path: Path) -> None:
    text = exported(path, format_="openai", scope=Scope(completed_only=True))
    ends: list[dict[str, Any]] = [json.loads(line)["messages"][-1] for line in text.splitlines()]
    assert all(end["role"] == "assistant" for end in ends)
    assert "half a" not in [end.get("content") for end in ends]


def test_markdown_shows_each_message_once(path: Path) -> None:
    text = exported(path, format_="markdown")
    assert text.count("# Hello 世界 😀\n\nSession") == 1
    assert "> think" in text
    assert "Another branch (" in text
    assert text.count("\nHey\n") == text.count("\nHo\n") == 1
    assert "*[image_url]*" in text
    assert "\nodd ?\n" in text
    assert text.encode().decode() == text


def test_one_session_by_its_clients_id_or_none(path: Path) -> None:
    result = run(path, "export", "--session", "my-chat", "--user", "bo", "--format", "markdown")
    assert result.output.startswith("# By its own name\n")
    assert run(path, "export", "--session", "none").exit_code == 2


async def test_the_route_serves_one_session_in_each_format(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with opened(tmp_path / "stellarchat.db") as connection:
        session_id = say(connection, "hello there")
        say(connection, "not this one")
    async with running_proxy(settings) as url, httpx.AsyncClient(base_url=url) as client:
        path = f"/v1/sessions/{session_id}/export"
        whole = await client.get(path)
        scope = Scope(session_id=session_id)
        assert whole.text == exported(tmp_path / "stellarchat.db", scope=scope)
        assert whole.headers["content-type"] == "application/x-ndjson"
        for format_ in ("openai", "markdown"):
            answer = await client.get(path, params={"format": format_})
            assert "hello there" in answer.text
            assert "not this" not in answer.text
        assert (await client.get(path, params={"format": "pdf"})).status_code == 400
        assert (await client.get("/v1/sessions/none/export")).status_code == 404
        other = await client.get(path, headers={"X-User-Id": "eve"})
        assert other.status_code == 404
