"""The `stellarchat` command line interface."""

import os
import platform
from importlib.metadata import version

import click

from proxy.commands import COMMANDS
from proxy.commands.console import ErrorsInOneLine
from proxy.storage.sqlite import SQLITE_VERSION

_EPILOG = """\b
To get started:
  stellarchat serve --demo                             a built-in echo model, no GPU needed
  stellarchat serve --upstream http://127.0.0.1:8000   next to vLLM
  stellarchat doctor                                   when something does not work

\b
Then point any OpenAI or Anthropic client at http://127.0.0.1:8080/v1.
The documentation is in docs/ of the source, and in README.md."""


@click.group(cls=ErrorsInOneLine, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(
    version("stellarchat"),
    message=f"stellarchat %(version)s (Python {platform.python_version()}, SQLite {SQLITE_VERSION})",
)
def cli() -> None:
    """StellarChat: an OpenAI-compatible proxy that saves every chat, once, in SQLite."""


for each_command in COMMANDS:
    cli.add_command(each_command)


def main() -> None:
    """Entry point of the console script."""
    # All files created here contain chats or keys, so make them private.
    os.umask(os.umask(0o077) | 0o077)
    cli()
