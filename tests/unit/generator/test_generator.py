"""The three parts of the generator, and the whole, over networks of every construct."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from fixture_data import needs_fixtures
from pathlens.explanation import Ablation, Granularity
from pathlens.generator.channel_means import channel_means
from pathlens.generator.generator import SMALLEST_BUDGET, PathwayGenerator
from pathlens.pathways.pathway import mask_shape
from pathlens.pathways.replacement import Replacement
from real_captures import real
from small_networks import NETWORKS, captured, images

COUNT, WIDTH = 3, 8
UNIT, CHANNEL = Granularity.UNIT, Granularity.CHANNEL
# Convolutions and residuals, channels last, tokens, gates without positions, and no positions at all.
SEVERAL = ("residual", "channels last", "transformer", "gated", "dense")

over_all_networks = pytest.mark.parametrize("name", NETWORKS)
over_several_networks = pytest.mark.parametrize("name", SEVERAL)
over_granularities = pytest.mark.parametrize("granularity", Granularity)


def activations_of(name: str, count: int = COUNT) -> tuple[Tensor, ...]:
    return captured(name).observe(images(count)).activations


def generator_of(name: str, granularity: Granularity = CHANNEL, width: int = WIDTH) -> PathwayGenerator:
    """An untrained generator with random parameters, so that scores differ from image to image."""
    classifier = captured(name)
    outputs = zip(activations_of(name, 16), classifier.taps, strict=True)
    scales = [channel_means(activation.abs(), tap).mean(0) for activation, tap in outputs]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator = PathwayGenerator(classifier.taps, scales, classifier.classes, granularity, width)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return generator.frozen()


def disturbed(activations: Sequence[Tensor], index: int) -> list[Tensor]:
    return [activation + (place == index) for place, activation in enumerate(activations)]


def same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(ones, others, strict=True)]


class TestTheEmbedder:
    @over_several_networks
    def test_lets_every_tap_know_itself_and_all_deeper_taps_and_no_shallower_one(self, name: str) -> None:
        embedder, activations = generator_of(name).embedder, activations_of(name)
        before = embedder(activations)
        for index in range(len(activations)):
            unchanged = same(before, embedder(disturbed(activations, index)))
            assert unchanged == [place > index for place in range(len(activations))]

    @over_all_networks
    def test_makes_one_embedding_per_tap(self, name: str) -> None:
        embeddings = generator_of(name).embedder(activations_of(name))
        assert [tuple(embedding.shape) for embedding in embeddings] == [(COUNT, WIDTH)] * len(captured(name).taps)

    def test_does_not_depend_on_the_units_of_a_tap(self) -> None:
        # A tap whose every value is a thousand times as large says the same, if its scale is known.
        activations, classifier = activations_of("plain"), captured("plain")
        scales = [torch.rand(tap.channels) + 0.5 for tap in classifier.taps]
        small, large = (
            PathwayGenerator(classifier.taps, [factor * scale for scale in scales], 4, CHANNEL, WIDTH)
            for factor in (1, 1000)
        )
        large.load_state_dict({**small.state_dict(), **{k: v for k, v in large.state_dict().items() if "gain" in k}})
        enlarged = [1000 * activation for activation in activations]
        for one, other in zip(small.embedder(activations), large.embedder(enlarged), strict=True):
            assert torch.allclose(one, other, atol=1e-5)

    def test_survives_channels_that_are_always_zero(self) -> None:
        classifier = captured("plain")
        scales = [torch.zeros(tap.channels) for tap in classifier.taps]
        generator = PathwayGenerator(classifier.taps, scales, 4, CHANNEL, WIDTH)
        scores = generator([torch.zeros_like(activation) for activation in activations_of("plain")]).scores
        assert all(bool(score.isfinite().all()) for score in scores)


class TestTheDecoder:
    @pytest.mark.parametrize("name", ["residual", "gated", "dense"])
    @over_granularities
    def test_scores_a_tap_by_what_is_kept_of_the_deeper_one(self, name: str, granularity: Granularity) -> None:
        generator, activations = generator_of(name, granularity), activations_of(name)
        embeddings = generator.embedder(activations)
        code, _ = generator.distiller(embeddings)
        before = generator.decoder(code, embeddings, activations)
        # All neurons of the deepest tap but no other parameter of the generator changes.
        layer = generator.decoder.scores[-1]
        assert isinstance(layer, torch.nn.Linear)
        layer.bias.sub_(1000)
        after = generator.decoder(code, embeddings, activations)
        assert not bool((after[-1] > 0).any())
        assert bool((before[-1] > 0).any())
        assert same(before, after) == [False] * len(activations)

    @over_several_networks
    def test_knows_nothing_of_what_is_kept_of_a_shallower_one(self, name: str) -> None:
        generator, activations = generator_of(name), activations_of(name)
        before = generator(activations).scores
        layer = generator.decoder.scores[0]
        assert isinstance(layer, torch.nn.Linear)
        layer.bias.sub_(1000)
        assert same(before, generator(activations).scores) == [False] + [True] * (len(activations) - 1)

    def test_scores_a_unit_by_its_own_activation(self) -> None:
        generator, activations = generator_of("plain", UNIT), activations_of("plain")
        embeddings = generator.embedder(activations)
        code, _ = generator.distiller(embeddings)
        changed = [activation.clone() for activation in activations]
        changed[0][:, 2, 3, 4] += 1
        before, after = (generator.decoder(code, embeddings, given)[0] for given in (activations, changed))
        where = torch.zeros(6, 8, 8, dtype=torch.bool)
        where[2, 3, 4] = True
        assert torch.equal((before != after), where.expand(COUNT, -1, -1, -1))

    def test_begins_with_every_neuron_kept(self) -> None:
        classifier = captured("residual")
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        torch.manual_seed(0)
        generator = PathwayGenerator.for_classifier(classifier, scales, CHANNEL)
        assert generator.pathways(activations_of("residual")).sparsity.tolist() == [0.0] * COUNT


class TestTheGenerator:
    @over_all_networks
    @over_granularities
    def test_scores_every_neuron_of_every_image(self, name: str, granularity: Granularity) -> None:
        generation = generator_of(name, granularity)(activations_of(name))
        shapes = [(COUNT, *mask_shape(tap, granularity)) for tap in captured(name).taps]
        assert [tuple(score.shape) for score in generation.scores] == shapes
        assert {score.dtype for score in generation.scores} == {torch.float32}
        assert tuple(generation.class_logits.shape) == (COUNT, captured(name).classes)

    @over_several_networks
    @over_granularities
    def test_keeps_images_apart(self, name: str, granularity: Granularity) -> None:
        generator, activations = generator_of(name, granularity), activations_of(name)
        together = generator(activations)
        for row in range(COUNT):
            alone = generator([activation[row : row + 1] for activation in activations])
            for one, other in zip(alone.scores, together.scores, strict=True):
                assert torch.allclose(one[0], other[row], atol=1e-5)
            assert torch.allclose(alone.class_logits[0], together.class_logits[row], atol=1e-5)

    @over_several_networks
    @over_granularities
    def test_keeps_the_neurons_of_scores_above_zero(self, name: str, granularity: Granularity) -> None:
        generator, activations = generator_of(name, granularity), activations_of(name)
        pathway = generator.pathways(activations)
        for mask, score in zip(pathway.masks, generator(activations).scores, strict=True):
            # Units are decided in another order of operations, which may round a score at the boundary to either side.
            decided = score.abs() > 1e-5
            assert torch.equal(mask[decided], (score > 0)[decided])
            assert bool(decided.float().mean() > 0.99)
        assert float(pathway.sparsity.max()) > 0
        assert (pathway.granularity, pathway.ablation) == (granularity, Ablation.ZERO)

    def test_puts_in_the_place_of_removed_neurons_what_it_is_told(self) -> None:
        means = Replacement(Ablation.MEAN, tuple(torch.rand(1, *tap.shape) for tap in captured("plain").taps))
        pathway = generator_of("plain").pathways(activations_of("plain"), means)
        assert pathway.replacement is means

    def test_takes_activations_of_any_precision(self) -> None:
        generator, activations = generator_of("plain", UNIT), activations_of("plain")
        rounded = [activation.bfloat16() for activation in activations]
        for one, other in zip(generator(rounded).scores, generator([a.float() for a in rounded]).scores, strict=True):
            assert torch.equal(one, other)


class TestSize:
    @over_all_networks
    @over_granularities
    def test_is_within_the_budget(self, name: str, granularity: Granularity) -> None:
        classifier = captured(name)
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        generator = PathwayGenerator.for_classifier(classifier, scales, granularity)
        assert generator.parameter_count == sum(parameter.numel() for parameter in generator.parameters())
        assert generator.parameter_count <= SMALLEST_BUDGET

    @needs_fixtures
    @pytest.mark.parametrize("name", ["mobilenet_v2", "cifar_resnet20"])
    @over_granularities
    def test_of_a_real_network_is_within_the_budget(self, name: str, granularity: Granularity) -> None:
        classifier = real(name)
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        generator = PathwayGenerator.for_classifier(classifier, scales, granularity)
        weights = sum(weight.numel() for weight in classifier.weights.values())
        assert generator.parameter_count <= max(SMALLEST_BUDGET, weights // 20)
        side = classifier.input_shape[1]
        activations = classifier.observe(torch.rand(1, 3, side, side)).activations
        shapes = [(1, *mask_shape(tap, granularity)) for tap in classifier.taps]
        assert [tuple(mask.shape) for mask in generator.pathways(activations).masks] == shapes

    @pytest.mark.parametrize("budget", [4000, 8000, 16000])
    def test_is_the_largest_that_the_budget_allows(self, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pathlens.generator.generator.SMALLEST_BUDGET", budget)
        classifier = captured("residual")
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        generator = PathwayGenerator.for_classifier(classifier, scales, CHANNEL)
        wider = PathwayGenerator(classifier.taps, scales, classifier.classes, CHANNEL, generator.width + 4)
        assert generator.parameter_count <= budget < wider.parameter_count


class TestStoring:
    @over_several_networks
    @over_granularities
    def test_and_loading_gives_the_same_scores(self, name: str, granularity: Granularity) -> None:
        generator = generator_of(name, granularity)
        loaded = PathwayGenerator.from_state(captured(name), granularity, WIDTH, generator.state_dict())
        assert all(same(loaded(activations_of(name)).scores, generator(activations_of(name)).scores))

    @pytest.mark.parametrize(("name", "width"), [("plain", 12), ("residual", WIDTH), ("decisive", WIDTH)])
    def test_for_another_classifier_or_width_is_refused(self, name: str, width: int) -> None:
        state = generator_of("plain").state_dict()
        with pytest.raises(RuntimeError, match="state_dict"):
            PathwayGenerator.from_state(captured(name), CHANNEL, width, state)


class TestAFrozenCopy:
    def test_shares_no_tensor_and_is_not_trained(self) -> None:
        classifier = captured("plain")
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        generator = PathwayGenerator(classifier.taps, scales, 4, CHANNEL, WIDTH)
        copy = generator.frozen()
        addresses = [{tensor.data_ptr() for tensor in each.state_dict().values()} for each in (generator, copy)]
        assert not addresses[0] & addresses[1]
        assert not copy.training
        assert not any(parameter.requires_grad for parameter in copy.parameters())
        assert not any(score.requires_grad for score in copy(activations_of("plain")).scores)
        # This one goes on being trained.
        assert generator.training
        assert all(parameter.requires_grad for parameter in generator.parameters())
