import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.recording import dead_letters
from proxy.recording.dead_letters import append, count_lines, exist, retry

Store = Callable[[list[bytes]], list[tuple[bytes, BaseException]]]


def refusing(*refused: bytes) -> Store:
    return lambda lines: [(line, ValueError("no")) for line in lines if any(each in line for each in refused)]


def kept(path: Path, *lines: bytes) -> None:
    append(path, [(line, "refused") for line in lines])


def test_lines_are_kept_with_their_reason_and_read_by_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')
    assert path.read_bytes() == b'{"a":1,"refused":"refused"}\n'
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_retry_keeps_what_is_refused_again_in_order_and_each_reason_once(tmp_path: Path) -> None:
    path = tmp_path / "refused"
    kept(path, *(b'{"a":%d}' % number for number in range(4)))
    assert retry(path, refusing(b'"a":1', b'"a":3')) == (2, 2)
    assert path.read_bytes() == b'{"a":1,"refused":"ValueError: no"}\n{"a":3,"refused":"ValueError: no"}\n'
    assert retry(path, refusing()) == (2, 0)
    assert not exist(path)
    assert retry(path, refusing()) == (0, 0)


def test_lines_that_come_while_others_are_retried_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')

    def store(_lines: list[bytes]) -> list[tuple[bytes, BaseException]]:
        kept(path, b'{"a":2}')
        return []

    assert retry(path, store) == (1, 0)
    assert count_lines(path) == 1


def test_two_processes_do_not_retry_at_once(tmp_path: Path) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')

    def store(_lines: list[bytes]) -> list[tuple[bytes, BaseException]]:
        kept(path, b'{"a":2}')
        with pytest.raises(BlockingIOError):
            retry(path, refusing())
        return []

    retry(path, store)
    assert retry(path, refusing()) == (1, 0)


def test_one_that_was_killed_while_it_retried_is_gone_on_with_before_newer_lines(tmp_path: Path) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')
    path.rename(tmp_path / "refused-again")
    kept(path, b'{"a":2}')
    seen: list[bytes] = []
    for _ in range(2):
        retry(path, lambda lines: seen.extend(lines) or [])  # type: ignore[func-returns-value]
    assert [line[:7] for line in seen] == [b'{"a":1,', b'{"a":2,']
    assert not exist(path)


@pytest.mark.parametrize("is_another", (True, False))
def test_who_opened_the_file_just_before_it_was_retried_writes_into_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_another: bool
) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')
    flock = fcntl.flock

    def retried_first(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        retry(path, refusing())
        if is_another:
            kept(path, b'{"a":3}')
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", retried_first)
    kept(path, b'{"a":2}')
    assert b'"a":2' in path.read_bytes()
    assert count_lines(path) == 1 + is_another


def test_a_line_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            kept(path, b'{"a":2}')
    assert count_lines(path) == 1


def test_a_process_that_was_stopped_with_the_lock_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "refused"
    kept(path, b'{"a":1}')
    monkeypatch.setattr(dead_letters, "_LOCK_LIMIT_SECONDS", 0.05)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process"):
            kept(path, b'{"a":2}')
    assert count_lines(path) == 1
    kept(path, b'{"a":2}')
    assert count_lines(path) == 2
