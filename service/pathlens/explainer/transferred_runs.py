"""Passes through stored pathways: those of a class with a slice through it, all others together through masks."""

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import PathwayRun
from pathlens.explainer.backend import Backend
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.slicing.cache import SliceCache
from pathlens.slicing.slice import Slice

_Result = TypeVar("_Result")


def classify_transferred(backend: Backend, bank: ClassPathwayBank, images: Tensor, target: Tensor) -> Tensor:
    """Classify each image through the stored pathway of its target: f(x; m), float32 [B, K].

    Args:
        backend: Has the slices, and runs the pathways that have none.
        bank: The stored pathways.
        images: x.
        target: A class with a stored pathway for each image, int64 [B].
    """

    def sliced(part: Slice, rows: list[int]) -> Tensor:
        return part.logits(images[rows])

    def masked(rows: list[int]) -> Tensor:
        return backend.pathway_logits(images[rows], bank.transfer(target[rows].tolist()))

    results, places = _run_parts(backend.slices, target, sliced, masked)
    return torch.cat(results)[places]


def run_transferred(backend: Backend, bank: ClassPathwayBank, images: Tensor, target: Tensor) -> PathwayRun:
    """Run the stored pathway of each image's target forward and backward; arguments as of `classify_transferred`."""

    def sliced(part: Slice, rows: list[int]) -> PathwayRun:
        return part.run(images[rows], target[rows])

    def masked(rows: list[int]) -> PathwayRun:
        return backend.pathway_run(images[rows], target[rows], bank.transfer(target[rows].tolist()))

    runs, places = _run_parts(backend.slices, target, sliced, masked)
    return PathwayRun(
        torch.cat([run.logits for run in runs])[places], torch.cat([run.gradient for run in runs])[places], None
    )


def _run_parts(
    slices: SliceCache,
    target: Tensor,
    sliced: Callable[[Slice, list[int]], _Result],
    masked: Callable[[list[int]], _Result],
) -> tuple[list[_Result], list[int]]:
    """Run the rows of each class with its slice, and at last those without one; tell where each row was put."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(target.tolist()):
        rows_of[label].append(row)
    results: list[_Result] = []
    order: list[int] = []
    by_images = sorted(rows_of, key=lambda label: len(rows_of[label]), reverse=True)
    found = slices.get_all({label: len(rows_of[label]) for label in by_images})
    for label, part in found.items():
        try:
            results.append(sliced(part, rows_of[label]))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:
            slices.give_up(label)
        else:
            order += rows_of.pop(label)
    if rest := [row for rows in rows_of.values() for row in rows]:
        results.append(masked(rest))
        order += rest
    return results, sorted(range(len(order)), key=order.__getitem__)
