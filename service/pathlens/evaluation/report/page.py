"""The page of a report: its themes in order, each with its plots and tables."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from pathlens.evaluation.observation import Observation, Summary
from pathlens.evaluation.report import panels
from pathlens.evaluation.report.figures import Scale
from pathlens.evaluation.report.glance import cards
from pathlens.evaluation.report.panels import Panel, of
from pathlens.evaluation.report.tables import Column, Table, class_table, stored_class_table, table
from pathlens.evaluation.report.vocabulary import MEASURES, PALETTE, method, percentage, rank

_OWN = ("agreement", "instance forcing", "confidence drop", "confidence increase", "dead share")
_LEAK = ("instance leak", "instance leak reference")
_SHARED = ("class agreement", "forcing", "class confidence drop", "class confidence increase")
_CLASS_LEAK = ("leak", "leak reference")
_AREAS = ("MoRF area", "LeRF area", "area between")
_SIMILARITIES = ("absolute spearman", "spearman", "ssim")
_IN_BOX = ("pointing game", "energy in box")

_SPARSITY = "realised sparsity"
_SPREAD = ("sparsity spread", "lowest sparsity", "highest sparsity")
_STORED = ("transferred", "transferred by frequency")

_PATHWAY = {"method": "Pathway", "sparsity": "Sparsity", "ablation": "Ablation"}
_MAP = {"method": "Map", "ablation": "Ablation"}
_PIXELS = Scale("pixels removed", percent=True)


@dataclass(frozen=True)
class Section:
    """A theme. What it says about itself is in the template, under its anchor.

    Attributes:
        anchor: Its identifier in the page.
        title: Its heading.
        panels: Its plots.
        tables: Its tables.
        legend: Names and swatches of the methods, where the plots do not name them.
        measures: What was measured of it.
        control: Whether a random control is among it.
    """

    anchor: str
    title: str
    panels: tuple[Panel, ...]
    tables: tuple[Table, ...]
    legend: tuple[tuple[str, Markup], ...]
    measures: frozenset[str]
    control: bool


def render_page(
    title: str, facts: Mapping[str, str], summaries: Sequence[Summary], observations: Sequence[Observation]
) -> str:
    """Return a page that stands alone: HTML with its style and its plots inside, and no script.

    Args:
        title: The heading.
        facts: What was measured and how, by name.
        summaries: What the plots and tables show. Those whose mean is not finite are left out.
        observations: Where the figures of single classes are taken from.
    """
    shown = sorted((s for s in summaries if math.isfinite(s.mean)), key=lambda summary: rank(summary.method))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pathlens.evaluation.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        facts=facts,
        accuracy=next(iter(of(shown, "accuracy")), None),
        seconds=next(iter(of(shown, "seconds per forward")), None),
        cards=cards(shown),
        sections={section.anchor: section for section in _sections(shown, observations)},
        palette=PALETTE,
    )


def _sections(summaries: Sequence[Summary], observations: Sequence[Observation]) -> Iterator[Section]:
    def section(
        anchor: str, title: str, measures: Sequence[str], *parts: Iterable[Panel | Table], legend: bool = True
    ) -> Iterator[Section]:
        contents = [part for some in parts for part in some]
        if not contents:
            return
        shown = of(summaries, *measures)
        names = list(dict.fromkeys(summary.method for summary in shown)) if legend else []
        yield Section(
            anchor,
            title,
            tuple(part for part in contents if isinstance(part, Panel)),
            tuple(part for part in contents if isinstance(part, Table)),
            tuple((_legend(name, shown), panels.swatch(name, f"{anchor}-{i}")) for i, name in enumerate(names)),
            frozenset(summary.measure for summary in shown),
            any(summary.control for summary in shown),
        )

    def over_sparsity(measures: Sequence[str], realised: str, y: Scale = panels.SHARE) -> list[Panel]:
        return [panel for name in measures for panel in panels.over_sparsity(summaries, name, realised, y)]

    def columns(*measures: str) -> list[Column]:
        return [Column(name) for name in measures]

    yield from section(
        "faithfulness",
        "Faithfulness",
        (*_OWN, *_LEAK, *_SPREAD),
        over_sparsity(_OWN[:2], _SPARSITY),
        panels.frontier(summaries, *_OWN[:2]),
        panels.beside_reference(summaries, *_LEAK, _SPARSITY),
        over_sparsity(_OWN[2:], _SPARSITY),
        table("Pathways of single images", summaries, _PATHWAY, columns(*_OWN, *_LEAK, _SPARSITY)),
        table("Sparsities that images find for themselves", _free(summaries), _PATHWAY, columns(_SPARSITY, *_SPREAD)),
    )
    yield from section(
        "class-pathways",
        "Class pathways",
        (*_SHARED, *_CLASS_LEAK),
        over_sparsity(_SHARED[:2], "class sparsity"),
        panels.frontier(summaries, *_SHARED[:2]),
        panels.beside_reference(summaries, *_CLASS_LEAK, "class sparsity"),
        over_sparsity(_SHARED[2:], "class sparsity"),
        table("Means over classes", summaries, _PATHWAY, columns(*_SHARED, *_CLASS_LEAK, "class sparsity")),
        stored_class_table(observations, _STORED, columns("class sparsity", *_SHARED[:2], *_CLASS_LEAK)),
        class_table(observations, columns(*_SHARED[:2], *_CLASS_LEAK, "class sparsity")),
    )
    yield from section(
        "consistency",
        "Consistency within a class",
        ("acIOU", "cross IoU"),
        over_sparsity(("acIOU", "cross IoU"), _SPARSITY, panels.UNIT),
        table("Intersection over union", summaries, _PATHWAY, columns("acIOU", "cross IoU")),
    )
    others = sorted(dict.fromkeys(summary.detail for summary in of(summaries, "overlap")), key=rank)
    yield from section(
        "overlap",
        "Overlap of methods",
        ("overlap",),
        panels.overlaps(summaries),
        table(
            "Mean intersection over union",
            summaries,
            {"sparsity": "Sparsity", "method": "Pathway"},
            [Column("overlap", name, method(name).label) for name in others],
        ),
        legend=False,
    )
    yield from section(
        "degradation",
        "Degradation of the input",
        ("MoRF", "LeRF", *_AREAS),
        panels.over_detail(summaries, "MoRF", _PIXELS, Scale()),
        panels.over_detail(summaries, "LeRF", _PIXELS, Scale()),
        panels.bars(summaries, "area between", Scale()),
        table("Areas under the curves", summaries, _MAP, columns(*_AREAS)),
    )
    yield from section(
        "randomisation",
        "Dependence on the weights",
        _SIMILARITIES,
        [panel for name in _SIMILARITIES for panel in _cascade(summaries, name)],
        table(
            "Similarity to the original map",
            summaries,
            _MAP,
            [column for name in _SIMILARITIES for column in _ends(summaries, name)],
        ),
    )
    yield from section(
        "localisation",
        "Localisation",
        _IN_BOX,
        [panel for name in _IN_BOX for panel in panels.bars(summaries, name, Scale(percent=True, limits=(0.0, None)))],
        table(
            "Attention in the box",
            summaries,
            {"method": "Map", "detail": "Images", "ablation": "Ablation"},
            columns(*_IN_BOX),
        ),
        legend=False,
    )
    radii = sorted(dict.fromkeys(summary.detail for summary in of(summaries, "linearity error")), key=float)
    yield from section(
        "linearity",
        "Local linearity",
        ("linearity error",),
        panels.linearity(summaries),
        table(
            "Relative error",
            summaries,
            {**_PATHWAY, "method": "Network"},
            [Column("linearity error", radius, f"Radius {radius}") for radius in radii],
        ),
    )
    yield from section(
        "cost",
        "Cost",
        ("cost", "floor"),
        panels.cost(summaries),
        table(
            "Cost of an explanation",
            summaries,
            {"method": "Method", "detail": "Of", "ablation": "Ablation"},
            columns("cost", "floor"),
        ),
        legend=False,
    )
    retrained = "accuracy after retraining"
    fractions = sorted(dict.fromkeys(summary.detail for summary in of(summaries, retrained)), key=float)
    yield from section(
        "roar",
        "ROAR: remove and retrain",
        (retrained,),
        panels.over_detail(summaries, retrained, _PIXELS, Scale(percent=True)),
        table(
            "Accuracy after retraining, by the share of pixels removed",
            summaries,
            {"method": "Map"},
            [Column(retrained, fraction, percentage(float(fraction))) for fraction in fractions],
        ),
    )
    unknown = dict.fromkeys(summary.measure for summary in summaries if summary.measure not in MEASURES)
    keys = {**_PATHWAY, "method": "Method", "detail": "Detail"}
    yield from section(
        "others",
        "Other measures",
        tuple(unknown),
        [part for name in unknown for part in table(name, of(summaries, name), keys, columns(name))],
        legend=False,
    )


def _free(summaries: Sequence[Summary]) -> list[Summary]:
    """Choose the pathways whose images find their own sparsity."""
    methods = {summary.method for summary in of(summaries, *_SPREAD)}
    return [s for s in summaries if s.method in methods and s.sparsity is None and not s.control]


def _legend(name: str, shown: Sequence[Summary]) -> str:
    """Return the label of a method, with its ablation where the section shows several."""
    ablations = list(dict.fromkeys(s.ablation for s in shown if s.method == name and s.ablation))
    several = len({summary.ablation for summary in shown if summary.ablation}) > 1
    return f"{method(name).label} ({', '.join(ablations)} ablation)" if several and ablations else method(name).label


def _cascade(summaries: Sequence[Summary], name: str) -> Iterator[Panel]:
    x = Scale("layers randomised, from the top", whole=True)
    y = panels.UNIT if name == "absolute spearman" else Scale()
    return panels.over_detail(summaries, name, x, y, lambda detail: float(detail.split()[0]))


def _ends(summaries: Sequence[Summary], name: str) -> list[Column]:
    """Return columns for the first step of the cascade and for the last."""
    steps = sorted({summary.detail for summary in of(summaries, name)})
    short = {"absolute spearman": "Absolute Spearman", "spearman": "Spearman", "ssim": "SSIM"}[name]
    return [Column(name, step, f"{short} after {step}") for step in dict.fromkeys([*steps[:1], *steps[-1:]])]
