"""The spool as a directory: who may use it, its files, and the note of those that its bound removed."""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from dataclasses import dataclass

from reqpath.errors import SpoolError

MAGIC = b"reqpath\x01"
SUFFIX = ".rqp"
EVICTED = "evicted"
#: Nothing that reqpath writes comes near; a larger length is a torn or foreign file.
MAX_FRAME_BYTES = 8 << 20

LENGTH_BYTES = 4
FRAME_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A spool file as it was found."""

    path: str
    size: int
    modified_ns: int


def prepare_spool(directory: str) -> None:
    """Create the spool's directory, for its owner only, or check the one that is there.

    Raises: SpoolError when it is no directory, another user's, or open to others.
    """
    try:
        # Whatever is there is looked at below.
        with contextlib.suppress(FileExistsError):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
    except OSError as error:
        raise SpoolError(
            f"can't create the spool {directory}: {error.strerror}; set REQPATH_SPOOL to one of your own"
        ) from error
    if stat.S_ISLNK(found.st_mode):
        raise SpoolError(f"the spool {directory} is a symbolic link; set REQPATH_SPOOL to where it leads")
    if not stat.S_ISDIR(found.st_mode):
        raise SpoolError(f"the spool {directory} is not a directory; set REQPATH_SPOOL to one of your own")
    if found.st_uid != os.geteuid():
        raise SpoolError(
            f"the spool {directory} belongs to uid {found.st_uid}, this process is uid {os.geteuid()}; "
            "let both run as one user, or set REQPATH_SPOOL"
        )
    if found.st_mode & 0o077:
        raise SpoolError(f"the spool {directory} is open to other users: chmod 700 {directory}")


def list_files(directory: str) -> list[SpoolFile]:
    """Return the spool files of a directory, in no order; none where it can't be listed."""
    files = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX):
                    continue
                with contextlib.suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        files.append(SpoolFile(entry.path, found.st_size, found.st_mtime_ns))
    except OSError:
        return []
    return files


def evict_file(directory: str, file: SpoolFile) -> None:
    """Remove a spool file and note what it held. Raises: OSError."""
    with open(file.path, "rb") as evicted:
        os.unlink(file.path)
        # Counted afterwards: its writer may have added to it until now.
        records = count_frames(evicted.read(MAX_FRAME_BYTES * 2))
    line = f"{os.path.basename(file.path)} {file.size} {records}\n"
    fd = os.open(
        os.path.join(directory, EVICTED), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def read_evicted(directory: str) -> tuple[int, int, dict[str, int]]:
    """Return the number of files evicted, of records in them, and the records by writer."""
    files = records = 0
    by_writer: dict[str, int] = {}
    with (
        contextlib.suppress(OSError, UnicodeDecodeError),
        open(os.path.join(directory, EVICTED), encoding="ascii") as lines,
    ):
        for line in lines:
            words = line.split()
            if len(words) != 3 or not words[2].isdigit():
                continue
            files += 1
            records += int(words[2])
            writer_id = words[0].partition("-")[0]
            by_writer[writer_id] = by_writer.get(writer_id, 0) + int(words[2])
    return files, records, by_writer


def count_frames(data: bytes) -> int:
    """Count the records of a spool file by hopping from length to length."""
    position, count = len(MAGIC), -1  # the first frame is the WriterInfo
    while position + LENGTH_BYTES <= len(data):
        position += LENGTH_BYTES + int.from_bytes(data[position : position + LENGTH_BYTES], "little")
        if position > len(data):
            break
        count += 1
    return max(0, count)
