"""The settings: arguments over environment, and errors that say what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reqpath.errors import ConfigurationError
from reqpath.settings import MEGABYTE, Settings, default_spool


def test_nothing_set_gives_the_defaults() -> None:
    assert Settings.from_environment({}) == Settings()
    assert Settings().enabled
    assert Settings().sql == "placeholders"
    assert not Settings().trusted_proxy


def test_the_environment_is_read() -> None:
    settings = Settings.from_environment(
        {
            "REQPATH_ENABLED": "no",
            "REQPATH_SERVICE_NAME": "shop",
            "REQPATH_SPOOL": "/var/spool/reqpath",
            "REQPATH_SPOOL_MAX_BYTES": "2097152",
            "REQPATH_SQL": "none",
            "REQPATH_QUERY_STRING": "1",
            "REQPATH_TRUSTED_PROXY": "ON",
            "REQPATH_MAX_OPERATIONS": "0",
            "REQPATH_UNKNOWN": "ignored: it may be a later version's",
            "PATH": "/bin",
        }
    )
    assert settings == Settings(
        enabled=False,
        service_name="shop",
        spool="/var/spool/reqpath",
        spool_max_bytes=2 * MEGABYTE,
        sql="none",
        query_string=True,
        trusted_proxy=True,
        max_operations=0,
    )


@pytest.mark.parametrize("text", ["1", "true", "True", "YES", "on", " true "])
def test_what_is_true(text: str) -> None:
    assert Settings.from_environment({"REQPATH_TRUSTED_PROXY": text}).trusted_proxy


@pytest.mark.parametrize("text", ["0", "false", "No", "OFF", " 0\n"])
def test_what_is_false(text: str) -> None:
    assert not Settings.from_environment({"REQPATH_ENABLED": text}).enabled


def test_seconds_may_be_whole_or_not() -> None:
    assert Settings.from_environment({"REQPATH_KEEP_SLOWER_S": "0.25"}, join_wait_s=3) == Settings(
        keep_slower_s=0.25, join_wait_s=3
    )


def test_an_empty_variable_is_no_setting() -> None:
    assert Settings.from_environment({"REQPATH_ENABLED": "", "REQPATH_SPOOL_MAX_BYTES": ""}) == Settings()


def test_an_argument_wins_over_the_environment() -> None:
    assert Settings.from_environment({"REQPATH_SQL": "verbatim"}, sql="none").sql == "none"


def test_opentelemetrys_name_of_the_service_is_taken_where_ours_is_not_set() -> None:
    assert Settings.from_environment({"OTEL_SERVICE_NAME": "otel"}).service_name == "otel"
    both = {"OTEL_SERVICE_NAME": "otel", "REQPATH_SERVICE_NAME": "ours"}
    assert Settings.from_environment(both).service_name == "ours"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"REQPATH_ENABLED": "perhaps"}, "REQPATH_ENABLED is 'perhaps'; it takes true or false"),
        ({"REQPATH_SPOOL_MAX_BYTES": "1GB"}, "REQPATH_SPOOL_MAX_BYTES is '1GB'; it takes a whole number"),
        ({"REQPATH_SPOOL_MAX_BYTES": "5"}, "spool_max_bytes is 5; it takes 1048576 or more"),
        ({"REQPATH_SQL": "all"}, "sql is 'all'; it takes one of placeholders, verbatim, none"),
        ({"REQPATH_MAX_OPERATIONS": "-1"}, "max_operations is -1; it takes 0 or more"),
        ({"REQPATH_KEEP": "some"}, "keep is 'some'; it takes one of policy, all"),
        ({"REQPATH_KEEP_PER_SECOND": "-1"}, "keep_per_second is -1; it takes 0 or more"),
        ({"REQPATH_KEEP_SLOWER_S": "1s"}, "REQPATH_KEEP_SLOWER_S is '1s'; it takes a number"),
        ({"REQPATH_KEEP_SLOWER_S": "nan"}, "keep_slower_s is nan; it takes 0 or more"),
        ({"REQPATH_JOIN_WAIT_S": "inf"}, "join_wait_s is inf; it takes 0 or more"),
    ],
)
def test_a_wrong_variable_says_what_it_takes(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment(environ)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spol": "/x"}, "no setting is named spol; there are enabled, "),
        ({"trusted_proxy": "false"}, "trusted_proxy is 'false'; it takes a truth value, True or False"),
        ({"spool_max_bytes": "1GB"}, "spool_max_bytes is '1GB'; it takes a whole number"),
        ({"spool_max_bytes": 1e9}, "spool_max_bytes is 1000000000.0; it takes a whole number"),
        ({"max_operations": True}, "max_operations is True; it takes a whole number"),
        ({"spool": Path("/x")}, "spool is PosixPath('/x'); it takes a text"),
        ({"service_name": None}, "service_name is None; it takes a text"),
        ({"keep_slower_s": "1"}, "keep_slower_s is '1'; it takes a number"),
    ],
)
def test_a_wrong_argument_says_what_it_takes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environment({}, **arguments)
    assert str(caught.value).startswith(message)


def test_the_spool_is_this_users_in_the_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQPATH_SPOOL", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    assert default_spool() == f"/tmp/reqpath-{os.geteuid()}"
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert default_spool() == f"/var/tmp/reqpath-{os.geteuid()}"
    monkeypatch.setenv("REQPATH_SPOOL", "/srv/spool")
    assert default_spool() == Settings().spool_directory == "/srv/spool"


def test_a_relative_spool_stays_where_it_was_when_the_app_goes_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(spool="spool").spool_directory == str(tmp_path / "spool")


@given(
    environ=st.dictionaries(
        st.sampled_from([f"REQPATH_{name.upper()}" for name in Settings.__dataclass_fields__]),
        st.text(max_size=20) | st.integers().map(str),
    )
)
def test_any_environment_gives_settings_or_says_what_is_wrong(environ: dict[str, str]) -> None:
    try:
        settings = Settings.from_environment(environ)
    except ConfigurationError as error:
        message = str(error)
    else:
        message = "it takes nothing more"
        assert type(settings.spool_max_bytes) is int
    assert "it takes" in message
