"""A command's output."""

from __future__ import annotations

import errno
import gzip
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reqpath.commands.output import write_output
from reqpath.errors import OutputError


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    target.chmod(0o640)
    assert write_output([b"new", b" one"], str(target)) == 7
    assert target.read_text() == "new one"
    assert target.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_output([b"x"], str(tmp_path / "out"))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_what_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ValueError("the end")

    target = tmp_path / "out.json"
    target.write_text("old")
    with pytest.raises(ValueError, match="the end"):
        write_output(chunks(), str(target))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_output([b"new"], str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_name_that_ends_in_gz_is_compressed(tmp_path: Path) -> None:
    target = tmp_path / "out.json.gz"
    size = write_output([b"a" * 10_000], str(target))
    assert size == target.stat().st_size < 200
    assert gzip.decompress(target.read_bytes()) == b"a" * 10_000


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_output([b"through"], str(pipe))
    reader.join()
    assert read == [b"through"]
    assert pipe.is_fifo()


def test_a_device_is_not_replaced() -> None:
    assert write_output([b"gone"], os.devnull) == 4
    assert not os.path.isfile(os.devnull)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    target = f"{tmp_path}/none/out.json"
    with pytest.raises(OutputError, match=f"can't write {target}: No such file or directory"):
        write_output([b"x"], target)


def test_a_full_disk_is_told_with_what_to_do() -> None:
    with pytest.raises(OutputError, match="can't write /dev/full: No space left on device; free some room"):
        write_output([b"x"], "/dev/full")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = tmp_path / "out"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match="free some room"):
        write_output([b"x"], str(target))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
