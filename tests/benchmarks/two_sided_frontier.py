"""How sparse a two-sided class pathway can be: fit ResNet-20 on CIFAR-10 in every granularity and ablation.

    python tests/benchmarks/two_sided_frontier.py                 all six, in build/frontier
    python tests/benchmarks/two_sided_frontier.py unit-mean       one
    python tests/benchmarks/two_sided_frontier.py --tables        the tables and the plot of what was measured

The 15,000 training images of the fixtures fit, their 1,000 test images measure. The folder of fixtures is named by
PATHLENS_FIXTURES, as for the tests. Repeating the command goes on where it was interrupted.
"""

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot

from pathlens.bundle.store import Bundle, load_bundle
from pathlens.classifier.images import ImageSource
from pathlens.cli import main as pathlens
from pathlens.description import ClassPathwayStatistics, MaskFigures
from pathlens.evaluation.transfer import HeldOut
from pathlens.fitting.held_out_test import HeldOutTest
from pathlens.pathways.pathway import Pathway

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", ROOT.parent / "shared" / "fixtures")).resolve()
FOLDER = ROOT / "build" / "frontier"
BATCH = 50

CONFIGURATIONS = tuple(
    f"{granularity}-{ablation}" for granularity, ablation in product(("channel", "unit"), ("zero", "mean", "optimal"))
)

# What a few minutes of direct optimisation reach: sparsity, agreement, forcing (shared design notes of the project).
FLOOR = {
    "channel-zero": ((0.22, 0.87, 0.16), (0.38, 0.90, 0.28), (0.50, 0.92, 0.42), (0.63, 0.88, 0.37)),
    "channel-mean": ((0.23, 0.94, 0.11), (0.38, 0.94, 0.18), (0.50, 0.95, 0.33)),
    "channel-optimal": ((0.24, 0.90, 0.11), (0.39, 0.96, 0.28), (0.62, 0.95, 0.34)),
    "unit-zero": ((0.22, 0.90, 0.16), (0.38, 0.88, 0.15), (0.44, 0.85, 0.16)),
    "unit-mean": ((0.21, 0.89, 0.06), (0.39, 0.85, 0.09), (0.47, 0.84, 0.09)),
}


def fit(configuration: str) -> Path:
    """Fit one configuration unless that was done; return its bundle."""
    granularity, ablation = configuration.split("-")
    bundle = FOLDER / configuration
    if not (bundle / "bundle.json").is_file():
        arguments = (
            *("fit", "--classifier", "networks:CifarResNet", "--weights", FIXTURES / "weights" / "cifar_resnet20.pt"),
            *("--images", FIXTURES / "cifar10_train_jpegged.npz", "--size", "32", "--batch-size", "64"),
            *("--granularity", granularity, "--ablation", ablation, "--precision", "bfloat16"),
            *("--name", f"resnet20-{configuration}", "--out", bundle),
        )
        pathlens([str(argument) for argument in arguments], standalone_mode=False)
    return bundle


def measure(bundle: Bundle) -> dict[str, object]:
    """Measure a bundle on the test images: pathways of single images, and class pathways with all other images."""
    test = _test(bundle)
    overlaps = test.overlaps()
    classes = {
        label: test.statistics(bundle.bank, label, overlaps.get(label), bundle.source) for label in bundle.bank.counts
    }
    return {
        "instances": _instances(test, list(classes.values())),
        "two-sided": _mean([known.stored for known in classes.values()]),
        "by frequency": _mean([known.by_frequency for known in classes.values()]),
        "random": _mean(
            [
                MaskFigures(known.stored.sparsity, known.stored.random_control, known.stored.random_control)
                for known in classes.values()
            ]
        ),
        "classes": {bundle.labels[label]: asdict(known.stored) for label, known in classes.items()},
    }


def _test(bundle: Bundle) -> HeldOutTest:
    source = ImageSource(FIXTURES / "cifar10_test_jpegged.npz")
    classifier, bank = bundle.classifier, bundle.bank
    batches, pathways = [], []
    for start in range(0, len(source), BATCH):
        images = torch.stack(
            [torch.from_numpy(bundle.preprocessing.apply(source.read(row))) for row in range(start, start + BATCH)]
        )
        whole = classifier.observe(images)
        logits, activations = whole.logits, whole.activations
        batches.append(HeldOut(images, logits.softmax(1)))
        assert bundle.generator is not None
        pathways.append(bundle.generator.pathways(activations, bank.replacement_of(logits.argmax(1))))
    held_out = HeldOut(
        torch.cat([batch.images for batch in batches]), torch.cat([batch.probabilities for batch in batches])
    )
    return HeldOutTest(classifier, held_out, Pathway.concatenate(pathways), len(source), BATCH, seed=0)


