"""An alert on its whole way: from a real service through Prometheus and Alertmanager to whoever is told."""

import queue
from pathlib import Path

from deploy.observed_files import rules
from deploy.programs import need
from local.alertmanager import Alertmanager
from local.prometheus import ROOT, Prometheus, rule_files
from local.receiver import Notification, Receiver
from local.service import Service
from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from tiny_bundle import tiny_bundle

ALERT = "PathlensModelRefused"
PATIENCE_SECONDS = 30.0


def test_whoever_is_on_duty_hears_of_a_refused_model_archive(tmp_path: Path) -> None:
    for program in ("prometheus", "promtool", "prometheus-alertmanager", "amtool"):
        need(program)
    save_bundle(tiny_bundle(), tmp_path / "bundle")
    archive = pack(tmp_path / "bundle", tmp_path / "store")
    files = rule_files()
    (rule,) = (rule for rule in rules(files) if rule.get("alert") == ALERT)
    told: queue.Queue[Notification] = queue.Queue()
    with (
        Receiver(told.put) as receiver,
        Alertmanager(tmp_path / "alertmanager", receiver.address, group_wait="1s") as alertmanager,
        Service(archive, tmp_path / "service", {"TORCHSERVE__POLL_SECONDS": 0.2}) as service,
        Prometheus(
            tmp_path / "prometheus", {"pathlens-gateway": service.metrics_address}, files, alertmanager.address
        ) as prometheus,
    ):
        # A counter has to be seen at zero, or its first step would be no increase.
        prometheus.wait_for_scrapes()
        (tmp_path / "torn").write_bytes(archive.read_bytes()[:100])
        (tmp_path / "torn").rename(archive)
        notification = told.get(timeout=PATIENCE_SECONDS)
    (alert,) = notification.content["alerts"]
    assert notification.receiver == rule["labels"]["severity"]
    assert alert["status"] == "firing"
    assert (
        alert["labels"].items()
        >= {
            "alertname": ALERT,
            "namespace": "local",
            "pod": "local",
            "job": "pathlens-gateway",
            "result": "refused",
            **rule["labels"],
        }.items()
    )
    assert alert["annotations"]["runbook_url"] == f"{ROOT.as_uri()}/docs/runbook.md#{ALERT.lower()}"
    assert alert["annotations"]["summary"] == "local has refused a model archive"
