"""What a slice is for: gradients, any number of images, pathways that read nothing, and what cannot be cut."""

import gc
import linecache
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx.graph_module import _loader

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.pathway import Pathway
from pathlens.slicing.cutting import cut
from pathlens.slicing.not_sliceable import NotSliceable
from sliced import REPLACEMENTS, assert_equals_mask, drawn
from small_networks import CLASSES, NETWORKS, captured, images, seeded

CHANNEL = Granularity.CHANNEL


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_slice_takes_any_number_of_images(count: int) -> None:
    assert_equals_mask(captured("transformer"), drawn(captured("transformer"), CHANNEL, 0.5), images(count))


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_the_gradient_lies_where_the_images_do(keep: float) -> None:
    batch = images(2).contiguous(memory_format=torch.channels_last)
    run = cut(captured("plain"), drawn(captured("plain"), CHANNEL, keep)).run(batch, torch.tensor([0, 1]))
    assert run.gradient.is_contiguous()
    assert run.gradient.shape == (2, 3, 8, 8)
    assert run.contributions is None
    assert not run.logits.requires_grad


def test_logits_are_those_of_a_run() -> None:
    part = cut(captured("residual"), drawn(captured("residual"), CHANNEL, 0.5))
    run = part.run(images(3), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(part.logits(images(3)), run.logits)


def test_images_are_left_as_they_are() -> None:
    batch = images(1)
    cut(captured("plain"), drawn(captured("plain"), CHANNEL, 0.5)).run(batch, torch.tensor([0]))
    assert not batch.requires_grad


class TestAPathwayThatCutsTheImageOff:
    @pytest.mark.parametrize("replacement", REPLACEMENTS)
    def test_has_constant_logits_and_no_gradient(self, replacement: str) -> None:
        classifier = captured("plain")
        pathway = drawn(classifier, CHANNEL, 0.0, replacement)
        part = cut(classifier, pathway)
        run = part.run(images(3), torch.tensor([0, 1, 2]))
        torch.testing.assert_close(run.logits, classifier(images(3), pathway))
        assert not run.gradient.any()
        assert run.gradient.shape == (3, 3, 8, 8)
        assert part.work == 0

    def test_does_so_by_a_single_tap_without_neurons(self) -> None:
        classifier = captured("plain")
        masks = (torch.ones(1, 6, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.bool))
        part = cut(classifier, Pathway(classifier.taps, masks, CHANNEL))
        assert part.work == 0

    def test_refuses_a_target_out_of_range(self) -> None:
        part = cut(captured("plain"), drawn(captured("plain"), CHANNEL, 0.0))
        with pytest.raises(ValueError, match="has a class outside 0 to 3"):
            part.run(images(1), torch.tensor([CLASSES]))


class EndsInTap(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.mean((2, 3))) + 1)


@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_tap_may_be_the_output(replacement: str) -> None:
    classifier = capture(seeded(EndsInTap), images(2))
    part = assert_equals_mask(classifier, drawn(classifier, CHANNEL, 0.5, replacement, seed=1), images(3))
    assert 0 < part.work < 1


class ReadsTapTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3), nn.Conv2d(8, 5, 3, padding=1)
        self.linear = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        branches = [torch.relu(self.one(x)).mean((2, 3)), torch.relu(self.two(x)).mean((2, 3))]
        logits: Tensor = self.linear(torch.cat(branches, 1))
        return logits


@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("granularity", Granularity)
def test_a_tap_may_be_read_twice(granularity: Granularity, replacement: str) -> None:
    classifier = capture(seeded(ReadsTapTwice), images(2))
    assert_equals_mask(classifier, drawn(classifier, granularity, 0.5, replacement), images(3))


class AddsConstantBehindTransposition(nn.Module):
    """Tokens with the batch second, to which a branch is added that a pathway can make constant."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.linear = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        branch = torch.tanh(self.one(tokens)).transpose(0, 1)
        logits: Tensor = self.linear((self.two(tokens).transpose(0, 1) + branch).mean(0))
        return logits


def test_a_constant_without_the_batch_first_is_refused() -> None:
    classifier = capture(seeded(AddsConstantBehindTransposition), images(2))
    with pytest.raises(NotSliceable, match="a constant that does not have the batch first"):
        cut(classifier, drawn(classifier, CHANNEL, 0.0, "mean"))
    assert_equals_mask(classifier, drawn(classifier, CHANNEL, 1.0), images(3))


class ComparesImages(nn.Module):
    """Reads all images of a batch for every one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x)).mean((2, 3))
        logits: Tensor = self.linear(x - torch.exp(x).mean(0, keepdim=True))
        return logits


def test_what_is_right_for_two_images_alone_is_refused() -> None:
    """Of three images, the first two are read for every one, of which the example has no more."""
    original = capture(seeded(ComparesImages), images(2))
    calls = [
        replace(call, function="aten.slice.Tensor", arguments=[*call.arguments, 0, 0, 2])
        if "exp" in call.name
        else call
        for call in original.program.calls
    ]
    classifier = CapturedClassifier(replace(original.program, calls=tuple(calls)), original.weights)
    with pytest.raises(NotSliceable, match="its logits differ"):
        cut(classifier, drawn(classifier, CHANNEL, 0.5))


def test_of_slices_that_are_gone_nothing_is_left() -> None:
    classifier = captured("residual")
    pathways = [drawn(classifier, CHANNEL, 0.5, seed=seed) for seed in range(20)]
    cut(classifier, pathways[0])
    sources = len(linecache.cache), len(_loader.eval_cache)
    gc.collect()
    gc.disable()
    try:
        tensors = number_of_tensors()
        for pathway in pathways:
            cut(classifier, pathway).run(images(2), torch.tensor([0, 1]))
        assert number_of_tensors() == tensors
    finally:
        gc.enable()
    assert (len(linecache.cache), len(_loader.eval_cache)) == sources


def number_of_tensors() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_for_a_gpu_is_cut_exactly_and_lies_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    pathway = drawn(captured(name), CHANNEL, 0.5, "mean")
    part, expected = cut(captured(name).to("cuda"), pathway.to("cuda")), cut(captured(name), pathway)
    for weight, same in zip(part.network.weights.values(), expected.network.weights.values(), strict=True):
        assert weight.device.type == "cuda"
        torch.testing.assert_close(weight.cpu(), same, rtol=0, atol=0)


def test_a_slice_made_in_inference_mode_has_gradients() -> None:
    classifier = capture(seeded(ReadsTapTwice, seed=3), images(2))
    pathway = drawn(classifier, CHANNEL, 0.7)
    with torch.inference_mode():
        part = cut(classifier, pathway)
    assert part.run(images(2), torch.tensor([0, 1])).gradient.any()


def test_pathways_of_several_images_are_refused() -> None:
    pathway = drawn(captured("plain"), CHANNEL, 0.5)
    with pytest.raises(ValueError, match="a slice has one pathway; 2 were given"):
        cut(captured("plain"), pathway[[0, 0]])


def test_pathways_of_another_classifier_are_refused() -> None:
    with pytest.raises(ValueError, match="the pathway is of another classifier"):
        cut(captured("plain"), drawn(captured("residual"), CHANNEL, 0.5))