def _instances(test: HeldOutTest, classes: Sequence[ClassPathwayStatistics]) -> dict[str, float]:
    p, q, kept = [], [], []
    predicted = test.held_out.predicted
    for rows in torch.split(torch.arange(len(predicted)), BATCH):
        with torch.no_grad():
            alone = test.classifier(test.held_out.images[rows], test.pathway[rows]).softmax(1)
        target = predicted[rows][:, None]
        p.append(test.held_out.probabilities[rows].gather(1, target)[:, 0])
        q.append(alone.gather(1, target)[:, 0])
        kept.append(alone.argmax(1) == predicted[rows])
    before, after = torch.cat(p), torch.cat(q)
    sparsity = test.pathway.sparsity
    return {
        "sparsity": float(sparsity.mean()),
        "least sparsity": float(sparsity.min()),
        "greatest sparsity": float(sparsity.max()),
        "agreement": float(torch.cat(kept).double().mean()),
        "mIC": float((after > before).double().mean()),
        "mDC": float(((before - after).clamp(min=0) / before).mean()),
        "acIOU": statistics.mean(known.within_class_iou for known in classes if known.within_class_iou is not None),
        "cross IoU": statistics.mean(known.cross_class_iou for known in classes if known.cross_class_iou is not None),
    }


def _mean(masks: Sequence[MaskFigures]) -> dict[str, float]:
    figures = [asdict(mask.figures) for mask in masks]
    names = ("agreement", "mean_increase", "mean_drop", "forcing", "leak", "leak_reference")
    means = {name: statistics.mean(known[name] for known in figures) for name in names}
    return {"sparsity": statistics.mean(mask.sparsity for mask in masks), **means}


def print_tables(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print what was measured as Markdown."""
    print("| pathways of single images | sparsity | least to greatest | agreement | mIC | mDC | acIOU | cross IoU |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, figures in measured.items():
        known = figures["instances"]
        print(
            f"| {name} | {known['sparsity']:.1%} | {known['least sparsity']:.1%} to {known['greatest sparsity']:.1%} "
            f"| {known['agreement']:.1%} | {known['mIC']:.1%} | {known['mDC']:.3f} | {known['acIOU']:.3f} "
            f"| {known['cross IoU']:.3f} |"
        )
    print("\n| class pathways | mask | sparsity | agreement | forcing | mIC | mDC | P_c leak (P_c) |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    for name, figures in measured.items():
        for kind in ("two-sided", "by frequency", "random"):
            known = figures[kind]
            print(
                f"| {name} | {kind} | {known['sparsity']:.1%} | {known['agreement']:.1%} | {known['forcing']:.1%} "
                f"| {known['mean_increase']:.1%} | {known['mean_drop']:.3f} "
                f"| {known['leak']:.3f} ({known['leak_reference']:.3f}) |"
            )


def plot(measured: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Draw sparsity against agreement and forcing, with the floor of a few minutes of direct optimisation."""
    mpl.use("Agg")
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for number, name in enumerate(CONFIGURATIONS):
        colour = f"C{number}"
        for axis, key, column in ((axes[0], "agreement", 1), (axes[1], "forcing", 2)):
            points = FLOOR.get(name, ())
            axis.plot(
                [point[0] for point in points],
                [point[column] for point in points],
                ":",
                marker=".",
                color=colour,
                alpha=0.6,
            )
            if name in measured:
                known = measured[name]
                axis.plot(
                    known["two-sided"]["sparsity"], known["two-sided"][key], "o", color=colour, label=name, markersize=9
                )
                axis.plot(known["by frequency"]["sparsity"], known["by frequency"][key], "x", color=colour)
    for axis, title, bound in ((axes[0], "agreement (members)", 0.95), (axes[1], "forcing (others)", 0.2)):
        axis.axhline(bound, color="grey", linewidth=0.8)
        axis.set(xlabel="sparsity of the class pathway", title=title, xlim=(0, 1), ylim=(-0.02, 1.02))
    axes[1].legend(title="o two-sided   x by frequency\n... a few minutes of direct optimisation", fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    """Fit and measure what is asked, then print and draw what is known."""
    results = FOLDER / "figures.json"
    measured = json.loads(results.read_text()) if results.is_file() else {}
    if "--tables" not in arguments:
        sys.path.append(str(FIXTURES))
        for configuration in arguments or CONFIGURATIONS:
            figures = measure(load_bundle(fit(configuration)))
            measured = json.loads(results.read_text()) if results.is_file() else {}
            measured[configuration] = figures
            results.write_text(json.dumps(measured, indent=2))
    known = {name: measured[name] for name in CONFIGURATIONS if name in measured}
    print_tables(known)
    plot(known, FOLDER / "frontier.png")


if __name__ == "__main__":
    main(sys.argv[1:])
