"""The checks of `stellarchat doctor` on the database and its keys. They only read: no file is created or migrated."""

import os
from contextlib import suppress
from pathlib import Path

from proxy.access.door_marker import DoorMarker
from proxy.commands.doctor_machine import existing_folder, refusal
from proxy.commands.finding import Finding, well, wrong
from proxy.maintenance.check import find_damage
from proxy.settings import ConfigurationError, Settings
from proxy.storage import queries
from proxy.storage.engine import find_schema, newest_schema, opened_as_is
from proxy.storage.errors import StorageDamagedError, StorageError, StorageNotADatabaseError

_ABOUT = "database"
# A larger file would take long to read: `stellarchat check` does that.
_READ_BYTES_MAX = 256 * 2**20
_DAMAGED = "see `stellarchat check`, or stop the server and restore a backup"


def look_at_database(loaded: Settings) -> list[Finding]:
    """The findings about the database and, if it can be read, its keys."""
    found = _unusable(loaded)
    if found is not None:
        return [found]
    try:
        schema = find_schema(loaded)
        if schema is not None and (damage := _damage(loaded)):
            return [wrong(_ABOUT, f"{loaded.database_name} is damaged: {damage}", _DAMAGED)]
        return [_described(loaded, schema), _keys(loaded, schema)]
    except ConfigurationError as exc:
        advice = "install the version that it needs, or set DATABASE_URL to another database"
        return [wrong(_ABOUT, str(exc), "start the server" if loaded.is_postgresql else advice)]
    except StorageNotADatabaseError:
        message = f"{loaded.database_name} is not an SQLite database"
        return [wrong(_ABOUT, message, "set DATABASE_URL to another file")]
    except StorageDamagedError as exc:
        return [wrong(_ABOUT, f"{loaded.database_name} is damaged: {exc}", _DAMAGED)]
    except StorageError as exc:
        return [wrong(_ABOUT, f"{loaded.database_name} cannot be read: {exc}", "make it readable, or set DATABASE_URL")]


def _unusable(loaded: Settings) -> Finding | None:
    """The problem of the path, if the database file cannot be used there."""
    if loaded.is_postgresql:
        return None
    path = loaded.database_path.absolute()
    if os.path.isdir(path):  # unlike Path.is_dir, it raises nothing in a folder that this user may not enter
        return wrong(_ABOUT, f"{path} is a folder", "set DATABASE_URL to a file")
    folder = existing_folder(path)
    if why := refusal(folder):
        return wrong(
            _ABOUT, f"nothing can be written in {folder}: {why}", "let this user write there, or set DATABASE_URL"
        )
    if path.exists() and not os.access(path, os.W_OK):
        return wrong(_ABOUT, f"{path} cannot be written", "make it writable for this user, or set DATABASE_URL")
    return None


def _damage(loaded: Settings) -> str:
    """The damage of the file's pages, or "". A large file is not read, because that takes long: `check` does it."""
    if loaded.is_postgresql or _is_large(loaded):
        return ""
    with opened_as_is(loaded) as connection:
        return "; ".join(problem.examples[0] for problem in find_damage(connection))


def _is_large(loaded: Settings) -> bool:
    return loaded.database_path.stat().st_size > _READ_BYTES_MAX


def _described(loaded: Settings, schema: int | None) -> Finding:
    name = loaded.database_name
    if loaded.is_postgresql:
        name += " (PostgreSQL: experimental, for one proxy)"
    if schema is None:
        return well(_ABOUT, f"{name} is created at the first start")
    size = "" if loaded.is_postgresql else _size(loaded)
    newest = newest_schema(loaded)
    if schema < newest:
        return well(_ABOUT, f"{name}{size}; the next start migrates it from schema {schema} to {newest}; make a backup")
    return well(_ABOUT, f"{name}{size}")


def _size(loaded: Settings) -> str:
    pages = "not checked for damage: `stellarchat check` does that" if _is_large(loaded) else "no damage found"
    return f", {loaded.database_path.stat().st_size / 2**20:,.1f} MiB, {pages}"


def _keys(loaded: Settings, schema: int | None) -> Finding:
    if loaded.auth == "off":
        advice = "set STELLARCHAT_AUTH=auto and make a key, or be sure that only trusted callers reach this address"
        message = f"no key is required on {loaded.host} (STELLARCHAT_AUTH=off)"
        return well("keys", message) if loaded.is_loopback else wrong("keys", message, advice)
    has_key = loaded.admin_key is not None
    were_required = False
    if schema is not None:
        with opened_as_is(loaded) as connection:
            has_key = has_key or queries.keys.key_exists(connection)
            with suppress(StorageError):  # an older database, which does not record this
                were_required = queries.keys.keys_were_required(connection)
    if has_key:
        return well("keys", "every caller needs a key")
    if loaded.is_loopback and loaded.auth == "auto" and not were_required:
        return _keys_by_marker(DoorMarker(loaded.database_path, folder=loaded.state_path).find())
    return wrong("keys", "keys are required, but none exists", "stellarchat keys create --user ID")


def _keys_by_marker(marker: Path | None) -> Finding:
    """The finding if the database has never had a key: the marker file may say that it was replaced."""
    if marker is None:
        return well("keys", "optional on this machine until you create the first one")
    return wrong(
        "keys",
        f"keys are required, because {marker.absolute()} says that they were before, but the database has none",
        "stellarchat keys create --user ID, or delete that file to open the server to everyone again",
    )
