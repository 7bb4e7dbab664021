"""Latency histograms: what is kept of a run's latencies, whole, in a few hundred bytes.

The layer below is HdrHistogram, whose V2 encoding other tools read too. Values are ns, told apart to three
digits from a microsecond up; what is longer than ten minutes counts as ten minutes::

    histogram = make_histogram()
    histogram.record_value(412_000)
    encode_histogram(histogram)   →  'HISTFAAAABd42pN…'
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hdrh.histogram import HdrHistogram

from reqpath.errors import ResultError

_LOWEST_NS: Final = 1_000
HIGHEST_NS: Final = 600_000_000_000
_DIGITS: Final = 3


def make_histogram(values_ns: Iterable[int] = ()) -> HdrHistogram:
    """Return a histogram of `values_ns`."""
    histogram = HdrHistogram(_LOWEST_NS, HIGHEST_NS, _DIGITS)
    for value_ns in values_ns:
        histogram.record_value(min(max(value_ns, 0), HIGHEST_NS))
    return histogram


def encode_histogram(histogram: HdrHistogram) -> str:
    """Return it compressed, in HdrHistogram's V2 encoding, as base64."""
    return bytes(histogram.encode()).decode()


def decode_histogram(text: str) -> HdrHistogram:
    """Return what was encoded. Raises: ResultError when it is no histogram."""
    try:
        return HdrHistogram.decode(text.encode())
    except Exception as error:  # What it raises depends on where the bytes are broken.
        raise ResultError(f"a histogram in the result can't be read: {error}") from error


def merge_histograms(texts: Iterable[str]) -> HdrHistogram:
    """Return all of the encoded ones as one."""
    merged = make_histogram()
    for text in texts:
        merged.add(decode_histogram(text))
    return merged


def percentile_ns(histogram: HdrHistogram, percent: float) -> int | None:
    """Return a percentile; None of a histogram without values."""
    if not histogram.get_total_count():
        return None
    return int(histogram.get_value_at_percentile(percent))


def percentiles_ns(histogram: HdrHistogram, percents: Iterable[float]) -> dict[float, int]:
    """Return many percentiles, made at once, by themselves; none of a histogram without values."""
    if not histogram.get_total_count():
        return {}
    found = histogram.get_percentile_to_value_dict(list(percents))
    return {percent: int(value_ns) for percent, value_ns in found.items()}
