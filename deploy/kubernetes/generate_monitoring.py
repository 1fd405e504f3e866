"""Put the rules and the dashboards into the form in which Kubernetes takes them.

    python deploy/kubernetes/generate_monitoring.py [FOLDER]

writes below FOLDER, which is deploy/ unless given:

- kubernetes/components/monitoring/prometheus-rule.yaml, the groups of prometheus/rules/*.yaml as one PrometheusRule;
- grafana/kustomization.yaml, which makes a ConfigMap of each dashboard.

Both are committed, because kustomize reads no file outside of its folder and makes no object of another form.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1]
RULES = DEPLOY / "prometheus" / "rules"
DASHBOARDS = DEPLOY / "grafana"
LABELS = {"app.kubernetes.io/name": "pathlens", "app.kubernetes.io/part-of": "pathlens"}
HEADER = "# Written by deploy/kubernetes/generate_monitoring.py.\n"


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as such, and no references."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: _Readable, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def prometheus_rule() -> dict[str, Any]:
    """Compose the PrometheusRule of all rule files, in the order of their names."""
    files = sorted(RULES.glob("*.yaml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "pathlens", "namespace": "pathlens", "labels": LABELS},
        "spec": {"groups": groups},
    }


def dashboards() -> dict[str, Any]:
    """Compose the kustomization of the dashboards: a ConfigMap each, as their sum may be too large for one."""
    files = sorted(file.name for file in DASHBOARDS.glob("*.json"))
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "pathlens",
        "configMapGenerator": [{"name": _dashboard(name), "files": [name]} for name in files],
        "generatorOptions": {
            # Grafana's sidecar looks for the label (with searchNamespace ALL, or it sees its own namespace alone) and
            # replaces a dashboard whose ConfigMap has changed.
            "disableNameSuffixHash": True,
            "labels": {"grafana_dashboard": "1", **LABELS},
            "annotations": {"grafana_folder": "pathlens"},
        },
    }


def _dashboard(name: str) -> str:
    # The part of the name that ConfigMaps may have in theirs.
    stem = Path(name).stem.replace("_", "-").lower()
    return stem if stem.startswith("pathlens") else f"pathlens-{stem}"


def write(document: Mapping[str, Any], file: Path) -> None:
    """Write an object, and the folder that it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(HEADER + yaml.dump(document, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120))


def main() -> None:
    """Write both files."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEPLOY
    write(prometheus_rule(), folder / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml")
    write(dashboards(), folder / "grafana" / "kustomization.yaml")


if __name__ == "__main__":
    main()
