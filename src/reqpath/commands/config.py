"""`reqpath config`: prints what to put into nginx's and uWSGI's configuration, the user's paths filled in."""

from __future__ import annotations

from pathlib import Path

import click

from reqpath.configuration import (
    UWSGI,
    NginxChoices,
    build_nginx_files,
    render_nginx,
    render_uwsgi,
    render_uwsgi_include,
)
from reqpath.errors import ConfigurationError
from reqpath.settings import Settings


@click.group(
    epilog="""\b
Examples:
  reqpath config nginx --write /etc/nginx/reqpath
  reqpath config uwsgi --spool /var/spool/shop
"""
)
def command() -> None:
    """Print the lines to include in nginx's and uWSGI's configuration."""


_listen = click.option(
    "--listen",
    metavar="ADDRESS",
    help="Where the collector listens: udp:HOST:PORT or unix:PATH. [default: $REQPATH_LISTEN]",
)


_write = click.option(
    "--write",
    "directory",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the files there, and print only the lines that include them.",
)


@command.command(
    epilog="""\b
Examples:
  reqpath config nginx
  reqpath config nginx --hires --trust 10.0.0.0/8 --write /etc/nginx/reqpath
"""
)
@_listen
@click.option("--hires", is_flag=True, help="Stamps good to 1 µs instead of 1 ms, by nginx's perl module.")
@click.option("--proxy", is_flag=True, help="For proxy_pass (gunicorn, uWSGI's http-socket), not uwsgi_pass.")
@click.option(
    "--trust",
    "trusted",
    metavar="CIDR",
    multiple=True,
    help="Clients whose trace is continued, a gateway of yours say; anybody else's starts anew.",
)
@_write
def nginx(
    listen: str | None, hires: bool, proxy: bool, trusted: tuple[str, ...], directory: Path | None
) -> None:
    """Print an nginx.conf in which each of reqpath's pieces is in its place."""
    choices = NginxChoices(
        listen=listen or Settings.from_environment().listen, trusted=trusted, hires=hires, proxy=proxy
    )
    if directory is None:
        click.echo(render_nginx(choices), nl=False)
        return
    directory = directory.absolute()
    _write_files(directory, build_nginx_files(choices))
    click.echo(render_nginx(choices, directory), nl=False)


@command.command(
    epilog="""\b
Examples:
  reqpath config uwsgi
  reqpath config uwsgi --spool /var/spool/shop --listen unix:/run/shop/reqpath.sock
  reqpath config uwsgi --write /etc/reqpath
"""
)
@_listen
@click.option(
    "--spool", metavar="DIR", help="Where the app and the collector write. [default: $REQPATH_SPOOL]"
)
@click.option("--mule/--no-mule", default=True, help="Run the collector under uWSGI's master. [default: yes]")
@click.option("--lazy-apps", is_flag=True, help="Your ini has `lazy-apps = true`.")
@_write
def uwsgi(listen: str | None, spool: str | None, mule: bool, lazy_apps: bool, directory: Path | None) -> None:
    """Print the lines for uWSGI's ini."""
    settings = Settings.from_environment()
    text = render_uwsgi(
        listen=listen or settings.listen, spool=spool or settings.spool, mule=mule, lazy_apps=lazy_apps
    )
    if directory is None:
        click.echo(text, nl=False)
        return
    directory = directory.absolute()
    include = render_uwsgi_include(directory)
    _write_files(directory, {UWSGI: text})
    click.echo(include, nl=False)


def _write_files(directory: Path, files: dict[str, str]) -> None:
    """Write each file's text into a directory, made if need be. Raises: ConfigurationError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"can't write to {directory}: {error.strerror}") from error
    click.echo(f"reqpath: wrote {', '.join(files)} to {directory}", err=True)
