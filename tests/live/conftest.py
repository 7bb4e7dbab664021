"""Real servers for the tests: each database server once a session, deployments on it one after another."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from reqpath.errors import ConfigurationError, ServerError
from reqpath.servers.database import Database, Kind, find_database_server, start_database
from reqpath.servers.deployment import Deployment, fill_database, find_program, shop, start_deployment
from reqpath.servers.jaeger import Jaeger, find_jaeger, start_jaeger
from reqpath.servers.topology import App, Topology

#: nginx calls it an error when it refuses a body that is too large.
_SERIOUS = re.compile(r"\[(error|crit|alert|emerg)\](?!.*too large body)")

Start = Callable[[Topology, Database], AbstractContextManager[Deployment]]


@pytest.fixture(scope="session")
def servers() -> None:
    """Skip where nginx or uWSGI is not installed."""
    for name in ("nginx", "uwsgi"):
        try:
            find_program(name, "the live tests need it")
        except ServerError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def mariadb(servers: None) -> Iterator[Database]:
    """A MariaDB with the shop's goods in it."""
    yield from _start_filled("mariadb")


@pytest.fixture(scope="session")
def mysql(servers: None) -> Iterator[Database]:
    """A MySQL with the shop's goods in it."""
    yield from _start_filled("mysql")


@pytest.fixture(scope="session")
def jaeger() -> Iterator[Jaeger]:
    """A Jaeger with nothing in it."""
    if find_jaeger(private=True) is None:
        pytest.skip("no Jaeger: there is no jaeger program, no container engine that answers, and no Go")
    with tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory:
        started = start_jaeger(directory, private=True)
        try:
            found = started.__enter__()
        except ConfigurationError as error:
            pytest.skip(f"no Jaeger: {error}")
        try:
            yield found
        finally:
            started.__exit__(None, None, None)


@pytest.fixture(scope="session")
def shop_app() -> App:
    """The example app, its database filled already."""
    return dataclasses.replace(shop(), setup=())


@pytest.fixture(scope="session")
def planted_app() -> App:
    """The app that spends a known time in one tier."""
    return App(
        module="planted_app:app", directory=str(Path(__file__).parent), database_prefix="PLANTED_DATABASE"
    )


@pytest.fixture
def start() -> Start:
    """Start a deployment that must end with a clean log of nginx's."""

    @contextmanager
    def start_clean(topology: Topology, database: Database) -> Iterator[Deployment]:
        with start_deployment(topology, database=database) as deployment:
            yield deployment
            deployment.check_alive()
            log = Path(deployment.nginx.log_path).read_text(encoding="utf-8")
            assert [line for line in log.splitlines() if _SERIOUS.search(line)] == []

    return start_clean


def _start_filled(kind: Kind) -> Iterator[Database]:
    if find_database_server(kind) is None:
        pytest.skip(f"no {kind} server on this machine; name one in $REQPATH_MYSQLD")
    with (
        tempfile.TemporaryDirectory(prefix="reqpath-test-", dir="/tmp") as directory,
        start_database(directory, kind=kind) as database,
    ):
        fill_database(Topology(app=shop()), database, directory)
        yield database
