"""Reads the raw values of settings: from the environment, from `.env`, and secrets also from `NAME_FILE` files."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from starlette.config import Config, Environ

_OURS = re.compile(r"(?:export\s+)?((?:STELLARCHAT_|DATABASE_URL)\w*)", re.IGNORECASE)
_PREFIX = "STELLARCHAT_"
_FILE = "_FILE"
# Variables of compose.yaml itself, which are in the same `.env`.
_OF_COMPOSE = frozenset({"STELLARCHAT_PUBLISHED_PORT", "STELLARCHAT_UID", "STELLARCHAT_GID"})
# A tab or newline inside a value is a mistake of quoting; in a header it would be an error at each request.
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ConfigurationError(Exception):
    """The configuration is invalid and the program cannot start. The message is one line for the operator."""


def read_texts(
    names: Collection[str], *, secrets: Collection[str], environ: Mapping[str, str] | None, env_file: str | None
) -> dict[str, str]:
    """The values of the settings that are set and not empty, with surrounding white space removed.

    A secret may instead be in a file named by `NAME_FILE`. Raises ConfigurationError.
    """
    given = _all_given(environ, env_file)
    texts = {}
    for name in names:
        text = given.get(name, "")
        if name in secrets:
            text = _secret(name, text, given.get(name + _FILE, "").strip())
        if text.strip():
            texts[name] = text.strip()
        elif text and name in secrets:
            raise ConfigurationError(f"{name} contains only white space")
    for name, text in texts.items():
        if _CONTROL.search(text):
            shown = "" if name in secrets else f"={text!r}"
            raise ConfigurationError(f"{name}{shown}: it contains a control character")
    return texts


def unknown_names(
    names: Collection[str],
    *,
    secrets: Iterable[str],
    environ: Mapping[str, str] | None = None,
    env_file: str | None = ".env",
) -> dict[str, str | None]:
    """Names that look like our settings but are not, each with the most similar valid name."""
    known = {*names, *(name + _FILE for name in secrets)}
    found = (name for name in _all_given(environ, env_file) if name.upper().startswith(_PREFIX))
    return {
        name: next(iter(difflib.get_close_matches(name.upper(), known, n=1)), None)
        for name in found
        if name not in known | _OF_COMPOSE
    }


def _all_given(environ: Mapping[str, str] | None, env_file: str | None) -> dict[str, str]:
    source = Environ() if environ is None else environ
    return {**(_file_texts(Path(env_file)) if env_file else {}), **source}


def _file_texts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        _check_lines(path)
        # Editors on Windows write a byte order mark, which would become part of the first name.
        texts = Config(path, environ={}, encoding="utf-8-sig").file_values
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{path} is not UTF-8") from exc
    # Files that are also sourced by a shell begin each line with `export`.
    return {re.sub(r"^export\s+", "", name): text for name, text in texts.items()}


def _check_lines(path: Path) -> None:
    """Rejects lines that name a setting without `=`: otherwise its default would be used silently."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        match = _OURS.match(line.strip())
        if match and not line.strip()[match.end() :].lstrip().startswith("="):
            raise ConfigurationError(f"{path}, line {number}: expected {match[1]}=VALUE")


def _secret(name: str, text: str, path: str) -> str:
    """The secret's value, or the content of its file."""
    if not path:
        return text
    if text.strip():
        raise ConfigurationError(f"both {name} and {name}{_FILE} are set: give one of them")
    try:
        content = Path(path).read_text(encoding="utf-8-sig").strip()
        # compose.yaml uses /dev/null for "no file".
        is_none = Path(path).is_char_device()
    except OSError as exc:
        raise ConfigurationError(f"{name}{_FILE}={path!r}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{name}{_FILE}={path!r}: it is not UTF-8") from exc
    if not content and not is_none:
        raise ConfigurationError(f"{name}{_FILE}={path!r}: the file is empty")
    return content
