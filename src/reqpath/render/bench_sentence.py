"""What a benchmark found, in words: one sentence for each question.

For a point query, Unix sockets to MySQL save 38 µs [31, 45] of 412 µs: all of it in mysql.query.
For a point query, nginx → uWSGI, TCP or Unix sockets: no difference above 12 µs of 412 µs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from reqpath.render.units import format_duration

if TYPE_CHECKING:
    from reqpath.bench.figures import Comparison, Control, Pair, Part, Question, Verdict
    from reqpath.bench.plan import Cell
    from reqpath.bench.statistics import Estimate

#: Factor → what it is about.
FACTORS: Final = {
    "hop1": "nginx → uWSGI",
    "hop2": "app → MySQL",
    "workers": "workers",
    "connection": "connections to MySQL",
    "planted_us": "planted in MySQL",
}
#: Factor and level → the level in a sentence, in the plural.
_LEVELS: Final = {
    ("hop1", "tcp"): "TCP to uWSGI",
    ("hop1", "unix"): "Unix sockets to uWSGI",
    ("hop2", "tcp"): "TCP to MySQL",
    ("hop2", "unix"): "Unix sockets to MySQL",
    ("workers", "4x1"): "4 processes",
    ("workers", "1x4"): "4 threads",
    ("workers", "2x2"): "2 processes of 2 threads",
    ("connection", "pooled"): "pooled connections",
    ("connection", "per-request"): "connections per request",
}
#: The same beside its factor.
_SHORT: Final = {"tcp": "TCP", "unix": "Unix sockets", "pooled": "pooled", "per-request": "per request"}
#: Factor → the segments that it lies in.
_OWN: Final = {
    "hop1": "on the way to uWSGI",
    "hop2": "in MySQL",
    "connection": "in MySQL",
    "planted_us": "in MySQL",
}
#: What a part needs of a difference to be all of it, and most of it.
_ALL, _MOST = 0.9, 0.6
#: Of a difference that threads bring, to be put down to the GIL.
_GIL_SHARE: Final = 0.5
_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"))


def render_verdicts(verdict: Verdict) -> list[str]:
    """Return the sentences of all questions, those with a difference first."""
    return [render_question(question) for question in order_questions(verdict)]


def order_questions(verdict: Verdict) -> list[Question]:
    """Return the questions, those with a difference first."""
    rank = {"different": 0, "none": 1, "undecided": 2}

    def order(question: Question) -> int:
        mean, slowest = question.mean, question.slowest
        return min(rank[one.outcome] if one else 3 for one in (mean, slowest))

    return sorted(verdict.questions, key=order)


def render_question(question: Question) -> str:
    """Say what a question's answer is."""
    workload = question.workload.title
    if question.connection == "per-request":
        workload += " with a connection of its own"
    if question.mean is None:
        return f"For {workload}, {name_choice(question)}: not compared, {_refusal(question)}."
    mean, slowest = question.mean, question.slowest
    text = f"For {workload}, {_answer(question, mean)}"
    second = name_level(question.factor, question.second)
    if mean.outcome != "different" and question.own is not None and question.own.outcome == "different":
        text += f"; {_OWN[question.factor]} alone, {second} {_effect(question.own)}"
    if slowest is not None:
        text += _tell_slowest(question, mean, slowest)
    if any(pair.differs for pair in question.pairs):
        each = (_describe_pair(question, pair) for pair in question.pairs if pair.client is not None)
        text += f". It depends: {'; '.join(each)}"
    return text + "."


def _tell_slowest(question: Question, mean: Comparison, slowest: Comparison) -> str:
    if "undecided" in (mean.outcome, slowest.outcome) or mean.outcome == slowest.outcome == "none":
        return ""
    if slowest.outcome == "none":
        return f"; in the slowest 1 %, no difference above {_bound(slowest)}"
    saves = slowest.client.value_ns < 0
    if mean.outcome == "different" and saves == (mean.client.value_ns < 0):
        amount = format_estimate(slowest.client, sign=False, flip=saves)
        return f"; in the slowest 1 %, {amount}{_place(question, slowest)}"
    second = name_level(question.factor, question.second)
    return f"; but in the slowest 1 %, {second} {_effect(slowest)}{_place(question, slowest)}"


def render_control(control: Control) -> str:
    """Say what the comparison of a set-up with itself gave."""
    mean = control.mean
    if mean is None:
        return "A/A: no verdict, as none of its runs counts: they were saturated, or not valid."
    if mean.outcome == "undecided":
        return f"A/A: no verdict, {mean.reason}."
    if mean.outcome == "different":
        return (
            f"A/A: the same set-up differs from itself by {format_estimate(mean.client)}. "
            "Differences no larger than that are not told."
        )
    text = f"A/A: between a set-up and itself, no difference above {_bound(mean)}"
    if mean.resolvable_ns is not None:
        text += f"; {format_duration(mean.resolvable_ns, digits=2)} would be found in 4 of 5 benchmarks"
    return f"{text}."


def name_choice(question: Question) -> str:
    """Return what is compared: `nginx → uWSGI, TCP or Unix sockets`."""
    if question.factor in ("workers", "planted_us"):
        return (
            f"{name_level(question.factor, question.first)} or {name_level(question.factor, question.second)}"
        )
    return f"{FACTORS[question.factor]}, {_SHORT[question.first]} or {_SHORT[question.second]}"


