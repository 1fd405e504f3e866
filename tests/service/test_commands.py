"""The commands of the README and the demonstration, run as a newcomer runs them, in a folder of their own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from drift_statistic import is_drift, ranks_of
from local.breakage import Breakage
from pathlens.bundle.store import Bundle, load_bundle
from pathlens.client import Client
from pathlens.errors import UnavailableError
from pathlens.explanation import ExplanationOptions, Output, PathwaySource

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent


def run(folder: Path, *arguments: str) -> str:
    command = subprocess.run(
        arguments, cwd=folder, env=environment(), text=True, capture_output=True, timeout=300, check=False
    )
    assert command.returncode == 0, command.stderr
    return command.stdout


def environment() -> dict[str, str]:
    # Wide enough for tables, whatever the terminal; no colours to see through.
    return os.environ | {"PATH": f"{BINARIES}:{os.environ['PATH']}", "COLUMNS": "120", "NO_COLOR": "1"}


def our_processes() -> list[int]:
    """Return the processes that belong to a TorchServe of this user's, workers included."""
    marks = ("org.pytorch.serve.ModelServer", "model_service_worker.py")
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if any(mark in words for mark in marks):
            found.append(process.pid)
    return found


def works_below(process: int, temporary: str) -> bool:
    """Whether a process of TorchServe has its temporary files in a folder."""
    try:
        return psutil.Process(process).environ().get("TEMP", "").startswith(temporary)
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the demonstration has run, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder, sys.executable, "-m", "pathlens.demo")


def test_the_demonstration_prints_a_row_for_every_digit_and_source(demonstrated: tuple[Path, str]) -> None:
    rows = re.findall(r"^\d +\d +[01]\.\d\d +\d\d\.\d%", demonstrated[1], re.MULTILINE)
    assert len(rows) == 40


def test_the_demonstration_draws_a_contact_sheet(demonstrated: tuple[Path, str]) -> None:
    with Image.open(demonstrated[0] / "build/digits/contact-sheet.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.getcolors(2**24) or []) > 100


def test_a_second_demonstration_reuses_what_was_built(demonstrated: tuple[Path, str]) -> None:
    bundle, archive = demonstrated[0] / "build/digits/bundle/bundle.json", demonstrated[0] / "model_store/digits.mar"
    before = bundle.stat().st_mtime_ns, archive.read_bytes()
    assert "pathlens fit" in demonstrated[1]
    assert "pathlens fit" not in run(demonstrated[0], sys.executable, "-m", "pathlens.demo")
    assert (bundle.stat().st_mtime_ns, archive.read_bytes()) == before


@pytest.fixture(scope="module")
def demonstrated_bundle(demonstrated: tuple[Path, str]) -> Bundle:
    return load_bundle(demonstrated[0] / "build/digits/bundle")


def test_the_digits_that_train_the_classifier_build_and_others_are_held_out(
    demonstrated: tuple[Path, str], demonstrated_bundle: Bundle
) -> None:
    folder, fit = demonstrated[0] / "build/digits", demonstrated_bundle.fit
    counts = {name: len(list((folder / name).rglob("*.png"))) for name in ("images", "validation", "held-out")}
    assert counts == {"images": fit.images, "validation": fit.held_out_images, "held-out": 364}
    assert sum(counts.values()) == 1797


@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED])
def test_digits_to_explain_raise_no_alert_of_drift_and_their_noisy_negatives_do(
    source: PathwaySource, demonstrated: tuple[Path, str], demonstrated_bundle: Bundle
) -> None:
    clean = [path.read_bytes() for path in sorted((demonstrated[0] / "build/digits/held-out").rglob("*.png"))]
    assert not alerts(demonstrated_bundle, source, clean)
    assert "confidence_drop" in alerts(demonstrated_bundle, source, [Breakage.DRIFT.spoil(image) for image in clean])


def alerts(bundle: Bundle, source: PathwaySource, images: list[bytes]) -> set[str]:
    """Tell the statistics whose ranks would raise the alert."""
    options = ExplanationOptions(source=source, outputs=frozenset({Output.FAITHFULNESS}))
    ranks = ranks_of(result.explanations[0] for result in bundle.explainer().explain(images, options))
    assert all(len(values) == len(images) for values in ranks.values())
    return {statistic for statistic, values in ranks.items() if is_drift(values)}


