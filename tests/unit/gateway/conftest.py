import socketserver

import pytest


@pytest.fixture(autouse=True)
def metrics_servers_stop_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stopping HTTP server looks for its end twice a second, which adds up over so many gateways.
    monkeypatch.setattr(socketserver.BaseServer.serve_forever, "__defaults__", (0.02,))
