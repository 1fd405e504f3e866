import pytest
import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import pathway_gradient, run_pathway
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from small_networks import CLASSES, NETWORKS, captured, images, original, seeded

SMOOTH = ["channels last", "transformer", "normalised across channels"]
TARGET = torch.tensor([0, 1, 2])


def filled(classifier: CapturedClassifier, value: bool) -> Pathway:
    taps = classifier.taps
    return Pathway(taps, tuple(torch.full((3, *tap.shape), value) for tap in taps), Granularity.UNIT)


def selected(classifier: CapturedClassifier, granularity: Granularity = Granularity.UNIT) -> Pathway:
    return neuron_mct(classifier, images(3), TARGET, granularity).select(0.5)


class TestGradient:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_is_the_vanilla_gradient_where_all_neurons_are_kept(self, name: str) -> None:
        x = images(3).requires_grad_()
        (expected,) = torch.autograd.grad(original(name)(x).gather(1, TARGET[:, None]).sum(), x)
        actual = pathway_gradient(captured(name), images(3), TARGET, filled(captured(name), True))
        assert torch.allclose(actual, expected, atol=1e-5)

    @pytest.mark.parametrize("name", ["plain", "dense", "concatenating", "depthwise"])
    def test_is_zero_where_no_neuron_is_kept(self, name: str) -> None:
        classifier = captured(name)
        assert not pathway_gradient(classifier, images(3), TARGET, filled(classifier, False)).any()

    @pytest.mark.parametrize("granularity", Granularity)
    @pytest.mark.parametrize("name", SMOOTH)
    def test_is_the_slope_of_the_pathway_network(self, name: str, granularity: Granularity) -> None:
        # In double precision; what limits the accuracy is that the classifier rounds its logits to float32.
        classifier = capture(seeded(NETWORKS[name]).double(), images(2).double())
        x = images(3).double()
        pathway = neuron_mct(classifier, x, TARGET, granularity).select(0.5)
        gradient = pathway_gradient(classifier, x, TARGET, pathway)
        direction = torch.nn.functional.normalize(gradient.flatten(1)).view_as(x)

        def along(step: float) -> Tensor:
            return classifier(x + step * direction, pathway).gather(1, TARGET[:, None])[:, 0].double()

        slope = (along(1e-2) - along(-1e-2)) / 2e-2
        assert torch.allclose(slope, gradient.flatten(1).norm(dim=1), rtol=2e-3, atol=1e-4)

    def test_is_linear_around_the_image_as_relu_networks_are(self) -> None:
        classifier, pathway = captured("plain"), selected(captured("plain"))
        step = 1e-3 * images(3, seed=5)
        gradient = pathway_gradient(classifier, images(3), TARGET, pathway)
        moved = classifier(images(3) + step, pathway) - classifier(images(3), pathway)
        expected = (gradient * step).flatten(1).sum(1)
        assert torch.allclose(moved.gather(1, TARGET[:, None])[:, 0], expected, atol=2e-5, rtol=0.05)

    def test_holds_the_pathway_constant(self) -> None:
        classifier, pathway = captured("plain"), selected(captured("plain"))
        x = images(3).requires_grad_()
        (expected,) = torch.autograd.grad(classifier(x, pathway).gather(1, TARGET[:, None]).sum(), x)
        assert torch.equal(pathway_gradient(classifier, images(3), TARGET, pathway), expected)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_of_a_batch_is_that_of_its_images_alone(self, name: str) -> None:
        classifier, pathway = captured(name), selected(captured(name))
        together = pathway_gradient(classifier, images(3), TARGET, pathway)
        for row in range(3):
            part = slice(row, row + 1)
            alone = pathway_gradient(classifier, images(3)[part], TARGET[part], pathway[part])
            assert torch.allclose(together[part], alone, atol=1e-5)

    def test_leaves_the_images_as_they_were(self) -> None:
        x = images(3)
        pathway_gradient(captured("plain"), x, TARGET, selected(captured("plain")))
        assert not x.requires_grad
        assert torch.equal(x, images(3))

    def test_works_where_gradients_are_switched_off(self) -> None:
        classifier, pathway = captured("plain"), selected(captured("plain"))
        expected = pathway_gradient(classifier, images(3), TARGET, pathway)
        with torch.no_grad():
            assert torch.equal(pathway_gradient(classifier, images(3), TARGET, pathway), expected)

    @pytest.mark.parametrize("label", [-1, CLASSES])
    def test_of_a_class_out_of_range_is_refused(self, label: int) -> None:
        with pytest.raises(ValueError, match="outside 0 to 3"):
            pathway_gradient(captured("plain"), images(3), torch.full((3,), label), selected(captured("plain")))


class TestRun:
    def test_gives_the_logits_of_the_pathway_network(self) -> None:
        classifier, pathway = captured("residual"), selected(captured("residual"))
        run = run_pathway(classifier, images(3), TARGET, pathway)
        assert torch.equal(run.logits, classifier(images(3), pathway))
        assert not run.logits.requires_grad
        assert run.contributions is None

    @pytest.mark.parametrize("granularity", Granularity)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_contributions_are_zero_outside_the_pathway(self, name: str, granularity: Granularity) -> None:
        pathway = selected(captured(name), granularity)
        contributions = run_pathway(captured(name), images(3), TARGET, pathway, with_contributions=True).contributions
        assert contributions is not None
        assert any(bool(score.any()) for score in contributions.scores)
        for score, mask in zip(contributions.scores, pathway.masks, strict=True):
            assert not score[~mask].any()

    def test_contributions_within_the_whole_network_are_its_own(self) -> None:
        classifier = captured("residual")
        run = run_pathway(classifier, images(3), TARGET, filled(classifier, True), with_contributions=True)
        assert run.contributions is not None
        expected = neuron_mct(classifier, images(3), TARGET).signed
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(run.contributions.signed, expected, strict=True))

    def test_asking_for_contributions_does_not_change_the_gradient(self) -> None:
        classifier, pathway = captured("residual"), selected(captured("residual"))
        without, with_them = (
            run_pathway(classifier, images(3), TARGET, pathway, with_contributions=asked) for asked in (False, True)
        )
        assert torch.equal(without.gradient, with_them.gradient)
