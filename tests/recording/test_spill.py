import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from proxy.recording.spill import OrphanedSpill, Spill, spill_files, spill_path


def _lines(abandoned: OrphanedSpill) -> list[bytes]:
    return [line for lines in abandoned.batches() for line in lines]


def _abandon(spill: Spill) -> None:
    """What a kill does: the lock goes, the file stays."""
    os.close(spill._file)


def test_lines_of_a_process_that_is_gone_come_back_in_order(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", reserve_bytes=4096)
    spill.append([b"one", b"two"])
    spill.append([b"three"])
    _abandon(spill)
    left = OrphanedSpill(tmp_path / "s")
    assert _lines(left) == [b"one", b"two", b"three"]
    left.close(remove=True)
    assert not (tmp_path / "s").exists()


def test_the_file_of_a_living_process_cannot_be_taken_over(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", reserve_bytes=0)
    with pytest.raises(BlockingIOError):
        OrphanedSpill(tmp_path / "s")
    spill.close()


def test_a_file_that_was_removed_before_it_was_locked_is_made_again(tmp_path: Path) -> None:
    """Another start sees the new file before its owner has locked it, takes it for abandoned, and removes it."""
    path = tmp_path / "s"
    other = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    made: list[Spill] = []
    owner = threading.Thread(target=lambda: made.append(Spill(path, reserve_bytes=0)))
    inode = os.fstat(other).st_ino
    owner.start()
    _wait_until_waited_for(inode)
    path.unlink()
    os.close(other)
    owner.join(10)
    assert path.exists()
    with pytest.raises(BlockingIOError):
        OrphanedSpill(path)
    made[0].close()


def _wait_until_waited_for(inode: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()):
            return
    raise TimeoutError


def test_one_that_another_process_has_just_removed_is_not_taken_over_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    spill = Spill(path, reserve_bytes=0)
    spill.append([b"one"])
    _abandon(spill)
    lock = fcntl.flock

    def remove_then_lock(file: int, how: int) -> None:
        path.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_then_lock)
    with pytest.raises(BlockingIOError):
        OrphanedSpill(path)


def test_a_line_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", reserve_bytes=4096)
    spill.append([b"whole"])
    os.pwrite(spill._file, b"ha", spill._end)
    _abandon(spill)
    left = OrphanedSpill(tmp_path / "s")
    assert _lines(left) == [b"whole"]
    left.close(remove=False)


def test_what_a_failed_append_left_behind_ends_at_the_next(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", reserve_bytes=4096)
    os.pwrite(spill._file, b"a failed one that was long\nand had two lines\n", 0)
    spill.append([b"good"])
    _abandon(spill)
    left = OrphanedSpill(tmp_path / "s")
    assert _lines(left) == [b"good"]
    left.close(remove=False)


def test_a_cleared_file_is_empty_and_keeps_its_space(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", reserve_bytes=65536)
    reserved = os.stat(spill.path).st_blocks
    spill.append([b"x" * 1000] * 100)
    assert spill.clear(up_to=spill.end)
    assert os.stat(spill.path).st_size == 65536
    assert os.stat(spill.path).st_blocks >= reserved > 0
    spill.append([b"after"])
    assert spill.read(0, spill.end) == ([b"after"], spill.end)
    _abandon(spill)
    left = OrphanedSpill(tmp_path / "s")
    assert _lines(left) == [b"after"]
    left.close(remove=False)


def test_many_lines_come_in_batches(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "s", reserve_bytes=0)
    lines = [b"%d" % number + b"x" * 100_000 for number in range(100)]
    spill.append(lines)
    read, batches, offset = [], 0, 0
    while offset < spill.end:
        batch, offset = spill.read(offset, spill.end)
        read += batch
        batches += 1
    assert batches > 1
    assert read == lines
    spill.close()


def test_an_empty_file_goes_with_its_process_and_a_full_one_stays(tmp_path: Path) -> None:
    database = tmp_path / "x.db"
    empty = Spill(spill_path(database, "a"), reserve_bytes=4096)
    full = Spill(spill_path(database, "b"), reserve_bytes=4096)
    full.append([b"one"])
    assert list(spill_files(database)) == ["a", "b"]
    empty.close()
    full.close()
    assert list(spill_files(database)) == ["b"]


@pytest.mark.parametrize("how", ("append", "keep"))
def test_a_file_that_somebody_removes_is_made_again_with_its_lines_and_its_lock(tmp_path: Path, how: str) -> None:
    path = tmp_path / "s"
    spill = Spill(path, reserve_bytes=4096)
    spill.append([b"one"])
    path.unlink()
    if how == "append":
        spill.append([b"two"])
    else:
        spill.keep()
        spill.append([b"two"])
    with pytest.raises(BlockingIOError):
        OrphanedSpill(path)
    _abandon(spill)
    left = OrphanedSpill(path)
    assert _lines(left) == [b"one", b"two"]
    left.close(remove=True)


def test_nobody_else_reads_the_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spill = Spill(tmp_path / "s", reserve_bytes=0)
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    spill.close()
