"""What a report says at a glance: three questions, answered for every method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pathlens.evaluation.observation import Summary
from pathlens.evaluation.report.panels import of
from pathlens.evaluation.report.vocabulary import measure, method, percentage, rank

_YES = {"good": "Yes", "fair": "In part", "poor": "No"}
_NO = {"good": "No", "fair": "In part", "poor": "Yes"}


@dataclass(frozen=True)
class Verdict:
    """What is found of one method.

    Attributes:
        name: Of the method, for readers.
        at: Which sparsity it is of, such as "80 %" or "its own"; empty where there is none.
        ablation: What stood in for removed neurons; empty where none were.
        rating: "good", "fair" or "poor".
        value: The figure, for readers.
        length: The figure as a percentage, 0 to 100.
        control: That of the random control; None if it was not measured.
    """

    name: str
    at: str
    ablation: str
    rating: str
    value: str
    length: float
    control: float | None


@dataclass(frozen=True)
class Card:
    """A question.

    Attributes:
        question: In a sentence.
        answer: In a few words for each rating that occurs.
        figure: Which figure answers it.
        rule: How the figure is rated.
        verdicts: One per method.
    """

    question: str
    answer: str
    figure: str
    rule: str
    verdicts: tuple[Verdict, ...]


def cards(summaries: Sequence[Summary]) -> list[Card]:
    """Answer the questions about which something was measured."""
    faithful = [
        _verdict(own, control, _faithful(own.mean, control))
        for own, control in _beside_controls(summaries, "agreement")
    ]
    dependent = [_verdict(last, None, _rating(last.mean, 0.3, 0.5)) for last in _after_the_cascade(summaries)]
    forced = {
        name: [
            _verdict(own, control, _unforced(own, kept.get((own.method, own.sparsity))))
            for own, control in _beside_controls(summaries, name)
        ]
        for name, kept in (
            (name, {(own.method, own.sparsity): own.mean for own, _ in _beside_controls(summaries, agreement)})
            for name, agreement in (("instance forcing", "agreement"), ("forcing", "class agreement"))
        )
    }
    few_forced = "no: at most 10 % where 90 % and more keep their own class; yes: 50 % and more"
    questions = [
        (
            "Are the pathways faithful?",
            _YES,
            "Images that keep their class when only the pathway is left",
            "yes: 90 % and more, at least twice the random control; no: less than 50 %, or no more than the control",
            faithful,
        ),
        (
            "Does the pathway of an image carry its answer?",
            _NO,
            "Images of another class that it turns into its own class (forcing)",
            few_forced,
            forced["instance forcing"],
        ),
        (
            "Does the pathway of a class carry its class?",
            _NO,
            "Images of other classes that it turns into its own class (forcing)",
            few_forced,
            forced["forcing"],
        ),
        (
            "Do the maps depend on the weights?",
            _YES,
            "Rank correlation with the map of the fully randomised network, in magnitude",
            "yes: at most 0.3; no: 0.5 and more",
            dependent,
        ),
    ]
    return [
        Card(question, _answer(verdicts, words), figure, rule, tuple(verdicts))
        for question, words, figure, rule, verdicts in questions
        if verdicts
    ]


def _unforced(forcing: Summary, agreement: float | None) -> str:
    """Rate forcing: a pathway that destroys the network forces nothing, and is no explanation for that."""
    rating = _rating(forcing.mean, 0.1, 0.5)
    return "fair" if rating == "good" and (agreement is None or agreement < 0.9) else rating


def _beside_controls(summaries: Sequence[Summary], name: str) -> list[tuple[Summary, float | None]]:
    """Choose for every method the sparsity next to the middle one, and find the mean of its control.

    Where its pathways find their own sparsity, those are chosen as well.
    """
    measured = [summary for summary in of(summaries, name) if summary.method != "random"]
    sparsities = sorted({summary.sparsity for summary in measured if summary.sparsity is not None})
    middle = sparsities[len(sparsities) // 2] if sparsities else 0.0
    controls = {(summary.method, summary.sparsity): summary.mean for summary in measured if summary.control}
    chosen: dict[tuple[str, bool], Summary] = {}
    for summary in sorted(measured, key=lambda s: abs((middle if s.sparsity is None else s.sparsity) - middle)):
        if not summary.control:
            chosen.setdefault((summary.method, summary.sparsity is None), summary)
    return [
        (summary, controls.get((summary.method, summary.sparsity)))
        for summary in sorted(chosen.values(), key=lambda s: (rank(s.method), s.sparsity is None))
    ]


def _after_the_cascade(summaries: Sequence[Summary]) -> list[Summary]:
    """Choose for every map its last step; a random map has no weights to depend on."""
    steps = [summary for summary in of(summaries, "absolute spearman") if summary.method != "random"]
    last = {summary.method: summary for summary in sorted(steps, key=lambda summary: summary.detail)}
    return sorted(last.values(), key=lambda summary: rank(summary.method))


def _rating(value: float, good: float, poor: float) -> str:
    if value <= good:
        return "good"
    return "poor" if value >= poor else "fair"


def _faithful(agreement: float, control: float | None) -> str:
    by_chance = 0.0 if control is None else control
    if agreement >= 0.9 and agreement >= 2 * by_chance:
        return "good"
    return "poor" if agreement < 0.5 or agreement <= by_chance else "fair"


def _verdict(summary: Summary, control: float | None, rating: str) -> Verdict:
    share = measure(summary.measure).percent
    return Verdict(
        name=method(summary.method).label,
        at=_at(summary),
        ablation=summary.ablation,
        rating=rating,
        value=f"{100 * summary.mean:.1f} %" if share else f"{summary.mean:.2f}",
        length=_length(summary.mean),
        control=None if control is None else _length(control),
    )


def _at(summary: Summary) -> str:
    if summary.sparsity is not None:
        return percentage(summary.sparsity)
    # A map has no sparsity at all.
    return "" if summary.measure == "absolute spearman" else "its own"


def _length(value: float) -> float:
    return round(100 * min(1.0, max(0.0, value)), 1)


def _answer(verdicts: Sequence[Verdict], words: Mapping[str, str]) -> str:
    every = [verdict.name for verdict in verdicts]

    def name(verdict: Verdict) -> str:
        return f"{verdict.name} at {verdict.at} sparsity" if every.count(verdict.name) > 1 else verdict.name

    names = {
        word: [name(verdict) for verdict in verdicts if verdict.rating == rating] for rating, word in words.items()
    }
    said = {word: names for word, names in names.items() if names}
    if len(said) == 1:
        return f"{next(iter(said))}."
    return " ".join(f"{word} for {_listed(names)}." for word, names in said.items())


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
