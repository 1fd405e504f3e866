"""The manifests are what Kubernetes takes, and agree with each other and with the settings of pathlens."""

import json
import os
import re
import shutil
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from pathlens.configuration import load_configuration
from pathlens.gateway import GatewaySettings
from pathlens.torchserve import TorchServeSettings
from pathlens.version import __version__

from .manifests import (
    COMBINATIONS,
    COMPONENTS,
    KUBERNETES,
    OVERLAYS,
    Document,
    built,
    containers_of,
    kustomized,
    one,
    pod_of,
    ports_of,
    quantity,
)

# The oldest in which the sleep before the end is on by itself, one between, and the newest that is known.
VERSIONS = ("1.30", "1.33", "1.37")
# Kinds that others define; kubernetes-validate has no schemas of them. Below: what each has to have, by its definition.
REQUIRED_ELSEWHERE = {
    ("monitoring.coreos.com/v1", "PodMonitor"): {"selector", "podMetricsEndpoints"},
    ("monitoring.coreos.com/v1", "PrometheusRule"): {"groups"},
    ("keda.sh/v1alpha1", "ScaledObject"): {"scaleTargetRef", "triggers"},
    ("serving.kserve.io/v1alpha1", "ServingRuntime"): {"containers", "supportedModelFormats"},
    ("serving.kserve.io/v1beta1", "InferenceService"): {"predictor"},
}

every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
every_combination = pytest.mark.parametrize("combination", COMBINATIONS, ids="+".join)


def all_objects() -> dict[str, Document]:
    # Most objects are the same in most combinations.
    return {json.dumps(document): document for chosen in COMBINATIONS for document in built(*chosen)}


