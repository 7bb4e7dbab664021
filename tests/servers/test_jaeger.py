"""A Jaeger is found in the promised order, started on private ports, and gone afterwards."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reqpath.errors import ConfigurationError, ServerError
from reqpath.servers import jaeger as module
from reqpath.servers.jaeger import (
    Jaeger,
    JaegerSource,
    find_jaeger,
    find_trace_page,
    jaeger_program_path,
    start_jaeger,
)
from reqpath.servers.process import find_free_port

MakeProgram = Callable[..., str]


@pytest.fixture
def make_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeProgram:
    """Return a function that puts a program on a path on which there is nothing else."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REQPATH_JAEGER", raising=False)
    # As if Go were not installed where its installer puts it.
    monkeypatch.setattr(module, "_GO_DIRECTORY", str(tmp_path))

    def make(name: str, script: str = "exit 0") -> str:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        path.chmod(0o755)
        return str(path)

    return make


def test_the_users_own_comes_first_then_an_engine_then_a_build(make_program: MakeProgram) -> None:
    assert find_jaeger(private=True) is None
    go = make_program("go")
    assert find_jaeger(private=True) == JaegerSource("build", go)
    built = make_program(jaeger_program_path())
    assert find_jaeger(private=True) == JaegerSource("program", built)
    podman = make_program("podman")
    assert find_jaeger(private=True) == JaegerSource("container", podman)
    docker = make_program("docker")
    assert find_jaeger(private=True) == JaegerSource("container", docker)
    own = make_program("jaeger")
    assert find_jaeger(private=True) == JaegerSource("program", own)


def test_an_engine_without_its_daemon_is_passed_over(make_program: MakeProgram) -> None:
    make_program("docker", 'echo "Cannot connect to the Docker daemon" >&2; exit 1')
    assert find_jaeger(private=True) is None


def test_what_the_variable_names_is_all_that_is_looked_at(
    make_program: MakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_program("jaeger")
    monkeypatch.setenv("REQPATH_JAEGER", "https://jaeger.example/ui/")
    assert find_jaeger(private=True) == JaegerSource("running", "https://jaeger.example/ui/")
    monkeypatch.setenv("REQPATH_JAEGER", "/opt/jaeger")
    assert find_jaeger() == JaegerSource("program", "/opt/jaeger")


def test_without_any_the_error_says_what_to_have(make_program: MakeProgram, tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="install docker or podman, or Go, or name"),
        start_jaeger(str(tmp_path), private=True),
    ):
        pass


def test_an_engine_that_can_not_have_the_image_is_named_with_its_reason(
    make_program: MakeProgram, tmp_path: Path
) -> None:
    make_program("docker", 'case $1 in info) ;; *) echo "no route to the registry" >&2; exit 1;; esac')
    with (
        pytest.raises(ConfigurationError, match=r"docker pull .* status 1\n.*no route to the registry"),
        start_jaeger(str(tmp_path), private=True),
    ):
        pass


def test_a_program_that_ends_is_an_error_with_its_log(make_program: MakeProgram, tmp_path: Path) -> None:
    make_program("jaeger", "echo what is this configuration; exit 3")
    with (
        pytest.raises(ServerError, match=r"status 3\nwhat is this configuration"),
        start_jaeger(str(tmp_path), private=True),
    ):
        pass


def test_a_failed_build_is_an_error_with_gos_words(make_program: MakeProgram, tmp_path: Path) -> None:
    make_program("go", "echo no such host >&2; exit 1")
    with (
        pytest.raises(ConfigurationError, match="no such host"),
        start_jaeger(str(tmp_path), private=True),
    ):
        pass


def test_an_address_where_no_jaeger_answers_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQPATH_JAEGER", f"http://127.0.0.1:{find_free_port()}")
    with pytest.raises(ConfigurationError, match="where no Jaeger answers"), start_jaeger(str(tmp_path)):
        pass


def test_the_documentation_names_the_same_image() -> None:
    text = (Path(__file__).parents[2] / "docs" / "jaeger.md").read_text(encoding="utf-8")
    assert f" {module.IMAGE.removeprefix('docker.io/')}`" in text


@pytest.fixture
def jaeger() -> Iterator[Jaeger]:
    if find_jaeger(private=True) is None:
        pytest.skip("no Jaeger: neither jaeger, a container engine nor Go is here")
    with (
        tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory,
        start_jaeger(directory, private=True) as started,
    ):
        yield started


@pytest.mark.live
# A first build takes minutes.
@pytest.mark.timeout(3_600)
def test_one_that_runs_is_used_and_left_running(
    jaeger: Jaeger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jaeger.process is not None
    monkeypatch.setenv("REQPATH_JAEGER", f"{jaeger.url}/")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", jaeger.otlp_http)
    with start_jaeger(str(tmp_path)) as found:
        assert dataclasses.replace(jaeger, process=None, otlp_grpc=found.otlp_grpc) == found
        assert found.trace_url("ab" * 16) == f"{jaeger.url}/trace/{'ab' * 16}"
    assert jaeger.process.is_alive()
    assert find_trace_page(jaeger.otlp_http) == jaeger.url
    monkeypatch.setenv("REQPATH_JAEGER", "http://127.0.0.1:1")
    assert find_trace_page(jaeger.otlp_http) is None
    monkeypatch.setenv("REQPATH_JAEGER", jaeger.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", jaeger.url)
    with pytest.raises(ConfigurationError, match="takes no traces at"), start_jaeger(str(tmp_path)):
        pass
