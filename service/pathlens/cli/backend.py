"""`pathlens backend`."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch

from pathlens.bundle.store import Bundle, load_bundle, save_bundle
from pathlens.errors import ExportError, PathlensError
from pathlens.explainer import Explainer
from pathlens.explainer.agreement import SCORE_TOLERANCE, Agreement, compare
from pathlens.explanation import ExplanationOptions, ExplanationRequest, Output, Targets
from pathlens.onnx_export.graphs import serving_graphs
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.pathways.neuron_mct import neuron_mct

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_BATCH = 8
_MOST_RUNS, _SECONDS = 20, 3.0
"""For each measured time, whichever comes first."""


@click.command("backend")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("backend", type=click.Choice(["onnxruntime", "torch"]))
def command(bundle: Path, backend: str) -> None:
    """Choose what computes where BUNDLE is served on the CPU: ONNX Runtime or PyTorch.

    With onnxruntime, the stages of an explanation are written into the bundle as ONNX graphs and compared with PyTorch
    on random images; then both are timed. The bundle is replaced as a whole, or not at all if the graphs are wrong. A
    warning says where rounding decided otherwise, about a neuron or a map. With torch, the graphs are taken out again.
    Pack the bundle anew afterwards.

    On GPUs, and for contributions (NeuronMCT, NeuronIntGrad, top neurons, linearity), PyTorch computes in any case.

    \b
    Examples:
      pathlens backend build/digits/bundle onnxruntime
      pathlens backend build/digits/bundle torch
    """  # noqa: D301
    stored = load_bundle(bundle)
    if backend == "torch":
        chosen = replace(stored, graphs=None)
    else:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise click.ClickException(f"{', '.join(missing)} missing. Install it: pip install 'pathlens[onnx]'")
        chosen = _with_graphs(stored)
    click.echo(f"{bundle}  SHA-256 {save_bundle(chosen, bundle)}")


def _with_graphs(stored: Bundle) -> Bundle:
    click.echo("Writing the graphs", err=True)
    subject = ExplainedClassifier(stored.classifier, stored.bank, stored.generator)
    graphs = serving_graphs(subject).stamped(stored.classifier.fingerprint)
    chosen = replace(stored, graphs=graphs)
    by_torch, by_onnx_runtime = replace(stored, graphs=None).explainer(), chosen.explainer()
    pictures = _pictures(stored)
    _check(by_torch, by_onnx_runtime, pictures)
    click.echo(f"Explain with map, threads: {torch.get_num_threads()}")
    for name, batch in (("one image", pictures[:1]), (f"batch of {_BATCH}", pictures)):
        seconds = _median_seconds((by_torch, by_onnx_runtime), batch)
        click.echo(f"  {name:10}  PyTorch {seconds[0] * 1e3:.3g} ms  ONNX Runtime {seconds[1] * 1e3:.3g} ms")
    return chosen


def _pictures(stored: Bundle) -> list[np.ndarray]:
    draw, size = np.random.default_rng(0), (stored.preprocessing.height, stored.preprocessing.width, 3)
    return [draw.integers(0, 256, size, dtype=np.uint8) for _ in range(_BATCH)]


def _check(by_torch: Explainer, by_onnx_runtime: Explainer, pictures: Sequence[np.ndarray]) -> None:
    classifier, bank = by_torch.classifier, by_torch.bank
    images = torch.stack([torch.from_numpy(by_torch.preprocessing.apply(picture)) for picture in pictures])
    target = by_torch.backend.logits(images).argmax(1)
    pathway = neuron_mct(classifier, images, target, bank.granularity).select(by_torch.default_sparsity)
    pathway = pathway.under(bank.replacement_of(target))
    scores = None
    if by_torch.generator is not None:
        generation = by_torch.generator(classifier.observe(images).activations)
        scores = torch.cat([score.flatten(1) for score in generation.scores], 1)
    # Graphs may be right for one size of the batch alone.
    for size, how in ((1, "one by one"), (len(images), "in one batch")):
        parts = []
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            arguments = images[rows], target[rows], pathway[rows], None if scores is None else scores[rows]
            parts.append(compare(by_onnx_runtime.backend, by_torch.backend, *arguments))
        _judge(parts, pathway.neurons, f"on {len(images)} random images, {how}")


def _judge(parts: Sequence[Agreement], neurons_of_image: int, which: str) -> None:
    logits, maps = max(part.logits for part in parts), [change for part in parts for change in part.maps]
    neurons, all_neurons = sum(part.neurons for part in parts), len(maps) * neurons_of_image
    same = sum(change <= Measure.MAP.tolerance for change in maps)
    found = (
        f"logits differ by at most {logits:.1e}, {neurons} of {all_neurons} neurons differ, {same} of {len(maps)} maps "
        f"agree within {Measure.MAP.tolerance:g}, the worst within {max(maps):.1e}"
    )
    right = (
        logits <= Measure.LOGITS.tolerance
        and max(part.score for part in parts) <= SCORE_TOLERANCE
        and statistics.median(maps) <= Measure.MAP.tolerance
    )
    if not right:
        raise ExportError(f"ONNX Runtime does not answer as PyTorch does {which}: {found}. The bundle is as it was.")
    click.echo(f"As PyTorch {which}: {found}")
    if neurons:
        click.echo(
            f"Warning: {neurons} of {all_neurons} neurons of generated pathways differ. Their scores are so near to 0 "
            "that rounding decides whether they are kept.",
            err=True,
        )
    if same < len(maps):
        click.echo(
            f"Warning: {len(maps) - same} of {len(maps)} maps differ by more than {Measure.MAP.tolerance:g}. Where an "
            "input of an activation function lies at its kink, rounding decides about the gradient.",
            err=True,
        )


def _median_seconds(explainers: Sequence[Explainer], pictures: Sequence[np.ndarray]) -> list[float]:
    bank = explainers[0].bank
    options = ExplanationOptions(source=explainers[0].sources[0], outputs=frozenset({Output.MAP}))
    if len(bank):
        # Not every class has a stored pathway.
        options = replace(options, targets=Targets(class_indices=(next(iter(bank.counts)),)))
    requests = [ExplanationRequest(picture, options) for picture in pictures]
    measured: list[list[float]] = [[] for _ in explainers]
    end = time.perf_counter() + _SECONDS
    while len(measured[0]) < 2 or (len(measured[0]) <= _MOST_RUNS and time.perf_counter() < end):
        # In turn, so that what else the machine does meanwhile concerns all alike.
        for explainer, seconds in zip(explainers, measured, strict=True):
            started = time.perf_counter()
            for answer in explainer.answer(requests):
                if isinstance(answer, PathlensError):
                    raise answer
            seconds.append(time.perf_counter() - started)
    # The first run warms up.
    return [statistics.median(seconds[1:]) for seconds in measured]
