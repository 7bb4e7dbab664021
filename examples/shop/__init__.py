"""Leaf & Kettle, a small tea shop: the example app that `reqpath demo` runs.

An ordinary Flask app on MySQL. `ReqPath(app)` is all there is of reqpath in it.
"""

from __future__ import annotations

from flask import Flask

from reqpath import ReqPath
from shop import data, database, views


def create_app() -> Flask:
    """Build the app; where its database is comes from the environment, see `database.read_settings`."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 8 << 20
    app.config["DATABASE"] = database.read_settings()
    app.register_blueprint(views.blueprint)
    app.cli.add_command(data.init_db)
    ReqPath(app)
    return app
