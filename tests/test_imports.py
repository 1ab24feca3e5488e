"""The rule of the house: a room imports only rooms printed below it, and each library has its rooms."""

import ast
from pathlib import Path

import pytest

from tests.serving import REPOSITORY

# From the top of the house to its ground; `docs/contributing.md` says what each room knows.
ROOMS = (
    *("__main__", "cli", "commands", "server", "app", "routes", "web", "services", "maintenance", "telemetry"),
    *("recording", "access", "history", "search", "storage", "downstream", "upstream", "demo"),
    *("errors", "wire", "settings", "setting_values", "environment", "ids", "low_priority"),
)
# Libraries that only some rooms import.
HOMES = {
    "aiosqlite": {"storage"},
    "sqlite3": {"storage"},
    "psycopg": {"storage"},
    "httpx": {"upstream", "app"},
    "uvicorn": {"downstream", "server", "demo"},
    "prometheus_client": {"telemetry"},
    "opentelemetry": {"telemetry"},
}
FILES = sorted((REPOSITORY / "proxy").rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "proxy").with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in ROOMS, f"proxy/{room} has no place in the house yet"
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("proxy.")}
    assert not {each for each in rooms - {room} if ROOMS.index(each) < ROOMS.index(room)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_library_is_imported_in_its_rooms_alone(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not {library for library in libraries if room_of(path) not in HOMES.get(library, {room_of(path)})}


def test_sql_is_in_the_sql_folder() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "SELECT " not in text or room_of(path) == "storage"
        assert "INSERT INTO" not in text
