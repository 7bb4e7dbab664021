"""`reqpath bench`: TCP or Unix sockets, processes or threads, and in which tier it matters."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from reqpath.commands.shared import ANY_PATH, check_extra, open_console, show_start
from reqpath.errors import ConfigurationError, ReqPathError, ServerError

if TYPE_CHECKING:
    from rich.console import Console

    from reqpath.bench.plan import Plan
    from reqpath.bench.result import Journal, Result
    from reqpath.bench.run import Step

#: What the extra `bench` brings.
_NEEDED = ("flask", "pymysql", "numpy", "rich", "hdrh", "scipy")
_INTERRUPTED = 130
_SHARE = 0.6
#: The generator takes some 100 µs of CPU per request where wrk, which finds the capacity, takes 10. On few
#: processors that is capacity which the servers lack.
_SHARE_OF_FEW = 0.35
_ENOUGH_PROCESSORS = 4
#: Of a dead server's log.
_LOG_LINES = 10
#: Options that make the plan, as a scenario holds them.
_SCENARIO = (
    "hop1", "hop2", "workers", "workload", "connection", "blocks", "seconds", "warm_up", "load", "rate",
    "seed", "app", "path", "plant",
)  # fmt: skip
#: What a benchmark that goes on has already. The scenario comes first: its options are refused by its name.
_PLANNING = ("scenario", "quick", *_SCENARIO)


def _split(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(word.strip() for word in value.split(","))


def _read_scenario(context: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Make a file's values the defaults of the options, as the text that stands behind each in a shell."""
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise click.BadParameter(f"{path} is not TOML: {error}") from error
    known = {name.replace("_", "-"): name for name in _SCENARIO}
    for key in values:
        if key not in known:
            raise click.BadParameter(f"{path} has {key!r}; a scenario can have {', '.join(known)}")
    context.default_map = {
        known[key]: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for key, value in values.items()
    }
    return path


