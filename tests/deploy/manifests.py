"""What kustomize makes of deploy/kubernetes."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.programs import need

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = tuple(sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir()))
COMPONENTS = tuple(sorted(folder.name for folder in (KUBERNETES / "components").iterdir()))

# One autoscaler, and all else. Operators write their components in any order: here it is another one than below.
_EVERYTHING = tuple(name for name in reversed(COMPONENTS) if name != "autoscaling-adapter")
COMBINATIONS: tuple[tuple[str, ...], ...] = (
    ("kserve",),
    ("kserve", "monitoring"),
    *((overlay, *chosen) for overlay in ("cpu", "gpu") for chosen in ((), *((name,) for name in COMPONENTS))),
    *((overlay, *_EVERYTHING) for overlay in ("cpu", "gpu")),
)
"""Overlays with the components that are built with them."""

Document = Mapping[str, Any]

_KSERVES_DEFAULTS = {"cpu": "1", "memory": "2Gi"}
"""What KServe's webhook writes into an InferenceService that asks for no resources, as requests and as limits."""


@cache
def built(overlay: str, *components: str) -> tuple[Document, ...]:
    """Build an overlay with components, as an operator's own kustomization would."""
    with tempfile.TemporaryDirectory() as folder:
        towards = os.path.relpath(KUBERNETES, Path(folder).resolve())
        kustomization = {
            "resources": [f"{towards}/overlays/{overlay}"],
            "components": [f"{towards}/components/{component}" for component in components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.dump(kustomization))
        return kustomized(Path(folder))


def kustomized(folder: Path) -> tuple[Document, ...]:
    """Build a folder with `kubectl kustomize`, without any option."""
    made = subprocess.run([need("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return tuple(document for document in yaml.safe_load_all(made.stdout) if document)


def one(documents: tuple[Document, ...], kind: str) -> Document:
    """Pick the only object of a kind."""
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def pod_of(documents: tuple[Document, ...]) -> dict[str, Any]:
    """Compose the pod that runs: the Deployment's, or the one that KServe puts together."""
    if not any(document["kind"] == "ServingRuntime" for document in documents):
        template: dict[str, Any] = one(documents, "Deployment")["spec"]["template"]
        return template
    runtime = one(documents, "ServingRuntime")["spec"]
    predictor = one(documents, "InferenceService")["spec"]["predictor"]
    kserves_own = {"model", "minReplicas", "maxReplicas"}
    (container,) = runtime["containers"]
    # The resources of the service, filled up by KServe's defaults, go before those of the runtime.
    asked = predictor["model"].get("resources", {})
    resources = {
        kind: {**container.get("resources", {}).get(kind, {}), **_KSERVES_DEFAULTS, **asked.get(kind, {})}
        for kind in ("requests", "limits")
    }
    return {
        "metadata": {"labels": runtime["labels"]},
        "spec": {
            "containers": [{**container, "resources": resources}],
            "volumes": runtime["volumes"],
            **{name: value for name, value in predictor.items() if name not in kserves_own},
        },
    }


def containers_of(documents: tuple[Document, ...]) -> dict[str, dict[str, Any]]:
    """Name the containers that serve."""
    return {container["name"]: container for container in pod_of(documents)["spec"]["containers"]}


def ports_of(documents: tuple[Document, ...]) -> dict[str, int]:
    """Name the ports that the containers of the pod declare."""
    return {
        port["name"]: port["containerPort"]
        for container in containers_of(documents).values()
        for port in container["ports"]
    }


def quantity(text: str) -> float:
    """Read a number of Kubernetes."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3}
    for unit, factor in units.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
