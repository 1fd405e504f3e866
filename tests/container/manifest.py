"""What podman can run of Kubernetes' manifests: it knows pods, and none of what surrounds them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_PLAYED = ("ConfigMap", "Deployment", "PersistentVolumeClaim", "Pod")
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclass(frozen=True)
class Manifest:
    """What is left to play.

    Attributes:
        text: The manifest.
        images: All images of its containers.
        folders: Folders of the machine in place of empty volumes, with the group that writes there.
        changes: What is another than in the cluster, in words.
    """

    text: str
    images: frozenset[str]
    folders: dict[Path, int]
    changes: tuple[str, ...]


def playable(rendered: str, scratch: Path) -> Manifest:
    """Leave out what podman 4.3 has no notion of, or refuses, and nothing else.

    Args:
        rendered: What `kubectl kustomize` prints.
        scratch: Where to put folders in place of empty volumes.
    """
    resources = [resource for resource in yaml.safe_load_all(rendered) if resource is not None]
    played = [resource for resource in resources if resource["kind"] in _PLAYED]
    images: set[str] = set()
    folders: dict[Path, int] = {}
    changes = [_no_place_for(resource) for resource in resources if resource["kind"] not in _PLAYED]
    for resource in played:
        if resource["kind"] == "Deployment" and resource["spec"].get("replicas", 1) != 1:
            changes.append(f"one replica of {resource['spec']['replicas']}: they would share their ports")
            resource["spec"]["replicas"] = 1
        pod = _pod(resource)
        if pod is None:
            continue
        changes += _without_restarts(pod)
        changes += _without_empty_volumes(pod, scratch, folders)
        for container in _containers(pod):
            changes += _without_probes(container)
            if "/" not in container["image"]:
                container["image"] = f"localhost/{container['image']}"
            container["imagePullPolicy"] = "Never"
            images.add(container["image"])
    return Manifest(yaml.safe_dump_all(played), frozenset(images), folders, tuple(changes))


def _no_place_for(resource: dict[str, Any]) -> str:
    return f"no {resource['kind']} {resource['metadata']['name']}: it needs a cluster"


def _pod(resource: dict[str, Any]) -> dict[str, Any] | None:
    if resource["kind"] == "Deployment":
        resource = resource["spec"]["template"]
    elif resource["kind"] != "Pod":
        return None
    pod: dict[str, Any] = resource["spec"]
    return pod


def _containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _without_restarts(pod: dict[str, Any]) -> Iterator[str]:
    if pod.get("initContainers"):
        pod["restartPolicy"] = "Never"
        yield "nothing is restarted: podman would restart the init containers, too, and so never come to the others"


def _without_empty_volumes(pod: dict[str, Any], scratch: Path, folders: dict[Path, int]) -> Iterator[str]:
    """podman makes them root's, whatever the group of the pod's volumes is, and always on disk."""
    group = pod.get("securityContext", {}).get("fsGroup", 0)
    for volume in pod.get("volumes", ()):
        if volume.pop("emptyDir", None) is not None:
            folder = scratch / volume["name"]
            folders[folder] = group
            volume["hostPath"] = {"path": str(folder), "type": "Directory"}
            yield f"the empty volume {volume['name']} is a folder on disk for the group {group}"


def _without_probes(container: dict[str, Any]) -> Iterator[str]:
    probes = [probe for probe in _PROBES if "grpc" in container.get(probe, {})]
    for probe in probes:
        del container[probe]
    if probes:
        yield f"{container['name']} has no {', '.join(probes)}: podman has none over gRPC"
    if container.pop("lifecycle", None) is not None:
        yield f"{container['name']} has no lifecycle: podman has none"
