"""The checkpoint: its owner's alone, replaced as a whole, and never taken for what it is not."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.collect.checkpoint import NAME, hold_spool, read_checkpoint
from reqpath.collect.keep import Keeper
from reqpath.collect.tail import Tail
from reqpath.errors import SpoolError
from tests.collect.spools import write_paths
from tests.factories import make_path


def test_the_checkpoint_is_its_owners_alone(spool: str) -> None:
    write_paths(spool, [make_path()])
    Tail(spool, Keeper(), wait_s=1, expect_nginx=True).save()
    assert stat.S_IMODE(os.stat(os.path.join(spool, NAME)).st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x95\x07\x92\x80\x80\x90\x90\x00"])
def test_a_damaged_checkpoint_says_what_to_do(content: bytes, spool: str) -> None:
    write_paths(spool, [make_path()])
    Path(spool, NAME).write_bytes(content)
    with pytest.raises(SpoolError, match="remove it"):
        Tail(spool, Keeper(), wait_s=1, expect_nginx=True)


@given(st.binary(max_size=200))
def test_no_bytes_make_a_checkpoint_of_nonsense(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, NAME).write_bytes(content)
        with pytest.raises(SpoolError):
            read_checkpoint(directory)


def test_one_collector_exports_a_spool(spool: str) -> None:
    write_paths(spool, [make_path()])
    with hold_spool(spool) as first, hold_spool(spool) as second:
        assert (first, second) == (True, False)
    with hold_spool(spool) as third:
        assert third
