"""Two sides of traffic that never was, which differ by what a test says."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from reqpath.analyse.comparison import SideBuilder, build_comparison
from reqpath.analyse.differences import Comparison
from reqpath.path import RequestPath
from tests.factories import make_path


def make_traffic(
    seed: int,
    count: int = 600,
    *,
    query_ns: int = 2_000_000,
    slow_share: float = 0.1,
    slow_ns: int = 40_000_000,
    **overrides: Any,
) -> list[RequestPath]:
    """Return requests 20 ms apart: items of some 12 ms with a query, and a share of slow orders without."""
    noise = random.Random(seed)
    paths = []
    for number in range(count):
        common: dict[str, Any] = {
            "number": number + seed * 100_000,
            "at_ns": number * 20_000_000,
            **overrides,
        }
        if noise.random() < slow_share:
            total_ns = slow_ns + noise.randrange(4_000_000)
            paths.append(make_path(total_ns, method="POST", path="/orders", route="/orders", **common))
        else:
            query = query_ns + noise.randrange(400_000)
            paths.append(make_path(10_000_000 + query + noise.randrange(400_000), query_ns=query, **common))
    return paths


def compare(first: Iterable[RequestPath], second: Iterable[RequestPath], **options: Any) -> Comparison:
    """Return the comparison of two lists of paths."""
    builders = SideBuilder("before", **options), SideBuilder("after", **options)
    for builder, paths in zip(builders, (first, second), strict=True):
        builder.extend(paths)
    return build_comparison(*builders)
