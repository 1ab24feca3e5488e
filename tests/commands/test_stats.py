"""`stellarchat stats`."""

import json
from pathlib import Path

from click.testing import CliRunner

from proxy.cli import cli
from tests.stored import fill, opened


def test_stats_count_what_is_kept_and_used(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
        sessions = connection.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]
    environment = {"DATABASE_URL": f"sqlite:///{path}"}
    stats = json.loads(CliRunner().invoke(cli, ["stats", "--json"], env=environment).output)
    assert stats["counts"]["users"] == 3
    assert stats["counts"]["sessions"] == sessions
    assert stats["counts"]["blobs"] == 1
    assert sum(row["completion_tokens"] for row in stats["tokens"]) == 7
    assert stats["bytes"]["database"] == path.stat().st_size
    text = CliRunner().invoke(cli, ["stats"], env=environment).output
    assert "database file" in text
    assert "completion  model" in text


def test_stats_of_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path):
        pass
    result = CliRunner().invoke(cli, ["stats"], env={"DATABASE_URL": f"sqlite:///{path}"})
    assert result.exit_code == 0
    assert "chats" not in result.output
