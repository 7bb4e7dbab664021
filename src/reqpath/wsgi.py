"""The WSGI middleware, under the name to import it by.

::

    from reqpath.wsgi import RequestMiddleware

    application = RequestMiddleware(application, service_name="shop")
"""

from reqpath.worker.wsgi import RequestMiddleware

__all__ = ["RequestMiddleware"]
