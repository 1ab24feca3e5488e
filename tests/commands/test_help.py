"""The help of every command, as it is printed 80 columns wide: `python -m tests.commands.test_help` writes it anew."""

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from proxy.cli import cli

HELP = Path(__file__).parent / "help"


def names(command: click.Command, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command, groups included."""
    yield prefix
    if isinstance(command, click.Group):
        for name, each in sorted(command.commands.items()):
            yield from names(each, (*prefix, name))


def help_of(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(cli, [*words, "--help"], prog_name="stellarchat", terminal_width=80)
    assert result.exit_code == 0
    return result.output


def file_of(words: tuple[str, ...]) -> Path:
    return HELP / f"{'-'.join(('stellarchat', *words))}.txt"


@pytest.mark.parametrize("words", tuple(names(cli)), ids=lambda words: " ".join(words) or "stellarchat")
def test_help_is_the_one_that_was_read(words: tuple[str, ...]) -> None:
    written = file_of(words).read_text(encoding="utf-8")
    assert help_of(words) == written, "read the new text, and keep it with: python -m tests.commands.test_help"


def test_no_summary_is_cut_short() -> None:
    groups = {words[:-1] for words in names(cli) if words}
    assert not [line for words in groups for line in help_of(words).splitlines()[1:] if line.endswith("...")]


if __name__ == "__main__":
    HELP.mkdir(exist_ok=True)
    for each in names(cli):
        file_of(each).write_text(help_of(each), encoding="utf-8")
