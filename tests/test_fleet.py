"""examples/fleet: its files can be read, and each name that they ask for is one that reqpath sends.

What the servers themselves make of them was tried by hand: docs/fleet.md says with which.
"""

from __future__ import annotations

import json
import re
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from reqpath.collect.metrics import PathMetrics
from reqpath.collect.spans import build_spans
from reqpath.conventions import SEGMENT_KEYS
from reqpath.path import RequestPath
from reqpath.settings import Settings
from reqpath.tiers import SEGMENTS, STAMPS
from tests.factories import make_nginx_record, make_path

ROOT = Path(__file__).parents[1]
FLEET = ROOT / "examples" / "fleet"
DASHBOARD = FLEET / "grafana" / "reqpath.json"
RULES = FLEET / "prometheus" / "reqpath-rules.yaml"
#: What Prometheus itself adds to a series.
OWN_LABELS = {"job", "instance", "le"}
#: Source: https://prometheus.io/docs/prometheus/latest/querying/functions/ and /operators/
WORDS = {"sum", "rate", "increase", "by", "on", "group_left", "histogram_quantile", "scalar", "vector", "or"}


def make_paths() -> list[RequestPath]:
    """Return a usual path, one with a stamp missing, one with skew, and one that reached no worker."""
    skewed = make_path(number=3)
    assert skewed.worker
    skewed.worker.app_start_ns += 3_600_000_000_000
    return [
        make_path(query_ns=1_000_000),
        make_path(accept_ns=None, number=2),
        skewed,
        RequestPath(None, None, make_nginx_record(status=502)),
    ]


def sent_series() -> dict[str, set[str]]:
    """Return each metric as Prometheus names it, with its labels."""
    metrics = PathMetrics("shop")
    for path in make_paths():
        metrics.add(path)
    units = {"s": "_seconds", "{request}": "_total"}
    series: dict[str, set[str]] = {}
    for resource in metrics.collect().resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            name = metric.name.replace(".", "_") + units[metric.unit or ""]
            labels = series.setdefault(name, set())
            for point in metric.data.data_points:
                labels |= {key.replace(".", "_") for key in point.attributes or ()}
    for name in [name for name in series if name.endswith("_seconds")]:
        series |= {f"{name}{part}": series[name] for part in ("_bucket", "_sum", "_count")}
    return series


def sent_attributes() -> set[str]:
    """Return the names of the attributes of all spans and their resources."""
    names = set(SEGMENT_KEYS)
    for path in make_paths():
        for span in build_spans(path, kept="steady"):
            names |= set(span.attributes or ()) | set(span.resource.attributes)
    return names


def rule_expressions() -> dict[str, str]:
    """Return each rule's expression by its name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    return {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules}


def dashboard_expressions() -> dict[str, str]:
    """Return each query of the dashboard by its panel's title and its letter."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels
        for target in panel["targets"]
    }


@pytest.mark.parametrize("path", sorted(FLEET.rglob("*.yaml")), ids=lambda path: path.name)
def test_the_yaml_files_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("path", sorted(FLEET.rglob("*.json")), ids=lambda path: path.name)
def test_the_json_files_can_be_read(path: Path) -> None:
    assert isinstance(json.loads(path.read_text()), dict)


def check_expression(text: str, known: dict[str, set[str]]) -> None:
    """Check that an expression asks only for series, and for their labels, that are there."""
    text = re.sub(r"\[[^\]]*\]", "", text)
    asked = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.sub(r'"[^"]*"', "", text))
    series = [name for name in asked if name in known]
    assert series
    labels = OWN_LABELS.union(*(known[name] for name in series))
    assert set(asked) - set(series) - WORDS <= labels


@pytest.mark.parametrize("name", rule_expressions())
def test_a_rule_asks_for_what_is_sent(name: str) -> None:
    recorded = {record: {"reqpath_route", "reqpath_tier"} for record in rule_expressions() if ":" in record}
    check_expression(rule_expressions()[name], sent_series() | recorded)


@pytest.mark.parametrize("name", dashboard_expressions())
def test_a_panel_asks_for_what_is_sent(name: str) -> None:
    check_expression(dashboard_expressions()[name], sent_series())


