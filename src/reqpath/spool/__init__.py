"""The spool: a bounded, owner-only directory of append-only files, one writer each.

A file is `MAGIC`, then frames: four bytes of length, little-endian, and as many bytes of msgpack. The first
frame is a `record.WriterInfo`, the others are `WorkerRecord`s or `NginxRecord`s::

    reqpath-1000/
      3f9c2a7d10b4e6f8-000001.rqp    MAGIC [n WriterInfo] [n WorkerRecord] [n WorkerRecord] …
      3f9c2a7d10b4e6f8-000002.rqp    the same writer's next file
      evicted                        one line per file that the bound removed: name, bytes, records

A torn tail is what a killed process leaves, and is skipped. A record's `sequence` counts up within its
writer, so a reader knows exactly how many are missing, whatever the reason: a full disk, a torn or evicted
file.
"""

from reqpath.spool.files import EVICTED, MAGIC, MAX_FRAME_BYTES, SUFFIX, prepare_spool
from reqpath.spool.reader import Batch, Bookmark, SpoolLosses, SpoolReader
from reqpath.spool.writer import SpoolWriter

__all__ = [
    "EVICTED",
    "MAGIC",
    "MAX_FRAME_BYTES",
    "SUFFIX",
    "Batch",
    "Bookmark",
    "SpoolLosses",
    "SpoolReader",
    "SpoolWriter",
    "prepare_spool",
]
