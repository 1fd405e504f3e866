"""Wall-clock time by stage."""

import time

import torch


class StageClock:
    """Adds up the seconds spent in each stage; exactly one stage runs at a time.

    Args:
        device: Where the work runs. An accelerator is waited for at every change of stage, so that its time is counted
            where it was caused.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stage = ""
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def switch(self, stage: str) -> None:
        """End the running stage and begin or resume another."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._stage:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def stop(self) -> dict[str, float]:
        """End the running stage and return the seconds of every stage that was passed."""
        self.switch("")
        return self._seconds