def test_values_in_queries_are_segments_tiers_and_stamps() -> None:
    texts = [*rule_expressions().values(), *dashboard_expressions().values()]
    known = {
        "segment": {segment.name for segment in SEGMENTS},
        "tier": {segment.tier for segment in SEGMENTS},
        "stamp": set(STAMPS),
    }
    found = re.findall(r'reqpath_(segment|tier|stamp)[!=]~?"([^"]+)"', "\n".join(texts))
    assert found
    for kind, values in found:
        assert set(values.split("|")) <= known[kind]


def test_each_tier_has_its_colour_in_the_dashboard() -> None:
    panel = json.loads(DASHBOARD.read_text())["panels"][0]
    coloured = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    assert coloured == {segment.tier for segment in SEGMENTS} | {"residual"}


@pytest.mark.parametrize("name", ["clickhouse-view-otel.sql", "clickhouse-view-jaeger.sql"])
def test_a_view_reads_every_segment_and_nothing_else(name: str) -> None:
    text = (FLEET / "queries" / name).read_text()
    asked = set(re.findall(r"'((?:reqpath|http|host)\.[\w.]+)'", text))
    assert set(SEGMENT_KEYS) <= asked
    assert asked <= sent_attributes()


def test_the_tiers_by_host_are_all_tiers_but_other_apps() -> None:
    text = (FLEET / "queries" / "clickhouse-breakdown.sql").read_text()
    assert {segment.tier for segment in SEGMENTS} - {"app"} <= set(re.findall(r"AS (\w+)_ms", text))
    for prefix in re.findall(r"startsWith\(pair\.1, '([^']+)'\)", text):
        tiers = {
            segment.tier
            for segment, key in zip(SEGMENTS, SEGMENT_KEYS, strict=True)
            if key.startswith(prefix)
        }
        assert tiers == {prefix.split(".")[1]}


def test_elasticsearch_is_asked_for_fields_that_jaeger_makes() -> None:
    fields_made = set((FLEET / "jaeger" / "tags-as-fields.txt").read_text().split())
    assert set(SEGMENT_KEYS) <= fields_made
    assert fields_made <= sent_attributes()
    body: dict[str, Any] = json.loads((FLEET / "queries" / "elasticsearch-breakdown.json").read_text())
    text = json.dumps(body)
    asked = {name.replace("@", ".") for name in re.findall(r'"(?:process\.)?tag\.([\w@]+)"', text)}
    assert asked <= fields_made
    assert set(SEGMENT_KEYS) <= asked
    runtime = set(body["runtime_mappings"])
    for aggregation in body["aggs"].values():
        sums = {inner["sum"]["field"] for inner in aggregation["aggs"].values() if "sum" in inner}
        assert sums == runtime


def test_the_environment_file_sets_what_there_is() -> None:
    lines = (FLEET / "app" / "reqpath.env").read_text().splitlines()
    names = {line.partition("=")[0].lstrip("#") for line in lines if re.match(r"#?[A-Z_]+=", line)}
    ours = {name for name in names if name.startswith("REQPATH_")}
    assert ours <= {f"REQPATH_{field.name.upper()}" for field in fields(Settings)}
    assert all(name.startswith("OTEL_") for name in names - ours)


def test_the_unit_and_the_ini_can_be_read() -> None:
    for name in ("reqpath-collect.service", "uwsgi.ini"):
        parser = ConfigParser(strict=False, interpolation=None)
        assert parser.read(FLEET / "app" / name)


def test_each_metric_is_documented_with_its_attributes() -> None:
    text = (ROOT / "docs" / "fleet.md").read_text()
    metrics = PathMetrics("shop")
    for path in make_paths():
        metrics.add(path)
    for resource in metrics.collect().resource_metrics:
        for metric in resource.scope_metrics[0].metrics:
            (row,) = [line for line in text.splitlines() if line.startswith(f"| `{metric.name}` |")]
            for point in metric.data.data_points:
                assert all(f"`{key}`" in row for key in point.attributes or ())


def test_each_file_is_named_in_the_documentation() -> None:
    text = (ROOT / "docs" / "fleet.md").read_text()
    for path in FLEET.rglob("*"):
        if path.is_file() and path.name != "README.md":
            assert f"`{path.relative_to(FLEET)}`" in text
