"""Errors of the commands, as their user reads them: one line with the next step, and nothing destroyed or created."""

import os
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy.cli import cli
from proxy.storage.sqlite import connect, newest_schema, prepare
from tests.stored import fill, opened

# Everything but `serve`, `doctor` and `restore`, which are tested with what they are given.
COMMANDS = (
    ("stats",),
    ("check",),
    ("export", "out.jsonl"),
    ("backup", "b.db"),
    ("prune", "--older-than", "1d", "--dry-run"),
    ("prune", "--older-than", "1d", "--yes"),
    ("keys", "list"),
    ("migrate", "sqlite:///x.db", "postgresql://127.0.0.1:9/x"),
)


def run(folder: Path, *arguments: str, **environment: str) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(cli, list(arguments), env={"DATABASE_URL": "sqlite:///x.db", **environment})


def said(result: Result) -> str:
    """The one line that the command prints before it ends with an error."""
    assert result.exit_code != 0
    assert isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.output.splitlines() if line.startswith("stellarchat: ")]
    assert len(lines) == 1, result.output
    assert not any(word in lines[0] for word in ("Errno", "PosixPath", "Traceback", "no such", "unable to open"))
    return lines[0]


def of_schema(path: Path, version: int) -> None:
    with closing(connect(path)) as connection:
        prepare(connection, up_to=version)


def cut(path: Path) -> None:
    with opened(path) as connection:
        fill(connection)
    os.truncate(path, 20_000)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("make", "words"),
    (
        (lambda _path: None, "there is no database"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "`stellarchat serve` creates its tables"),
        (lambda path: path.write_bytes(b"no database" * 900), "not an SQLite database; set DATABASE_URL"),
        (cut, "restore a backup"),
        (lambda path: of_schema(path, 7), "`stellarchat serve` migrates it"),
    ),
    ids=("missing", "folder", "empty", "text", "cut", "old"),
)
def test_a_database_that_cannot_be_used(
    tmp_path: Path, arguments: tuple[str, ...], make: Callable[[Path], object], words: str
) -> None:
    path = tmp_path / "x.db"
    make(path)
    if arguments[0] == "backup" and words.startswith("`"):
        return  # a copy is made of any schema, and an empty one is refused as a copy
    before = path.read_bytes() if path.is_file() else b""
    assert words in said(run(tmp_path, *arguments))
    assert not before or path.read_bytes() == before
    assert path.exists() == (words != "there is no database")


def test_only_serve_changes_an_older_schema(tmp_path: Path) -> None:
    of_schema(tmp_path / "x.db", newest_schema() - 1)
    assert "serve" in said(run(tmp_path, "keys", "create", "--user", "a"))
    assert "serve" in said(run(tmp_path, "import", "--yes"))
    with closing(connect(tmp_path / "x.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (newest_schema() - 1,)


def test_a_database_that_is_created_is_named(tmp_path: Path) -> None:
    result = run(tmp_path, "keys", "create", "--user", "a")
    assert f"The database {tmp_path / 'x.db'} did not exist; it has been created." in result.stderr
    assert "created" not in run(tmp_path, "keys", "create", "--user", "b").stderr


@pytest.mark.parametrize("user", ("a\033[31mb", "a\rb", "a\u202eb"))
def test_a_users_name_does_not_control_the_terminal(tmp_path: Path, user: str) -> None:
    assert user not in run(tmp_path, "keys", "create", "--user", user).stderr
    assert user not in run(tmp_path, "keys", "list").stdout


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    with opened(tmp_path / "x.db") as connection:
        fill(connection)
    return tmp_path


def test_a_backup_replaces_nothing_but_a_file(filled: Path) -> None:
    os.mkfifo(filled / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(filled / "socket"))
    for name in ("pipe", "socket"):
        assert "is not a file" in said(run(filled, "backup", name, "--force"))
    assert (filled / "pipe").is_fifo()
    assert (filled / "socket").is_socket()
    assert "empty" in said(run(filled, "backup", ""))
    assert run(filled, "backup", "b.db").exit_code == 0
    assert "is not a file" in said(run(filled, "restore", "b.db", "--force", DATABASE_URL="sqlite:///pipe"))


def test_a_database_is_not_restored_from_itself(filled: Path) -> None:
    assert "is the database itself" in said(run(filled, "restore", "x.db", "--force"))
    os.symlink("x.db", filled / "link")
    assert "is the database itself" in said(run(filled, "restore", "link", "--force"))


def test_an_export_does_not_replace_a_database(filled: Path) -> None:
    assert run(filled, "backup", "b.db").exit_code == 0
    for name in ("x.db", "b.db"):
        before = (filled / name).read_bytes()
        assert "is a database" in said(run(filled, "export", name))
        assert (filled / name).read_bytes() == before
    assert "there is no folder" in said(run(filled, "export", "none/out.jsonl"))
    assert "is a folder" in said(run(filled, "export", "."))


def test_a_failed_backup_names_the_file_that_is_damaged(tmp_path: Path) -> None:
    cut(tmp_path / "x.db")
    assert "x.db is damaged" in said(run(tmp_path, "backup", "b.db"))
    assert not (tmp_path / "b.db").exists()


def test_damage_names_the_next_step(filled: Path) -> None:
    with (filled / "x.db").open("r+b") as file:
        file.seek(20_480)
        file.write(b"\xff" * 4096)
    result = run(filled, "check")
    assert "the file is damaged" in result.stdout
    assert "stellarchat restore FILE --force" in said(result)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_another_user(filled: Path) -> None:
    filled.chmod(0o500)
    try:
        assert "user of the server" in said(run(filled, "stats"))
    finally:
        filled.chmod(0o700)


def test_what_cannot_be_asked_needs_yes(filled: Path) -> None:
    assert said(run(filled, "prune", "--older-than", "0h")).endswith("deleted permanently. Confirm with --yes.")
    assert said(run(filled, "import")).endswith("cannot be undone. Confirm with --yes.")


@pytest.mark.parametrize("host", ("no-host.invalid", "127.0.0.1:9"))
def test_a_postgresql_that_is_not_there(tmp_path: Path, host: str) -> None:
    pytest.importorskip("psycopg")
    words = said(run(tmp_path, "stats", DATABASE_URL=f"postgresql://ann:secret@{host}/x"))
    assert words.endswith("start PostgreSQL there, or set DATABASE_URL")
    assert "secret" not in words
