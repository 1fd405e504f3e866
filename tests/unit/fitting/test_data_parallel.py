"""Two real processes on the CPU, started by PyTorch's launcher, fit one bundle together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

from pathlens.bundle.store import Bundle, load_bundle
from pathlens.cli import main
from pathlens.demo.digits import DigitsClassifier
from pathlens.errors import FitError
from pathlens.fitting.fit import fit
from pathlens.generator.parallel import ProcessGroup
from small_fits import TRAINED, npz, subject_of

COMMAND = Path(sys.executable).with_name("pathlens")
LAUNCHER = (
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
    *("--nproc-per-node", "2", "--no-python"),
)
STEPS = 12


def prepare(folder: Path) -> None:
    """Write 48 images and the weights of a classifier that sees several classes in them."""
    images = np.random.default_rng(0).integers(0, 256, (48, 8, 8), dtype=np.uint8)
    images[:, :, :4] //= np.arange(1, 7, dtype=np.uint8).repeat(8)[:, None, None]
    np.savez(folder / "images.npz", images=images)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        classifier = DigitsClassifier()
        logits = classifier(torch.from_numpy(images).float()[:, None] / 255)
        # Every class is as likely as any other.
        classifier.linear.weight /= logits.std(0)[:, None]
        classifier.linear.bias.copy_((classifier.linear.bias - logits.mean(0)) / logits.std(0))
    safetensors.torch.save_file(classifier.state_dict(), folder / "weights.safetensors")


def arguments(folder: Path, out: str) -> list[str]:
    return [
        *("fit", "--classifier", "pathlens.demo.digits:DigitsClassifier", "--size", "8", "--colour", "grey"),
        *("--weights", str(folder / "weights.safetensors"), "--images", str(folder / "images.npz")),
        *("--out", str(folder / out), "--name", "digits", "--minimum-images", "2", "--workers", "0"),
        *("--generator-steps", str(STEPS), "--class-steps", "40", "--training-batch", "16"),
    ]


@dataclass(frozen=True, eq=False)
class Fits:
    """The bundle of one process, that of two, and what the two said."""

    alone: Bundle
    together: Bundle
    output: str
    errors: str
    folder: Path


@contextmanager
def two_processes(folder: Path, out: str) -> Iterator[subprocess.Popen[str]]:
    """Start two processes that fit one bundle; whatever is left of them at the end is killed."""
    process = subprocess.Popen(
        [*LAUNCHER, str(COMMAND), *arguments(folder, out)],
        # Nothing leaves the machine, and two processes do not fight over its processors.
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    folder = tmp_path_factory.mktemp("fits")
    prepare(folder)
    alone = CliRunner().invoke(main, arguments(folder, "alone"))
    assert alone.exit_code == 0, alone.output
    with two_processes(folder, "together") as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    left = {path.name for path in folder.iterdir()}
    assert left == {"images.npz", "weights.safetensors", "alone", "together"}
    return Fits(load_bundle(folder / "alone"), load_bundle(folder / "together"), output, errors, folder)


class TestTwoProcesses:
    def test_write_one_bundle_and_speak_with_one_voice(self, fits: Fits) -> None:
        assert fits.output.count("SHA-256") == 1
        assert fits.together.sha256 in fits.output
        assert fits.errors.count("Captured") == 1

    def test_see_the_images_that_one_process_sees(self, fits: Fits) -> None:
        alone, together = fits.alone, fits.together
        assert together.fit == alone.fit
        counted = [{label: total.images for label, total in b.bank.counts.items()} for b in (alone, together)]
        assert counted[0] == counted[1]

    def test_train_the_generator_of_one_process_but_for_the_rounding_of_averaged_gradients(self, fits: Fits) -> None:
        # A mean over the whole batch and the mean of the means over its halves differ in the last digits; Adam divides
        # gradients by their size, and so passes on their digits whatever the size.
        alone, together = fits.alone, fits.together
        assert alone.generator is not None
        assert together.generator is not None
        trained = together.generator.state_dict()
        for name, value in alone.generator.state_dict().items():
            assert torch.allclose(trained[name], value, rtol=1e-3, atol=1e-4), name

    def test_train_masks_for_the_same_classes(self, fits: Fits) -> None:
        # Not the same masks: each process draws the other classes of its own images.
        alone, together = fits.alone, fits.together
        assert alone.bank.masks.keys() == together.bank.masks.keys()
        assert len(together.bank.masks) > 1

    def test_that_were_killed_go_on_with_what_was_trained_to_the_same_bundle(self, fits: Fits) -> None:
        unfinished = fits.folder / "killed.unfinished"
        with two_processes(fits.folder, "killed") as process:
            deadline = time.monotonic() + 200
            while not (unfinished / "class-pathways.pt").exists():
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (fits.folder / "killed").exists()
        trained = (unfinished / "class-pathways.pt").stat().st_mtime_ns
        with two_processes(fits.folder, "killed") as process:
            while not (unfinished / "generator.pt").exists() and process.poll() is None:
                assert not unfinished.exists() or (unfinished / "class-pathways.pt").stat().st_mtime_ns == trained
                time.sleep(0.01)
            _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert load_bundle(fits.folder / "killed").sha256 == fits.together.sha256


def test_more_processes_than_images_in_a_batch_are_refused_before_one_waits_for_the_others(tmp_path: Path) -> None:
    class Alone(ProcessGroup):
        def wait(self) -> None:
            """The others are not needed to find out."""

    with pytest.raises(FitError, match=r"A batch of 16 images cannot be shared by 17 processes.*--training-batch"):
        fit(subject_of(npz(tmp_path / "images.npz")), TRAINED, tmp_path / "u", group=Alone(0, 17))


def test_shares_of_a_batch_are_the_batch() -> None:
    batch = list(range(11))
    shares = [ProcessGroup(rank, 3).share(batch) for rank in range(3)]
    assert sorted(position for share in shares for position in share) == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_single_process_keeps_its_tensors() -> None:
    tensor = torch.rand(3)
    before = tensor.clone()
    ProcessGroup().average([tensor, None])
    ProcessGroup().wait()
    assert torch.equal(tensor, before)
