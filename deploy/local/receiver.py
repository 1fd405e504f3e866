"""Hears the notifications of an Alertmanager."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Notification:
    """What somebody would have been told.

    Attributes:
        receiver: Name of the receiver, as the configuration has it.
        content: What Alertmanager's webhooks send.
    """

    receiver: str
    content: dict[str, Any]


class Receiver(AbstractContextManager["Receiver"]):
    """Listens on loopback from construction to the end of the context.

    Args:
        heard: Is given every notification, in a thread of its own.

    Attributes:
        address: Where to send them, with http://.
    """

    def __init__(self, heard: Callable[[Notification], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                heard(Notification(self.path.strip("/"), content))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Write nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,))
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
