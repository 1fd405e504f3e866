"""What is watched and scaled in Kubernetes is what pathlens counts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.programs import need

from .manifests import KUBERNETES, Document, built, one, ports_of, quantity

ADAPTER = KUBERNETES / "components" / "autoscaling-adapter"
DEPLOY = KUBERNETES.parent
# What the API server stores of one annotation, in which `kubectl apply` keeps the object.
ANNOTATION_BYTES = 262_144


def test_what_is_generated_is_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, KUBERNETES / "generate_monitoring.py", tmp_path], check=True)
    generated = [file.relative_to(tmp_path) for file in tmp_path.rglob("*.yaml")]
    assert len(generated) == 2
    for file in generated:
        assert (tmp_path / file).read_text() == (DEPLOY / file).read_text(), f"run generate_monitoring.py for {file}"


def test_prometheus_takes_the_rules_and_they_are_all_there(tmp_path: Path) -> None:
    groups = one(built("gpu", "monitoring"), "PrometheusRule")["spec"]["groups"]
    (tmp_path / "rules.yaml").write_text(yaml.dump({"groups": groups}))
    subprocess.run([need("promtool"), "check", "rules", "--lint-fatal", tmp_path / "rules.yaml"], check=True)
    written = [
        group for file in sorted((DEPLOY / "prometheus" / "rules").glob("*.yaml")) for group in _read(file)["groups"]
    ]
    assert groups == written


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_every_metrics_port_is_scraped_as_the_job_that_the_rules_name(overlay: str) -> None:
    documents = built(overlay, "monitoring")
    endpoints = one(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert {endpoint["port"] for endpoint in endpoints} == {name for name in ports_of(documents) if "metrics" in name}
    jobs = {
        endpoint["port"]: rule["replacement"]
        for endpoint in endpoints
        for rule in endpoint["relabelings"]
        if rule["targetLabel"] == "job"
    }
    assert jobs == {"metrics": "pathlens-gateway", "ts-metrics": "pathlens-torchserve"}
    for rules in (DEPLOY / "prometheus" / "rules").glob("*.yaml"):
        assert all(name in jobs.values() for name in _jobs_of(rules.read_text())), rules.name


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_labels_of_the_operator_stay(overlay: str) -> None:
    monitor = one(built(overlay, "monitoring"), "PodMonitor")["spec"]
    for endpoint in monitor["podMetricsEndpoints"]:
        # The operator sets `namespace` and `pod` before these; whoever exposes labels of that name does not win.
        assert {rule["targetLabel"] for rule in endpoint["relabelings"]} == {"job", "node"}
        assert not endpoint.get("honorLabels")
        assert "metricRelabelings" not in endpoint


def test_dashboards_can_be_found_and_applied() -> None:
    maps = [d for d in built("gpu", "monitoring") if d["kind"] == "ConfigMap" and "pathlens.toml" not in d["data"]]
    held = {name for dashboard in maps for name in dashboard["data"]}
    assert held == {file.name for file in (DEPLOY / "grafana").glob("*.json")} != set()
    for dashboard in maps:
        assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert len(yaml.dump(dashboard)) < 4 * ANNOTATION_BYTES, "the API server takes no larger ConfigMap"


@pytest.mark.parametrize("component", ["autoscaling-adapter", "autoscaling-keda"])
def test_an_autoscaler_has_the_number_of_pods_to_itself(component: str) -> None:
    documents = built("gpu", component)
    assert "replicas" not in one(documents, "Deployment")["spec"]
    _, target, fewest = _scaling(documents)
    assert target == one(documents, "Deployment")["metadata"]["name"]
    assert fewest > one(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"]


def test_both_autoscalers_behave_alike() -> None:
    keda, adapter = (_scaling(built("gpu", f"autoscaling-{name}")) for name in ("keda", "adapter"))
    assert keda == adapter


def _scaling(documents: tuple[Document, ...]) -> tuple[Document, str, int]:
    kinds = {document["kind"] for document in documents}
    if "ScaledObject" in kinds:
        spec = one(documents, "ScaledObject")["spec"]
        behaviour: Document = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        return behaviour, spec["scaleTargetRef"]["name"], spec["minReplicaCount"]
    spec = one(documents, "HorizontalPodAutoscaler")["spec"]
    return spec["behavior"], spec["scaleTargetRef"]["name"], spec["minReplicas"]


def test_both_autoscalers_aim_at_the_same_load() -> None:
    (metric,) = one(built("gpu", "autoscaling-adapter"), "HorizontalPodAutoscaler")["spec"]["metrics"]
    (trigger,) = one(built("gpu", "autoscaling-keda"), "ScaledObject")["spec"]["triggers"]
    assert metric["pods"]["target"]["type"] == trigger["metricType"] == "AverageValue"
    assert quantity(metric["pods"]["target"]["averageValue"]) == float(trigger["metadata"]["threshold"]) == 0.4


def test_the_load_is_what_waits_and_what_is_computed_over_the_limit(tmp_path: Path) -> None:
    documents = built("gpu", "autoscaling-keda")
    (rule,) = _read(ADAPTER / "prometheus-adapter-rule.yaml")["rules"]
    autoscaler = one(built("gpu", "autoscaling-adapter"), "HorizontalPodAutoscaler")["spec"]
    assert rule["name"]["as"] == autoscaler["metrics"][0]["pods"]["metric"]["name"]
    # As the adapter fills it in.
    of_each = (
        rule["metricsQuery"]
        .replace("<<.GroupBy>>", "pod")
        .replace("<<.LabelMatchers>>", 'namespace="pathlens",pod=~"a|b"')
    )
    of_all = one(documents, "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    own, foreign = 'namespace="pathlens"', 'namespace="elsewhere",pod="c"'
    series = {
        # Pod a: 3 + 1 requests at TorchServe, of two models, and 2 wait. Pod b has nothing to do.
        f'pathlens_upstream_inflight{{{own},pod="a",model="x"}}': 3,
        f'pathlens_upstream_inflight{{{own},pod="a",model="y"}}': 1,
        f'pathlens_upstream_inflight{{{own},pod="b",model="x"}}': 0,
        f'pathlens_queued{{{own},pod="a",kind="prediction"}}': 0,
        f'pathlens_queued{{{own},pod="a",kind="explanation"}}': 2,
        f'pathlens_queued{{{own},pod="b",kind="explanation"}}': 0,
        # Of these, any number may wait.
        f'pathlens_queued{{{own},pod="b",kind="bulk"}}': 50,
        f'pathlens_upstream_inflight_limit{{{own},pod="a",model="x"}}': 4,
        f'pathlens_upstream_inflight_limit{{{own},pod="a",model="y"}}': 4,
        f'pathlens_upstream_inflight_limit{{{own},pod="b",model="x"}}': 4,
        f'pathlens_upstream_inflight{{{foreign},model="x"}}': 99,
        f'pathlens_queued{{{foreign},kind="explanation"}}': 99,
        f'pathlens_upstream_inflight_limit{{{foreign},model="x"}}': 1,
    }
    test: dict[str, Any] = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": name, "values": f"{value}x20"} for name, value in series.items()],
                "promql_expr_test": [
                    {
                        "expr": of_each,
                        "eval_time": "4m",
                        "exp_samples": [{"labels": '{pod="a"}', "value": 1.5}, {"labels": '{pod="b"}', "value": 0}],
                    },
                    {"expr": of_all, "eval_time": "4m", "exp_samples": [{"labels": "{}", "value": 1.5}]},
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.dump(test))
    judged = subprocess.run(
        [need("promtool"), "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr


def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def _jobs_of(rules: str) -> list[str]:
    return [part.partition('"')[0] for part in rules.split('job="')[1:]]
