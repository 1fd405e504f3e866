import pytest
import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Ablation, Granularity
from pathlens.generator.masked_run import MaskedRun
from pathlens.pathways.pathway import Pathway, mask_shape
from pathlens.pathways.replacement import Replacement
from small_networks import NETWORKS, captured, images

COUNT = 3


def masks_of(classifier: CapturedClassifier, granularity: Granularity, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(COUNT, *mask_shape(tap, granularity)) for tap in classifier.taps]
    return [(torch.rand(shape, generator=draw) < 0.6).float() for shape in shapes]


def replacement_of(classifier: CapturedClassifier, ablation: Ablation) -> Replacement:
    """Nothing; the same for all images, for every unit; or for each image, for every channel."""
    draw = torch.Generator().manual_seed(1)
    if ablation is Ablation.ZERO:
        return Replacement()
    if ablation is Ablation.MEAN:
        return Replacement(ablation, tuple(torch.randn(1, *tap.shape, generator=draw) for tap in classifier.taps))
    rows = (tap.spread(torch.randn(COUNT, tap.channels, generator=draw)) for tap in classifier.taps)
    return Replacement(ablation, tuple(rows))


def run_of(name: str, granularity: Granularity, ablation: Ablation, seed: int = 0) -> MaskedRun:
    classifier = captured(name)
    masks = masks_of(classifier, granularity, seed)
    return MaskedRun(classifier.taps, masks, granularity, replacement_of(classifier, ablation))


def pathway_of(run: MaskedRun) -> Pathway:
    return Pathway(run.taps, tuple(mask > 0.5 for mask in run.masks), run.granularity, run.replacement)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_kept_neuron_puts_out_exactly_what_it_did(dtype: torch.dtype) -> None:
    run = run_of("plain", Granularity.UNIT, Ablation.MEAN)
    whole = MaskedRun(run.taps, [torch.ones_like(mask) for mask in run.masks], run.granularity, run.replacement)
    for index, activation in enumerate(captured("plain").to(dtype=dtype).observe(images(COUNT)).activations):
        assert torch.equal(whole.edit(index, activation), activation)


@pytest.mark.parametrize("ablation", Ablation)
@pytest.mark.parametrize("granularity", Granularity)
class TestAMaskedRun:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_computes_what_the_pathway_network_computes(
        self, name: str, granularity: Granularity, ablation: Ablation
    ) -> None:
        run = run_of(name, granularity, ablation)
        expected = captured(name)(images(COUNT), pathway_of(run))
        assert torch.allclose(captured(name)(images(COUNT), run), expected, atol=1e-5)

    def test_passes_gradients_to_every_mask(self, granularity: Granularity, ablation: Ablation) -> None:
        run = run_of("plain", granularity, ablation)
        for mask in run.masks:
            mask.requires_grad_()
        gradients = torch.autograd.grad(captured("plain")(images(COUNT), run).square().sum(), list(run.masks))
        for gradient in gradients:
            assert bool(gradient.isfinite().all())
            # Every image's own mask, and no mask of another tap alone.
            assert bool((gradient.flatten(1) != 0).any(1).all())

    def test_has_the_density_of_its_pathway(self, granularity: Granularity, ablation: Ablation) -> None:
        run = run_of("gated", granularity, ablation)
        assert run.density.tolist() == pytest.approx((1 - pathway_of(run).sparsity).tolist())


def test_a_mask_passes_the_gradient_of_what_its_neuron_is_worth() -> None:
    # To first order, removing a neuron of the last tap costs its output times the weight behind it.
    classifier = captured("decisive")
    (mask,) = masks_of(classifier, Granularity.CHANNEL)
    mask = mask.requires_grad_()
    run = MaskedRun(classifier.taps, [mask], Granularity.CHANNEL, Replacement())
    (gradient,) = torch.autograd.grad(classifier(images(COUNT), run)[:, 2].sum(), mask)
    activation = classifier.trace(images(COUNT)).activations[0].detach()
    assert torch.allclose(gradient, activation * classifier.weights["linear.weight"][2], atol=1e-5)


def test_no_images_have_no_density() -> None:
    classifier = captured("plain")
    masks = [torch.zeros(0, tap.channels) for tap in classifier.taps]
    assert MaskedRun(classifier.taps, masks, Granularity.CHANNEL, Replacement()).density.shape == (0,)
