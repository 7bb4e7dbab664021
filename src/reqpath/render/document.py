"""The JSON of `reqpath report --json` and `reqpath trace --json`, documented in docs/report-json.md.

Durations are ns, as floats where they are means; shares are of the total time, from 0 to 1; null is unknown.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import msgspec

from reqpath.analyse.figures import Breakdown, Group
from reqpath.path import RequestPath
from reqpath.render.sentence import render_sentence
from reqpath.tiers import NAMES, STAMPS

#: Of this format: bumped when a field goes or changes its meaning; new fields come without.
VERSION: Final = 1


def breakdown_to_json(breakdown: Breakdown) -> dict[str, Any]:
    """Return the breakdown as the object that `report --json` prints."""
    whole = _group_to_json(breakdown.whole)
    return {
        "version": VERSION,
        **whole,
        "sentence": render_sentence(breakdown),
        "first_ns": breakdown.first_ns,
        "last_ns": breakdown.last_ns,
        "rate_per_s": breakdown.rate_per_s,
        "routes": [{"route": group.route, **_group_to_json(group)} for group in breakdown.routes],
        "hints": {stamp: STAMPS[stamp][1] for stamp in breakdown.whole.missing_stamps},
        **_losses_to_json(breakdown),
        "rejected_stamps": breakdown.rejected_stamps,
        "dropped_operations": breakdown.dropped_operations,
        "joined": breakdown.joined,
        "worker_only": breakdown.worker_only,
        "nginx_only": breakdown.nginx_only,
        "retried": breakdown.retried,
        "workers": [
            {
                "host": worker.host,
                "worker": worker.worker,
                "pids": list(worker.pids),
                "concurrency": worker.concurrency,
                "slots": worker.slots,
                "requests": worker.requests,
                "busy_share": worker.busy_share,
            }
            for worker in breakdown.workers
        ],
        "transports": {
            "nginx_uwsgi": _keys_to_text(breakdown.hop_transports),
            "app_mysql": _keys_to_text(breakdown.database_transports),
        },
        "statements": [
            {
                "kind": statement.kind,
                "statement": statement.statement,
                "count": statement.count,
                "total_ns": statement.total_ns,
                "mean_ns": statement.mean_ns,
                "p99_ns": statement.p99_ns,
                "errors": statement.errors,
            }
            for statement in breakdown.statements
        ],
        "slowest_requests": [
            {
                "trace_id": request.trace_id,
                "route": request.route,
                "status": request.status,
                "start_ns": request.start_ns,
                "total_ns": request.total_ns,
                "resolution_ns": request.resolution_ns,
                "longest": request.longest,
                "longest_ns": request.longest_ns,
            }
            for request in breakdown.slowest
        ],
    }


def _losses_to_json(breakdown: Breakdown) -> dict[str, Any]:
    losses, traces = breakdown.losses, breakdown.traces
    fields = ("lost_records", "evicted_records", "evicted_files", "torn_bytes", "foreign_files")
    return {
        # Traces don't tell what never became one.
        **{field: getattr(losses, field) if traces is None else None for field in fields},
        "traces": None if traces is None else dataclasses.asdict(traces),
    }


def _group_to_json(group: Group) -> dict[str, Any]:
    return {
        "requests": group.requests,
        "total_ns": {
            "mean": group.total.mean_ns,
            "p50": group.total.p50_ns,
            "p90": group.total.p90_ns,
            "p99": group.total.p99_ns,
            "max": group.total.max_ns,
        },
        "median_path": {"requests": group.median.requests, "total_ns": group.median.mean_ns},
        "slowest": {"requests": group.slowest.requests, "total_ns": group.slowest.mean_ns},
        "attributed_share": group.attributed_share,
        "attributed_share_median": group.attributed_median,
        "segments": [
            {
                "name": segment.name,
                "tier": segment.tier,
                "known": segment.known,
                "mean_ns": segment.mean_ns,
                "p50_ns": segment.p50_ns,
                "p99_ns": segment.p99_ns,
                "share": segment.share,
                "median_path_ns": segment.median_ns,
                "slowest_ns": segment.slowest_ns,
                "resolution_ns": segment.resolution_ns,
            }
            for segment in group.segments
        ],
        "residual": {
            "mean_ns": group.residual.mean_ns,
            "share": group.residual.share,
            "absolute_share": group.residual.absolute_share,
            "median_path_ns": group.residual.median_ns,
            "slowest_ns": group.residual.slowest_ns,
        },
        "lens": {
            "known": group.lens.known,
            "parts": [
                {
                    "name": part.name,
                    "mean_ns": part.mean_ns,
                    "median_path_ns": part.median_ns,
                    "slowest_ns": part.slowest_ns,
                }
                for part in group.lens.parts
            ],
        },
        "statuses": _keys_to_text(group.statuses),
        "errors": group.errors,
        "missing_stamps": group.missing_stamps,
        "skewed": group.skewed,
        "clamped": group.clamped,
        "abandoned": group.abandoned,
        "operations_mean": group.operations_mean,
        "resolutions": _keys_to_text(group.resolutions),
    }


def _keys_to_text(counts: dict[Any, int]) -> dict[str, int]:
    return {"unknown" if key is None else str(key): count for key, count in counts.items()}


def path_to_json(path: RequestPath) -> dict[str, Any]:
    """Return one request as the object that `reqpath trace --json` prints, with its records in full."""
    timing = path.timing
    return {
        "version": VERSION,
        "trace_id": path.trace_id,
        "route": path.route,
        "path": path.url_path,
        "status": path.status,
        "start_ns": timing.start_ns,
        "total_ns": timing.total_ns,
        "segments": dict(zip(NAMES, timing.segments, strict=True)),
        "residual_ns": timing.residual_ns,
        "resolution_ns": timing.resolution_ns,
        "clamped": list(timing.clamped),
        "skewed": list(timing.skewed),
        "missing_stamps": list(timing.missing),
        "abandoned": timing.abandoned,
        "worker": _struct_to_json(path.worker),
        "process": _struct_to_json(path.info),
        "nginx": _struct_to_json(path.nginx),
        "retried": [_struct_to_json(record) for record in path.retried],
    }


def _struct_to_json(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return {name: _struct_to_json(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, (list, tuple)):
        return [_struct_to_json(item) for item in value]
    return value
