import pytest
import torch
from torch import Tensor

from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from small_networks import CLASSES, captured, images


def held_out(count: int = 40) -> HeldOut:
    x = images(count, seed=1)
    with torch.no_grad():
        return HeldOut(x, captured("decisive")(x).softmax(1))


def class_mask(label: int) -> Pathway:
    return neuron_mct(captured("decisive"), images(1), torch.tensor([label])).select(0.6)


def whole() -> Pathway:
    taps = captured("decisive").taps
    return Pathway(taps, tuple(torch.ones(1, *tap.shape, dtype=torch.bool) for tap in taps), Granularity.UNIT)


def rows_of(batch: HeldOut, rows: Tensor) -> list[HeldOut]:
    return [HeldOut(batch.images[rows], batch.probabilities[rows])]


def common_class() -> int:
    predicted = held_out().predicted
    counts = torch.bincount(predicted, minlength=CLASSES)
    assert int((counts > 0).sum()) > 1, "the test needs members and others"
    return int(counts.argmax())


class TestFigures:
    @pytest.mark.parametrize("label", range(CLASSES))
    def test_are_those_of_one_image_after_the_other(self, label: int) -> None:
        batch, pathway, classifier = held_out(), class_mask(label), captured("decisive")
        agree, rise, drop, force, leak, reference = [], [], [], [], [], []
        for image in batch.images:
            p = classifier(image[None]).softmax(1)[0]
            q = classifier(image[None], pathway).softmax(1)[0]
            before, after = float(p[label]), float(q[label])
            if int(p.argmax()) == label:
                agree.append(int(q.argmax()) == label)
                rise.append(after > before)
                drop.append(max(0.0, before - after) / before)
            else:
                force.append(int(q.argmax()) == label)
                leak.append(after)
                reference.append(before)
        figures = measure_transfer(classifier, pathway, label, [batch])

        def mean(values: list[float] | list[bool]) -> object:
            return pytest.approx(sum(values) / len(values), abs=1e-6) if values else None

        assert (figures.member_images, figures.other_images) == (len(agree), len(force))
        assert figures.agreement == mean(agree)
        assert figures.mean_increase == mean(rise)
        assert figures.mean_drop == mean(drop)
        assert figures.forcing == mean(force)
        assert figures.leak == mean(leak)
        assert figures.leak_reference == mean(reference)

    def test_of_the_whole_network_are_those_of_a_perfect_mask(self) -> None:
        figures = measure_transfer(captured("decisive"), whole(), common_class(), [held_out()])
        assert (figures.agreement, figures.forcing) == (1.0, 0.0)
        assert figures.leak == pytest.approx(figures.leak_reference, abs=1e-7)
        assert figures.mean_drop == pytest.approx(0, abs=1e-6)

    def test_do_not_depend_on_the_batches(self) -> None:
        label, batch = common_class(), held_out()
        parts = [*rows_of(batch, torch.arange(7)), *rows_of(batch, torch.arange(7, 40))]
        pathway, classifier = class_mask(label), captured("decisive")
        together = measure_transfer(classifier, pathway, label, [batch])
        apart = measure_transfer(classifier, pathway, label, parts)
        assert (apart.member_images, apart.agreement, apart.forcing) == (
            together.member_images,
            together.agreement,
            together.forcing,
        )
        assert apart.leak == pytest.approx(together.leak, abs=1e-6)

    def test_need_no_gradients(self) -> None:
        batch = held_out()
        batch.images.requires_grad_()
        assert measure_transfer(captured("decisive"), whole(), 0, [batch]).other_images >= 0
        assert batch.images.grad is None


class TestMissingImages:
    def test_without_members_what_members_show_is_unknown(self) -> None:
        label, batch = common_class(), held_out()
        others = rows_of(batch, batch.predicted != label)
        figures = measure_transfer(captured("decisive"), class_mask(label), label, others)
        assert (figures.member_images, figures.agreement, figures.mean_increase, figures.mean_drop) == (0, *[None] * 3)
        assert None not in (figures.forcing, figures.leak, figures.leak_reference)

    def test_without_others_what_others_show_is_unknown(self) -> None:
        label, batch = common_class(), held_out()
        members = rows_of(batch, batch.predicted == label)
        figures = measure_transfer(captured("decisive"), class_mask(label), label, members)
        assert (figures.other_images, figures.forcing, figures.leak, figures.leak_reference) == (0, *[None] * 3)
        assert None not in (figures.agreement, figures.mean_increase, figures.mean_drop)
