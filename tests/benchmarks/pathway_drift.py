"""Whether the drift of pathway ranks tells corrupted images from clean ones: ResNet-20 on CIFAR-10.

    python tests/benchmarks/pathway_drift.py             fit what is missing, measure, table and plot in build/drift
    python tests/benchmarks/pathway_drift.py --tables    the table and the plot of what was measured

The 15,000 training images of the fixtures fit two bundles, one with a generator and one without. Then their 1,000 test
images are explained, clean and corrupted, and the ranks are binned as the gateway's histogram bins them. The folder of
fixtures is named by PATHLENS_FIXTURES, as for the tests.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

from corruptions import CORRUPTIONS, SEVERITIES, Pixels, corrupted  # noqa: E402
from drift_statistic import EFFECT, critical, distance, is_drift, ranks_of  # noqa: E402
from pathlens.bundle.store import Bundle, load_bundle  # noqa: E402
from pathlens.cli import main as pathlens  # noqa: E402
from pathlens.explanation import ExplanationOptions, ExplanationResult, Output, PathwaySource  # noqa: E402

FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", ROOT.parent / "shared" / "fixtures")).resolve()
FOLDER = ROOT / "build" / "drift"
BATCH = 64
SOURCES = ("neuron-mct", "generated")
CLEAN = "clean"

Measured = dict[str, dict[str, float]]
"""Of each set of images: its accuracy, the distance of each series, and how it went within the classes."""


def fit(source: str) -> Bundle:
    """Fit a bundle with instance pathways of a source, for a few minutes, unless that was done."""
    folder = FOLDER / source
    if not (folder / "bundle.json").is_file():
        arguments = (
            *("fit", "--classifier", "networks:CifarResNet", "--weights", FIXTURES / "weights" / "cifar_resnet20.pt"),
            *("--images", FIXTURES / "cifar10_train_jpegged.npz", "--size", "32", "--batch-size", "64"),
            *("--source", source, "--class-pathways", "frequency", "--generator-steps", "300"),
            *("--precision", "bfloat16", "--name", f"resnet20-{source}", "--out", folder),
        )
        pathlens([str(argument) for argument in arguments], standalone_mode=False)
    return load_bundle(folder)


def measure(bundle: Bundle, images: Pixels, labels: Sequence[int]) -> dict[str, float]:
    """Explain the predicted class of images by every source with a reference, and compare the ranks with it."""
    explainer = bundle.explainer()
    figures: dict[str, float] = {}
    for source in bundle.reference:
        options = ExplanationOptions(source=source, outputs=frozenset({Output.FAITHFULNESS}))
        results: list[ExplanationResult] = []
        for start in range(0, len(images), BATCH):
            results += explainer.explain(list(images[start : start + BATCH]), options)
        predicted = np.array([result.predictions[0].class_index for result in results])
        figures["accuracy"] = float((predicted == np.array(labels)).mean())
        explanations = [result.explanations[0] for result in results]
        for statistic, ranks in ranks_of(explanations).items():
            figures[_series(source, statistic, bundle)] = distance(ranks)
        for label in set(predicted.tolist()):
            own = [explanation for explanation in explanations if explanation.target.class_index == label]
            for statistic, ranks in ranks_of(own).items():
                name = f"{_series(source, statistic, bundle)}: classes that alert"
                figures[name] = figures.get(name, 0) + is_drift(ranks)
    return figures


def _series(source: PathwaySource, statistic: str, bundle: Bundle) -> str:
    # The stored pathways of a class are others in either bundle.
    of = f" ({bundle.source.value})" if source is PathwaySource.TRANSFERRED else ""
    return f"{source.value}{of}, {statistic}"


def sets_of_images(images: Pixels) -> dict[str, Pixels]:
    """Return the clean images and every corruption of them, by name."""
    sets = {CLEAN: images}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            sets[f"{name} {severity}"] = corrupted(images, name, severity)
    return sets


def table(measured: Mapping[str, Mapping[str, float]], count: int) -> str:
    """Write the distances as Markdown; what alerts is bold."""
    series = [name for name in measured[CLEAN] if ":" not in name and name != "accuracy"]
    lines = [
        f"| images | accuracy | {' | '.join(series)} |",
        f"|---|--:|{'--:|' * len(series)}",
    ]
    for images, figures in measured.items():
        cells = [_cell(figures[name], count) for name in series]
        lines.append(f"| {images} | {figures['accuracy']:.1%} | {' | '.join(cells)} |")
    by_class = [f"{name}: {figures:.0f}" for name, figures in measured[CLEAN].items() if ":" in name]
    lines += ["", f"n = {count}, critical distance {critical(count):.3f}, effect {EFFECT}", *by_class]
    return "\n".join(lines) + "\n"


def _cell(value: float, count: int) -> str:
    return f"**{value:.3f}**" if value >= EFFECT and value > critical(count) else f"{value:.3f}"


def plot(measured: Mapping[str, Mapping[str, float]], count: int, path: Path) -> None:
    """Draw the distances against the severity, a panel for each corruption."""
    mpl.use("Agg")
    series = [name for name in measured[CLEAN] if ":" not in name and name != "accuracy"]
    figure, axes = pyplot.subplots(1, len(CORRUPTIONS), figsize=(13, 4), sharey=True, layout="constrained")
    for axis, corruption in zip(axes, CORRUPTIONS, strict=True):
        rows = [measured[CLEAN], *(measured[f"{corruption} {severity}"] for severity in SEVERITIES)]
        for number, name in enumerate(series):
            axis.plot((0, *SEVERITIES), [row[name] for row in rows], "o-", color=f"C{number}", label=name, markersize=4)
        axis.axhline(EFFECT, color="black", linewidth=0.8)
        axis.axhline(critical(count), color="grey", linewidth=0.8, linestyle=":")
        axis.set(title=corruption, xlabel="severity (0: clean)", xticks=(0, *SEVERITIES))
    axes[0].set(
        ylabel="KS distance of the ranks",
        ylim=(0, 1.05 * max(row[name] for row in measured.values() for name in series)),
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Fit and measure what is missing, then write what is known."""
    results = FOLDER / "figures.json"
    with np.load(FIXTURES / "cifar10_test_jpegged.npz", allow_pickle=False) as file:
        images, labels = file["images"], file["labels"].tolist()
    if "--tables" not in arguments:
        sys.path.append(str(FIXTURES))
        FOLDER.mkdir(parents=True, exist_ok=True)
        measured: Measured = {}
        for source in SOURCES:
            bundle = fit(source)
            for name, pictures in sets_of_images(images).items():
                measured.setdefault(name, {}).update(measure(bundle, pictures, labels))
        results.write_text(json.dumps(measured, indent=2))
    known: Measured = json.loads(results.read_text())
    text = table(known, len(images))
    (FOLDER / "drift.md").write_text(text)
    print(text)
    plot(known, len(images), FOLDER / "drift.png")


if __name__ == "__main__":
    main(sys.argv[1:])
