"""The errors that reqpath's tools raise.

```
ReqPathError
├── ConfigurationError   a setting or an option is wrong; the message names it and the values it takes
├── SpoolError           a spool can't be opened, or is not one
├── ResultError          a benchmark's result can't be read or written, or not be compared with another
├── OutputError          a file can't be written
├── MissingExtraError    a command needs packages that were not installed; the message is the pip line
└── ServerError          a server that a tool started did not start, or died; carries its log's tail
```

On the request path none of these leaves reqpath: `worker/` counts them and the request goes on.
"""

from __future__ import annotations


class ReqPathError(Exception):
    """The root of everything that reqpath raises on purpose."""


class ConfigurationError(ReqPathError):
    """A setting or an option has a value that can't work."""


class SpoolError(ReqPathError):
    """A spool directory can't be used, or a file in it is not a spool's."""


class ResultError(ReqPathError):
    """A benchmark's result can't be read or written, or two can't be compared."""


class OutputError(ReqPathError):
    """A file that a command was told to write can't be."""


class MissingExtraError(ReqPathError):
    """A command needs an extra that is not installed."""

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"this command needs {module}: pip install 'reqpath[{extra}]'")


class ServerError(ReqPathError):
    """A server that a tool started is not answering or has died."""

    def __init__(self, what: str, log_tail: str = "") -> None:
        super().__init__(f"{what}\n{log_tail.rstrip()}" if log_tail else what)
        self.log_tail = log_tail
