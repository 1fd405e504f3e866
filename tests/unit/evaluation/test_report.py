import csv
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import matplotlib.figure
import numpy as np
import pytest

from pathlens.evaluation.observation import Observation, Summary, summarise
from pathlens.evaluation.report.figures import Line, Scale, line_figure, to_svg
from pathlens.evaluation.report.glance import cards
from pathlens.evaluation.report.page import render_page
from pathlens.evaluation.report.panels import _groups as groups_of_lines
from pathlens.evaluation.report.report import Report, write_report
from pathlens.evaluation.report.tables import CLASS_ROWS, Column, class_table, stored_class_table
from pathlens.evaluation.report.vocabulary import METHODS, PALETTE

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
SPARSITIES = (0.5, 0.8, 0.95)
LAYERS = ("fc", "layer4.1.relu", "layer4.0.relu", "layer3.1.relu", "layer2.0.relu", "relu")
CLASSES = ("0 airplane", "1 <b>truck</b> & $x^2$", "2 =cat", "3 frog", "4 deer, red", "5 ship")
SUBJECTS = 12
FACTS = {
    "Bundle": "digits <i>&amp; more</i>",
    "SHA-256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "Images": "1,000 held out",
    "Granularity": "unit",
    "Ablation": "zero",
    "Seed": "0",
    "Command": "pathlens evaluate digits.bundle images --out report",
}


def faithfulness(generator: np.random.Generator) -> Iterator[Observation]:
    strength = dict(zip(PATHWAYS, (0.97, 0.98, 0.99, 0.9, 0.15), strict=True)) | {"transferred": 0.95}
    for method, best in strength.items():
        for sparsity in (None,) if method == "transferred" else SPARSITIES:
            asked = 0.82 if sparsity is None else sparsity
            for control in (False, True):
                keeps = 0.95 * (1 - asked) ** 1.2 if control or method == "random" else best - 0.4 * asked**12
                forces = 0.12 if control else 0.1 + 0.85 * asked**4 * best
                for subject in range(SUBJECTS):
                    values = {
                        "agreement": float(generator.random() < keeps),
                        "confidence increase": float(generator.random() < 0.6 * keeps),
                        "confidence drop": float(np.clip(generator.normal(1 - keeps, 0.1), 0, 1)),
                        "realised sparsity": min(1.0, asked + 0.02 * generator.random()),
                        "dead share": 0.5 * generator.random() * (control or method in {"greedy_pruning", "random"}),
                        "instance forcing": float(generator.random() < forces),
                        "instance leak": float(forces * generator.random()),
                        "instance leak reference": 0.03 * float(generator.random()),
                    }
                    for measure, value in values.items():
                        yield Observation(measure, value, method, sparsity, control, subject=subject)


def agreement_of_pathways(generator: np.random.Generator) -> Iterator[Observation]:
    for sparsity in SPARSITIES:
        for subject in range(4):
            for method in PATHWAYS:
                own = 0.1 + 0.2 * float(generator.random())
                yield Observation("acIOU", 1 - sparsity / 2 + own / 9, method, sparsity, subject=subject)
                yield Observation("cross IoU", 0.9 - 0.7 * sparsity - own / 9, method, sparsity, subject=subject)
                for other in PATHWAYS:
                    if other != method:
                        overlap = 0.3 + 0.5 * float(generator.random())
                        yield Observation("overlap", overlap, method, sparsity, detail=other, subject=subject)


def class_pathways(generator: np.random.Generator) -> Iterator[Observation]:
    for method in PATHWAYS[:2]:
        for sparsity in SPARSITIES:
            for control in (False, True):
                for subject in CLASSES:
                    noise = 0.1 * float(generator.random())
                    values = {
                        "class agreement": 0.3 - noise if control else 1 - noise / 4,
                        "class confidence increase": 0.5 + noise,
                        "class confidence drop": 0.7 - noise if control else noise,
                        "forcing": 0.1 + noise if control else sparsity - noise,
                        "leak": sparsity * (0.7 + noise),
                        "leak reference": 0.1 * noise,
                    }
                    for measure, value in values.items():
                        yield Observation(measure, value, method, sparsity, control, subject=subject)
                    if not control:
                        yield Observation(
                            "class sparsity", min(1.0, sparsity + noise / 9), method, sparsity, subject=subject
                        )


