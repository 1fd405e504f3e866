"""Which channels of a pathway network are left: those that vary with the image and that something needs."""

import torch
from torch import Tensor, fx

from pathlens.slicing.channels import Channels
from pathlens.slicing.example_run import ExampleRun
from pathlens.slicing.rule import Rule, Step
from pathlens.slicing.rules import rule_for


class Analysis:
    """What is left of every value.

    Args:
        run: The pathway network on the example.

    Attributes:
        rules: For every call that gives a tensor, in order.
        channels: Of every value.
    """

    def __init__(self, run: ExampleRun) -> None:
        subject = run.subject
        self.rules: dict[fx.Node, Rule] = {}
        everything = torch.ones(subject.program.input_shape[0], dtype=torch.bool)
        self.channels: dict[fx.Node, Channels] = {subject.images: Channels(everything)}
        for node in subject.calls:
            if run.is_tensor(node):
                rule = self.rules[node] = rule_for(Step(node, run, self.channels))
                self.channels[node] = rule.channels
        self._needed = {node: torch.zeros_like(channels.varying) for node, channels in self.channels.items()}
        self._needed[subject.output][:] = True
        for node, rule in reversed(self.rules.items()):
            needed = self._needed[node] & rule.channels.varying
            if bool(needed.any()):
                for source, read in zip(rule.sources, rule.needs(needed), strict=True):
                    self._needed[source.node] |= read.any() if source.reads_all else read

    def live(self, node: fx.Node) -> Tensor:
        """Return the channels of a value that vary and that something needs, int64 [L]."""
        return (self._needed[node] & self.channels[node].varying).nonzero()[:, 0]
