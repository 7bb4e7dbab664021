"""A statement as it is kept: with placeholders, never with its values.

What the app passes to `Cursor.execute` beside the values has placeholders already; literals that are written
into the statement become `?`. Lists are folded, so that distinct statements stay few. Example::

    >>> replace_literals("SELECT * FROM item WHERE id IN (%s, %s, %s) AND name = 'nut' -- page 7")
    'SELECT * FROM item WHERE id IN (%s) AND name = ?'

Where the text can be read in two ways the reading that keeps less is taken.
Source: MySQL Reference Manual, "Language Structure"; MariaDB adds `/*M! … */`.
"""

from __future__ import annotations

import functools
import re
from typing import Final

#: Of a kept statement, in characters.
MAX_STATEMENT: Final = 2048
#: Of what is read of a statement; the rest is left off unread. A literal cut in two stays a literal.
_MAX_INPUT: Final = 8 * MAX_STATEMENT
#: Of a statement that is remembered: a larger one is rarely seen twice.
MAX_CACHED: Final = 2048
#: Distinct statements an app has; beyond that the least recently used are worked out again.
_CACHED_STATEMENTS: Final = 1024

# Each alternative ends at its own end or takes all that is left, so that nothing is read from its middle.
# Groups are repeated inside `(?>…)`, not by `*+` and `++`, which match too much, or for ever, before Python
# 3.11.5; Debian 12 has 3.11.2. Source: CPython's issues 100061 and 106052.
_TOKENS: Final = r"""
    (?P<comment>
        (?:--(?=[\s\x00-\x1f]|\Z)|\#)[^\n]*+        # -- needs a blank behind it: 5--1 is arithmetic
      | /\*M?![^'"`*]*+\*/                          # some servers run it: with quotes see `rest`
      | /\*(?!M?!).*?(?:\*/|\Z)
    )
  | (?P<rest>/\*M?!.*+)
  | (?P<literal>
        (?:[nxb]|_\w++\s*+)?'STRING'                # N'…', X'…', b'…', _utf8mb4'…'
      | "DOUBLE"                                    # an identifier in ANSI_QUOTES mode only
      | (?P<dollar>\$\w*+\$).*?(?:(?P=dollar)|\Z)   # MySQL 9
      | `(?>(?:[^`]++|``)*)\Z                       # never closed
      # A word that begins with a digit, be it an identifier.
      | (?:\d|\.\d)(?>(?:(?<=[e])[+-](?=\d)|[\w$.])*)
    )
  | (?P<kept>%s | %\(\w++\)s | `(?>(?:[^`]++|``)*)` | [^\W\d][\w$]*+)
  | (?P<blank>[\s\x00]++)
"""


def _compile_tokens(string: str, double: str) -> re.Pattern[str]:
    text = _TOKENS.replace("'STRING'", string).replace('"DOUBLE"', double)
    return re.compile(text, re.VERBOSE | re.DOTALL | re.IGNORECASE)


_TOKEN: Final = _compile_tokens(r"'(?>(?:[^'\\]++|\\.?|'')*)'?", r'"(?>(?:[^"\\]++|\\.?|"")*)"?')
#: For sessions with NO_BACKSLASH_ESCAPES.
_TOKEN_PLAIN: Final = _compile_tokens(r"'(?>(?:[^']++|'')*)'?", r'"(?>(?:[^"]++|"")*)"?')
_REPLACEMENTS: Final = {"comment": " ", "blank": " ", "literal": "?", "dollar": "?", "rest": "?"}

_VALUE: Final = r"[-+]?\s?(?:\?|%s|%\(\w++\)s)"
_TUPLE: Final = r"\((?>(?:[^()]++|\([^()]*+\))*)\)"
_IN_LIST: Final = re.compile(
    rf"\b(IN\s?\(\s?(?:{_VALUE}|{_TUPLE}))(?>(?:\s?,\s?(?:{_VALUE}|{_TUPLE}))+)\s?\)", re.I
)
_ROWS: Final = re.compile(rf"\b(VALUES?\s?{_TUPLE})(?>(?:\s?,\s?{_TUPLE})+)", re.I)
_BLANKS: Final = re.compile(r" {2,}")


def replace_literals(statement: str, *, backslash_escapes: bool = True) -> str:
    """Return the statement with `?` for its literals, without comments, lists folded, bounded.

    `backslash_escapes` False is MySQL's NO_BACKSLASH_ESCAPES mode.
    """
    text = statement[:_MAX_INPUT]
    text = (_TOKEN if backslash_escapes else _TOKEN_PLAIN).sub(_replace_token, text)
    text = _BLANKS.sub(" ", text).strip()
    text = _IN_LIST.sub(r"\1)", text)
    text = _ROWS.sub(r"\1", text)
    return bound(text)


#: The same, remembered; for a `str` of at most `MAX_CACHED` characters.
replace_literals_cached = functools.lru_cache(_CACHED_STATEMENTS)(replace_literals)


def keep_statement(
    statement: object, *, verbatim: bool = False, encoding: str = "utf-8", backslash_escapes: bool = True
) -> str | None:
    """Return what is kept of a statement, of text or bytes; None of anything else.

    `verbatim` keeps its literals and comments.
    """
    if isinstance(statement, (bytes, bytearray)):
        # A character has up to four bytes; one cut in two is replaced.
        statement = bytes(statement[: 4 * _MAX_INPUT]).decode(encoding, "replace")
    if not isinstance(statement, str):
        return None
    if verbatim:
        return bound(statement)
    if backslash_escapes and len(statement) <= MAX_CACHED:
        return replace_literals_cached(statement)
    return replace_literals(statement, backslash_escapes=backslash_escapes)


def bound(text: str) -> str:
    """Return text that can be encoded and is at most `MAX_STATEMENT` characters long."""
    if len(text) > MAX_STATEMENT:
        text = f"{text[: MAX_STATEMENT - 1]}…"
    # Lone surrogates stand for bytes that were no text.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _replace_token(token: re.Match[str]) -> str:
    kind = token.lastgroup
    return token[0] if kind == "kept" else _REPLACEMENTS[kind or "literal"]