def degradation(generator: np.random.Generator) -> Iterator[Observation]:
    for rank, method in enumerate(MAPS):
        for subject in range(SUBJECTS):
            worth = 0.0 if method == "random" else 1 - rank / 9
            areas = {}
            for measure, rate in (("MoRF", 3 + 5 * worth), ("LeRF", 3 - 2.2 * worth)):
                curve = []
                for step in range(21):
                    value = 0.9 * math.exp(-rate * step / 20) + float(generator.normal(0, 0.05))
                    curve.append(value)
                    yield Observation(measure, value, method, detail=f"{step / 20:g}", subject=subject)
                areas[measure] = float(np.mean(curve))
                yield Observation(f"{measure} area", areas[measure], method, subject=subject)
            yield Observation("area between", areas["LeRF"] - areas["MoRF"], method, subject=subject)


def randomisation(generator: np.random.Generator) -> Iterator[Observation]:
    for rank, method in enumerate(MAPS):
        for step, layer in enumerate(LAYERS, start=1):
            for subject in range(SUBJECTS):
                similarity = (0.5 + rank / 15) * math.exp(-step / (2 + rank)) + float(generator.normal(0, 0.03))
                similarity = 1.0 if method == "random" else similarity
                for measure, factor in (("absolute spearman", 1.0), ("spearman", 0.7), ("ssim", 0.9)):
                    detail = f"{step:02d} {layer}"
                    yield Observation(measure, factor * similarity, method, detail=detail, subject=subject)


def localisation(generator: np.random.Generator) -> Iterator[Observation]:
    for rank, method in enumerate((*MAPS, "centre", "box area")):
        for detail, ease in (("all", 0.8), ("hard", 0.5)):
            for subject in range(SUBJECTS):
                if method != "box area":
                    hit = float(generator.random() < ease - rank / 30)
                    yield Observation("pointing game", hit, method, detail=detail, subject=subject)
                if method != "centre":
                    energy = ease - rank / 30 + float(generator.normal(0, 0.1))
                    yield Observation("energy in box", energy, method, detail=detail, subject=subject)


def linearity(generator: np.random.Generator) -> Iterator[Observation]:
    for radius in ("0.1", "1.0", "4.0"):
        for subject in range(SUBJECTS):
            curved = 0.2 * float(radius) ** 0.6 * (1 + 0.2 * float(generator.random()))
            yield Observation("linearity error", curved, "whole network", detail=radius, subject=subject)
            for rank, method in enumerate(PATHWAYS):
                for sparsity in (0.8, 0.95):
                    error = curved * (1 - sparsity) * (1 + rank)
                    yield Observation("linearity error", error, method, sparsity, detail=radius, subject=subject)


def cost() -> Iterator[Observation]:
    costs = {"neuron_mct": 3.1, "neuron_intgrad": 180.0, "greedy_pruning": 61.0, "distillation_guided_routing": 640.0}
    for method, passes in costs.items():
        yield Observation("cost", passes, method, 0.8, detail="pathway")
        yield Observation("cost", passes + 3, method, 0.8, detail="pathway + map")
    yield Observation("floor", 95.0, "neuron_intgrad", 0.8, detail="pathway")
    yield Observation("cost", 3.2, "transferred", 0.8, detail="pathway + map")
    for method, passes in (("gradient", 2.9), ("integrated_gradients", 148.0), ("grad_cam", 1.7)):
        yield Observation("cost", passes, method, detail="map")
    yield Observation("seconds per forward", 0.0123)


def retraining(generator: np.random.Generator) -> Iterator[Observation]:
    for rank, method in enumerate(MAPS):
        for fraction in ("0.1", "0.3", "0.5", "0.7", "0.9"):
            for seed in range(3):
                lost = float(fraction) * (0.3 if method == "random" else 0.7 - rank / 20)
                value = 0.92 - lost + float(generator.normal(0, 0.01))
                yield Observation("accuracy after retraining", value, method, detail=fraction, subject=seed)


