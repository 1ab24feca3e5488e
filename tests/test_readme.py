"""What the README promises a newcomer, held against the program."""

from dataclasses import fields

from proxy import settings
from proxy.settings import Settings
from tests.serving import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_setting_is_in_the_table_with_its_default() -> None:
    for each in fields(Settings):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{each.metadata['name']}` |"))
        assert settings.shown(each.default) in row


def test_the_first_two_commands_install_and_run() -> None:
    commands = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith(".venv/bin/stellarchat serve --demo")
    assert "pip install -q '.[web]'" in commands[0]  # a newcomer first looks at the page
    assert commands[1].endswith(".venv/bin/pytest -n 3 --dist loadfile")
