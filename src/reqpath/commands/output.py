"""A command's output: a file that is there whole or not at all, or the standard output."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import stat
import sys
import tempfile
from collections.abc import Iterable
from typing import IO, Final

from reqpath.errors import OutputError

#: What a full disk, or a quota, is told by.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_output(chunks: Iterable[bytes], target: str | None) -> int:
    """Write the chunks to a file, or for None to the standard output; return the number of bytes.

    A file that is there is replaced once all is written, so nobody sees a part of it. One whose name ends in
    `.gz` is compressed.

    Raises: OutputError when it can't be written. BrokenPipeError when the reader of the output went away.
    """
    if target is None:
        return _write(sys.stdout.buffer, chunks)
    try:
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            # A pipe, or /dev/null, is not to be replaced.
            with open(target, "wb") as file:
                return _write(file, chunks)
        return _replace(os.path.realpath(target), chunks)
    except BrokenPipeError:
        raise
    except OSError as error:
        advice = "; free some room, or export fewer requests" if error.errno in _FULL else ""
        raise OutputError(f"can't write {target}: {error.strerror}{advice}") from error


def _replace(target: str, chunks: Iterable[bytes]) -> int:
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=".reqpath-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            if target.endswith(".gz"):
                with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                    _write(packed, chunks)
            else:
                _write(file, chunks)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.chmod(temporary, _find_mode(target))
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return size


def _find_mode(target: str) -> int:
    """Return the mode of the file that is replaced; of a new one what the umask leaves."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(os.stat(target).st_mode)
    umask = os.umask(0o077)
    os.umask(umask)
    return 0o666 & ~umask


def _write(file: IO[bytes] | gzip.GzipFile, chunks: Iterable[bytes]) -> int:
    size = 0
    for chunk in chunks:
        file.write(chunk)
        size += len(chunk)
    file.flush()
    return size
