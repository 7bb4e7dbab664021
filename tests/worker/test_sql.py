"""Statements are kept with placeholders, and no value that is written into one is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.worker.sql import MAX_STATEMENT, keep_statement, replace_literals


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT * FROM item WHERE id = %s", "SELECT * FROM item WHERE id = %s"),
        ("SELECT * FROM item WHERE id = %(id)s", "SELECT * FROM item WHERE id = %(id)s"),
        ("SELECT t1.c2 FROM t1", "SELECT t1.c2 FROM t1"),
        ("SELECT 'a''b', 'c\\'d', \"e\"", "SELECT ?, ?, ?"),
        ("SELECT -1, 2.5, .5, 1e-3, 0xFF, x'AB', N'é', _utf8mb4 'x'", "SELECT -?, ?, ?, ?, ?, ?, ?, ?"),
        ("SELECT `we 5``x` FROM `7`", "SELECT `we 5``x` FROM `7`"),
        ("SELECT 5--1", "SELECT ?--?"),
        ("SELECT a -- 'secret\nFROM t # it's\n", "SELECT a FROM t"),
        ("/* ping */", ""),
        ("/*traceparent='00-ab-cd-01'*/ SELECT a", "SELECT a"),
        ("SELECT /*!40001 SQL_NO_CACHE */ a", "SELECT a"),
        ("SELECT /*! 'x*/ secret' */ a", "SELECT ?"),
        ("SELECT  a\n\tFROM   t ", "SELECT a FROM t"),
        ("a IN (1, 2, 3)", "a IN (?)"),
        ("a IN (%s,%s) AND b IN (%(b_1)s, %(b_2)s)", "a IN (%s) AND b IN (%(b_1)s)"),
        ("(a, b) IN ((1,2),(3,4))", "(a, b) IN ((?,?))"),
        ("INSERT INTO t VALUES (1, NOW()), (2, NOW())", "INSERT INTO t VALUES (?, NOW())"),
        ("INSERT INTO t (a) VALUES (%s) ON DUPLICATE KEY UPDATE a=VALUES(a)",) * 2,
        ("f(1, 2)", "f(?, ?)"),
        ("SET @`_p_0`='x', @a:=5", "SET @`_p_0`=?, @a:=?"),
        ("SELECT $$ secret $$", "SELECT ?"),
        ("", ""),
    ],
)
def test_literals_become_placeholders(statement: str, expected: str) -> None:
    assert expected == replace_literals(statement)


@pytest.mark.parametrize(
    "unclosed", ["'secret", '"secret', "`secret", "'secret\\", "/* secret", "$a$ secret"]
)
def test_what_is_never_closed_is_not_kept(unclosed: str) -> None:
    assert "secret" not in replace_literals(f"SELECT {unclosed}")


def test_a_backslash_is_an_escape_only_where_the_session_says_so() -> None:
    statement = r"SELECT 'a\', 'secret'"

    assert replace_literals(statement, backslash_escapes=False) == "SELECT ?, ?"
    assert "secret" not in replace_literals(statement, backslash_escapes=False)


def test_a_long_statement_is_bounded() -> None:
    kept = replace_literals("SELECT " + ", ".join(f"column_{i}" for i in range(100_000)))

    assert len(kept) == MAX_STATEMENT
    assert kept.endswith("…")


def test_bytes_are_decoded_and_verbatim_is_as_it_was() -> None:
    assert keep_statement("SELECT 'é'".encode(), verbatim=True) == "SELECT 'é'"
    assert keep_statement(bytearray(b"SELECT 'x'")) == "SELECT ?"
    assert keep_statement(object()) is None
    assert keep_statement(None) is None


def test_text_that_can_not_be_encoded_is_kept_as_text_that_can() -> None:
    for verbatim in (False, True):
        kept = keep_statement("SELECT caf\udce9", verbatim=verbatim)
        assert kept is not None
        assert kept == "SELECT caf?"


_SECRET = re.compile("zq[0-9]|[0-9]{7}")
_filler = st.text(st.sampled_from("abc é%()[],;-*/#!@.\n"), max_size=8)


@st.composite
def _literals(draw: st.DrawFn) -> str:
    """One literal with a mark in it that must not survive."""
    inner = f"{draw(_filler)}zq{draw(st.integers(0, 9))}{draw(_filler)}"
    number = draw(st.integers(1_000_000, 9_999_999))
    return draw(
        st.sampled_from(
            [
                f"'{inner}'",
                f'"{inner}"',
                f"'\\'{inner}'",
                f"'''{inner}'''",
                f"'{inner}\\\\'",
                f"N'{inner}'",
                f"_utf8mb4'{inner}'",
                f"{number}",
                f"-{number}.{number}",
                f".{number}",
                f"{number}e-{number}",
                f"0x{number}",
                f"x'{number}'",
                f"b'{number}'",
                f"DATE '{number}'",
                f"/* {inner.replace('*/', '')} {number} */ 1",
                f"1 -- {inner.replace(chr(10), '')}\n",
                f"1 # {inner.replace(chr(10), '')}\n",
            ]
        )
    )


@given(st.lists(_literals(), min_size=1, max_size=6), st.data())
def test_no_value_of_a_statement_survives(values: list[str], data: st.DataObject) -> None:
    template = data.draw(
        st.sampled_from(
            [
                "SELECT a, `b 1` FROM t1 WHERE a IN ({})",
                "INSERT INTO t1 (a, b2) VALUES ({}), (DEFAULT)",
                "UPDATE t1 SET a = f({}) WHERE x = %s",
                "SELECT {}",
            ]
        )
    )

    kept = replace_literals(template.format(", ".join(values)))

    assert _SECRET.search(kept) is None, kept


@given(st.text(), st.booleans())
def test_any_text_is_read_without_an_error(statement: str, backslash_escapes: bool) -> None:
    kept = replace_literals(statement, backslash_escapes=backslash_escapes)

    assert len(kept) <= MAX_STATEMENT
    kept.encode()


@given(st.text(st.sampled_from("'\"`\\/*!-# \n%s()?,1aINVALUES$"), max_size=60))
def test_no_quote_is_left_outside_of_a_name(statement: str) -> None:
    unnamed = re.sub(r"`(?:[^`]|``)*`", "", replace_literals(statement))

    assert not set(unnamed) & set("'\"`")


@given(st.binary(), st.booleans())
def test_any_bytes_are_read_without_an_error(statement: bytes, verbatim: bool) -> None:
    kept = keep_statement(statement, verbatim=verbatim)

    assert kept is not None
    kept.encode()


@given(st.integers(1, 50), st.integers(1, 50))
def test_lists_of_any_length_are_one_statement(first: int, second: int) -> None:
    statements = [
        f"SELECT a FROM t WHERE a IN ({', '.join(['%s'] * n)}) OR b IN ({','.join(map(str, range(n)))})"
        for n in (first, second)
    ]

    assert len(set(map(replace_literals, statements))) == 1
