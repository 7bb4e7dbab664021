"""Make a MySQL server for the tests, beside whatever the system has: `python tests/mysql_tree.py`.

Debian stable has MariaDB only, so MySQL's packages come from Debian's unstable suite, by debootstrap. Of that
system only the server is kept, with its libraries and the loader of its glibc, so that it runs here without a
chroot: about 150 MB in the user's cache, where `reqpath.servers.database.find_database_server` looks for it.
Made once; printed is the path of its `mysqld`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from reqpath.errors import ReqPathError
from reqpath.servers.database import mysql_tree_directory

_PACKAGES = ("mysql-server-core", "mysql-client-core")
#: Plugins that the tests may load; each brings libraries.
_PLUGINS = ("component_query_attributes.so", "component_telemetry.so")
_WRAPPER = """\
#!/bin/sh
tree=$(dirname "$(readlink -f "$0")")
exec "$tree/lib/{loader}" --library-path "$tree/lib" "$tree/bin/mysqld" "$@" --basedir="$tree" \\
    --lc-messages-dir="$tree/share" --character-sets-dir="$tree/share/charsets" --plugin-dir="$tree/plugin"
"""


def main() -> int:
    """Make the tree when it is not there, and print its server's path."""
    tree = Path(mysql_tree_directory())
    try:
        if not (tree / "mysqld").exists():
            build_tree(tree)
    except ReqPathError as error:
        click.echo(error, err=True)
        return 1
    click.echo(tree / "mysqld")
    return 0


def build_tree(tree: Path) -> None:
    """Build the tree in a temporary directory beside `tree` and put it there. Raises: ReqPathError."""
    for program, package in (("debootstrap", "debootstrap"), ("unshare", "util-linux")):
        if shutil.which(program) is None:
            raise ReqPathError(f"making a MySQL server needs {program}: apt-get install {package}")
    if os.geteuid() != 0:
        raise ReqPathError(
            "making a MySQL server needs root, for debootstrap; "
            "without it, name a mysqld of your own in $REQPATH_MYSQLD"
        )
    tree.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mysql.", dir=tree.parent) as temporary:
        system, partial = Path(temporary, "system"), Path(temporary, "tree")
        _bootstrap(system)
        _copy_server(system, partial)
        _check(partial / "mysqld")
        try:
            partial.rename(tree)
        except OSError:
            # Another one was faster, and its tree is as good.
            if not (tree / "mysqld").exists():
                raise


def _bootstrap(system: Path) -> None:
    click.echo(f"installing {', '.join(_PACKAGES)} from Debian sid; this takes a minute", err=True)
    done = subprocess.run(
        # In a mount namespace of its own, so that what debootstrap mounts is gone when it ends.
        [
            *("unshare", "--mount"),
            *("debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", "sid", str(system)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ReqPathError(f"debootstrap failed with status {done.returncode}:\n{done.stdout[-2000:]}")


def _copy_server(system: Path, tree: Path) -> None:
    """Copy server, plugins, messages and libraries out of a system."""
    plugins = system / "usr/lib/mysql/plugin"
    loader = _only(system, "usr/lib*/ld-linux*.so.*")
    libraries = _only(system, "usr/lib/*-linux-gnu*")
    for name in ("bin", "lib", "plugin"):
        (tree / name).mkdir(parents=True)
    shutil.copy2(system / "usr/sbin/mysqld", tree / "bin")
    shutil.copytree(system / "usr/share/mysql", tree / "share")
    shutil.copy2(loader, tree / "lib" / loader.name)
    for binary in (tree / "bin/mysqld", *(plugins / name for name in _PLUGINS)):
        if binary.parent == plugins:
            shutil.copy2(binary, tree / "plugin")
        for library in _list_libraries(loader, libraries, binary):
            if not (tree / "lib" / library.name).exists():
                shutil.copy2(library, tree / "lib" / library.name)
    wrapper = tree / "mysqld"
    wrapper.write_text(_WRAPPER.format(loader=loader.name), encoding="ascii")
    wrapper.chmod(0o755)


def _only(system: Path, pattern: str) -> Path:
    found = sorted(system.glob(pattern))
    if not found:
        raise ReqPathError(f"the system that debootstrap made has no {pattern}")
    return found[0]


def _list_libraries(loader: Path, libraries: Path, binary: Path) -> list[Path]:
    """Return the shared libraries that a binary needs, by asking the loader it will be run by."""
    done = subprocess.run(
        [loader, "--library-path", libraries, "--list", binary], capture_output=True, text=True, check=False
    )
    lines = [line.split(" => ")[1].split(" (")[0] for line in done.stdout.splitlines() if " => " in line]
    missing = [line for line in lines if not line.startswith("/")]
    if done.returncode != 0 or missing:
        raise ReqPathError(f"{binary.name} lacks libraries: {missing or done.stderr}")
    return [Path(line) for line in lines]


def _check(mysqld: Path) -> None:
    done = subprocess.run([mysqld, "--no-defaults", "--version"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReqPathError(f"the MySQL server does not run: {done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
