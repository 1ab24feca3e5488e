"""How settings are given: the environment, `.env` as people write it, secrets in files, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from proxy import settings
from proxy.setting_values import without_password
from proxy.settings import ConfigurationError, Settings
from tests.serving import REPOSITORY

KEY = "sk-admin"


def load(env_file: Path, **environ: str) -> Settings:
    return settings.load(environ=environ, env_file=str(env_file))


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    return tmp_path / ".env"


@pytest.mark.parametrize(
    "text",
    (
        "STELLARCHAT_ADMIN_KEY={key}",
        "STELLARCHAT_ADMIN_KEY = {key} \r\n",
        "export STELLARCHAT_ADMIN_KEY={key}\n",
        'STELLARCHAT_ADMIN_KEY="{key}"',
        "\ufeffSTELLARCHAT_ADMIN_KEY='{key}'\n",
        "# a comment\n\nSTELLARCHAT_ADMIN_KEY={key}\n",
        "STELLARCHAT_ADMIN_KEY_FILE={file}",
        "export STELLARCHAT_ADMIN_KEY_FILE = '{file}'\r\n",
        "\ufeffSTELLARCHAT_ADMIN_KEY_FILE={file}",
    ),
)
def test_the_admin_key_is_found_in_env_files_as_people_write_them(env_file: Path, text: str) -> None:
    secret = env_file.with_name("secret")
    secret.write_bytes(b"\xef\xbb\xbf" + KEY.encode() + b"\r\n")
    env_file.write_text(text.format(key=KEY, file=secret), encoding="utf-8")
    assert load(env_file).admin_key == KEY


@pytest.mark.parametrize("name", ("STELLARCHAT_ADMIN_KEY", "STELLARCHAT_UPSTREAM_API_KEY"))
@pytest.mark.parametrize("value", (f"{KEY}\n", f" {KEY}", f"\t{KEY}\r\n"))
def test_white_space_around_a_secret_is_stripped(env_file: Path, name: str, value: str) -> None:
    (env_file.with_name("secret")).write_text(value)
    for loaded in (
        load(env_file, **{name: value}),
        load(env_file, **{f"{name}_FILE": str(env_file.with_name("secret"))}),
    ):
        assert KEY in (loaded.admin_key, loaded.upstream_api_key)


@pytest.mark.parametrize("name", ("STELLARCHAT_ADMIN_KEY", "STELLARCHAT_UPSTREAM_API_KEY"))
@pytest.mark.parametrize("value", ("sk\x01x", "sk\nx", "sk x", "schl\u00fcssel", "   ", "\n", "sk\x7f"))
def test_a_secret_that_cannot_stand_in_a_header_is_refused_and_not_shown(env_file: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as refused:
        load(env_file, **{name: value})
    assert value not in str(refused.value) or not value.strip()
    secret = env_file.with_name("secret")
    secret.write_text(value)
    with pytest.raises(ConfigurationError, match=name):
        load(env_file, **{f"{name}_FILE": str(secret)})


def test_a_secret_s_file_must_be_there_and_hold_one(env_file: Path) -> None:
    empty, binary = env_file.with_name("empty"), env_file.with_name("binary")
    empty.touch()
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (empty, binary, env_file.parent, env_file.with_name("none")):
        with pytest.raises(ConfigurationError, match="STELLARCHAT_ADMIN_KEY_FILE"):
            load(env_file, STELLARCHAT_ADMIN_KEY_FILE=str(path))
    assert load(env_file, STELLARCHAT_ADMIN_KEY_FILE="/dev/null").admin_key is None
    with pytest.raises(ConfigurationError, match="both"):
        load(env_file, STELLARCHAT_ADMIN_KEY_FILE="/dev/null", STELLARCHAT_ADMIN_KEY=KEY)


@pytest.mark.parametrize(
    "line", ("STELLARCHAT_AUTH: required", "STELLARCHAT_AUTH required", "export STELLARCHAT_AUTH", "stellarchat_auth")
)
def test_a_line_that_gives_no_value_is_refused(env_file: Path, line: str) -> None:
    env_file.write_text(f"X=1\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        load(env_file)


def test_an_env_file_that_cannot_be_read_is_refused(env_file: Path) -> None:
    env_file.write_bytes(b"STELLARCHAT_AUTH=required\xff\n")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load(env_file)


@pytest.mark.parametrize(
    ("name", "value"),
    (
        ("DATABASE_URL", "sqlite:///a\nb.db"),
        ("STELLARCHAT_UPSTREAM_URL", "http://a b:80"),
        ("STELLARCHAT_UPSTREAM_URL", "http://a\\b:80"),
        ("STELLARCHAT_UPSTREAM_URL", "http://a:8000/v1/chat/completions"),
        ("STELLARCHAT_SESSION_HEADERS", "X-Good, X Bad"),
        ("STELLARCHAT_CORS_ORIGINS", "https://chat.example/"),
        ("STELLARCHAT_CORS_ORIGINS", "chat.example"),
        ("STELLARCHAT_ALLOWED_HOSTS", "http://chat.example"),
        ("STELLARCHAT_ALLOWED_HOSTS", "chat.example:8080"),
        ("STELLARCHAT_AUTH", "Required"),
        ("STELLARCHAT_AUTH", "required # always"),
    ),
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_name(env_file: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load(env_file, **{name: value})


def test_the_password_of_an_address_is_never_shown(env_file: Path) -> None:
    assert without_password("http://u:s3cret@a:8000/v1") == "http://a:8000/v1"
    assert without_password("http://u:p%40ss@a,m@https://v:q@b") == "http://a,m@https://b"
    assert without_password("http://u:p@ss@a:8000") == "http://a:8000"
    for bad in ("http://u:s3cret@a:99999", "http://u:1,s3cret@a", "ftp://s3cret@a", "http://u:1@s3cret,x@a"):
        with pytest.raises(ConfigurationError) as refused:
            load(env_file, STELLARCHAT_UPSTREAM_URL=bad)
        assert "s3cret" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="both set the Authorization"):
        load(env_file, STELLARCHAT_UPSTREAM_URL="http://u:s3cret@a", STELLARCHAT_UPSTREAM_API_KEY="k")


def test_unknown_names_are_told_with_what_was_probably_meant(env_file: Path) -> None:
    env_file.write_text("export STELLARCHAT_ADMINKEY=x\nSTELLARCHAT_UID=1000\nOTHER=1\n")
    environ = {"STELLARCHAT_ATUH": "required", "stellarchat_port": "1", "STELLARCHAT_ADMIN_KEY_FILE": "x", "PATH": ""}
    assert settings.unknown_names(environ=environ, env_file=str(env_file)) == {
        "STELLARCHAT_ADMINKEY": "STELLARCHAT_ADMIN_KEY",
        "STELLARCHAT_ATUH": "STELLARCHAT_AUTH",
        "stellarchat_port": "STELLARCHAT_PORT",
    }


@pytest.mark.parametrize("value", ("sk\x01x", "sk x"))
def test_the_command_ends_with_2_and_one_line(tmp_path: Path, value: str) -> None:
    (tmp_path / ".env").write_text(f"STELLARCHAT_ADMIN_KEY={value}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--port", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("stellarchat: STELLARCHAT_ADMIN_KEY: ")
    assert len(ended.stderr.splitlines()) == 1
    assert value not in ended.stderr
