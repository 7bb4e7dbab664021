"""What `reqpath bench` asks for unless it is given an app: requests that spend their time in known places.

`WORKLOADS_CONNECTION` says whether a thread keeps its database connection (`pooled`) or each request opens
its own (`per-request`); `WORKLOADS_CPU_ROUNDS` how much `/cpu` computes, see `calibrate`;
`WORKLOADS_PLANTED_NS` and `WORKLOADS_PLANTED_MOST_NS` what each query takes longer, see `plant`.
"""

from __future__ import annotations

import os

from flask import Flask

from reqpath import ReqPath
from workloads import database, views
from workloads.plant import plant


def create_app() -> Flask:
    """Build the app; where its database is comes from `WORKLOADS_DATABASE_*`."""
    app = Flask(__name__)
    app.config["DATABASE"] = database.read_settings()
    app.config["CONNECTION"] = os.environ.get("WORKLOADS_CONNECTION", "pooled")
    if app.config["CONNECTION"] not in ("pooled", "per-request"):
        raise ValueError(f"WORKLOADS_CONNECTION is pooled or per-request, not {app.config['CONNECTION']!r}")
    app.config["CPU_ROUNDS"] = int(os.environ.get("WORKLOADS_CPU_ROUNDS", "100"))
    app.register_blueprint(views.blueprint)
    app.teardown_appcontext(database.close_connection)
    put_around = plant()
    ReqPath(app)
    if put_around is not None:
        app.wsgi_app = put_around(app.wsgi_app)  # type: ignore[assignment,method-assign]  # Flask's way
    return app