def is_matched(selector: Document, labels: Document) -> bool:
    return bool(selector["matchLabels"].items() <= labels.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_its_schema(version: str) -> None:
    elsewhere = set()
    for document in all_objects().values():
        kind = (document["apiVersion"], document["kind"])
        if kind in REQUIRED_ELSEWHERE:
            elsewhere.add(kind)
        else:
            kubernetes_validate.validate(document, version, strict=True)
    assert elsewhere == set(REQUIRED_ELSEWHERE)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_that_kserve_puts_together_fits_the_schema(version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", **pod_of(built("kserve"))}
    kubernetes_validate.validate(pod, version, strict=True)


def test_objects_of_other_projects_have_what_these_require() -> None:
    for document in all_objects().values():
        required = REQUIRED_ELSEWHERE.get((document["apiVersion"], document["kind"]), set())
        assert required <= document.get("spec", {}).keys()
        assert all(document["spec"][name] for name in required)


@every_combination
def test_secrets_are_the_operators(combination: tuple[str, ...]) -> None:
    assert not [document for document in built(*combination) if document["kind"] == "Secret"]


@every_combination
def test_the_settings_load(combination: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = built(*combination)
    (tmp_path / "a.mar").touch()
    file = None
    if any(document["kind"] == "ConfigMap" and "pathlens.toml" in document["data"] for document in documents):
        file = tmp_path / "pathlens.toml"
        file.write_text(settings_file(documents))
    for container in containers_of(documents).values():
        with monkeypatch.context() as patched:
            for variable in container.get("env", []):
                if variable["name"].startswith("PATHLENS_"):
                    patched.setenv(variable["name"], variable["value"])
            configuration = load_configuration(file, {"torchserve.model_store": tmp_path})
        in_time = configuration.gateway.drain_seconds >= configuration.gateway.upstream_timeout_seconds
        assert in_time, "an accepted call may take longer than the drain"


def settings_file(documents: tuple[Document, ...]) -> str:
    (found,) = (
        document["data"]["pathlens.toml"]
        for document in documents
        if document["kind"] == "ConfigMap" and "pathlens.toml" in document["data"]
    )
    return str(found)


def settings(documents: tuple[Document, ...]) -> dict[str, dict[str, Any]]:
    return tomllib.loads(settings_file(documents))


@every_overlay
def test_a_declared_port_is_one_that_pathlens_opens(overlay: str) -> None:
    ports = ports_of(built(overlay))
    if overlay == "kserve":
        defaults = GatewaySettings()
        assert ports == {"h2c": defaults.port, "health": 8081, "metrics": defaults.metrics_port}
        return
    gateway, torchserve = settings(built(overlay))["gateway"], settings(built(overlay))["torchserve"]
    assert ports == {
        "grpc": gateway["port"],
        "health": gateway["health_port"],
        "metrics": gateway["metrics_port"],
        "ts-health": torchserve["health_port"],
        "ts-metrics": torchserve["metrics_port"],
    }
    assert not {torchserve["inference_port"], torchserve["management_port"]} & set(ports.values())


@every_overlay
def test_probes_ask_the_health_port_of_their_own_container(overlay: str) -> None:
    for container in containers_of(built(overlay)).values():
        (health,) = (port["containerPort"] for port in container["ports"] if port["name"].endswith("health"))
        assert container["readinessProbe"]["grpc"] == {"port": health, "service": "readiness"}
        assert container["livenessProbe"]["grpc"] == {"port": health, "service": "liveness"}
        assert container["startupProbe"]["grpc"]["port"] == health


@every_overlay
def test_a_start_may_take_as_long_as_models_may_take_to_load(overlay: str) -> None:
    documents = built(overlay)
    if overlay == "kserve":
        container, seconds = containers_of(documents)["kserve-container"], TorchServeSettings().load_timeout_seconds
    else:
        container = containers_of(documents)["torchserve"]
        seconds = settings(documents)["torchserve"]["load_timeout_seconds"]
    probe = container["startupProbe"]
    allowed = probe["periodSeconds"] * probe["failureThreshold"]
    assert allowed > seconds
    if overlay != "kserve":
        # Beside it stands the number that whoever changes the settings needs.
        assert f"{allowed} s" in settings_file(documents)
        assert one(documents, "Deployment")["spec"]["progressDeadlineSeconds"] > 2 * allowed


@every_overlay
def test_the_network_policy_admits_calls_and_scrapes_alone(overlay: str) -> None:
    documents = built(overlay)
    policy = one(documents, "NetworkPolicy")["spec"]
    calls, scrapes = policy["ingress"]
    call_ports, scrape_ports = (["h2c"], ["metrics"]) if overlay == "kserve" else (["grpc"], ["metrics", "ts-metrics"])
    assert [port["port"] for port in calls["ports"]] == call_ports
    assert [port["port"] for port in scrapes["ports"]] == scrape_ports
    assert scrapes["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    assert {*call_ports, *scrape_ports} < ports_of(documents).keys()
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53}
    assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_the_component_for_traces_opens_the_port_of_its_collector() -> None:
    documents = built("cpu", "tracing")
    variables = {variable["name"]: variable.get("value") for variable in containers_of(documents)["gateway"]["env"]}
    port = int(str(variables["PATHLENS_TRACING__ENDPOINT"]).rpartition(":")[2])
    opened = [port["port"] for rule in one(documents, "NetworkPolicy")["spec"]["egress"] for port in rule["ports"]]
    assert port in opened


@every_overlay
def test_every_selector_finds_the_pods(overlay: str) -> None:
    documents = built(overlay, "monitoring")
    labels = pod_of(documents)["metadata"]["labels"]
    for kind in ("PodDisruptionBudget", "PodMonitor"):
        assert is_matched(one(documents, kind)["spec"]["selector"], labels), kind
    assert is_matched(one(documents, "NetworkPolicy")["spec"]["podSelector"], labels)
    if overlay == "kserve":
        return
    assert is_matched(one(documents, "Deployment")["spec"]["selector"], labels)
    assert one(documents, "Service")["spec"]["selector"].items() <= labels.items()
    for constraint in pod_of(documents)["spec"]["topologySpreadConstraints"]:
        assert is_matched(constraint["labelSelector"], labels)


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_service_leads_to_every_pod_by_its_own_address(overlay: str) -> None:
    documents = built(overlay)
    service = one(documents, "Service")["spec"]
    assert service["clusterIP"] == "None"
    (port,) = service["ports"]
    # Names of headless Services stand for addresses, and nothing translates ports on the way.
    assert port["port"] == ports_of(documents)[port["targetPort"]] == settings(documents)["gateway"]["port"]


@every_overlay
def test_a_pod_has_the_time_for_its_drain(overlay: str) -> None:
    documents = built(overlay)
    grace = pod_of(documents)["spec"]["terminationGracePeriodSeconds"]
    drains = [GatewaySettings().upstream_timeout_seconds]
    if overlay != "kserve":
        chosen = settings(documents)
        drains += [chosen["gateway"]["drain_seconds"], chosen["torchserve"]["drain_seconds"]]
        assert sorted(drains) == drains, "the gateway waits for its calls, and TorchServe for the gateway"
    sleeps = {c["lifecycle"]["preStop"]["sleep"]["seconds"] for c in containers_of(documents).values()}
    assert len(sleeps) == 1
    assert grace > sleeps.pop() + max(drains)


@pytest.mark.parametrize(("overlay", "cards"), [("cpu", 0), ("gpu", 1), ("kserve", 0)])
def test_a_pod_of_the_gpu_overlay_has_one_card(overlay: str, cards: int) -> None:
    limits = {name: c["resources"]["limits"] for name, c in containers_of(built(overlay)).items()}
    assert {name: limit["nvidia.com/gpu"] for name, limit in limits.items() if "nvidia.com/gpu" in limit} == (
        {"torchserve": "1"} if cards else {}
    )
    assert ("tolerations" in pod_of(built(overlay))["spec"]) == bool(cards)


@every_overlay
def test_nothing_decides_in_place_of_the_service_with_how_many_threads_it_computes(overlay: str) -> None:
    # It counts the processors of its container by itself; the variable would go before `torchserve.threads` and would
    # give each of several workers all processors.
    for container in containers_of(built(overlay)).values():
        assert "OMP_NUM_THREADS" not in {variable["name"] for variable in container.get("env", [])}


def test_a_free_card_is_all_that_a_pod_with_a_gpu_requires_of_its_node() -> None:
    # Labels of nodes come from whoever runs them: NVIDIA's device plugin by itself writes none.
    pod = pod_of(built("gpu"))["spec"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in pod["affinity"]["nodeAffinity"]
    assert "nodeSelector" not in pod


@every_overlay
def test_nothing_in_a_pod_may_do_more_than_it_has_to(overlay: str) -> None:
    pod = pod_of(built(overlay))["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert one(built(overlay), "ServiceAccount")["metadata"]["name"] == pod["serviceAccountName"] != "default"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["runAsUser"] == 10001
    for container in (*pod["containers"], *pod.get("initContainers", [])):
        context = container["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is context["runAsNonRoot"] is True
        assert context["allowPrivilegeEscalation"] is context["privileged"] is False
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


@every_combination
def test_every_volume_is_there_and_used(combination: tuple[str, ...]) -> None:
    pod = pod_of(built(*combination))["spec"]
    mounted = {
        mount["name"]
        for container in (*pod["containers"], *pod.get("initContainers", []))
        for mount in container["volumeMounts"]
    }
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@every_overlay
def test_temporary_files_are_memory_and_fit_into_that_of_their_container(overlay: str) -> None:
    pod = pod_of(built(overlay))["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in pod["containers"]:
        (temporary,) = (mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/tmp")  # noqa: S108
        assert volumes[temporary]["emptyDir"]["medium"] == "Memory"
        memory = quantity(container["resources"]["limits"]["memory"])
        assert quantity(volumes[temporary]["emptyDir"]["sizeLimit"]) < memory / 3


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_both_containers_run_the_image_of_this_version(overlay: str) -> None:
    images = {container["image"] for container in containers_of(built(overlay)).values()}
    assert images == {f"pathlens:{__version__}" + ("-cuda" if overlay == "gpu" else "")}


def test_kserve_runs_the_image_of_this_version() -> None:
    assert containers_of(built("kserve"))["kserve-container"]["image"] == f"pathlens:{__version__}"


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_one_pod_may_go_at_a_time(overlay: str) -> None:
    documents = built(overlay)
    deployment = one(documents, "Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert 0 < one(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] < deployment["replicas"]


def test_one_pod_of_kserve_may_go_at_a_time() -> None:
    documents = built("kserve")
    fewest = one(documents, "InferenceService")["spec"]["predictor"]["minReplicas"]
    assert 0 < one(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] < fewest


@pytest.mark.parametrize("component", [name for name in COMPONENTS if name != "monitoring"])
def test_a_component_that_kserve_has_no_use_for_is_refused_with_the_reason(component: str) -> None:
    with pytest.raises(AssertionError, match=r"no matches for Id Deployment\S*/pathlens"):
        built("kserve", component)


def test_changed_settings_are_rolled_out(tmp_path: Path) -> None:
    copied = shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    (copied / "base" / "pathlens.toml").write_text("[gateway]\nport = 9000\n")
    assert pod_of(kustomized(copied / "overlays" / "cpu")) != pod_of(built("cpu"))


def test_models_from_a_claim_need_no_image() -> None:
    pod = pod_of(built("gpu", "models-from-claim"))["spec"]
    assert not pod.get("initContainers")
    claims = [volume for volume in pod["volumes"] if volume["name"] == "models"]
    assert claims == [
        {"name": "models", "persistentVolumeClaim": {"claimName": "pathlens-models", "readOnly": True}},
    ]


def test_the_kustomization_of_the_operators_page_builds(tmp_path: Path) -> None:
    page = (KUBERNETES.parent / "README.md").read_text()
    (example,) = re.findall(r"```yaml\n( *# production/kustomization\.yaml\n.*?)```", page, re.DOTALL)
    folder = tmp_path.resolve() / "production"
    folder.mkdir()
    repository = os.path.relpath(KUBERNETES.parents[1], folder)
    (folder / "kustomization.yaml").write_text(textwrap.dedent(example).replace("../pathlens", repository))
    own = (KUBERNETES / "base" / "pathlens.toml").read_text() + "# ours\n"
    (folder / "pathlens.toml").write_text(own)
    documents = kustomized(folder)
    images = {container["image"] for container in containers_of(documents).values()}
    assert images == {f"registry.example.com/pathlens:{__version__}-cuda"}
    assert settings_file(documents) == own
