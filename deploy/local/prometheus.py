"""A Prometheus of its own, with the rules of this repository."""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import yaml

from local.child import Child
from pathlens.errors import ServerStartError

DEBIAN_PACKAGES = "prometheus prometheus-alertmanager"
"""What has to be installed."""

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules"
"""The rules of this repository."""

_LABELS: Mapping[str, str] = MappingProxyType({"namespace": "local", "pod": "local"})
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Sample:
    """One result of a query.

    Attributes:
        labels: Its labels.
        value: Its value, which may be NaN.
    """

    labels: Mapping[str, str]
    value: float


class Prometheus(AbstractContextManager["Prometheus"]):
    """Scrapes endpoints and evaluates rules, from construction to the end of the context.

    Its port is of the system's choice. All rules are evaluated as often as `evaluation_seconds` says, whatever time
    their group has.

    Args:
        folder: Where it keeps everything.
        targets: host:port of each endpoint, by name of the job.
        rules: Files of rules.
        alertmanager: host:port of the Alertmanager that hears of alerts; None for none.
        scrape_seconds: Time between two scrapes.
        evaluation_seconds: Time between two evaluations of a rule.

    Attributes:
        address: host:port of its pages.

    Raises:
        ServerStartError: It is not installed, or did not start.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, str],
        rules: Iterable[Path] = (),
        alertmanager: str | None = None,
        scrape_seconds: int = 1,
        evaluation_seconds: int = 1,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        copies = [_at_one_pace(file, folder / "rules") for file in rules]
        configuration = _configuration(targets, copies, alertmanager, scrape_seconds, evaluation_seconds)
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        self._jobs = len(targets)
        self._child = Child(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            folder,
            DEBIAN_PACKAGES,
        )
        self.address = self._child.ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    def wait_for_scrapes(self, number: int = 1) -> Self:
        """Wait until every endpoint was scraped.

        Args:
            number: How often, at the least.

        Returns:
            Itself.

        Raises:
            ServerStartError: That took too long.
        """
        self._child.wait_until(lambda: self._scraped(number), "scrape every endpoint")
        return self

    def query(self, expression: str) -> list[Sample]:
        """Evaluate an expression now.

        Args:
            expression: PromQL with an instant vector or a scalar.

        Returns:
            What comes of it.

        Raises:
            ValueError: It is not PromQL; the message says why.
        """
        data = self._ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]

    def number(self, expression: str) -> float:
        """Evaluate an expression that has one number; NaN if it has none."""
        samples = self.query(expression)
        return samples[0].value if samples else math.nan

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their state, as Prometheus' API describes them."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _scraped(self, number: int) -> bool:
        counts = self.query(f"count_over_time(up[10m]) >= {number} and up == 1")
        return len(counts) >= self._jobs

    def _ask(self, path: str, **parameters: str) -> Any:
        address = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            message = json.loads(error.read() or b"{}").get("error", str(error))
            raise ValueError(f"Prometheus refuses {parameters}: {message}") from error


def rule_files(folder: Path = RULES) -> list[Path]:
    """Find the files of rules.

    Args:
        folder: Where they are.

    Returns:
        The files.

    Raises:
        ServerStartError: There are none.
    """
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ServerStartError(f"There are no rules in {folder}: expected *.yaml.", reason="RULES_MISSING")
    return files


def _at_one_pace(file: Path, folder: Path) -> Path:
    # Groups with a time of their own would have nothing to show for the first minute of a demonstration.
    content = yaml.safe_load(file.read_text())
    for group in content["groups"]:
        group.pop("interval", None)
    folder.mkdir(exist_ok=True)
    copy = folder / file.name
    copy.write_text(yaml.safe_dump(content, sort_keys=False))
    return copy


def _configuration(
    targets: Mapping[str, str],
    rules: Iterable[Path],
    alertmanager: str | None,
    scrape_seconds: int,
    evaluation_seconds: int,
) -> dict[str, Any]:
    configuration: dict[str, Any] = {
        "global": {
            "scrape_interval": f"{scrape_seconds}s",
            "scrape_timeout": f"{scrape_seconds}s",
            "evaluation_interval": f"{evaluation_seconds}s",
            # With which the alerts' links to the runbook become whole.
            "external_labels": {"runbooks": f"{ROOT.as_uri()}/"},
        },
        "rule_files": [str(file) for file in rules],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target], "labels": dict(_LABELS)}]}
            for job, target in targets.items()
        ],
    }
    if alertmanager is not None:
        managers = [{"static_configs": [{"targets": [alertmanager]}]}]
        configuration["alerting"] = {"alertmanagers": managers}
    return configuration
