"""Imports point down: the house of the conventions, held by reading every import."""

import ast
from pathlib import Path

import pytest

from tests.serving import REPOSITORY

# Each layer may import those below it, and its own.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("server",),
    ("app",),
    ("routes",),
    ("protocol",),
    ("fallback",),
    ("inbound",),
    ("services",),
    ("upkeep", "observer"),
    ("gate",),
    ("keys",),
    ("imports",),
    ("export", "search"),
    ("tee", "auth", "traces", "attribution", "history", "sessions", "stored", "conversations", "limits"),
    ("recorder",),
    ("backup", "prune"),
    ("check",),
    ("journal", "writer"),
    ("archive", "presentation", "removal", "items"),
    ("tree", "exchange_row"),
    ("rows", "tombstones"),
    ("queries", "upstream", "exchange", "spill", "demo"),
    ("completion", "thread", "message", "transport"),
    ("database", "logs", "metrics", "connection", "body"),
    ("settings", "headers", "outlet"),
    ("errors", "sse", "jsontext", "ids"),
)
RANK = {module: rank for rank, layer in enumerate(reversed(LAYERS)) for module in layer}
FILES = sorted((REPOSITORY / "proxy").rglob("*.py"))


def module_of(path: Path) -> str:
    """The first name below `proxy`: packages count as one."""
    return path.relative_to(REPOSITORY / "proxy").with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The modules of `proxy` that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "proxy":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("proxy."):
            names.add((node.module or "").split(".")[1])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_point_down(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        return
    assert module in RANK, f"proxy/{module} has no place in the house yet"
    upward = {name for name in imported(path) - {module} if RANK[name] > RANK[module]}
    assert not upward


def test_only_the_transport_modules_import_http_clients() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if module_of(path) not in ("upstream", "transport", "connection", "app"):
            assert "import httpx" not in text
            assert "import httptools" not in text


def test_sql_is_in_the_sql_folder() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "SELECT " not in text or module_of(path) == "database"
        assert "INSERT INTO" not in text
