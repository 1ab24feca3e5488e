"""Loads the `.sql` files: splits them into statements, named by the `-- name:` line above each."""

import re
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
SQL = _PACKAGE / "sql" if (_PACKAGE / "sql").is_dir() else _PACKAGE.parent / "sql"


def load_queries(folder: Path) -> dict[str, str]:
    """The statements of a folder's `*.sql` files."""
    return named_statements("\n".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.sql"))))


def named_statements(text: str) -> dict[str, str]:
    """Splits a script into statements by name.

    `{columns}` in a statement is replaced by the list below `-- columns: columns`, so that several statements can share
    one column list.
    """
    parts = re.split(r"^-- (name|columns): *(\w+) *$", text, flags=re.MULTILINE)
    blocks = list(zip(parts[1::3], parts[2::3], parts[3::3], strict=True))
    columns = {name: body.strip() for kind, name, body in blocks if kind == "columns"}
    statements = {name: body.strip() for kind, name, body in blocks if kind == "name"}
    return {name: _filled_in(statement, columns) for name, statement in statements.items()}


def _filled_in(statement: str, columns: dict[str, str]) -> str:
    for name, listed in columns.items():
        statement = statement.replace(f"{{{name}}}", listed)
    return statement


QUERIES = load_queries(SQL / "queries")