THEMES: dict[str, Callable[[np.random.Generator], Iterable[Observation]]] = {
    "faithfulness": faithfulness,
    "consistency": lambda generator: (o for o in agreement_of_pathways(generator) if o.measure != "overlap"),
    "overlap": lambda generator: (o for o in agreement_of_pathways(generator) if o.measure == "overlap"),
    "class-pathways": class_pathways,
    "degradation": degradation,
    "randomisation": randomisation,
    "localisation": localisation,
    "linearity": linearity,
    "cost": lambda generator: cost(),
    "roar": retraining,
    "others": lambda generator: [Observation("warmth", 0.25, "a <new> method")],
}


def report_of(*themes: str) -> Report:
    generator = np.random.default_rng(0)
    observations = [Observation("accuracy", float(n % 10 > 0), subject=n) for n in range(200)]
    for theme in themes:
        observations += THEMES[theme](generator)
    return Report("Digits & <letters>", FACTS, summarise(observations), observations)


def page_of(report: Report) -> str:
    return render_page(report.title, report.facts, report.summaries, report.observations)


@cache
def whole_page() -> str:
    return page_of(report_of(*THEMES))


class Reader(HTMLParser):
    """Checks that tags balance, and collects what the tests ask for."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input", "base", "source"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.style = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text.append(data)

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]

    @property
    def sections(self) -> set[str | None]:
        return {attributes.get("id") for tag, attributes in self.elements if tag == "section"}


class TestPage:
    def test_closes_every_element_that_it_opens(self) -> None:
        reader = Reader(whole_page())
        assert reader.open == []
        assert len(reader.elements) > 1000

    def test_loads_nothing(self) -> None:
        reader = Reader(whole_page())
        loading = {"script", "link", "iframe", "object", "embed", "img", "image", "base", "audio", "video", "source"}
        assert not loading & {tag for tag, _ in reader.elements}
        assert reader.attributes("src") == []
        references = [
            value
            for tag, attributes in reader.elements
            for name in ("href", "xlink:href")
            if (value := attributes.get(name)) and tag != "a"
        ]
        assert references
        assert all(reference.startswith("#") for reference in references)
        for style in (reader.style, *reader.attributes("style"), *reader.attributes("clip-path")):
            assert "@import" not in style
            assert re.findall(r"url\((?!#)", style) == []

    def test_links_to_papers_alone(self) -> None:
        links = [attributes["href"] or "" for tag, attributes in Reader(whole_page()).elements if tag == "a"]
        assert all(link.startswith(("#", "https://arxiv.org/abs/")) for link in links)

    def test_refers_only_to_what_it_holds(self) -> None:
        reader = Reader(whole_page())
        held = reader.attributes("id")
        assert len(held) == len(set(held))
        targets = {value[1:] for name in ("href", "xlink:href") for value in reader.attributes(name) if value[0] == "#"}
        clips = set(re.findall(r"url\(#([^)]+)\)", whole_page()))
        assert clips
        assert targets | clips <= set(held)

    def test_shows_labels_as_they_are_written(self) -> None:
        reader = Reader(whole_page())
        text = "".join(reader.text)
        assert {tag for tag, _ in reader.elements}.isdisjoint({"i&amp", "letters", "new"})
        for label in (CLASSES[1], "Digits & <letters>", FACTS["Bundle"], "a <new> method"):
            assert label in text

    def test_shows_a_plot_with_any_method_name(self) -> None:
        name = '</svg><script>$\\frac$ & "x" {{ 1 }}'
        observations = [
            Observation("overlap", 0.5, name, 0.8, detail="random"),
            Observation("pointing game", 0.5, name, detail="all"),
        ]
        page = page_of(Report("Names", {}, summarise(observations), observations))
        reader = Reader(page)
        assert reader.open == []
        assert "script" not in {tag for tag, _ in reader.elements}
        assert "".join(reader.text).count(name) > 2

    def test_has_a_section_for_every_theme_and_a_link_to_it(self) -> None:
        reader = Reader(whole_page())
        assert reader.sections == {*THEMES, "glance"}
        assert {f"#{anchor}" for anchor in (*THEMES, "glance")} <= set(reader.attributes("href"))

    @pytest.mark.parametrize("first", [0, 1])
    def test_leaves_out_what_was_not_measured(self, first: int) -> None:
        # Every second theme, so that each is once there and once not.
        measured = list(THEMES)[first::2]
        reader = Reader(page_of(report_of(*measured)))
        assert reader.sections - {"glance"} == set(measured)
        assert set(reader.attributes("href")) & {f"#{theme}" for theme in THEMES} == {f"#{theme}" for theme in measured}

    def test_of_nothing_is_a_page(self) -> None:
        reader = Reader(page_of(Report("Nothing", {}, [], [])))
        assert reader.open == []
        assert reader.sections == set()

    def test_warns_where_agreement_stands_alone(self) -> None:
        agreement = Summary("agreement", "neuron_mct", 0.8, False, "", 0.9, 0.1, 10)
        forcing = replace(agreement, measure="instance forcing")
        assert "Forcing was not measured" in page_of(Report("Alone", {}, [agreement], []))
        assert "Forcing was not measured" not in page_of(Report("Beside", {}, [agreement, forcing], []))

    def test_names_known_methods_for_readers(self) -> None:
        text = "".join(Reader(whole_page()).text)
        assert "DGR" in text
        assert "distillation_guided_routing" not in text

    def test_leaves_out_means_that_are_not_finite(self) -> None:
        good = Summary("agreement", "neuron_mct", 0.8, False, "", 0.5, 0.1, 10)
        bad = [replace(good, sparsity=0.9, mean=mean) for mean in (math.nan, math.inf)]
        both = Reader(page_of(Report("Not finite", {}, [good, *bad], [])))
        assert "".join(both.text) == "".join(Reader(page_of(Report("Not finite", {}, [good], []))).text)

    def test_shows_percentages_with_their_standard_error_and_count(self) -> None:
        summary = Summary("agreement", "neuron_mct", 0.8, False, "", 0.9312, 0.0081, 977)
        text = re.sub(r"\s+", " ", " ".join(Reader(page_of(Report("One", {}, [summary], []))).text))
        assert "80 % 93.1 ± 0.8 977" in text

    def test_dashes_the_random_control(self) -> None:
        own = Summary("agreement", "neuron_mct", 0.8, False, "", 0.9, 0.1, 10)
        control = replace(own, control=True, mean=0.1)
        dashes = [Reader(page_of(Report("", {}, of, []))).attributes("style") for of in ([own], [own, control])]
        assert [any("stroke-dasharray" in style for style in styles) for styles in dashes] == [False, True]

    def test_lists_the_classes_with_the_highest_forcing(self) -> None:
        observations = [
            Observation("forcing", number / 100, method, 0.8, subject=f"class {number}")
            for method in PATHWAYS[:2]
            for number in range(CLASS_ROWS)
        ]
        (table,) = class_table(observations, [Column("forcing")])
        assert len(table.rows) == CLASS_ROWS
        assert [row.keys for row in table.rows[:3]] == [
            (f"class {CLASS_ROWS - 1}", "NeuronMCT"),
            (f"class {CLASS_ROWS - 1}", "NeuronIntGrad"),
            (f"class {CLASS_ROWS - 2}", "NeuronMCT"),
        ]

    def test_states_the_ablation_of_every_figure(self) -> None:
        summary = Summary("agreement", "neuron_mct", 0.8, False, "", 0.9312, 0.0081, 977, "mean")
        text = re.sub(r"\s+", " ", " ".join(Reader(page_of(Report("One", {}, [summary], []))).text))
        assert "80 % mean 93.1 ± 0.8 977" in text
        assert "at 80 % sparsity, mean ablation" in text

    def test_tells_methods_of_different_ablations_apart(self) -> None:
        own = Summary("agreement", "neuron_mct", 0.8, False, "", 0.9, 0.1, 10, "zero")
        stored = replace(own, method="transferred", sparsity=None, ablation="optimal")
        text = "".join(Reader(page_of(Report("Two", {}, [own, stored], []))).text)
        assert "Transferred (optimal ablation)" in text
        alone = replace(stored, ablation="zero")
        assert "(zero ablation)" not in "".join(Reader(page_of(Report("One", {}, [own, alone], []))).text)

    def test_lists_both_masks_of_a_stored_class_beside_each_other(self) -> None:
        stored = ("transferred", "transferred by frequency")
        observations = [
            Observation(measure, number / 10 + place / 100, method, None, subject=f"class {number}", ablation="mean")
            for number in range(3)
            for place, method in enumerate(stored)
            for measure in ("class sparsity", "class agreement", "forcing")
        ]
        strangers = [
            replace(observations[0], sparsity=0.8),
            replace(observations[0], method="generated"),
            replace(observations[0], control=True),
        ]
        columns = [Column("class sparsity"), Column("class agreement"), Column("forcing")]
        (table,) = stored_class_table([*strangers, *observations], stored, columns)
        assert [row.keys for row in table.rows] == [
            (f"class {number}", label, "mean")
            for number in (2, 1, 0)
            for label in ("Transferred", "Transferred by frequency")
        ]
        assert [cell.mean for cell in table.rows[0].cells] == ["20.0"] * 3
        assert "Stored class pathways" in page_of(Report("Classes", {}, summarise(observations), observations))

    def test_shows_how_the_sparsities_that_images_find_differ(self) -> None:
        own = Summary("realised sparsity", "generated", None, False, "", 0.7, 0.01, 10)
        spread = [
            replace(own, measure=measure, mean=mean, standard_error=None, count=1)
            for measure, mean in (("sparsity spread", 0.05), ("lowest sparsity", 0.6), ("highest sparsity", 0.8))
        ]
        text = re.sub(r"\s+", " ", " ".join(Reader(page_of(Report("Own", {}, [own, *spread], []))).text))
        assert "GEN-CNP 70.0 ± 1.0 5.0 60.0 80.0" in text
        assert "the point that stands alone" in text

    def test_calls_the_sparsity_of_the_whole_network_none(self) -> None:
        whole = Summary("linearity error", "whole network", None, False, "0.5", 0.5, None, 4)
        pathway = replace(whole, method="generated", ablation="zero")
        grid = replace(pathway, method="neuron_mct", sparsity=0.8)
        text = re.sub(r"\s+", " ", " ".join(Reader(page_of(Report("Three", {}, [whole, pathway, grid], []))).text))
        assert "GEN-CNP own zero" in text
        assert "Whole network none" in text

    def test_does_not_join_pathways_of_their_own_sparsity_with_those_of_the_grid(self) -> None:
        grid = [Summary("agreement", "generated", s, False, "", 0.9, 0.1, 10) for s in (0.5, 0.8)]
        own = replace(grid[0], sparsity=None)
        lines = {tuple(s.sparsity for s in group) for _, _, group in groups_of_lines([grid[0], own, grid[1]])}
        assert lines == {(0.5, 0.8), (None,)}


class TestGlance:
    def answers(self, *summaries: Summary) -> list[str]:
        return [card.answer for card in cards(summaries)]

    def agreement(self, mean: float, method: str = "neuron_mct", control: bool = False) -> Summary:
        return Summary("agreement", method, 0.8, control, "", mean, None, 10)

    def forcing(self, mean: float, method: str = "neuron_mct") -> Summary:
        return Summary("forcing", method, 0.8, False, "", mean, None, 10)

    def test_agreement_no_better_than_the_control_is_not_faithful(self) -> None:
        assert self.answers(self.agreement(0.95), self.agreement(0.96, control=True)) == ["No."]

    def test_high_agreement_far_above_the_control_is_faithful(self) -> None:
        assert self.answers(self.agreement(0.95), self.agreement(0.1, control=True)) == ["Yes."]

    def test_tells_methods_apart(self) -> None:
        answers = self.answers(
            self.agreement(0.95), self.agreement(0.7, "neuron_intgrad"), self.agreement(0.2, "greedy_pruning")
        )
        assert answers == ["Yes for NeuronMCT. In part for NeuronIntGrad. No for Greedy pruning."]

    def test_a_class_pathway_that_forces_carries_its_class(self) -> None:
        assert self.answers(self.forcing(1.0)) == ["Yes."]

    @pytest.mark.parametrize(("agreement", "answer"), [(0.95, "No."), (0.05, "In part.")])
    def test_a_class_pathway_that_forces_nothing_explains_only_if_it_keeps_its_class(
        self, agreement: float, answer: str
    ) -> None:
        kept = Summary("class agreement", "neuron_mct", 0.8, False, "", agreement, None, 10)
        assert self.answers(self.forcing(0.05), kept) == [answer]

    def test_looks_at_the_end_of_the_cascade(self) -> None:
        steps = [
            Summary("absolute spearman", "gradient", None, False, f"{step:02d} layer", mean, None, 10)
            for step, mean in ((10, 0.1), (2, 0.6), (1, 0.9))
        ]
        assert self.answers(*steps) == ["Yes."]

    def test_does_not_ask_whether_a_random_map_depends_on_weights(self) -> None:
        assert cards([Summary("absolute spearman", "random", None, False, "01 fc", 1.0, None, 10)]) == []

    def test_shows_generated_pathways_at_the_sparsity_of_the_others_and_at_their_own(self) -> None:
        grid = self.agreement(0.95, "generated")
        own = replace(grid, sparsity=None, mean=0.6)
        (card,) = cards([self.agreement(0.95), grid, own])
        assert [verdict.at for verdict in card.verdicts] == ["80 %", "80 %", "its own"]
        assert card.answer == (
            "Yes for NeuronMCT and GEN-CNP at 80 % sparsity. In part for GEN-CNP at its own sparsity."
        )

    def test_asks_agreement_of_the_same_sparsity_as_forcing(self) -> None:
        forcing = [self.forcing(0.05, "generated"), replace(self.forcing(0.05, "generated"), sparsity=None)]
        kept = [
            Summary("class agreement", "generated", sparsity, False, "", mean, None, 10)
            for sparsity, mean in ((0.8, 0.95), (None, 0.05))
        ]
        (card,) = cards([*forcing, *kept])
        assert [verdict.rating for verdict in card.verdicts] == ["good", "fair"]

    def test_takes_the_middle_sparsity(self) -> None:
        grid = [replace(self.agreement(mean), sparsity=s) for s, mean in ((0.5, 1.0), (0.8, 0.7), (0.99, 0.1))]
        (verdict,) = cards(grid)[0].verdicts
        assert (verdict.at, verdict.value) == ("80 %", "70.0 %")


class TestFigures:
    def line(self) -> matplotlib.figure.Figure:
        lines = [Line("neuron_mct", [(0.5, 0.9, 0.1), (0.8, 0.7, 0.1)]), Line("random", [(0.5, 0.2, 0.0)], "dashed")]
        return line_figure(lines, Scale("x", percent=True), Scale())

    def test_take_their_colours_from_the_page(self) -> None:
        svg = to_svg(self.line(), "one")
        assert "var(--method-0)" in svg
        assert "currentColor" in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()

    def test_leave_the_settings_of_matplotlib_alone(self) -> None:
        before = dict(matplotlib.rcParams)
        to_svg(self.line(), "one")
        assert dict(matplotlib.rcParams) == before

    def test_do_not_depend_on_the_settings_of_matplotlib(self) -> None:
        expected = to_svg(self.line(), "one")
        with matplotlib.rc_context({"axes.linewidth": 9.0, "xtick.major.size": 20.0, "svg.fonttype": "path"}):
            assert to_svg(self.line(), "one") == expected

    def test_share_no_identifier(self) -> None:
        first, second = (set(re.findall(r' id="([^"]+)"', to_svg(self.line(), name))) for name in ("one", "two"))
        assert first
        assert not first & second

    def test_dash_the_control_alone(self) -> None:
        axes = self.line().axes[0]
        assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]


def luminance(colour: str) -> float:
    channels = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_every_colour_stands_out_from_the_page(theme: int) -> None:
    page = luminance(re.findall(r"--card: (#[0-9a-f]{6})", whole_page())[theme])
    for pair in PALETTE:
        low, high = sorted([page, luminance(pair[theme])])
        assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize(
    "together",
    [[*PATHWAYS, "transferred", "transferred by frequency", "generated"], [*MAPS, "transferred", "generated"]],
)
def test_methods_of_one_plot_differ_in_colour_and_marker(together: Sequence[str]) -> None:
    assert len({METHODS[name].colour for name in together}) == len(together)
    assert len({METHODS[name].marker for name in together}) == len(together)


class TestFiles:
    def test_hold_every_summary(self, tmp_path: Path) -> None:
        report = report_of("roar", "cost")
        write_report(report, tmp_path)
        contents = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert contents["title"] == report.title
        assert contents["facts"] == FACTS
        assert [Summary(**values) for values in contents["summaries"]] == report.summaries

    @pytest.mark.parametrize("name", ["summaries", "observations"])
    def test_hold_a_row_for_each(self, tmp_path: Path, name: str) -> None:
        report = report_of("roar", "cost")
        write_report(report, tmp_path)
        with (tmp_path / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        expected = [
            {key: "" if value is None else str(value) for key, value in asdict(row).items()}
            for row in getattr(report, name)
        ]
        assert rows == expected

    def test_hold_no_number_that_is_none(self, tmp_path: Path) -> None:
        def refuse(constant: str) -> None:
            raise AssertionError(constant)

        observations = [Observation("agreement", value, "neuron_mct", 0.8) for value in (math.nan, 0.5, math.inf)]
        summaries = [Summary("agreement", "neuron_mct", 0.8, False, "", math.nan, math.inf, 2)]
        write_report(Report("Not finite", {}, summaries, observations), tmp_path)
        text = (tmp_path / "report.json").read_text(encoding="utf-8")
        (summary,) = json.loads(text, parse_constant=refuse)["summaries"]
        assert (summary["mean"], summary["standard_error"], summary["count"]) == (None, None, 2)
        with (tmp_path / "observations.csv").open(encoding="utf-8", newline="") as file:
            assert [row["value"] for row in csv.DictReader(file)] == ["", "0.5", ""]

    def test_are_the_same_bytes_in_another_process(self, tmp_path: Path) -> None:
        write_report(report_of("roar", "localisation"), tmp_path / "here")
        code = (
            "import importlib.util, pathlib, sys\n"
            "specification = importlib.util.spec_from_file_location('generated_report', sys.argv[1])\n"
            "module = importlib.util.module_from_spec(specification)\n"
            "specification.loader.exec_module(module)\n"
            "report = module.report_of('roar', 'localisation')\n"
            "module.write_report(report, pathlib.Path(sys.argv[2]))\n"
        )
        command = [sys.executable, "-c", code, __file__, str(tmp_path / "there")]
        subprocess.run(command, check=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": "7"})
        for path in (tmp_path / "here").iterdir():
            assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes(), path.name

    def test_are_four_and_nothing_is_left_beside_them(self, tmp_path: Path) -> None:
        write_report(report_of("cost"), tmp_path / "new" / "folder")
        names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
        assert names == ["observations.csv", "report.html", "report.json", "summaries.csv"]

    def test_stay_as_they_were_when_a_report_cannot_be_drawn(self, tmp_path: Path) -> None:
        write_report(report_of("cost"), tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        radius = [Summary("linearity error", "neuron_mct", 0.8, False, "no radius", 0.5, None, 1)]
        with pytest.raises(ValueError, match="no radius"):
            write_report(Report("Broken", {}, radius, []), tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
