import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.taps import Tap
from pathlens.explanation import Granularity, TapMask
from pathlens.pathways.pathway import Pathway, from_flat, mask_shape
from small_networks import NETWORKS, captured, images, original

UNIT, CHANNEL = Granularity.UNIT, Granularity.CHANNEL
TAPS = (Tap("a#1", "relu", (3, 2, 2), 0, "a"), Tap("b#1", "gelu", (2, 4), 1, "b"), Tap("c#1", "relu", (5,), 0, "c"))
NEURONS = {UNIT: 12 + 8 + 5, CHANNEL: 3 + 4 + 5}


def flat_masks(granularity: Granularity, count: int = 2) -> st.SearchStrategy[Tensor]:
    row = st.lists(st.booleans(), min_size=NEURONS[granularity], max_size=NEURONS[granularity])
    return st.lists(row, min_size=count, max_size=count).map(lambda rows: torch.tensor(rows, dtype=torch.bool))


def random_pathway_of(
    classifier: CapturedClassifier, granularity: Granularity, count: int, keep: float = 0.6, seed: int = 0
) -> Pathway:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, *mask_shape(tap, granularity)) for tap in classifier.taps]
    masks = tuple(torch.rand(shape, generator=generator) < keep for shape in shapes)
    return Pathway(classifier.taps, masks, granularity)


def constant(classifier: CapturedClassifier, granularity: Granularity, count: int, value: bool) -> Pathway:
    return random_pathway_of(classifier, granularity, count, keep=2.0 if value else -1.0)


class TestThePathwayNetwork:
    @pytest.mark.parametrize("granularity", Granularity)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_is_the_classifier_where_all_neurons_are_kept(self, name: str, granularity: Granularity) -> None:
        classifier = captured(name)
        whole = constant(classifier, granularity, 3, value=True)
        assert torch.equal(classifier(images(3), whole), classifier(images(3)))

    def test_multiplies_every_tap_by_its_mask(self) -> None:
        network, pathway = original("plain"), random_pathway_of(captured("plain"), UNIT, 3)
        first, second = (network.get_submodule(name) for name in ("conv1", "conv2"))
        hidden = functional.relu(first(images(3))) * pathway.masks[0]
        hidden = functional.relu(second(hidden)) * pathway.masks[1]
        expected = network.get_submodule("linear")(hidden.mean((2, 3)))
        assert torch.allclose(captured("plain")(images(3), pathway), expected, atol=1e-6)

    def test_takes_the_same_neurons_from_every_image_for_a_pathway_of_one_image(self) -> None:
        pathway = random_pathway_of(captured("residual"), UNIT, 1)
        expected = captured("residual")(images(3), pathway[[0, 0, 0]])
        assert torch.equal(captured("residual")(images(3), pathway), expected)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_of_channels_is_that_of_the_units_of_whole_maps(self, name: str) -> None:
        classifier = captured(name)
        channels = random_pathway_of(classifier, CHANNEL, 3)
        units = []
        for tap, mask in zip(classifier.taps, channels.masks, strict=True):
            where = [3] + [1] * len(tap.shape)
            where[1 + tap.channel_dimension] = tap.channels
            units.append(mask.reshape(where).expand(3, *tap.shape))
        by_units = Pathway(classifier.taps, tuple(units), UNIT)
        assert torch.equal(classifier(images(3), channels), classifier(images(3), by_units))

    def test_of_nothing_is_a_constant(self) -> None:
        nothing = constant(captured("plain"), CHANNEL, 4, value=False)
        logits = captured("plain")(images(4), nothing)
        assert torch.equal(logits, logits[:1].expand(4, -1))

    def test_refuses_a_pathway_of_another_number_of_images(self) -> None:
        pathway = random_pathway_of(captured("plain"), UNIT, 2)
        with pytest.raises(ValueError, match=r"tap 0 is \[3, 6, 8, 8\].*of 2 images"):
            captured("plain")(images(3), pathway)

    def test_refuses_a_pathway_of_another_classifier(self) -> None:
        pathway = random_pathway_of(captured("depthwise"), CHANNEL, 3)
        with pytest.raises(ValueError, match=r"tap 1 is \[3, 5, 4, 4\].*body\.3\.relu6#1"):
            captured("plain")(images(3), pathway)


