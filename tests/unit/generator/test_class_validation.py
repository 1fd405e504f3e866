import pytest
import torch
from torch import Tensor

from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.explanation import Ablation, Granularity
from pathlens.generator import class_validation
from pathlens.generator.class_validation import ClassValidation
from pathlens.generator.parallel import ProcessGroup
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.replacement import Replacement
from small_networks import CLASSES, captured, clear_images

IMAGES = clear_images(100)
NEURONS = 16


def validation_of(classes: list[int], images: Tensor = IMAGES) -> ClassValidation:
    return ClassValidation(captured("decisive"), torch.tensor(classes), Granularity.CHANNEL, images, ProcessGroup())


def random_masks(seed: int, classes: int = CLASSES) -> Tensor:
    return torch.rand(classes, NEURONS, generator=torch.Generator().manual_seed(seed)) < 0.7


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_agreement_and_forcing_that_are_measured_after_a_fit(
    monkeypatch: pytest.MonkeyPatch, seed: int, learned: bool
) -> None:
    # So few images are tried with every other class; and no class is mixed with the others.
    monkeypatch.setattr(class_validation, "POOLED", 0)
    classifier, mask = captured("decisive"), random_masks(seed)
    (shape,) = (tap.shape for tap in classifier.taps)
    rows = torch.rand(CLASSES, *shape, generator=torch.Generator().manual_seed(seed))
    replacement = Replacement(Ablation.OPTIMAL, (rows,)) if learned else Replacement()
    found = validation_of(list(range(CLASSES))).look(seed, [mask], replacement)
    assert found is not None
    held_out = HeldOut(IMAGES, classifier(IMAGES).softmax(1))
    for label in range(CLASSES):
        constant = replacement.select(torch.tensor([label]))
        pathway = Pathway(classifier.taps, (mask[label : label + 1],), Granularity.CHANNEL, constant)
        measured = measure_transfer(classifier, pathway, label, [held_out])
        assert float(found.kept[label]) == pytest.approx(measured.agreement)
        assert float(found.forced[label]) == pytest.approx(measured.forcing)


def test_tries_other_classes_at_every_look_where_not_all_can_be_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_validation, "TRIALS", 1)
    monkeypatch.setattr(class_validation, "LEAST_OTHERS", 1)
    validation, mask = validation_of(list(range(CLASSES))), random_masks(5)
    looks = [validation.look(number, [mask], Replacement()) for number in range(3)]
    forced = [found.forced for found in looks if found is not None]
    assert len(forced) == 3
    assert not all(torch.equal(forced[0], other) for other in forced[1:])


def test_leaves_out_images_of_classes_without_a_pathway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_validation, "POOLED", 0)
    own = torch.isin(captured("decisive")(IMAGES).argmax(1), torch.tensor([1, 3]))
    mask = random_masks(0, 2)
    some, all_images = (
        validation_of([1, 3], images).look(0, [mask], Replacement()) for images in (IMAGES[own], IMAGES)
    )
    assert some is not None
    assert all_images is not None
    assert torch.equal(some.kept, all_images.kept)


def test_draws_a_class_of_few_images_to_the_others() -> None:
    predicted = captured("decisive")(IMAGES).argmax(1)
    few = torch.cat([IMAGES[predicted != 2], IMAGES[predicted == 2][:1]])
    # Without a neuron, every image is of the first class: this one loses its only image, the others keep all of theirs.
    mask = torch.ones(CLASSES, NEURONS, dtype=torch.bool)
    mask[2] = False
    found = validation_of(list(range(CLASSES)), few).look(0, [mask], Replacement())
    assert found is not None
    kept = found.kept
    assert 0.9 < float(kept[2]) < float(kept[[0, 1, 3]].min())


def test_tells_nothing_without_an_image_of_its_classes() -> None:
    predicted = captured("decisive")(IMAGES).argmax(1)
    validation = validation_of([0, 1], IMAGES[predicted > 1])
    assert validation.look(0, [random_masks(0, 2)], Replacement()) is None


def test_trusts_few_images_less() -> None:
    masks = [random_masks(1)]
    few, many = (
        validation_of(list(range(CLASSES)), images).look(0, masks, Replacement()) for images in (IMAGES[:20], IMAGES)
    )
    assert few is not None
    assert many is not None
    assert few.kept_error > many.kept_error > 0
    assert few.forced_error > many.forced_error > 0
