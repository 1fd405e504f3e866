"""The image as an operator runs it: built, restricted, asked, stopped, and played from the manifest of the cluster.

It takes minutes and needs root, podman and debootstrap, so that only `make deploy-test` runs it: pytest takes a file of
this name only when it is told to.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.conftest import ROOT, Digits, Served, say, serving
from container.manifest import playable
from container.podman import Podman
from container.private_network import private_network
from deploy.programs import need

pytestmark = pytest.mark.timeout(1800)

USER = 10001
# They take seconds.
ITEMS = 100
LARGEST_BYTES = 1.4e9
# A tmpfs of the runtime for shared memory, which every container has.
SHARED_MEMORY = {"/dev/shm", "/dev/mqueue"}  # noqa: S108 - named, not used
OVERLAY = Path(os.environ.get("OVERLAY") or ROOT / "deploy" / "kubernetes" / "overlays" / "cpu")
TIME_TO_END_SECONDS = 60


def test_the_image_is_not_larger_than_it_was(podman: Podman, image: str) -> None:
    say(podman("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image))
    assert int(podman("image", "inspect", "--format", "{{.Size}}", image)) < LARGEST_BYTES


def test_an_explanation_of_the_container_equals_the_one_of_the_python_api(served: Served, digits: Digits) -> None:
    say(served.ask(digits))


def test_it_runs_as_a_user_without_any_right(served: Served) -> None:
    status = dict(line.split(":\t", 1) for line in served.execute("cat /proc/1/status").splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}
    rights = [status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    assert rights == ["0" * 16] * 5
    assert status["NoNewPrivs"] == "1"


def test_nothing_can_be_written_but_the_temporary_folder(served: Served) -> None:
    elsewhere = "-path /proc -prune -o -path /sys -prune -o -path /tmp -prune"
    writable = served.execute(f"find / {elsewhere} -o \\( -type d -o -type f \\) -writable -print 2>&1 || true")
    unreadable = {line for line in writable.splitlines() if line.startswith("find:")}
    assert set(writable.splitlines()) - unreadable <= SHARED_MEMORY
    assert served.execute("test -w /tmp && echo writable") == "writable"


def test_nothing_listens_off_loopback_but_grpc_and_metrics(served: Served) -> None:
    listeners = served.listeners()
    assert {port for loopback, port in listeners if not loopback} == {8080, 9090}
    # TorchServe's, which shows that loopback is told from the rest.
    assert any(loopback for loopback, _ in listeners)


@pytest.mark.parametrize("program", ["cc", "gcc", "c++", "make", "ld", "nvcc"])
def test_the_image_has_no_compiler(served: Served, program: str) -> None:
    assert served.execute(f"command -v {program} || echo none") == "none"


def test_the_environment_has_no_headers_no_static_libraries_and_no_pip(served: Served) -> None:
    left = "-name '*.h' -o -name '*.a' -o -path '*/site-packages/pip'"
    assert served.execute(f"find /opt/pathlens {left}") == ""


def test_the_image_has_no_cache_of_pip_and_no_trace_of_the_build(served: Served) -> None:
    assert served.execute("find / -xdev -path '*/.cache/*' -o -name pip.conf 2>/dev/null || true") == ""
    assert served.execute("ls /opt") == "pathlens"


def test_every_module_is_compiled(served: Served) -> None:
    script = "find pathlens ts torch/nn -name '*{}' -size +0 | wc -l"
    folder = "cd /opt/pathlens/lib/python3*/site-packages"
    sources = int(served.execute(f"{folder} && {script.format('.py')}"))
    assert 0 < sources <= int(served.execute(f"{folder} && {script.format('.pyc')}"))


def test_a_call_in_progress_is_answered_after_sigterm(podman: Podman, image: str, digits: Digits) -> None:
    with serving(podman, image, digits) as service:
        service.ask(digits)
        call = service.asking(digits, f"--items={ITEMS}")
        try:
            wait_for_a_call(service)
            started = time.monotonic()
            podman("stop", f"--time={TIME_TO_END_SECONDS}", service.container)
            say(f"Ended in {time.monotonic() - started:.1f} s")
            output, _ = call.communicate(timeout=TIME_TO_END_SECONDS)
        finally:
            call.kill()
        assert call.returncode == 0, output
        assert podman("inspect", "--format", "{{.State.ExitCode}}", service.container) == "0"


def wait_for_a_call(service: Served) -> None:
    page = "urllib.request.urlopen('http://127.0.0.1:9090/metrics').read().decode()"
    for _ in range(100):
        metrics = service.execute(f'python -c "import urllib.request; print({page})"')
        if 'pathlens_inflight{method="BatchExplain"} 1.0' in metrics:
            return
    pytest.fail("the call was never seen in the metrics")


@pytest.fixture(scope="module")
def pod(
    podman: Podman, image: str, model_image: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The pod of the manifest, as far as podman goes."""
    if not OVERLAY.is_dir():
        pytest.skip(f"there is no {OVERLAY}")
    kubectl = need("kubectl")
    rendered = subprocess.run([kubectl, "kustomize", OVERLAY], capture_output=True, text=True, check=True).stdout
    manifest = playable(rendered, tmp_path_factory.mktemp("volumes"))
    say(
        "\n    ".join(
            (f"Playing {OVERLAY.name} of Kubernetes with podman. Other than in a cluster:", *manifest.changes)
        )
    )
    for name in manifest.images:
        podman("tag", model_image if "models" in name else image, name)
    for volume, group in manifest.folders.items():
        volume.mkdir()
        os.chown(volume, -1, group)
        volume.chmod(0o2770)
    file = folder / "manifest.yaml"
    file.write_text(manifest.text)
    with private_network() as within:
        try:
            podman("kube", "play", file, within=within)
            (container,) = podman("ps", "--quiet", "--filter=name=gateway").split()
            yield Served(podman, within, container)
        finally:
            podman("pod", "rm", "--all", "--force", "--time=0")


def test_the_pod_of_the_cluster_explains_a_digit(pod: Served, digits: Digits) -> None:
    say(pod.ask(digits))


def test_the_containers_of_the_pod_end_with_0(pod: Served, podman: Podman, digits: Digits) -> None:
    pod.ask(digits)
    started = time.monotonic()
    podman("pod", "stop", "--all", f"--time={TIME_TO_END_SECONDS}")
    say(f"Ended in {time.monotonic() - started:.1f} s")
    states = podman("ps", "--all", "--filter=name=pathlens", "--format", "{{.Names}} {{.ExitCode}}").splitlines()
    assert states
    assert [state for state in states if not state.endswith(" 0")] == []