class TestFigures:
    @given(flat_masks(UNIT))
    def test_sparsity_is_the_share_of_what_is_missing(self, flat: Tensor) -> None:
        pathway = from_flat(flat, TAPS, UNIT)
        assert pathway.kept.tolist() == flat.sum(1).tolist()
        assert torch.allclose(pathway.sparsity, (~flat).double().mean(1))

    @given(flat_masks(CHANNEL), flat_masks(CHANNEL))
    def test_iou_is_that_of_the_sets_of_neurons(self, one: Tensor, other: Tensor) -> None:
        expected = []
        for a, b in zip(one, other, strict=True):
            sets = set(a.nonzero().flatten().tolist()), set(b.nonzero().flatten().tolist())
            union = sets[0] | sets[1]
            expected.append(len(sets[0] & sets[1]) / len(union) if union else 1.0)
        assert from_flat(one, TAPS, CHANNEL).iou(from_flat(other, TAPS, CHANNEL)).tolist() == expected

    @given(flat_masks(UNIT), flat_masks(UNIT))
    def test_iou_is_symmetric(self, one: Tensor, other: Tensor) -> None:
        a, b = from_flat(one, TAPS, UNIT), from_flat(other, TAPS, UNIT)
        assert torch.equal(a.iou(b), b.iou(a))

    @given(flat_masks(UNIT))
    def test_iou_with_itself_is_one_and_with_the_complement_zero(self, flat: Tensor) -> None:
        pathway = from_flat(flat, TAPS, UNIT)
        assert pathway.iou(pathway).tolist() == [1.0, 1.0]
        assert pathway.iou(from_flat(~flat, TAPS, UNIT)).tolist() == [0.0, 0.0]

    @given(flat_masks(UNIT, 3), flat_masks(UNIT, 1))
    def test_iou_with_one_pathway_compares_every_image_with_it(self, many: Tensor, one: Tensor) -> None:
        a, b = from_flat(many, TAPS, UNIT), from_flat(one, TAPS, UNIT)
        assert torch.equal(a.iou(b), a.iou(b[[0, 0, 0]]))

    def test_iou_of_different_kinds_of_neurons_is_refused(self) -> None:
        units, channels = (from_flat(torch.ones(2, NEURONS[kind]) > 0, TAPS, kind) for kind in (UNIT, CHANNEL))
        with pytest.raises(ValueError, match="unit pathway with a channel pathway"):
            units.iou(channels)

    @pytest.mark.parametrize(("count", "taps"), [(3, TAPS), (2, TAPS[::-1]), (2, TAPS[:2])])
    def test_iou_of_what_cannot_be_compared_is_refused(self, count: int, taps: tuple[Tap, ...]) -> None:
        neurons = sum(tap.channels for tap in taps)
        pathway = from_flat(torch.ones(2, NEURONS[CHANNEL]) > 0, TAPS, CHANNEL)
        with pytest.raises(ValueError, match="cannot compare 2 pathways"):
            pathway.iou(from_flat(torch.ones(count, neurons) > 0, taps, CHANNEL))


class TestForms:
    @pytest.mark.parametrize("granularity", Granularity)
    @given(data=st.data())
    def test_flat_and_back_gives_the_same_masks(self, granularity: Granularity, data: st.DataObject) -> None:
        flat = data.draw(flat_masks(granularity))
        pathway = from_flat(flat, TAPS, granularity)
        assert torch.equal(pathway.flat(), flat)
        assert [tuple(mask.shape) for mask in pathway.masks] == [(2, *mask_shape(tap, granularity)) for tap in TAPS]

    @pytest.mark.parametrize("granularity", Granularity)
    @given(data=st.data(), row=st.integers(0, 1))
    def test_packing_and_unpacking_gives_the_same_masks(
        self, granularity: Granularity, data: st.DataObject, row: int
    ) -> None:
        pathway = from_flat(data.draw(flat_masks(granularity)), TAPS, granularity)
        for part, mask in zip(pathway.tap_masks(row), pathway.masks, strict=True):
            packed = part.pack()
            assert len(packed) == -(-mask[row].numel() // 8)
            assert np.array_equal(TapMask.unpack(part.tap, part.mask.shape, packed).mask, mask[row].numpy())

    @given(st.integers(0, 29))
    def test_neuron_i_is_bit_i_mod_8_from_the_least_significant_of_byte_i_over_8(self, neuron: int) -> None:
        packed = TapMask("tap", np.arange(30) == neuron).pack()
        assert list(packed) == [1 << (neuron % 8) if byte == neuron // 8 else 0 for byte in range(4)]

    @given(flat_masks(UNIT, 5), st.integers(0, 5))
    def test_joining_the_parts_gives_the_whole(self, flat: Tensor, cut: int) -> None:
        pathway = from_flat(flat, TAPS, UNIT)
        joined = Pathway.concatenate([pathway[:cut], pathway[cut:]])
        assert torch.equal(joined.flat(), flat)
        assert len(joined) == 5

    @given(flat_masks(CHANNEL, 4), st.lists(st.integers(0, 3)))
    def test_rows_are_selected_by_number(self, flat: Tensor, rows: list[int]) -> None:
        assert torch.equal(from_flat(flat, TAPS, CHANNEL)[rows].flat(), flat[rows])

    def test_pathways_of_different_granularity_cannot_be_joined(self) -> None:
        parts = [from_flat(torch.ones(1, NEURONS[kind]) > 0, TAPS, kind) for kind in (UNIT, CHANNEL)]
        with pytest.raises(ValueError, match="different granularity"):
            Pathway.concatenate(parts)


class TestRefusals:
    @pytest.mark.parametrize(
        ("masks", "message"),
        [
            ([torch.ones(2, 3) > 0, torch.ones(2, 4) > 0], "2 masks for 3 taps"),
            ([], "0 masks for 3 taps"),
            ([torch.ones(2, 3) > 0, torch.ones(2, 2) > 0, torch.ones(2, 5) > 0], r"b#1 is torch.bool \[2, 2\]"),
            ([torch.ones(2, 3) > 0, torch.ones(1, 4) > 0, torch.ones(2, 5) > 0], r"b#1 is torch.bool \[1, 4\]"),
            ([torch.ones(2, 3) > 0, torch.ones(2, 4) > 0, torch.ones(2, 5)], r"c#1 is torch.float32 \[2, 5\]"),
        ],
    )
    def test_masks_that_do_not_fit_the_taps_are_named(self, masks: list[Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Pathway(TAPS, tuple(masks), CHANNEL)

    def test_no_taps_at_all(self) -> None:
        with pytest.raises(ValueError, match="0 masks for 0 taps"):
            Pathway((), (), CHANNEL)
