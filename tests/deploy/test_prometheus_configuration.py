"""The Prometheus without the Operator finds the two endpoints of each pod, and nothing else."""

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.programs import need
from listening_process import listening

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
NAME = "__meta_kubernetes_pod_label_app_kubernetes_io_name"


@pytest.fixture
def prometheus() -> str:
    return need("prometheus")


def discovered(address: str, port: int, **labels: str) -> dict[str, Any]:
    """A port of a container, as Kubernetes' discovery with role pod describes it."""
    pod = {
        NAME: "pathlens",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_container_port_number": str(port),
        "__meta_kubernetes_namespace": "prod",
        "__meta_kubernetes_pod_name": f"pod-{address}",
        "__meta_kubernetes_pod_node_name": "node-1",
    }
    return {"targets": [f"{address}:{port}"], "labels": pod | labels}


def test_each_pod_has_a_target_for_each_job(prometheus: str, tmp_path: Path) -> None:
    targets = [
        *(discovered("127.0.0.1", port) for port in (8080, 9090, 9091)),
        discovered("127.0.0.2", 9090),
        discovered("127.0.0.3", 9090, **{NAME: "something-else"}),
        discovered("127.0.0.4", 9090, __meta_kubernetes_pod_phase="Succeeded"),
    ]
    configuration = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    # Debian's build has no discovery by Kubernetes: the rest of the configuration sees what it would give.
    for job in configuration["scrape_configs"]:
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
        job["static_configs"] = targets
    configuration["rule_files"] = [str(FOLDER / pattern) for pattern in configuration["rule_files"]]
    del configuration["alerting"]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    command = [
        prometheus,
        "--config.file=prometheus.yaml",
        "--storage.tsdb.path=data",
        "--web.listen-address=127.0.0.1:0",
    ]
    with listening(command, tmp_path) as address:
        labels = [target["labels"] for target in active_targets(address)]
        assert rule_names(address) >= {"PathlensAbsent", "pathlens:pathway_drift:ks_6h", "Watchdog"}
    found = {(one["job"], one["namespace"], one["pod"], one["node"], one["instance"]) for one in labels}
    assert found == {
        ("pathlens-gateway", "prod", "pod-127.0.0.1", "node-1", "127.0.0.1:9090"),
        ("pathlens-torchserve", "prod", "pod-127.0.0.1", "node-1", "127.0.0.1:9091"),
        ("pathlens-gateway", "prod", "pod-127.0.0.2", "node-1", "127.0.0.2:9090"),
    }


def active_targets(address: str) -> list[dict[str, Any]]:
    """The targets once both jobs have theirs."""
    end = time.monotonic() + 30
    while True:
        targets: list[dict[str, Any]] = ask(address, "targets?state=active")["activeTargets"]
        if len({target["scrapePool"] for target in targets}) == 2:
            return targets
        assert time.monotonic() < end, targets
        time.sleep(0.1)


def rule_names(address: str) -> set[str]:
    return {rule["name"] for group in ask(address, "rules")["groups"] for rule in group["rules"]}


def ask(address: str, what: str) -> Any:
    with urllib.request.urlopen(f"http://{address}/api/v1/{what}", timeout=10) as response:
        return json.load(response)["data"]
