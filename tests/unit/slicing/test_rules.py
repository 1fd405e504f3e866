"""Every kind of call is cut exactly, and really cut: what follows it reads no channel that is removed."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.pathway import Pathway
from sliced import REPLACEMENTS, assert_equals_mask, drawn, kernels, operators
from small_networks import CLASSES, images, seeded

WIDTH = 8
KEPT = (0, 3, 4, 6)
"""Channels of the first tap that the pathways of these tests keep."""


class Parts(nn.Module):
    """A convolution and its tap, what is tested, and a convolution that reads it."""

    def __init__(self, body: "Body", width: int) -> None:
        super().__init__()
        self.stem, self.other, self.body = nn.Conv2d(3, WIDTH, 3), nn.Conv2d(3, WIDTH, 3, padding=1), body
        self.depthwise = nn.Conv2d(WIDTH, 2 * WIDTH, 3, padding=1, groups=WIDTH)
        self.grouped = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=2)
        self.norm, self.line = nn.BatchNorm2d(WIDTH), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.norm.running_mean.normal_()  # type: ignore[union-attr]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        self.layer_scale, self.squeeze = nn.Parameter(torch.randn(WIDTH, 1, 1)), nn.Conv2d(WIDTH, WIDTH, 1)
        self.columns = nn.Parameter(torch.randn(WIDTH))
        self.positions, self.prelu = nn.Parameter(torch.randn(1, WIDTH, 6, 6)), nn.PReLU(WIDTH)
        nn.init.uniform_(self.prelu.weight, 0.1, 0.5)
        self.reader, self.linear = nn.Conv2d(width, 5, 1), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(self, F.relu(self.stem(x)))
        logits: Tensor = self.linear(self.reader(maps).mean((2, 3)))
        return logits


Body = Callable[[Parts, Tensor], Tensor]


def gate(net: Parts, x: Tensor) -> Tensor:
    return x * torch.sigmoid(net.squeeze(x.mean((2, 3), keepdim=True)))


def shuffle(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)


def swap(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    return torch.cat([other, one], 1)


def across_rows(y: Tensor) -> Tensor:
    """Combine rows, [H, B, W, C], over what looks like a dimension of positions."""
    return y * y.mean(2, keepdim=True).expand(-1, -1, 6, -1)


def twice(y: Tensor) -> Tensor:
    return y + y


# How many channels the body gives, and how many of them are left.
BODIES: dict[str, tuple[Body, int, int]] = {
    "an activation": (lambda net, x: torch.tanh(x - 1), 8, 4),
    "several numbers": (lambda net, x: 1 - torch.clamp(2 * x + 1, 0.1, 3) / 3, 8, 4),
    "an activation with a weight per channel": (lambda net, x: net.prelu(x - 1), 8, 4),
    "batch norm": (lambda net, x: net.norm(x), 8, 4),
    "layer scale": (lambda net, x: x + net.layer_scale * x, 8, 4),
    "a weight for each position": (lambda net, x: x.sub(net.positions), 8, 4),
    "a weight that is computed": (lambda net, x: x / net.layer_scale.exp().view(1, WIDTH, 1, 1), 8, 4),
    "maximum pooling": (lambda net, x: F.max_pool2d(x, 3, 2, 1), 8, 4),
    "average pooling": (lambda net, x: F.avg_pool2d(x, 2), 8, 4),
    "adaptive pooling": (lambda net, x: F.adaptive_max_pool2d(F.adaptive_avg_pool2d(x, 4), 2), 8, 4),
    "enlarging": (lambda net, x: F.interpolate(x, scale_factor=2), 8, 4),
    "margins": (lambda net, x: F.pad(F.pad(x, (1, 1, 2, 0)), (1, 1, 1, 1), mode="reflect"), 8, 4),
    "margins of ones": (lambda net, x: F.pad(x, (1, 1, 2, 0), value=1.0), 8, 4),
    "more channels": (lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 3)), 13, 4),
    "more channels of ones and margins": (lambda net, x: F.pad(x, (1, 0, 0, 1, 2, 3), value=1.0), 13, 4),
    "fewer channels by a pad": (lambda net, x: F.pad(x, (0, 0, 0, 0, -1, -2)), 5, 2),
    "every other position": (lambda net, x: x[:, :, ::2, 1::2], 8, 4),
    "some channels": (lambda net, x: x[:, 2:7], 5, 3),
    "every other channel": (lambda net, x: x[:, ::2], 4, 3),
    "halves": (lambda net, x: swap(x), 8, 4),
    "parts of different sizes": (lambda net, x: torch.cat(torch.split(x, [1, 5, 2], 1)[::2], 1), 3, 2),
    "a split of positions": (lambda net, x: x.chunk(2, 3)[1], 8, 4),
    "channels side by side": (lambda net, x: torch.cat([x, x.neg()], 1), 16, 8),
    "positions side by side": (lambda net, x: torch.cat([x, x.exp()], 2), 8, 4),
    "a channel shuffle": (lambda net, x: shuffle(x), 8, 4),
    "a channel shuffle and back": (lambda net, x: shuffle(shuffle(shuffle(x))), 8, 4),
    "a sum": (lambda net, x: x + net.norm(x), 8, 4),
    "a difference": (lambda net, x: net.norm(x) - torch.exp(x), 8, 4),
    "a sum with its mean": (lambda net, x: torch.exp(x - x.mean((2, 3), keepdim=True)), 8, 4),
    "a quotient": (lambda net, x: x / (1 + torch.exp(x)), 8, 4),
    "repeated positions": (lambda net, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4), 8, 4),
    "a mean without its dimensions": (lambda net, x: x.mean((2, 3))[:, :, None, None], 8, 4),
    "the largest of each row": (lambda net, x: x.amax(3).unsqueeze(2), 8, 4),
    "channels last": (lambda net, x: torch.exp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 8, 4),
    "a row of positions": (lambda net, x: x.flatten(2).unsqueeze(3), 8, 4),
    "positions as channels": (lambda net, x: x.flatten(1)[:, :, None, None], 288, 144),
    "a depthwise convolution of two outputs": (lambda net, x: net.depthwise(x), 16, 8),
    "dropout": (lambda net, x: F.dropout(x, 0.5, net.training), 8, 4),
}
DENSE: dict[str, tuple[Body, int]] = {
    "a grouped convolution": (lambda net, x: net.grouped(x), 8),
    "a convolution of rows": (lambda net, x: net.line(x.flatten(2)).unsqueeze(3), 8),
    "a sum with another branch": (lambda net, x: x + F.relu(net.other(x[:, :3])), 8),
    "a gate": (gate, 8),
    "a softmax": (lambda net, x: torch.softmax(x, 1), 8),
    "layer norm": (lambda net, x: F.layer_norm(x.permute(0, 2, 3, 1), (8,)).permute(0, 3, 1, 2), 8),
    "a matrix product": (lambda net, x: x @ x.transpose(2, 3), 8),
    "a factor of its own": (lambda net, x: torch.add(x, x.exp(), alpha=2), 8),
    "a sum over channels": (lambda net, x: x * x.sum(1, keepdim=True), 8),
    "the running sum over channels": (lambda net, x: x.cumsum(1), 8),
    "a gated linear unit": (lambda net, x: F.glu(x, 1), 4),
    "one channel": (lambda net, x: x.select(1, 3).unsqueeze(1).expand(-1, 8, -1, -1), 8),
    "the batch twice": (lambda net, x: torch.cat([x, x]).view(2, -1, 8, 6, 6).sum(0), 8),
    "the batch behind the rows": (lambda net, x: across_rows(x.permute(2, 0, 3, 1)).permute(1, 3, 0, 2), 8),
    "no positions": (lambda net, x: torch.cat([x, x[..., 0:0]], 3), 8),
    "no channels": (lambda net, x: torch.cat([x, x[:, 0:0]], 1), 8),
    "twice a convolution and a number": (lambda net, x: twice(net.squeeze(x)) + net.layer_scale, 8),
    "a weight for each column of as many as channels": (lambda net, x: net.squeeze(F.pad(x, (1, 1))) + net.columns, 8),
    "channels of a view that is not one of theirs": (lambda net, x: x.reshape(-1, 4, 12, 6), 4),
}


def captured_body(body: Body, width: int) -> CapturedClassifier:
    return capture(seeded(lambda: Parts(body, width)), images(2))


def keeping(classifier: CapturedClassifier, kept: tuple[int, ...], replacement: str) -> Pathway:
    """Some channels of the first tap and all of the others."""
    pathway = drawn(classifier, Granularity.CHANNEL, 1.0, replacement)
    pathway.masks[0][:] = False
    pathway.masks[0][0, list(kept)] = True
    return pathway


@pytest.mark.parametrize("name", BODIES)
def test_a_call_leaves_what_varies(name: str) -> None:
    body, width, left = BODIES[name]
    classifier = captured_body(body, width)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "mean map"), images(3))
    assert kernels(part)[0] == (len(KEPT) if width > 5 else left, 3, 3, 3)
    assert kernels(part)[-2] == (5, left, 1, 1)


@pytest.mark.parametrize("name", DENSE)
def test_a_call_that_needs_its_neighbours_gets_their_constants(name: str) -> None:
    classifier = captured_body(*DENSE[name])
    assert_equals_mask(classifier, keeping(classifier, KEPT, "mean map"), images(3))
    for count in (1, 3):
        assert_equals_mask(classifier, drawn(classifier, Granularity.UNIT, 0.4, "optimal"), images(count))


def test_a_group_of_which_nothing_varies_is_left_out() -> None:
    classifier = captured_body(*DENSE["a grouped convolution"])
    part = assert_equals_mask(classifier, keeping(classifier, (4, 5), "mean"), images(3))
    assert kernels(part)[1] == (4, 2, 3, 3)


def test_a_group_of_which_nothing_is_needed_is_left_out() -> None:
    classifier = captured_body(lambda net, x: net.grouped(x)[:, 1:3], 2)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "mean"), images(3))
    assert kernels(part)[:2] == [(2, 3, 3, 3), (2, 2, 3, 3)]


def test_groups_keep_the_same_positions() -> None:
    classifier = captured_body(*DENSE["a grouped convolution"])
    part = assert_equals_mask(classifier, keeping(classifier, (0, 1, 5, 6), "mean"), images(3))
    assert kernels(part)[1] == (8, 3, 3, 3)


def test_a_channel_that_is_removed_in_front_of_a_gate_needs_no_gate() -> None:
    classifier = captured_body(gate, WIDTH)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "zero"), images(3))
    assert kernels(part)[1] == (4, 4, 1, 1)


def test_a_channel_shuffle_costs_nothing() -> None:
    classifier = captured_body(*BODIES["a channel shuffle"][:2])
    part = assert_equals_mask(classifier, keeping(classifier, (0, 1, 4, 5), "mean"), images(3))
    assert operators(part) == ["conv2d", "relu", "conv2d", "mean", "linear"]


def test_constants_become_part_of_the_bias() -> None:
    classifier = captured_body(lambda net, x: x + net.norm(x) + 1, WIDTH)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "mean"), images(3))
    assert operators(part).count("add") == 2
    assert operators(part)[-3:] == ["conv2d", "mean", "linear"]


def test_a_constant_behind_a_sum_becomes_part_of_the_bias_in_front_of_it() -> None:
    """The branch is constant in some channels of the sum, and so is the shortcut in others."""

    def body(net: Parts, x: Tensor) -> Tensor:
        return F.relu(net.squeeze(x) + F.pad(x[:, :4], (0, 0, 0, 0, 4, 0), value=0.7))

    classifier = captured_body(body, WIDTH)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "mean"), images(3))
    assert operators(part).count("add") == 1


def test_a_bias_that_a_margin_changes_is_added_for_each_position() -> None:
    classifier = captured_body(lambda net, x: F.conv2d(x, net.grouped.weight, padding=1, groups=2), WIDTH)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "mean"), images(3))
    maps = [weight for weight in part.network.weights.values() if weight.shape == (1, 8, 6, 6)]
    assert len(maps) == 1


def test_a_bias_of_zeros_is_no_map() -> None:
    classifier = captured_body(lambda net, x: F.conv2d(x, net.squeeze.weight, padding=1), WIDTH)
    part = assert_equals_mask(classifier, keeping(classifier, KEPT, "zero"), images(3))
    assert operators(part) == ["conv2d", "relu", "conv2d", "conv2d", "mean", "linear"]


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_channel_of_which_a_unit_is_kept_stays(replacement: str) -> None:
    classifier = captured_body(lambda net, x: torch.tanh(x), WIDTH)
    pathway = drawn(classifier, Granularity.UNIT, 1.0, replacement)
    pathway.masks[0][:] = False
    pathway.masks[0][0, 2, 3, 3] = pathway.masks[0][0, 5, :2] = True
    part = assert_equals_mask(classifier, pathway, images(3))
    assert kernels(part)[0] == (2, 3, 3, 3)


class Tokens(nn.Module):
    """A linear layer on tokens of which each has constants of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.linear = nn.Linear(3, 6), nn.Linear(6, 7), nn.Linear(7, CLASSES)
        self.positions = nn.Parameter(torch.randn(1, 64, 6))

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.relu(self.embed(x.flatten(2).transpose(1, 2))) + self.positions
        logits: Tensor = self.linear(torch.tanh(self.hidden(tokens)).mean(1))
        return logits


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_linear_layer_has_a_bias_for_each_token(replacement: str) -> None:
    classifier = capture(seeded(Tokens), images(2))
    pathway = keeping(classifier, (1, 4), replacement)
    part = assert_equals_mask(classifier, pathway, images(3))
    assert kernels(part) == [(2, 3), (7, 2), (CLASSES, 7)]
    assert (1, 64, 7) in [tuple(weight.shape) for weight in part.network.weights.values()]
