"""The HTTP door of a node: `make_app` builds it, `start_http` opens it."""

from kvstore.http.app import make_app
from kvstore.http.server import HttpRunner, start_http
from kvstore.http.settings import HttpSettings

__all__ = ["HttpRunner", "HttpSettings", "make_app", "start_http"]
