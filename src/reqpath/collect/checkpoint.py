"""What an exporting collector has done with a spool, remembered in it for the next one to go on from.

A small file beside the records, replaced as a whole::

    bookmark   how far each file was read
    waiting    the records before that which still wait for a partner, by their places
    kept       the paths that are kept and not yet with the backend, each as it was put together

Everything else before the bookmark is done: exported, or not kept. So a collector that was killed sends none
of it again, and loses nothing that the spool still holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

import msgspec

from reqpath.errors import SpoolError
from reqpath.spool import Bookmark

NAME: Final = "exported"
_VERSION: Final = 1

#: File, offset of a batch in it, and the record's number in the batch.
Place = tuple[str, int, int]


class KeptPath(msgspec.Struct, array_like=True):
    """A path to export, by the places of its records."""

    reason: str
    worker: Place | None
    nginx: Place | None
    retried: list[Place]
    #: The clocks' offset that it was corrected by, `clocks.ClockOffset`; None: it was not.
    offset: tuple[int | None, int | None] | None


class Checkpoint(msgspec.Struct, array_like=True):
    """The file's content."""

    version: int
    bookmark: Bookmark
    waiting: list[tuple[str, int, list[int]]]
    kept: list[KeptPath]
    #: Records that were evicted before the first collector began.
    evicted_before: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Checkpoint).decode


def build_checkpoint(
    bookmark: Bookmark,
    waiting: dict[tuple[str, int], list[int]],
    kept: list[KeptPath],
    evicted_before: int,
) -> Checkpoint:
    """Return a checkpoint of this version."""
    records = [(name, offset, numbers) for (name, offset), numbers in waiting.items()]
    return Checkpoint(_VERSION, bookmark, records, kept, evicted_before)


def write_checkpoint(directory: str, checkpoint: Checkpoint) -> None:
    """Replace a spool's checkpoint. Raises: OSError."""
    path = os.path.join(directory, NAME)
    # Not synchronised to the disk, as the records are not: after a power cut both are as old as each other.
    fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb", buffering=0) as file:
        data = _encode(checkpoint)
        if file.write(data) != len(data):
            raise OSError(f"only a part of {path} was written")
    os.replace(f"{path}.new", path)


def read_checkpoint(directory: str) -> Checkpoint | None:
    """Return a spool's checkpoint; None when it has none.

    Raises: SpoolError when it can't be read or was not written by this version.
    """
    path = os.path.join(directory, NAME)
    try:
        with open(path, "rb") as file:
            checkpoint = _decode(file.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpoolError(f"can't read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpoolError(f"{path} is damaged ({error}); {_REMEDY}") from error
    if checkpoint.version != _VERSION:
        raise SpoolError(f"{path} is of another version of reqpath; {_REMEDY}")
    return checkpoint


_REMEDY: Final = "remove it to export the whole spool, what was exported before included"


@contextlib.contextmanager
def hold_spool(directory: str) -> Iterator[bool]:
    """Be the only one that exports a spool, while the `with` lasts; False when another one does.

    Raises: SpoolError when there is no such directory.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SpoolError(f"can't open the spool {directory}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
