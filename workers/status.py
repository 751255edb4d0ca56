"""`calbridge worker --metrics-port`: `/metrics` and `/healthz` of this worker, served by a thread.

The thread responds while the event loop is busy or blocked, so that `/healthz` can say so.
"""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_LATEST

from app.core import metrics
from workers import liveness

log = structlog.get_logger()

_READ_TIMEOUT_SECONDS = 5.0


class _Handler(BaseHTTPRequestHandler):
    timeout = _READ_TIMEOUT_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._respond(HTTPStatus.OK, CONTENT_TYPE_LATEST, metrics.render())
        elif path == "/healthz":
            late = {loop: f"last reported {seconds:.0f} s ago" for loop, seconds in liveness.late().items()}
            status = HTTPStatus.SERVICE_UNAVAILABLE if late else HTTPStatus.OK
            body = {"status": "unavailable" if late else "ok", "late": late}
            self._respond(status, "application/json", orjson.dumps(body))
        else:
            self._respond(HTTPStatus.NOT_FOUND, "text/plain", b"There are /metrics and /healthz.\n")

    do_HEAD = do_GET  # noqa: N815

    def _respond(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Write no access log."""


class _Server(socketserver.ThreadingTCPServer):
    # http.server's own class asks DNS for this host's name before it listens.
    allow_reuse_address = True
    daemon_threads = True

    def handle_error(self, *_args: object) -> None:
        """Log no traceback of a client that closed its connection."""


class _ServerV6(_Server):
    address_family = socket.AF_INET6


@contextmanager
def serving_status(host: str, port: int) -> Iterator[None]:
    """Serve while the block runs. Raises OSError if the port cannot be listened on."""
    server = (_ServerV6 if ":" in host else _Server)((host, port), _Handler)
    thread = threading.Thread(target=server.serve_forever, name="status", daemon=True)
    thread.start()
    log.info("status_served", host=host, port=server.server_address[1])
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