@click.group(
    name="bench",
    invoke_without_command=True,
    epilog="""\b
Examples:
  reqpath bench --quick
  reqpath bench --plan
  reqpath bench --workload point-query,cpu --workers 4x1,1x4,2x2 --blocks 12
  reqpath bench --app wsgi:app --path /products/7
  reqpath bench --scenario benchmarks/scenarios/connections.toml
  reqpath bench --resume bench.jsonl
  reqpath bench --like benchmarks/results/quick.json --output mine.json
""",
)
@click.option("--quick", is_flag=True, help="The sockets alone, for a point query: minutes.")
@click.option(
    "--scenario",
    metavar="FILE",
    type=ANY_PATH,
    is_eager=True,
    callback=_read_scenario,
    help="A TOML file with options that make the plan; those given here win.",
)
@click.option("--plan", "plan_only", is_flag=True, help="Show what would be run, and how long it takes.")
@click.option("--hop1", metavar="tcp,unix", callback=_split, help="nginx to uWSGI.")
@click.option("--hop2", metavar="tcp,unix", callback=_split, help="App to database.")
@click.option(
    "--workers", metavar="4x1,1x4,2x2", callback=_split, help="Processes by threads. Default: 4x1,1x4."
)
@click.option(
    "--workload",
    metavar="NAME,…",
    callback=_split,
    help="trivial, cpu, point-query, ten-queries, sleep, mixed. Default: point-query,cpu.",
)
@click.option(
    "--connection",
    metavar="pooled,per-request",
    callback=_split,
    help="How the app connects to its database. Default: pooled.",
)
@click.option(
    "--plant",
    metavar="0,MICROSECONDS,…",
    callback=_split,
    help="Make each query take so much longer: does the benchmark find it?",
)
@click.option("--blocks", metavar="N", type=click.IntRange(1), help="Each runs every cell once. Default: 10.")
@click.option("--seconds", metavar="N", type=click.FloatRange(0.1), help="Of each run. Default: 10.")
@click.option("--warm-up", metavar="N", type=click.FloatRange(0), help="Seconds before it. Default: 2.")
@click.option(
    "--load",
    metavar="SHARE",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Of the slowest cell's capacity. Default: 0.6; 0.35 on fewer than 4 processors.",
)
@click.option(
    "--rate", metavar="N", type=click.FloatRange(0, min_open=True), help="Requests/s, in its place."
)
@click.option("--seed", metavar="N", type=int, help="Of the schedule and the arrivals. Default: 1.")
@click.option("--app", metavar="MODULE:APP", help="Your own app, in place of the workloads.")
@click.option("--path", metavar="/PATH", help="What is requested of it, by GET.")
@click.option(
    "--output",
    metavar="FILE",
    type=ANY_PATH,
    help="The result. Default: named by the time.",
)
@click.option("--resume", metavar="FILE", type=ANY_PATH, help="Go on with what was interrupted.")
@click.option("--like", metavar="FILE", type=ANY_PATH, help="Repeat a result's plan, at its rates.")
@click.option("--html", metavar="FILE", type=ANY_PATH, help="Write a page too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Compare sockets and workers on private servers: what differs, and in which tier.

    nginx and uWSGI are started anew for each run, in random order; the figures come with what this machine
    could resolve. Ctrl-C keeps what was measured.
    """
    if context.invoked_subcommand is not None:
        return
    check_extra("bench", _NEEDED)
    from rich.console import Console

    from reqpath.bench.result import read_result

    talk = Console(stderr=True)
    resumed = None
    if options["resume"] is not None:
        _refuse_planning(context, ("output", "like"), "can't be changed in a benchmark that goes on")
        resumed = read_result(options["resume"])
        plan = resumed.plan
    elif options["like"] is not None:
        _refuse_planning(context, (), f"is {options['like']}'s")
        plan = _repeat_plan(options["like"])
    else:
        plan = _make_plan(options)
    if options["plan_only"]:
        _show_plan(plan, as_json=options["as_json"])
        return
    files = _choose_files(options["output"], options["resume"], options["html"])
    _run(plan, files, resumed, talk, like=options["like"], as_json=options["as_json"])


@command.command(
    name="show",
    epilog="""\b
Examples:
  reqpath bench show bench.json
  reqpath bench show bench.jsonl --html bench.html
""",
)
@click.argument("result", type=ANY_PATH)
@click.option("--html", metavar="FILE", type=ANY_PATH, help="Write a page in place of the text.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(*, result: str, html: str | None, as_json: bool) -> None:
    """Show what a result says.

    RESULT is a result, or the .jsonl of a benchmark that has not ended.
    """
    check_extra("bench", _NEEDED)
    from reqpath.bench.result import read_result

    read = read_result(result)
    if html is not None:
        _write_page(html, read)
    if html is None or as_json:
        _print_verdict(read, as_json=as_json)


@command.command(
    name="compare",
    epilog="""\b
Examples:
  reqpath bench compare before.json after.json
""",
)
@click.argument("first", type=ANY_PATH)
@click.argument("second", type=ANY_PATH)
@click.option("--anyway", is_flag=True, help="Also where hosts, versions or loads differ.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(*, first: str, second: str, anyway: bool, as_json: bool) -> None:
    """Compare two results, cell by cell.

    Of different hosts or versions only with --anyway: the difference can come from those.
    """
    check_extra("bench", _NEEDED)
    from reqpath.bench.result import read_result
    from reqpath.bench.verdict import compare_results

    comparison = compare_results(read_result(first), read_result(second), anyway=anyway)
    from reqpath.render.bench import comparison_to_json, render_comparison

    if as_json:
        _print_json(comparison_to_json(comparison))
        return
    render_comparison(comparison, open_console())


def _make_plan(options: dict[str, Any]) -> Plan:
    """Return the plan of the options. Raises: ConfigurationError."""
    from reqpath.bench.plan import Load, Workload, make_plan, make_quick_plan

    if options["quick"] and options["scenario"] is not None:
        raise click.UsageError("--quick and --scenario exclude each other")
    chosen: dict[str, Any] = {
        name: options[option]
        for name, option in (
            ("workloads", "workload"),
            ("hop1", "hop1"),
            ("hop2", "hop2"),
            ("workers", "workers"),
            ("connections", "connection"),
            ("planted_us", "plant"),
            ("blocks", "blocks"),
            ("seconds_s", "seconds"),
            ("warm_up_s", "warm_up"),
            ("seed", "seed"),
        )
        if options[option] is not None
    }
    app, path = options["app"], options["path"]
    if (app is None) != (path is None):
        raise click.UsageError("--app and --path go together: what is requested of your app")
    if app is not None:
        # Else the request line would be none, and the answer to it blamed on the app.
        if not re.fullmatch(r"/[!-~]*", path):
            raise click.UsageError(
                f"--path can't be {path!r}; it begins with /, percent-encoded where needed"
            )
        for name in ("workload", "hop2", "connection", "plant"):
            if options[name] is not None:
                raise click.UsageError(f"--{name} is for reqpath's workloads, not for an app of your own")
        chosen["app"] = app
        chosen["workloads"] = (Workload("app", f"GET {path}", path, database=False),)
    load: dict[str, Any] = {"share": options["load"] or _choose_share()}
    if options["rate"] is not None:
        if options["load"] is not None:
            raise click.UsageError("--rate and --load exclude each other")
        default = ("point-query",) if options["quick"] else ()
        names = [getattr(one, "name", one) for one in chosen.get("workloads", default)]
        if len(names) != 1:
            raise click.UsageError("--rate is for a single workload; name it with --workload")
        load["rates_per_s"] = ((names[0], options["rate"]),)
    chosen["load"] = Load(**load)
    return (make_quick_plan if options["quick"] else make_plan)(**chosen)


def _choose_share() -> float:
    """Return the share of the capacity to send where none is given."""
    from reqpath.bench.observe import count_shared_processors

    return _SHARE if count_shared_processors() >= _ENOUGH_PROCESSORS else _SHARE_OF_FEW


def _refuse_planning(context: click.Context, further: tuple[str, ...], why: str) -> None:
    given = [
        name
        for name in (*_PLANNING, *further)
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(f"--{given[0].replace('_', '-')} {why}")


def _repeat_plan(path: str) -> Plan:
    """Return the plan of a result, which sends what that one sent, so that the two can be compared."""
    from dataclasses import replace

    from reqpath.bench.result import read_result

    result = read_result(path)
    if not result.rates:
        raise ConfigurationError(f"{path} ended before it was known what is sent; repeat its command instead")
    return replace(result.plan, load=replace(result.plan.load, rates_per_s=tuple(result.rates.items())))


class _Files(NamedTuple):
    output: str
    #: What there is while the benchmark runs, and after an interrupted one.
    journal: str
    html: str | None


def _choose_files(output: str | None, resume: str | None, html: str | None) -> _Files:
    """Return where things are written. Raises: ConfigurationError when there is something already."""
    if resume is not None:
        output, journal = f"{os.path.splitext(resume)[0]}.json", resume
        if output == journal:
            raise ConfigurationError(f"{resume} is complete: reqpath bench show {shlex.quote(resume)}")
    else:
        output = output or time.strftime("reqpath-bench-%Y%m%d-%H%M%S.json")
        journal = f"{output.removesuffix('.json')}.jsonl"
        if os.path.lexists(journal):
            raise ConfigurationError(
                f"{journal} is there already; go on with it by --resume, or name another --output"
            )
    if os.path.lexists(output):
        raise ConfigurationError(f"{output} is there already; name another --output")
    for path in filter(None, (output, html)):
        if not os.path.isdir(os.path.dirname(path) or "."):
            raise ConfigurationError(f"there is no directory for {path}; make it, or name another place")
    return _Files(output, journal, html)


def _run(
    plan: Plan, files: _Files, resumed: Result | None, talk: Console, *, like: str | None, as_json: bool
) -> None:
    """Measure, and show what there is at the end, whatever ended it."""
    from reqpath.bench.result import Journal
    from reqpath.servers.process import exit_on_signals

    # Until the result is there: nobody else may go on with the journal meanwhile.
    with contextlib.ExitStack() as held:
        journal = None
        if resumed is not None:
            journal, resumed = Journal.resume(files.journal)
            held.enter_context(journal)
        interrupted = False
        failure: ReqPathError | None = None
        try:
            if resumed is None or not resumed.complete:
                with exit_on_signals():
                    _measure(plan, files.journal, talk, journal=journal, resumed=resumed, held=held)
        except KeyboardInterrupt:
            interrupted = True
        except ServerError as error:
            failure = _shorten(error)
        except ReqPathError as error:
            failure = error
        except OSError as error:
            # A full disk, where the servers have their files.
            failure = ConfigurationError(f"{error.filename or 'a file'}: {error.strerror or error}")
        if os.path.exists(files.journal):
            unshown = _show_end(files, talk, like=like, as_json=as_json)
            failure = failure or unshown
    if failure is not None:
        raise failure
    if interrupted:
        sys.exit(_INTERRUPTED)


def _show_end(files: _Files, talk: Console, *, like: str | None, as_json: bool) -> ReqPathError | None:
    """Seal the journal if it is complete, show what it has, and return what went wrong with that."""
    from reqpath.bench.result import read_result, write_result

    result = read_result(files.journal)
    failure = None
    try:
        if result.complete:
            write_result(files.output, result)
            os.unlink(files.journal)
        elif not result.runs and not result.capacities:
            os.unlink(files.journal)
        if result.runs:
            _print_verdict(result, as_json=as_json)
            if files.html is not None:
                _write_page(files.html, result)
    except ReqPathError as error:
        failure = error
    _tell_end(result, files, talk, like)
    return failure


def _shorten(error: ServerError) -> ServerError:
    """Leave of the log what goes on a screen together with what was measured."""
    what, _, _ = str(error).partition("\n")
    return ServerError(what, "\n".join(error.log_tail.splitlines()[-_LOG_LINES:]))


def _tell_end(result: Result, files: _Files, talk: Console, like: str | None) -> None:
    """Say where the result is, and what to do next."""
    runs, of = result.made, len(result.plan.schedule())
    if not os.path.exists(files.journal) and result.complete:
        lines = [f"The result: {files.output}", f"Again: reqpath bench show {shlex.quote(files.output)}"]
        if like is not None:
            lines.append(f"Compare: {shlex.join(['reqpath', 'bench', 'compare', like, files.output])}")
    elif os.path.exists(files.journal):
        lines = [
            f"Ended after {runs} of {of} runs; what was measured is in {files.journal}",
            f"Go on: reqpath bench --resume {shlex.quote(files.journal)}",
        ]
    else:
        lines = ["Ended before anything was measured"]
    for line in lines:
        talk.print(line, highlight=False, markup=False, soft_wrap=True)


def _measure(
    plan: Plan,
    journal_path: str,
    talk: Console,
    *,
    journal: Journal | None,
    resumed: Result | None,
    held: contextlib.ExitStack,
) -> None:
    """Make the runs that are not there yet; a new journal stays open until `held` ends."""
    from reqpath.bench.result import Journal
    from reqpath.bench.run import open_bench

    with contextlib.ExitStack() as stack:
        with show_start(talk) as announce:
            bench = stack.enter_context(
                open_bench(plan, command=shlex.join(["reqpath", *sys.argv[1:]]), progress=announce)
            )
        if resumed is not None:
            _check_same_host(resumed, bench.head.host)
        if journal is None:
            journal = held.enter_context(Journal.create(journal_path, bench.head))
        with _show_progress(talk) as tell:
            bench.measure(journal, tell, resumed)


def _check_same_host(resumed: Result, host: Any) -> None:
    """Raises: ConfigurationError when the rest would run elsewhere, or on other versions."""
    import msgspec

    from reqpath.bench.verdict import list_differences

    differences = list_differences(resumed, msgspec.structs.replace(resumed, host=host))
    if differences:
        raise ConfigurationError(
            "what was measured so far was measured elsewhere, so the rest can't be compared with it:\n"
            + "\n".join(f"  {difference}" for difference in differences)
        )


@contextlib.contextmanager
def _show_progress(talk: Console) -> Iterator[Callable[[Step], None]]:
    """Yield what is told of each step, some times while it lasts."""
    if not talk.is_terminal:
        told = ""

        def tell_once(step: Step) -> None:
            nonlocal told
            if step.what != told:
                told = step.what
                talk.print(f"{step.what}, {_say_left(step.left_s)}", highlight=False, soft_wrap=True)

        yield tell_once
        return
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    bar = Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(12),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[what]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=talk,
        transient=True,
        expand=True,
    )
    with bar:
        task = bar.add_task("", total=None, left="", what="")
        yield lambda step: bar.update(
            task, completed=step.done, total=step.steps, left=_say_left(step.left_s), what=step.what
        )


def _say_left(left_s: float) -> str:
    minutes = round(left_s / 60)
    if left_s < 60:
        return f"{left_s:.0f} s left"
    return f"{minutes} min left" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min left"


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    from reqpath.render.units import format_count, format_span

    runs = plan.schedule()
    estimate_s = plan.estimate_s()
    if as_json:
        _print_json({"plan": plan, "schedule": runs, "estimate_s": estimate_s})
        return
    numbers = {cell.key: number for number, cell in enumerate(plan.cells, 1)}
    lines = [
        f"{format_count(len(plan.cells), 'cell')} and one of them again (A/A), "
        f"in {format_count(plan.blocks, 'block')}: {len(runs)} runs of "
        f"{plan.warm_up_s:g} + {plan.seconds_s:g} s,",
        f"about {format_span(round(estimate_s * 1e9))} in all"
        + ("." if plan.load.rates_per_s else ", with finding each cell's capacity first."),
        "",
        *(
            f"{number:>4}  {key}" + ("  and again, *" if key == plan.twin else "")
            for key, number in numbers.items()
        ),
        "",
    ]
    for block in range(plan.blocks):
        order = " ".join(
            f"{numbers[run.cell.key]}{'*' if run.twin else ''}" for run in runs if run.block == block
        )
        lines.append(f"block {block + 1:>2}: {order}")
    click.echo("\n".join(lines))


def _print_verdict(result: Result, *, as_json: bool) -> None:
    from reqpath.bench.verdict import judge

    verdict = judge(result)
    from reqpath.render.bench import render_verdict, verdict_to_json

    if as_json:
        _print_json(verdict_to_json(verdict))
        return
    render_verdict(verdict, open_console())


def _write_page(path: str, result: Result) -> None:
    from reqpath.bench.detail import describe_result
    from reqpath.bench.verdict import judge
    from reqpath.render.page_bench import render_bench_page

    page = render_bench_page(judge(result), describe_result(result))
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from error


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
