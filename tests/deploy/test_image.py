"""The files of the image, as far as they can be judged without building it; `make deploy-test` builds it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from container.manifest import playable
from container.pip_configuration import parse
from pathlens.configuration import load_configuration
from pathlens.gateway import GatewaySettings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "image" / "Dockerfile"
DOCKERFILES = sorted(DOCKERFILE.parent.glob("*Dockerfile"))

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: pathlens}
spec:
  replicas: 2
  template:
    spec:
      securityContext: {fsGroup: 10001}
      initContainers:
        - {name: models, image: "pathlens-models:1"}
      containers:
        - name: gateway
          image: registry.example.com/pathlens:1
          livenessProbe: {grpc: {port: 8081}}
          readinessProbe: {httpGet: {port: 80}}
          lifecycle: {preStop: {sleep: {seconds: 1}}}
      volumes:
        - {name: models, emptyDir: {}}
        - {name: settings, configMap: {name: pathlens}}
---
apiVersion: v1
kind: Service
metadata: {name: pathlens}
"""


def instructions(name: str) -> list[str]:
    """Return the arguments of all instructions of a kind, continued lines joined."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    return re.findall(rf"^{name} +(.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing_and_is_told_to_overlook_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not installed beside the tests")
    command = [hadolint, "--disable-ignore-pragma", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    copied = {
        source
        for arguments in instructions("COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    }
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied
    assert [source for source in copied if not (ROOT / source).exists()] == []


def test_the_environment_of_the_image_is_one_that_pathlens_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in instructions("ENV")[0].split():
        name, _, value = setting.partition("=")
        if name.startswith("PATHLENS_"):
            monkeypatch.setenv(name, value)
    # A store with nothing in it is refused, and here is none at all.
    configuration = load_configuration(None, {"torchserve.archives": (Path("a.mar"),)})
    # Loopback is out of reach from outside of a container.
    assert {configuration.gateway.host, configuration.gateway.metrics_host} == {"0.0.0.0"}  # noqa: S104
    assert configuration.torchserve.model_store == Path("/models")


def test_the_exposed_ports_are_those_of_the_settings() -> None:
    settings = GatewaySettings()
    assert instructions("EXPOSE") == [f"{settings.port} {settings.metrics_port}"]


def test_the_user_is_a_number_that_runs_as_non_root_can_check() -> None:
    assert instructions("USER") == ["10001:10001"]


def test_podman_plays_only_what_it_knows_and_says_what_is_left_out(tmp_path: Path) -> None:
    manifest = playable(DEPLOYMENT, tmp_path)
    (deployment,) = yaml.safe_load_all(manifest.text)
    pod = deployment["spec"]["template"]["spec"]
    (gateway,) = pod["containers"]
    assert deployment["spec"]["replicas"] == 1
    # A probe that podman can make stays.
    assert set(gateway) == {"name", "image", "imagePullPolicy", "readinessProbe"}
    assert pod["volumes"][0]["hostPath"]["path"] == str(tmp_path / "models")
    assert manifest.folders == {tmp_path / "models": 10001}
    assert manifest.images == {"localhost/pathlens-models:1", "registry.example.com/pathlens:1"}
    for word in ("Service pathlens", "replica", "restarted", "models", "livenessProbe", "lifecycle"):
        assert any(word in change for change in manifest.changes), word


def test_a_manifest_that_podman_plays_whole_loses_nothing(tmp_path: Path) -> None:
    pod = "kind: Pod\nspec: {containers: [{name: a, image: localhost/a, imagePullPolicy: Never}]}"
    manifest = playable(pod, tmp_path)
    assert yaml.safe_load(manifest.text) == yaml.safe_load(pod)
    assert manifest.changes == ()


def test_the_build_reads_the_configuration_of_pip_from_files_and_variables(tmp_path: Path) -> None:
    index, wheels = tmp_path / "index" / "simple", tmp_path / "wheels"
    index.mkdir(parents=True)
    wheels.mkdir()
    listed = (
        ":env:.timeout='60'",
        "global.timeout='15'",
        f"global.extra-index-url='\\n{index.as_uri()}'",
        f"install.find-links='{wheels}'",
    )
    configuration = parse("\n".join(listed))
    assert configuration.text == (
        f"[global]\ntimeout = 60\nextra-index-url = {index.as_uri()}\n[install]\nfind-links = {wheels}\n"
    )
    assert set(configuration.paths) == {index.parent, wheels}
