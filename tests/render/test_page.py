"""A page is one file that asks nothing of any network; the browser's own view of it is in tests/browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.analyse.breakdown import build_breakdown
from reqpath.analyse.cube import CubeBuilder
from reqpath.render.document import breakdown_to_json
from reqpath.render.page import LIBRARIES, build_page, encode_data
from reqpath.render.page_report import build_report_data, render_report_page
from reqpath.render.units import clean
from tests.factories import make_shop_paths


@pytest.fixture(scope="module")
def shop() -> str:
    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(make_shop_paths(200)))
    return render_report_page(breakdown, builder.build(breakdown))


def test_the_page_says_which_libraries_are_in_it_as_their_files_do(shop: str) -> None:
    for _, name, licence, notice in LIBRARIES:
        assert f"{name}, {licence} licence, {notice}" in shop
    assert "// https://d3js.org v7.9.2 Copyright 2010-2026 Mike Bostock" in shop
    assert "// @observablehq/plot v0.6.17 Copyright 2020-2025 Observable, Inc." in shop


def test_the_policy_allows_the_pages_own_scripts_and_no_network(shop: str) -> None:
    match = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', shop)
    assert match is not None
    directives = dict(part.strip().split(" ", 1) for part in match[1].split(";"))
    assert directives["default-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", shop, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    assert directives["script-src"] == " ".join(f"'sha256-{each}'" for each in hashes)
    markup = re.sub(r"(<script>).*?(</script>)", r"\1\2", shop, flags=re.DOTALL)
    assert not re.search(r"<(link|img|iframe)|<script [^>]*src=|@import|url\(", markup)


def test_the_data_has_the_report_as_json_prints_it() -> None:
    builder = CubeBuilder()
    breakdown = build_breakdown(builder.watch(make_shop_paths(300)))
    data = build_report_data(breakdown, builder.build(breakdown))
    assert data["report"] == breakdown_to_json(breakdown)
    assert json.loads(encode_data(data))["report"] == json.loads(json.dumps(breakdown_to_json(breakdown)))


def clean_all(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(key): clean_all(each) for key, each in value.items()}
    return [clean_all(each) for each in value] if isinstance(value, list) else value


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_data_comes_back_cleaned_and_has_no_character_that_html_knows(data: Any) -> None:
    text = encode_data(data)
    assert not re.search("[<>&\u2028\u2029]", text)
    text.encode()
    assert json.loads(text) == clean_all(data)


def test_a_long_text_is_cut() -> None:
    assert json.loads(encode_data(["x" * 10_000])) == ["x" * 2_000 + "…"]


def test_the_title_is_text() -> None:
    page = build_page("<b>&\x1b", "", {}, ())
    assert "<title>&lt;b&gt;&amp;\N{REPLACEMENT CHARACTER}</title>" in page
