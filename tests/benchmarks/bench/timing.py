"""Interleaved timing: every work beside a plain forward pass, in an order that changes from round to round."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

Work = Callable[[], object]

_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """How long a work takes.

    Attributes:
        ratio: Median of its times in units of the forward passes before and after it.
        lower: First quartile of the same.
        upper: Third quartile of the same.
        milliseconds: Median.
        forward_milliseconds: Median of those forward passes.
        runs: How often it ran; after a run that warms up, unless that alone took its time.
    """

    ratio: float
    lower: float
    upper: float
    milliseconds: float
    forward_milliseconds: float
    runs: int

    def row(self) -> dict[str, Any]:
        """Return it for JSON, without digits that mean nothing."""
        return {name: float(f"{value:.4g}") if name != "runs" else value for name, value in asdict(self).items()}


def interleave(
    works: Mapping[str, Work], forward: Work, device: torch.device, rounds: int, seconds: float, seed: int
) -> dict[str, Timing]:
    """Time works in turn, so that whatever else the machine does concerns all of them alike.

    A round runs every work once, in random order, each between two forward passes. There are at least three rounds, or
    as many as may be; a work whose runs have used up its share of the time leaves out the rounds that follow.

    Args:
        works: By name.
        forward: A plain forward pass of the classifier on the same images.
        device: Where they compute. CUDA devices time with their own events.
        rounds: Most of them.
        seconds: For all runs together.
        seed: Of the order.

    Returns:
        One timing for each work.
    """
    share = seconds / max(1, len(works))
    measured: dict[str, list[tuple[float, float]]] = {}
    for name, work in works.items():
        forward()
        before = seconds_of(forward, device)
        first = seconds_of(work, device)
        # What takes so long is not run again to be sure.
        measured[name] = [(first, before)] if first > share else []
    draw, order = random.Random(seed), list(works)
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        draw.shuffle(order)
        before = seconds_of(forward, device)
        for name in order:
            runs = measured[name]
            if runs and sum(spent for spent, _ in runs) + runs[-1][0] > 2 * share:
                continue
            spent = seconds_of(works[name], device)
            after = seconds_of(forward, device)
            runs.append((spent, (before + after) / 2))
            before = after
    return {name: _timing(runs) for name, runs in measured.items()}


def seconds_of(work: Work, device: torch.device) -> float:
    """Time one run."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    began.record()
    work()
    ended.record()
    torch.cuda.synchronize(device)
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1e3


def _timing(runs: list[tuple[float, float]]) -> Timing:
    spent, forwards = np.array(runs).T
    lower, middle, upper = np.percentile(spent / forwards, (25, 50, 75)).tolist()
    return Timing(middle, lower, upper, 1e3 * float(np.median(spent)), 1e3 * float(np.median(forwards)), len(runs))
