"""What the trial of the image shares: the machine, podman, the model, the image and the services in it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from container.base_image import SUITE, base_archive
from container.machine import problems
from container.pip_configuration import pip_configuration
from container.podman import Podman
from container.private_network import private_network
from pathlens.version import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILES = ROOT / "deploy" / "image"
BASE = f"localhost/{SUITE}-python:latest"
IMAGE = "localhost/pathlens:trial"
MODEL_IMAGE = "localhost/pathlens-models:trial"
REQUIRED_BYTES = 8 * 2**30
CANNOT_RUN = 2
ASK = Path(__file__).with_name("ask.py")

# As /proc/net/tcp and tcp6 have them: the state, and how 127.0.0.1, ::ffff:127.0.0.1 and ::1 end.
LISTENS = "0A"
LOOPBACK = ("0100007F", "00000000000000000000000001000000")


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


@dataclass(frozen=True)
class Digits:
    """The demonstration's model, and an image for it."""

    store: Path
    bundle: Path
    image: Path


@dataclass(frozen=True)
class Served:
    """A running container."""

    podman: Podman
    within: tuple[str, ...]
    container: str

    def execute(self, script: str) -> str:
        """Run a script of the shell in the container, and in its network, which podman takes for the machine's."""
        return self.podman("exec", self.container, "sh", "-c", script, within=self.within)

    def ask(self, digits: Digits, *options: str) -> str:
        """Have an explanation compared with the one that is computed here, as soon as the service is ready."""
        done = self.asking(digits, *options)
        output, _ = done.communicate()
        assert done.returncode == 0, f"{output}\n{self.podman('logs', '--tail=50', self.container)}"
        return output

    def asking(self, digits: Digits, *options: str) -> subprocess.Popen[str]:
        """Begin to ask."""
        command: list[str | Path] = [
            *self.within,
            sys.executable,
            ASK,
            "127.0.0.1:8080",
            digits.image,
            digits.bundle,
            *options,
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def listeners(self) -> set[tuple[bool, int]]:
        """Tell on which ports of TCP anybody listens, and whether only for the loopback."""
        tables = subprocess.run(
            [*self.within, "cat", "/proc/net/tcp", "/proc/net/tcp6"], check=True, capture_output=True, text=True
        ).stdout
        rows = [line.split() for line in tables.splitlines()]
        addresses = [row[1].split(":") for row in rows if row[3] == LISTENS]
        return {(address.endswith(LOOPBACK), int(port, 16)) for address, port in addresses}


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where everything lies that podman writes; `KEEP` names a folder that stays."""
    if found := problems():
        pytest.exit("The trial cannot run: " + " ".join(found), returncode=CANNOT_RUN)
    kept = os.environ.get("KEEP")
    # Not where small files are temporary: that is often memory.
    path = Path(kept).absolute() if kept else Path(tempfile.mkdtemp(prefix="pathlens-", dir="/var/tmp"))
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    try:
        if free < REQUIRED_BYTES:
            pytest.exit(
                f"{path} has room for {free / 1e9:.1f} GB, and the trial needs up to {REQUIRED_BYTES / 1e9:.1f} GB: "
                "free some, or let KEEP name a folder elsewhere.",
                returncode=CANNOT_RUN,
            )
        yield path
    finally:
        if kept:
            say(f"{path} is kept, with its images")
        else:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def podman(folder: Path) -> Iterator[Podman]:
    engine = Podman(folder)
    try:
        yield engine
    finally:
        if os.environ.get("KEEP"):
            engine.stop()
        else:
            engine.remove()


@pytest.fixture(scope="session")
def digits() -> Digits:
    say("Preparing the digits")
    subprocess.run([sys.executable, "-m", "pathlens.demo", "prepare"], cwd=ROOT, check=True)
    build = ROOT / "build" / "digits"
    return Digits(ROOT / "model_store", build / "bundle", sorted((build / "held-out" / "3").glob("*.png"))[0])


@pytest.fixture(scope="session")
def image(podman: Podman, folder: Path) -> str:
    """The image, built of the working tree."""
    if not podman.has_image(BASE):
        say("Making a base image with debootstrap, unless build/ has one")
        archive = ROOT / "build" / "deploy-test" / f"{SUITE}.tar"
        base_archive(archive, folder)
        podman.show("import", archive, BASE)
    say("Building the image")
    pip = pip_configuration()
    secret = folder / "pip.conf"
    secret.write_text(pip.text)
    mounts = [f"--volume={path}:{path}:ro" for path in pip.paths]
    arguments = [f"--build-arg=BASE={BASE}", f"--build-arg=VERSION={__version__}", f"--tag={IMAGE}"]
    started = time.monotonic()
    podman.show(
        *("build", "--pull=never", "--layers", f"--secret=id=pip.conf,src={secret}", *mounts, *arguments),
        *("--file", DOCKERFILES / "Dockerfile", ROOT),
    )
    size = int(podman("image", "inspect", "--format", "{{.Size}}", IMAGE))
    say(f"Built in {time.monotonic() - started:.0f} s, {size / 1e9:.2f} GB")
    return IMAGE


@pytest.fixture(scope="session")
def model_image(podman: Podman, image: str, digits: Digits) -> str:
    """The image with the model in it."""
    say("Building the image of the model")
    arguments = [f"--build-arg=BASE={image}", f"--tag={MODEL_IMAGE}", "--file", DOCKERFILES / "model.Dockerfile"]
    podman.show("build", "--pull=never", *arguments, digits.store)
    return MODEL_IMAGE


RESTRICTED = (
    *("--network=host", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:size=1g"),
    *("--cap-drop=all", "--security-opt=no-new-privileges"),
)
"""As docs/image.md says, in a network that was made beforehand."""


@contextlib.contextmanager
def serving(podman: Podman, image: str, digits: Digits) -> Iterator[Served]:
    """Run the image as an operator should, in a network of its own."""
    store = f"--volume={digits.store}:/models:ro"
    # On a busy machine, threads of torch wait for each other longer than they compute.
    options = (*RESTRICTED, "--env=OMP_NUM_THREADS=1", store)
    with private_network() as within, podman.running(*options, image, within=within) as container:
        yield Served(podman, within, container)


@pytest.fixture(scope="session")
def served(podman: Podman, image: str, digits: Digits) -> Iterator[Served]:
    """A service that answers."""
    with serving(podman, image, digits) as service:
        service.ask(digits)
        yield service
