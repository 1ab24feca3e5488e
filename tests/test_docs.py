"""The documents tell the truth: links resolve, settings and routes are in them, and their commands run."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from starlette.routing import Route

from proxy import setting_values
from proxy.routes import route_table
from proxy.settings import Settings
from proxy.web.markdown_process import MarkdownProcess
from tests.serving import REPOSITORY, ServerProcess, server_process

PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
REFERENCE = (REPOSITORY / "docs" / "http.md").read_text(encoding="utf-8")
SETTINGS = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
# Pages whose examples need nothing but a demo server.
WITH_EXAMPLES = ("README.md", "docs/quickstart.md", "docs/sessions.md")


def test_every_setting_is_in_the_table_with_its_default() -> None:
    for each in fields(Settings):
        row = next(line for line in SETTINGS.splitlines() if line.startswith(f"| `{each.metadata['name']}` |"))
        assert setting_values.shown(each.default) in row


def test_the_first_two_commands_install_and_run() -> None:
    commands = [line.strip() for line in README.splitlines() if line.startswith("    python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith(".venv/bin/stellarchat serve --demo")
    assert "pip install -q '.[web]'" in commands[0]  # a newcomer first looks at the page
    assert commands[1].endswith(".venv/bin/pytest -n 6 --dist worksteal")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def plain(path: str) -> str:
    """A path whose parameters are all called alike."""
    return re.sub(r"[^/`\s]*\{[^}]*\}", "{}", path)


def test_every_route_is_in_the_reference() -> None:
    reference = plain(REFERENCE)
    for route in route_table(Settings(web=False), MarkdownProcess()):
        assert isinstance(route, Route)
        if route.path != "/{path:path}":
            assert re.search(re.escape(plain(route.path)) + r"[`,?]", reference), route.path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("docs"), "http://127.0.0.1:9", "--demo") as process:
        body = '{"model":"stellarchat-demo","messages":[{"role":"user","content":"Plan a day in Rome"}]}'
        chat = ["curl", "-sf", process.url + "/v1/chat/completions", "-H", "X-Session-Id: trip", "-d", body]
        subprocess.run([*chat, "-H", "Content-Type: application/json"], check=True, capture_output=True, timeout=30)
        yield process


def examples() -> list[str]:
    """The curl commands of the pages, continued lines joined."""
    texts = [(REPOSITORY / name).read_text(encoding="utf-8").replace("\\\n", " ") for name in WITH_EXAMPLES]
    return [line for text in texts for line in re.findall(r"^    (?:\$ )?(curl .*)$", text, flags=re.MULTILINE)]


@pytest.mark.parametrize("command", examples())
def test_curl_examples_run(server: ServerProcess, command: str) -> None:
    command = command.replace("http://127.0.0.1:8080", server.url).replace("curl ", "curl -sf ", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"{")


def test_the_source_archive_has_every_file_of_the_top_folder() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    documents = {each.name for each in REPOSITORY.iterdir() if each.suffix in (".md", ".yaml", ".lock")}
    assert documents | {"Containerfile", "LICENSE", ".ci"} <= included
