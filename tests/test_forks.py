"""A process knows itself from its children."""

from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from reqpath import forks
from reqpath.forks import Mark, mark_process


def read_in_child(mark: Mark) -> int:
    """Return what a forked child finds."""
    pid = os.fork()
    if pid == 0:
        os._exit(mark[0])
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_mark_holds_in_its_process_alone() -> None:
    mark = mark_process()
    assert isinstance(mark, mmap.mmap)
    assert mark[0] == 1
    assert read_in_child(mark) == 0
    assert mark[0] == 1


def test_an_old_kernel_is_asked_for_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    class OldKernelsPage(mmap.mmap):
        def madvise(self, *_: Any) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("reqpath.forks.mmap.mmap", OldKernelsPage)
    mark = mark_process()
    assert not isinstance(mark, mmap.mmap)
    assert mark[0] == 1
    assert read_in_child(mark) == 0


def test_no_process_has_no_mark() -> None:
    assert forks.NO_PROCESS[0] == 0
