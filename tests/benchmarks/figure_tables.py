"""Turn the reports of `science_figures.py` into the tables of docs/figures.md.

python tests/benchmarks/figure_tables.py > docs/figures.md
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathlens.evaluation.report.vocabulary import METHODS

FOLDER = Path(__file__).parents[2] / "build" / "figures"
NETWORKS = {"cifar_resnet20": "ResNet-20, CIFAR-10", "squeezenet1_1": "SqueezeNet 1.1", "mobilenet_v2": "MobileNetV2"}
PATHWAYS = ("neuron_mct", "neuron_intgrad", "greedy_pruning", "distillation_guided_routing", "random")
MAPS = (
    "neuron_mct",
    "neuron_intgrad",
    "gradient",
    "gradient_times_input",
    "integrated_gradients",
    "grad_cam",
    "random",
)

INTRODUCTION = """# Figures

Made by `make figures`, which fits and evaluates the three fixture networks and writes this page; every figure is a row
of `build/figures/NETWORK/report.json`, and the plots are in `report.html` beside it. Neurons are channels and removed
ones are zero. What the measures mean is in [science.md](science.md). Brackets hold the random control: random pathways
that keep as many neurons at every tap. n counts images or, for class pathways, acIOU and cross IoU, classes.
"""


@dataclass(frozen=True)
class Figures:
    """The summaries of one report."""

    facts: dict[str, str]
    summaries: list[dict[str, Any]]

    def mean(
        self, measure: str, method: str, sparsity: float | None = None, detail: str = "", control: bool = False
    ) -> float | None:
        """Return one figure; None if it was not measured."""
        wanted = (measure, method, sparsity, detail, control)
        for row in self.summaries:
            if (row["measure"], row["method"], row["sparsity"], row["detail"], row["control"]) == wanted:
                value: float = row["mean"]
                return value
        return None

    def count(self, measure: str) -> int:
        """Return on how many images a measure was made at most."""
        return max((row["count"] for row in self.summaries if row["measure"] == measure), default=0)

    def details(self, measure: str) -> list[str]:
        """Return what a measure is broken down by, in order."""
        return list(dict.fromkeys(row["detail"] for row in self.summaries if row["measure"] == measure))

    @property
    def sparsities(self) -> list[float]:
        """The grid."""
        return sorted({row["sparsity"] for row in self.summaries if row["sparsity"] is not None})


def percent(value: float | None) -> str:
    """Write a share."""
    return "-" if value is None else f"{100 * value:.0f} %"


def number(value: float | None) -> str:
    """Write a plain figure."""
    return "-" if value is None else f"{value:.2f}"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [heading, ["---", *["--:"] * (len(heading) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def page() -> str:
    """Return the page for the networks that were evaluated."""
    parts = [INTRODUCTION]
    for name, title in NETWORKS.items():
        report = FOLDER / name / "report.json"
        if report.is_file():
            content = json.loads(report.read_text())
            parts += section(title, Figures(content["facts"], content["summaries"]))
    return "\n".join(parts)


def section(title: str, figures: Figures) -> list[str]:
    """Return the tables of one network."""
    whole = figures.mean("accuracy", "")
    parts = [
        f"## {title}\n",
        f"{figures.facts['images']}; accuracy of the classifier on them {percent(whole)}; NeuronIntGrad with "
        f"{figures.facts['steps of NeuronIntGrad']} steps; torch {figures.facts['torch']}.\n",
    ]
    parts += pathway_tables(figures)
    parts += map_tables(figures)
    return parts


def pathway_tables(figures: Figures) -> list[str]:
    """Return what is measured of pathways, one table per measure over the grid of sparsities."""
    measures: tuple[tuple[str, str, Callable[[float | None], str], bool], ...] = (
        ("agreement", "Agreement", percent, True),
        ("confidence increase", "mIC, share of images whose confidence rises", percent, True),
        ("confidence drop", "mDC, mean drop of the confidence", percent, True),
        ("instance forcing", "Forcing by the pathway of a single image, on an image of another class", percent, True),
        ("instance leak", "P_c leak of the same", number, True),
        ("forcing", "Forcing by class pathways", percent, True),
        ("class agreement", "Agreement under class pathways", percent, True),
        ("leak", "P_c leak of class pathways", number, True),
        ("acIOU", "acIOU", number, False),
        ("cross IoU", "cross IoU", number, False),
        ("dead share", "Share of dead neurons in the pathway", percent, True),
    )
    parts = []
    for measure, caption, write, with_control in measures:
        rows = []
        for method in PATHWAYS:
            cells = []
            for sparsity in figures.sparsities:
                cell = write(figures.mean(measure, method, sparsity))
                if with_control:
                    cell += f" ({write(figures.mean(measure, method, sparsity, control=True))})"
                cells.append(cell)
            rows.append([METHODS[method].label, *cells])
        heading = ["", *(percent(sparsity) for sparsity in figures.sparsities)]
        reference = {"instance leak": "instance leak reference", "leak": "leak reference"}.get(measure)
        if reference:
            value = figures.mean(reference, "neuron_mct", figures.sparsities[0])
            caption += f"; in the whole classifier {number(value)}"
        parts += [f"**{caption}** (n = {figures.count(measure)})\n", table(heading, rows)]
    transferred = [figures.mean(measure, "transferred") for measure in ("agreement", "instance forcing")]
    parts.append(
        f"The stored class pathways of the bundle agree on {percent(transferred[0])} of the images and turn "
        f"{percent(transferred[1])} of the images of another class into their own.\n"
    )
    return parts


def map_tables(figures: Figures) -> list[str]:
    """Return what is measured of maps, linearity and cost."""
    layers = figures.details("spearman")
    steps = [layers[0], layers[len(layers) // 2], layers[-1]]
    cascade = [
        [
            METHODS[name].label,
            *(number(figures.mean(measure, name, detail=step)) for measure in MEASURES for step in steps),
        ]
        for name in MAPS
        if name != "random"
    ]
    positions = [f"{layers.index(step) + 1} of {len(layers)}" for step in steps]
    heading = ["", *(f"{label}, {position}" for label in MEASURES.values() for position in positions)]
    degradation = [
        [METHODS[name].label, *(number(figures.mean(m, name)) for m in ("LeRF area", "MoRF area", "area between"))]
        for name in MAPS
    ]
    parts = [
        f"**Degradation** (n = {figures.count('area between')})\n",
        table(["", "LeRF", "MoRF", "area between"], degradation),
        f"**Cascade of randomised layers from the top** (n = {figures.count('spearman')}; layers {', '.join(steps)})\n",
        table(heading, cascade),
    ]
    if figures.details("pointing game"):
        rows = [
            [METHODS[name].label]
            + [
                number(figures.mean(measure, name, detail=detail))
                for measure in ("pointing game", "energy in box")
                for detail in ("all", "hard")
            ]
            for name in MAPS
        ]
        rows.append(
            [
                "without a map: centre, area",
                *(number(figures.mean("pointing game", "centre", detail=detail)) for detail in ("all", "hard")),
                *(number(figures.mean("energy in box", "box area", detail=detail)) for detail in ("all", "hard")),
            ]
        )
        parts += [
            "**Localisation**\n",
            table(["", "pointing, all", "pointing, hard", "energy, all", "energy, hard"], rows),
        ]
    radii = figures.details("linearity error")
    map_sparsity = next(row["sparsity"] for row in figures.summaries if row["measure"] == "cost" and row["sparsity"])
    linear = [
        [METHODS[name].label, *(number(figures.mean("linearity error", name, sparsity, radius)) for radius in radii)]
        for name, sparsity in (("whole network", None), ("neuron_mct", map_sparsity), ("neuron_intgrad", map_sparsity))
    ]
    parts += [
        f"**Linearity error** at {percent(map_sparsity)} sparsity (n = {figures.count('linearity error')})\n",
        table(["", *(f"radius {radius}" for radius in radii)], linear),
    ]
    costs = [
        [METHODS[row["method"]].label, row["detail"], f"{row['mean']:.1f}"]
        for row in figures.summaries
        if row["measure"] == "cost" and (row["detail"] != "map" or row["method"] != "random")
    ]
    floor = figures.mean("floor", "neuron_intgrad", map_sparsity, "pathway")
    parts += [
        "**Cost in forward passes**, batch 8, one thread\n",
        table(["", "what", "forwards"], costs),
        f"The bare passes of NeuronIntGrad's tails add up to {floor or 0:.1f} forwards.\n",
    ]
    return parts


MEASURES = {"spearman": "Spearman", "absolute spearman": "absolute", "ssim": "SSIM"}

if __name__ == "__main__":
    print(page(), end="")
