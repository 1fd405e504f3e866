"""An Alertmanager of its own, with the routes of this repository."""

from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from local.child import Child
from local.prometheus import DEBIAN_PACKAGES, ROOT

CONFIGURATION = ROOT / "deploy" / "alertmanager" / "alertmanager.yaml"
"""The configuration of this repository."""


class Alertmanager(AbstractContextManager["Alertmanager"]):
    """Routes alerts from construction to the end of the context, on a port of the system's choice.

    Routes, grouping and inhibition are those of the configuration; every receiver is a webhook instead of what it is
    there.

    Args:
        folder: Where it keeps everything.
        webhook: Address that all receivers post to, each with its name as the path.
        configuration: The configuration.
        group_wait: How long a new group waits for further alerts, in place of the configuration's own times.

    Attributes:
        address: host:port of its pages.

    Raises:
        ServerStartError: It is not installed, or did not start.
        OSError: The configuration cannot be read.
    """

    def __init__(
        self, folder: Path, webhook: str, configuration: Path = CONFIGURATION, group_wait: str | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(configuration.read_text())
        content["receivers"] = [
            {
                "name": receiver["name"],
                "webhook_configs": [{"url": f"{webhook}/{receiver['name']}", "send_resolved": True}],
            }
            for receiver in content["receivers"]
        ]
        if group_wait is not None:
            _shorten(content["route"], group_wait)
        (folder / "alertmanager.yaml").write_text(yaml.safe_dump(content))
        self._child = Child(
            [
                "prometheus-alertmanager",
                f"--config.file={folder / 'alertmanager.yaml'}",
                f"--storage.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
                # Alone: no port for others of its kind.
                "--cluster.listen-address=",
            ],
            folder,
            DEBIAN_PACKAGES,
        )
        self.address = self._child.ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()


def _shorten(route: dict[str, Any], group_wait: str) -> None:
    route["group_wait"] = group_wait
    for child in route.get("routes", ()):
        _shorten(child, group_wait)
