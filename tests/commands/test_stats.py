"""`stellarchat stats`."""

import json
from pathlib import Path

from click.testing import CliRunner

from proxy.cli import cli
from tests.engines import environment_of, on_both_engines
from tests.stored import fill, opened

pytestmark = on_both_engines


def test_stats_count_what_is_kept_and_used(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path) as connection:
        fill(connection)
        sessions = connection.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]
    environment = environment_of(path)
    stats = json.loads(CliRunner().invoke(cli, ["stats", "--json"], env=environment).output)
    assert stats["counts"]["users"] == 3
    assert stats["counts"]["sessions"] == sessions
    assert stats["counts"]["blobs"] == 1
    assert sum(row["completion_tokens"] for row in stats["tokens"]) == 7
    assert stats["bytes"].get("database", 0) == (path.stat().st_size if path.exists() else 0)
    text = CliRunner().invoke(cli, ["stats"], env=environment).output
    assert ("database file" in text) == path.exists()
    assert "completion  model" in text


def test_stats_of_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "chat.db"
    with opened(path):
        pass
    result = CliRunner().invoke(cli, ["stats"], env=environment_of(path))
    assert result.exit_code == 0
    assert "chats" not in result.output