def name_level(factor: str, level: str) -> str:
    """Return a level as a sentence names it: `Unix sockets to MySQL`."""
    if factor == "planted_us":
        return "nothing planted" if level == "0" else f"{level} µs planted in MySQL"
    return _LEVELS[factor, level]


def name_cell(cell: Cell, *, database: bool = True) -> str:
    """Return a cell's set-up in one short line: `tcp → 4x1 → unix`."""
    name = f"{cell.hop1} → {cell.workers}"
    if not database:
        return name
    name += f" → {cell.hop2}"
    if cell.connection == "per-request":
        name += ", per request"
    return name if cell.planted_us == "0" else f"{name}, +{cell.planted_us} µs"


def format_estimate(difference: Estimate, *, sign: bool = True, flip: bool = False) -> str:
    """Return a difference with its interval in one unit: `-38 µs [-45, -31]`; `flip` turns its sign."""
    value, low, high = difference.value_ns, difference.low_ns, difference.high_ns
    if flip:
        value, low, high = -value, None if high is None else -high, None if low is None else -low
    if low is None or high is None:
        return format_duration(value, sign=sign)
    largest = max(abs(value), abs(low), abs(high))
    unit_ns, unit = next((entry for entry in _UNITS if largest >= entry[0]), _UNITS[-1])
    # Digits down to a third of the interval's width; below a tenth of a microsecond nothing is known.
    width = max(high - low, largest / 100, 1.0)
    decimals = min(max(0, -math.floor(math.log10(width / unit_ns / 3))), 1 if unit == "µs" else 2)

    def write(ns: float) -> str:
        rounded = round(ns / unit_ns, decimals)
        return f"{rounded:{'+' if sign and rounded else ''},.{decimals}f}" if rounded else "0"

    return f"{write(value)} {unit} [{write(low)}, {write(high)}]"


def _answer(question: Question, comparison: Comparison) -> str:
    if comparison.outcome == "different":
        base = format_duration(comparison.base_ns, digits=3)
        of = "of" if comparison.client.value_ns < 0 else "on top of"
        second = name_level(question.factor, question.second)
        return f"{second} {_effect(comparison)} {of} {base}{_place(question, comparison)}"
    if comparison.outcome == "none":
        base = format_duration(comparison.base_ns, digits=3)
        return f"{name_choice(question)}: no difference above {_bound(comparison)} of {base}"
    return (
        f"{name_choice(question)}: no verdict, {comparison.reason} "
        f"(so far {format_estimate(comparison.client)})"
    )


def _effect(comparison: Comparison) -> str:
    """Say what the second level does: they save, or they cost."""
    saves = comparison.client.value_ns < 0
    return f"{'save' if saves else 'cost'} {format_estimate(comparison.client, sign=False, flip=saves)}"


def _place(question: Question, comparison: Comparison) -> str:
    """Say in which segments the difference is."""
    total_ns = comparison.client.value_ns
    along = [part for part in comparison.carriers if part.difference.value_ns * total_ns > 0]
    against = [part for part in comparison.carriers if part.difference.value_ns * total_ns < 0]
    if not along:
        return ", in no single tier"
    share = along[0].difference.value_ns / total_ns
    if share >= _ALL and not against:
        text = f": all of it in {along[0].name}"
    elif share >= _MOST and not against:
        text = f": most of it in {along[0].name}"
    else:
        text = f": {' and '.join(_name_part(part) for part in along[:3])}"
    if against:
        text += f", against {' and '.join(_name_part(part) for part in against[:2])}"
    return text + _blame(question, comparison)


def _blame(question: Question, comparison: Comparison) -> str:
    """Name the GIL where threads wait for it: uWSGI before the app, and the app's thread beyond its calls."""
    if question.factor != "workers" or comparison.client.value_ns <= 0:
        return ""
    waits = [part for part in comparison.parts if part.name == "uwsgi.gil"]
    waits += [part for part in comparison.lens if part.name == "other"]
    waited_ns = sum(part.difference.value_ns for part in waits if part.difference.excludes_zero)
    if waited_ns < _GIL_SHARE * comparison.client.value_ns:
        return ""
    return f"; {format_duration(waited_ns, digits=2)} of it waiting for the GIL"


def _name_part(part: Part) -> str:
    return f"{format_duration(part.difference.value_ns, digits=2, sign=True)} in {part.name}"


def _describe_pair(question: Question, pair: Pair) -> str:
    levels: list[tuple[str, str]] = [
        ("hop1", pair.first.hop1),
        ("hop2", pair.first.hop2),
        ("workers", pair.first.workers),
    ]
    if pair.first.planted_us != "0":
        levels.append(("planted_us", pair.first.planted_us))
    if not question.workload.database:
        del levels[1]
    context = [name_level(factor, level) for factor, level in levels if factor != question.factor]
    return f"{format_estimate(pair.client) if pair.client else '-'} with {', '.join(context)}"


def _refusal(question: Question) -> str:
    reasons = dict.fromkeys(pair.left_out for pair in question.pairs)
    return "; ".join(reasons) or "nothing was run"


def _bound(comparison: Comparison) -> str:
    return format_duration(comparison.client.bound_ns, digits=2)
