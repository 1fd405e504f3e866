"""Alertmanager calls people for pages, files tickets, and says everything once."""

import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deploy.programs import need
from listening_process import listening

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "alertmanager"


@pytest.fixture
def amtool() -> str:
    return need("amtool")


@pytest.fixture
def alertmanager() -> str:
    return need("prometheus-alertmanager")


def command_of(alertmanager: str) -> list[str]:
    """Run alone, with its files below the folder it is started in."""
    return [
        alertmanager,
        f"--config.file={FOLDER / 'alertmanager.yaml'}",
        "--storage.path=data",
        "--web.listen-address=127.0.0.1:0",
        "--cluster.listen-address=",
    ]


def ask(address: str, body: list[dict[str, Any]] | None = None, what: str = "alerts") -> Any:
    request = urllib.request.Request(
        f"http://{address}/api/v2/{what}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return json.loads(response.read() or "null")


def test_alertmanager_accepts_the_configuration(amtool: str) -> None:
    ended = subprocess.run(
        [amtool, "check-config", "alertmanager.yaml"], cwd=FOLDER, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=PathlensErrorBudgetBurn", "severity=page", "namespace=prod"], "page"),
        (["alertname=PathlensErrorBudgetBurn", "severity=ticket", "namespace=prod"], "ticket"),
        (["alertname=Watchdog", "severity=none"], "heartbeat"),
        # An alert of somebody else that has no severity wakes nobody, and is not lost.
        (["alertname=Unheard"], "ticket"),
    ],
)
def test_alerts_go_to_whom_their_severity_calls_for(amtool: str, labels: list[str], receiver: str) -> None:
    ended = subprocess.run(
        [amtool, "config", "routes", "test", "--config.file=alertmanager.yaml", *labels],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.split() == [receiver], ended.stderr


def test_what_is_known_already_is_held_back(alertmanager: str, tmp_path: Path) -> None:
    alerts = [
        {"alertname": "PathlensGatewayDown", "severity": "ticket", "namespace": "prod", "pod": "a"},
        {"alertname": "PathlensQueueing", "severity": "ticket", "namespace": "prod", "pod": "a"},
        {"alertname": "PathlensQueueing", "severity": "ticket", "namespace": "prod", "pod": "b"},
        {"alertname": "PathlensQueueing", "severity": "ticket", "namespace": "staging", "pod": "a"},
        {"alertname": "PathlensErrorBudgetBurn", "severity": "page", "namespace": "prod", "method": "Predict"},
        {"alertname": "PathlensErrorBudgetBurn", "severity": "ticket", "namespace": "prod", "method": "Predict"},
        {"alertname": "PathlensErrorBudgetBurn", "severity": "ticket", "namespace": "prod", "method": "Explain"},
        {"alertname": "PathlensLatencyBudgetBurn", "severity": "ticket", "namespace": "prod", "method": "Predict"},
        # Without pods, as outside of Kubernetes, one gateway that is down must not silence the whole namespace.
        {"alertname": "PathlensGatewayDown", "severity": "ticket", "namespace": "bare", "instance": "x"},
        {"alertname": "PathlensRefusing", "severity": "ticket", "namespace": "bare"},
        {"alertname": "PathlensAbsent", "severity": "page", "namespace": "gone"},
        {"alertname": "PathlensGatewayDown", "severity": "ticket", "namespace": "gone", "pod": "c"},
        # One missing pod is no reason to be silent about another one that does not answer.
        {"alertname": "PathlensAbsent", "severity": "ticket", "namespace": "fewer"},
        {"alertname": "PathlensGatewayDown", "severity": "ticket", "namespace": "fewer", "pod": "d"},
    ]
    held_back = [alerts[index] for index in (1, 5, 11)]
    with listening(command_of(alertmanager), tmp_path) as address:
        ask(address, [{"labels": labels} for labels in alerts])
        found: list[dict[str, str]] = []
        end = time.monotonic() + 30
        while len(found) < len(held_back) and time.monotonic() < end:
            time.sleep(0.1)
            found = [alert["labels"] for alert in ask(address) if alert["status"]["inhibitedBy"]]
    assert {frozenset(labels.items()) for labels in found} == {frozenset(labels.items()) for labels in held_back}


def test_the_command_of_the_runbook_silences_a_namespace(amtool: str, alertmanager: str, tmp_path: Path) -> None:
    lines = (line.strip() for line in (ROOT / "docs" / "runbook.md").read_text().splitlines())
    (command,) = (line for line in lines if line.startswith("amtool "))
    with listening(command_of(alertmanager), tmp_path) as address:
        ran = subprocess.run(
            ["sh", "-c", command.replace("localhost:9093", address).replace("amtool", amtool, 1)],
            env={"NAMESPACE": "prod", "USER": "me", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        (silence,) = ask(address, what="silences")
    silenced = {matcher["name"]: matcher["value"] for matcher in silence["matchers"]}
    assert silenced == {"alertname": "PathlensAbsent", "namespace": "prod"}