def readme_commands(heading: str = "Bring your own classifier") -> list[str]:
    """Return the commands of a section of the README, one a line."""
    section = (ROOT / "README.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks: list[str] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    return "".join(blocks).replace("\\\n", " ").strip().splitlines()


class Serving:
    """`pathlens serve` as a process of its own."""

    def __init__(self, folder: Path, command: str) -> None:
        self.process = subprocess.Popen(
            [*command.split(), "--port", "0", "--metrics-port", "0"],
            cwd=folder,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline() for _ in range(3)]
        self.address = self.lines[0].split()[1]

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def packed(demonstrated: tuple[Path, str]) -> Path:
    """The folder of the demonstration after the README's `pathlens fit` and `pathlens pack`."""
    fit, pack = readme_commands()[:2]
    run(demonstrated[0], *fit.split())
    run(demonstrated[0], *pack.split())
    return demonstrated[0]


@pytest.fixture
def serving(packed: Path) -> Iterator[Serving]:
    service = Serving(packed, readme_commands()[2])
    yield service
    if service.process.poll() is None:
        service.stop(signal.SIGTERM)


def test_the_three_commands_of_the_readme_serve_a_classifier(serving: Serving, demonstrated: tuple[Path, str]) -> None:
    folder = demonstrated[0]
    image = sorted((folder / "build/digits/held-out/3").glob("*.png"))[0]
    assert [line.split()[0] for line in serving.lines] == ["gRPC", "metrics", "try"]
    name = readme_commands()[1].split()[2].rsplit("/", 1)[-1]
    out = run(folder, "pathlens", "explain", str(image), "--address", serving.address, "--model", name, "--out", "seen")
    assert image.name in out
    assert (folder / "seen" / f"{image.stem}.json").is_file()
    assert list((folder / "seen").glob(f"{image.stem}.class-*.overlay.png"))
    assert name in run(folder, "pathlens", "models", "--address", serving.address)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_with_exit_code_zero(serving: Serving, number: int) -> None:
    family = {process.pid for process in psutil.Process(serving.process.pid).children(recursive=True)}
    assert len(family) > 2
    assert serving.stop(number) == 0
    deadline = time.monotonic() + 5
    while family & set(psutil.pids()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not family & set(our_processes())
    with Client(serving.address, timeout=5) as client, pytest.raises(UnavailableError):
        client.list_models()


def test_serving_an_empty_store_names_the_remedy(tmp_path: Path) -> None:
    command = subprocess.run(
        ["pathlens", "serve"], cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=60, check=False
    )
    assert command.returncode == 1
    assert "pathlens pack" in command.stderr
    assert "Traceback" not in command.stderr


def test_a_taken_port_names_itself_and_leaves_nothing_running(serving: Serving, demonstrated: tuple[Path, str]) -> None:
    port = serving.address.rsplit(":", 1)[1]
    with tempfile.TemporaryDirectory() as temporary:
        command = subprocess.run(
            ["pathlens", "serve", "model_store/digits.mar", "--port", port, "--metrics-port", "0"],
            cwd=demonstrated[0],
            env=environment() | {"TMPDIR": temporary},
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert command.returncode == 1
        assert port in command.stderr
        assert not [process for process in our_processes() if works_below(process, temporary)]


def readme_programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_python_examples_of_the_readme_run(serving: Serving, demonstrated: tuple[Path, str]) -> None:
    over_grpc, in_process = readme_programs()
    here = over_grpc.replace("localhost:8080", serving.address)
    assert len(run(demonstrated[0], sys.executable, "-c", here).splitlines()) == 2
    assert run(demonstrated[0], sys.executable, "-c", in_process).endswith("(8, 8)\n")


def test_the_evaluation_of_the_readme_goes_on_after_an_interruption(packed: Path) -> None:
    command, _ = readme_commands("How good are the explanations?")
    words = [word.replace("digits-report", "interrupted-report") for word in command.split()]
    journal = packed / "build" / "interrupted-report" / "work" / "journal.jsonl"
    first = subprocess.Popen(words, cwd=packed, env=environment(), text=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said
    done = journal.read_text()
    assert run(packed, *words).strip().endswith("build/interrupted-report/report.html")
    assert journal.read_text().startswith(done)
    report = (packed / "build" / "interrupted-report" / "report.html").read_text()
    assert "NeuronMCT" in report
    assert "Forcing" in report


def test_remove_and_retrain_of_the_readme_writes_its_report(packed: Path) -> None:
    _, command = readme_commands("How good are the explanations?")
    run(packed, *command.split())
    assert "ROAR" in (packed / "build" / "digits-roar" / "report.html").read_text()
