"""Bundles on disk: what is read is what was written, and nothing else is accepted."""

import copy as copy_module
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathlens.bundle import store
from pathlens.bundle.store import FILES, GENERATOR, MANIFEST, REFERENCE, Bundle, load_bundle, save_bundle
from pathlens.description import ClassPathwaySelection, ClassPathwayStatistics, MaskFigures, TransferFigures
from pathlens.errors import BundleError
from pathlens.explanation import Ablation, ExplanationOptions, Granularity, Output, PathwaySource, Targets
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank
from pathlens.pathways.reference import TRACKED, Statistic
from pathlens.pathways.replacement import Replacement
from tiny_bundle import LABELS, TWO_SIDED, pixels, png, tiny_bundle, tiny_reference

Damage = Callable[[dict[str, torch.Tensor]], object]
NEURONS = 4 + 6 + 8
"""Channels of the tiny classifier."""
ALL_FILES = (*FILES, GENERATOR, REFERENCE)
EVERYTHING = [
    ExplanationOptions(Targets(class_indices=(0, 1, 2, 3)), outputs=frozenset(Output), top_neurons=5),
    ExplanationOptions(Targets(top_k=2), PathwaySource.GENERATED, outputs=frozenset(Output), top_neurons=5),
    ExplanationOptions(Targets(top_k=2), PathwaySource.NEURON_MCT, 0.7, outputs=frozenset(Output)),
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    save_bundle(tiny_bundle(), folder)
    return folder


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "tiny"))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    edit(values)
    (folder / MANIFEST).write_text(json.dumps(values))


def rehash(folder: Path) -> None:
    """Give a changed bundle the right file hashes, as whoever changed it with intent would."""

    def edit(values: dict[str, Any]) -> None:
        values["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in values["files"]}

    edit_manifest(folder, edit)


def edit_tensors(file: Path, change: Damage) -> None:
    """Change the tensors of a stamped file, keeping stamp and hash right."""
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    stamp = {"classifier_sha256": tiny_bundle().classifier.fingerprint}
    file.write_bytes(safetensors.torch.save(tensors, stamp))
    rehash(file.parent)


MASK = f"mask_{TWO_SIDED}"
DROPS = "transferred.confidence_drop"
SOURCES = [source.value for source in TRACKED]
DAMAGES: list[tuple[Damage, str]] = [
    (lambda tensors: tensors.pop(MASK), "it holds"),
    (lambda tensors: tensors.pop("replacement_1"), "it holds"),
    (lambda tensors: tensors.update(mask_0=tensors[MASK].clone()), "it holds"),
    (lambda tensors: tensors.update(replacement_3=torch.zeros(1, 8)), "it holds"),
    (lambda tensors: tensors.update({MASK: torch.zeros(NEURONS // 8, dtype=torch.uint8)}), "a mask is"),
    (lambda tensors: tensors.update({MASK: torch.zeros(NEURONS // 8 + 2, dtype=torch.uint8)}), "a mask is"),
    (lambda tensors: tensors.update({MASK: torch.zeros(NEURONS // 8 + 1)}), "a mask is"),
    (lambda tensors: tensors.update({MASK: torch.tensor(1, dtype=torch.uint8)}), "a mask is"),
    (lambda tensors: tensors.update(class_0=torch.tensor(1, dtype=torch.uint8)), "does not fit"),
    (lambda tensors: tensors.update(replacement_0=tensors["replacement_0"].double()), "float64"),
    (lambda tensors: tensors.update(replacement_0=tensors["replacement_0"][..., 0].clone()), "expected float32 with"),
    (lambda tensors: tensors.update(replacement_0=torch.zeros(1, 3, 1, 1)), "expected float32 with"),
    (lambda tensors: tensors.update(replacement_0=torch.zeros(2, 4, 1, 1)), "expected float32 with 1 or 5 rows"),
    (lambda tensors: tensors.update(replacement_0=torch.zeros(0, 4, 1, 1)), "expected float32 with 1 or 5 rows"),
    (
        lambda tensors: tensors.update(replacement_2=torch.zeros(5 if len(tensors["replacement_2"]) == 1 else 1, 8)),
        "rows",
    ),
    (lambda tensors: tensors["replacement_2"].fill_(torch.nan), "not finite"),
]


@st.composite
def bundles(draw: st.DrawFn) -> Bundle:
    """Make bundles of any bank that fits the tiny classifier."""
    bundle = tiny_bundle(draw(st.sampled_from(Granularity)))
    taps, granularity = bundle.classifier.taps, bundle.bank.granularity
    neurons = len(bundle.bank.counts[0].kept)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    stored = draw(st.sets(st.integers(0, len(LABELS) - 1), min_size=1))
    images = {label: draw(st.sampled_from([1, 5, 255, 256, 40_000])) for label in stored}
    counts = {
        label: ClassCounts(
            torch.randint(0, number + 1, (neurons,), generator=random, dtype=torch.int32), number, number * 0.5
        )
        for label, number in images.items()
    }
    masks = {
        label: torch.rand(neurons, generator=random) < 0.5 for label in draw(st.sets(st.sampled_from(sorted(stored))))
    }
    threshold = draw(st.floats(0, 1, exclude_min=True))
    source = draw(st.sampled_from([PathwaySource.GENERATED, PathwaySource.NEURON_MCT]))
    shares, sizes = st.none() | st.floats(0, 1), st.integers(0, 1000)
    figures = st.builds(TransferFigures, sizes, sizes, shares, shares, shares, shares, shares, shares)
    mask_figures = st.builds(MaskFigures, st.floats(0, 1), figures, figures)
    statistics = {
        label: ClassPathwayStatistics(
            image_count=number,
            threshold=threshold,
            source=source,
            selection=ClassPathwaySelection.TWO_SIDED if label in masks else ClassPathwaySelection.FREQUENCY,
            mean_instance_sparsity=0.5,
            mean_instance_iou=draw(shares),
            within_class_iou=draw(shares),
            cross_class_iou=draw(shares),
            stored=draw(mask_figures),
            by_frequency=draw(mask_figures),
        )
        for label, number in images.items()
    }
    ablation = draw(st.sampled_from(Ablation))
    rows = draw(st.sampled_from([1, len(LABELS)]))
    values = (
        ()
        if ablation is Ablation.ZERO
        else tuple(
            torch.randn(rows, *(draw(st.sampled_from([1, size])) for size in tap.shape), generator=random)
            for tap in taps
        )
    )
    without = st.integers(0, len(LABELS) - 1).filter(lambda label: label not in stored)
    too_few = {} if len(stored) == len(LABELS) else draw(st.dictionaries(without, st.integers(0, 4)))
    bank = ClassPathwayBank(
        taps, granularity, threshold, counts, statistics, masks, Replacement(ablation, values), too_few
    )
    return replace(bundle, bank=bank, source=source, instance_sparsity=draw(st.floats(0, 1, exclude_max=True)))


class TestRoundTrip:
    @pytest.mark.parametrize("granularity", list(Granularity))
    @pytest.mark.parametrize("ablation", list(Ablation))
    @pytest.mark.parametrize("options", EVERYTHING)
    def test_explanations_stay_identical(
        self, granularity: Granularity, ablation: Ablation, options: ExplanationOptions, tmp_path: Path
    ) -> None:
        bundle = tiny_bundle(granularity, ablation=ablation)
        save_bundle(bundle, tmp_path / "bundle")
        loaded = load_bundle(tmp_path / "bundle")
        image = png(pixels(1))
        (before,), (after,) = (one.explainer().explain([image], options) for one in (bundle, loaded))
        assert after.predictions == before.predictions
        for one, other in zip(after.explanations, before.explanations, strict=True):
            assert (one.target, one.sparsity, one.class_pathway_iou) == (
                other.target,
                other.sparsity,
                other.class_pathway_iou,
            )
            assert (one.source, one.ablation) == (other.source, other.ablation)
            assert (one.faithfulness, one.top_neurons) == (other.faithfulness, other.top_neurons)
            assert (one.heatmap_png, one.overlay_png) == (other.heatmap_png, other.overlay_png)
            np.testing.assert_array_equal(one.map, other.map)
            for mask, same in zip(one.pathway, other.pathway, strict=True):
                np.testing.assert_array_equal(mask.mask, same.mask)

    def test_everything_beside_the_tensors_stays(self, stored: Path) -> None:
        before, after = tiny_bundle(), load_bundle(stored)
        for name in ("name", "preprocessing", "labels", "source", "instance_sparsity", "minimum_images", "fit"):
            assert getattr(after, name) == getattr(before, name), name
        assert after.bank.statistics == before.bank.statistics
        assert (after.bank.granularity, after.bank.threshold) == (before.bank.granularity, before.bank.threshold)
        assert after.classifier.program == before.classifier.program
        assert after.classifier.fingerprint == before.classifier.fingerprint

    @given(bundle=bundles())
    @settings(max_examples=30)
    def test_a_bank_is_read_as_it_was_written(self, bundle: Bundle) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_bundle(bundle, Path(folder) / "bundle")
            loaded = load_bundle(Path(folder) / "bundle")
        before, after = bundle.bank, loaded.bank
        for name in ("granularity", "threshold", "statistics", "too_few"):
            assert getattr(after, name) == getattr(before, name), name
        assert (loaded.source, loaded.instance_sparsity) == (bundle.source, bundle.instance_sparsity)
        assert after.masks.keys() == before.masks.keys()
        for label, mask in before.masks.items():
            assert torch.equal(after.masks[label], mask)
        for label, counts in before.counts.items():
            assert torch.equal(after.counts[label].kept, counts.kept)
            assert torch.equal(after.transfer([label]).flat(), before.transfer([label]).flat())
            assert torch.equal(after.by_frequency(label).flat(), before.by_frequency(label).flat())
        assert after.replacement.ablation is before.replacement.ablation
        for values, same in zip(after.replacement.values, before.replacement.values, strict=True):
            assert torch.equal(values, same)

    @pytest.mark.parametrize("granularity", list(Granularity))
    def test_a_generator_is_read_as_it_was_written(self, granularity: Granularity, tmp_path: Path) -> None:
        before = tiny_bundle(granularity).generator
        save_bundle(tiny_bundle(granularity), tmp_path / "bundle")
        after = load_bundle(tmp_path / "bundle").generator
        assert before is not None
        assert after is not None
        assert (after.granularity, after.width) == (before.granularity, before.width)
        assert after.state_dict().keys() == before.state_dict().keys()
        for name, value in before.state_dict().items():
            assert torch.equal(after.state_dict()[name], value)

    def test_a_bundle_without_generator_has_no_file_of_it(self, tmp_path: Path) -> None:
        save_bundle(replace(tiny_bundle(), generator=None), tmp_path / "bundle")
        assert {file.name for file in (tmp_path / "bundle").iterdir()} == {MANIFEST, *FILES, REFERENCE}
        assert load_bundle(tmp_path / "bundle").generator is None

    def test_a_reference_is_read_as_it_was_written(self, stored: Path) -> None:
        before, after = tiny_bundle().reference, load_bundle(stored).reference
        assert list(after) == list(before)
        for source, distribution in before.items():
            np.testing.assert_array_equal(after[source].classes, distribution.classes)
            for statistic, values in distribution.values.items():
                np.testing.assert_array_equal(after[source].values[statistic], values)

    def test_an_image_without_a_figure_stays_without_it(self, tmp_path: Path) -> None:
        reference = tiny_reference(PathwaySource.NEURON_MCT)
        reference.values[Statistic.CLASS_PATHWAY_IOU][3] = np.nan
        save_bundle(replace(tiny_bundle(), reference={reference.source: reference}), tmp_path / "bundle")
        values = load_bundle(tmp_path / "bundle").reference[reference.source].values[Statistic.CLASS_PATHWAY_IOU]
        np.testing.assert_array_equal(values, reference.values[Statistic.CLASS_PATHWAY_IOU])

    def test_a_bundle_without_reference_has_no_file_of_it(self, tmp_path: Path) -> None:
        save_bundle(replace(tiny_bundle(), reference={}), tmp_path / "bundle")
        assert {file.name for file in (tmp_path / "bundle").iterdir()} == {MANIFEST, *FILES, GENERATOR}
        assert load_bundle(tmp_path / "bundle").reference == {}

    def test_a_bundle_from_before_there_were_references_explains_without_ranks(self, tmp_path: Path) -> None:
        save_bundle(replace(tiny_bundle(), reference={}), tmp_path / "bundle")
        edit_manifest(tmp_path / "bundle", lambda values: values.pop("reference"))
        (result,) = load_bundle(tmp_path / "bundle").explainer().explain([pixels(0)])
        assert [explanation.typicality for explanation in result.explanations] == [None]

    def test_masks_take_one_bit_for_each_neuron(self, stored: Path) -> None:
        packed = safetensors.torch.load_file(stored / store.BANK)[f"mask_{TWO_SIDED}"]
        assert (packed.dtype, len(packed)) == (torch.uint8, -(-NEURONS // 8))

    def test_the_hash_names_the_content(self, stored: Path, tmp_path: Path) -> None:
        assert tiny_bundle().sha256 == ""
        digest = save_bundle(tiny_bundle(), tmp_path / "elsewhere" / "again")
        assert digest == load_bundle(stored).sha256 == load_bundle(tmp_path / "elsewhere" / "again").sha256
        for name in (MANIFEST, *ALL_FILES):
            assert (stored / name).read_bytes() == (tmp_path / "elsewhere" / "again" / name).read_bytes()

    def test_another_bundle_has_another_hash(self, stored: Path, tmp_path: Path) -> None:
        assert (
            save_bundle(replace(tiny_bundle(), instance_sparsity=0.25), tmp_path / "bundle")
            != load_bundle(stored).sha256
        )

    @pytest.mark.parametrize("images", [255, 256, 32768, 70000])
    def test_counts_of_any_size_stay_exact(self, images: int, tmp_path: Path) -> None:
        bundle = tiny_bundle()
        kept = torch.tensor([images, images - 1, *([0] * 16)], dtype=torch.int32)
        bank = ClassPathwayBank(
            bundle.classifier.taps,
            Granularity.CHANNEL,
            1.0,
            {0: ClassCounts(kept, images, 0.5 * images)},
            {0: replace(bundle.bank.statistics[0], image_count=images, threshold=1.0)},
        )
        save_bundle(replace(bundle, bank=bank), tmp_path / "bundle")
        counts = load_bundle(tmp_path / "bundle").bank.counts[0]
        assert counts.kept.tolist() == kept.tolist()
        assert (counts.images, counts.sparsity_sum) == (images, 0.5 * images)

    def test_a_bundle_may_lie_in_any_folder(self, stored: Path, tmp_path: Path) -> None:
        moved = shutil.copytree(stored, tmp_path / "a folder, elsewhere")
        assert load_bundle(str(moved)).sha256 == load_bundle(stored).sha256

    def test_no_file_names_the_machine_that_made_it(self, stored: Path) -> None:
        for file in stored.iterdir():
            assert str(Path.cwd()).encode() not in file.read_bytes()


class TestRefusal:
    @given(data=st.data(), name=st.sampled_from(ALL_FILES))
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_changed_byte_in_a_file(self, data: st.DataObject, name: str, stored: Path) -> None:
        content = (stored / name).read_bytes()
        with restored(stored / name):
            position = data.draw(st.integers(0, len(content) - 1))
            changed = bytearray(content)
            changed[position] ^= data.draw(st.integers(1, 255))
            (stored / name).write_bytes(changed)
            with pytest.raises(BundleError, match="SHA-256"):
                load_bundle(stored)

    @given(data=st.data())
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_changed_byte_in_the_manifest_is_refused_or_changes_the_hash(
        self, data: st.DataObject, stored: Path
    ) -> None:
        content = (stored / MANIFEST).read_bytes()
        before = hashlib.sha256(content).hexdigest()
        with restored(stored / MANIFEST):
            position = data.draw(st.integers(0, len(content) - 1))
            changed = bytearray(content)
            changed[position] ^= data.draw(st.integers(1, 255))
            (stored / MANIFEST).write_bytes(changed)
            try:
                assert load_bundle(stored).sha256 != before
            except BundleError:
                return

    @pytest.mark.parametrize("name", ALL_FILES)
    def test_a_truncated_file(self, name: str, copy: Path) -> None:
        (copy / name).write_bytes((copy / name).read_bytes()[:-1])
        with pytest.raises(BundleError, match="was changed"):
            load_bundle(copy)

    @pytest.mark.parametrize("name", ALL_FILES)
    def test_a_missing_file(self, name: str, copy: Path) -> None:
        (copy / name).unlink()
        with pytest.raises(BundleError, match=name):
            load_bundle(copy)

    def test_a_missing_manifest(self, copy: Path) -> None:
        (copy / MANIFEST).unlink()
        with pytest.raises(BundleError, match="is not a bundle"):
            load_bundle(copy)

    def test_a_folder_that_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="is not a bundle"):
            load_bundle(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        "text",
        [b"", b"[]", b"null", b"{", b'"schema_version"', b"\xff\xfe\x00", b"[" * 100_000, b'{"schema_version":1}'],
    )
    def test_a_manifest_that_is_none(self, text: bytes, copy: Path) -> None:
        (copy / MANIFEST).write_bytes(text)
        with pytest.raises(BundleError):
            load_bundle(copy)

    @pytest.mark.parametrize("version", [0, 1, 3, "2", None])
    def test_another_schema_version(self, version: object, copy: Path) -> None:
        edit_manifest(copy, lambda values: values.update(schema_version=version))
        with pytest.raises(BundleError, match=r"schema version .*: fit it again"):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "part",
        [
            (),
            ("bank",),
            ("fit",),
            ("generator",),
            ("bank", "classes", 0),
            ("bank", "classes", 0, "stored"),
            ("bank", "classes", 0, "by_frequency", "figures"),
        ],
    )
    def test_an_unknown_key(self, part: tuple[str | int, ...], copy: Path) -> None:
        def edit(values: Any) -> None:
            for key in part:
                values = values[key]
            values["surprise"] = 1

        edit_manifest(copy, edit)
        with pytest.raises(BundleError, match="surprise"):
            load_bundle(copy)

    def test_an_unknown_preprocessing_key(self, copy: Path) -> None:
        edit_manifest(copy, lambda values: values["preprocessing"].update(surprise=1))
        with pytest.raises(BundleError, match="surprise"):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "../escape"},
            {"name": ""},
            {"name": "a" * 101},
            {"classifier_sha256": "0" * 63},
            {"labels": ["one"]},
            {"labels": None},
            {"preprocessing": {}},
        ],
    )
    def test_an_impossible_value(self, change: dict[str, object], copy: Path) -> None:
        edit_manifest(copy, lambda values: values.update(change))
        with pytest.raises(BundleError):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"threshold": 0},
            {"threshold": 1.5},
            {"instance_sparsity": 1},
            {"granularity": "pixel"},
            {"granularity": "unit"},
            {"ablation": "median"},
            {"ablation": "mean"},
            {"too_few": {"5": 1}},
            {"too_few": {"0": 1}},
            {"too_few": {"4": -1}},
            {"too_few": {"-1": 1}},
            {"too_few": {"four": 1}},
            {"too_few": None},
        ],
    )
    def test_an_impossible_bank(self, change: dict[str, object], copy: Path) -> None:
        edit_manifest(copy, lambda values: values["bank"].update(change))
        with pytest.raises(BundleError):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"selection": "guess"},
            {"selection": "two_sided"},
            {"class_index": 5},
            {"class_index": 1},
            {"stored": None},
            {"by_frequency": {}},
            {"within_class_iou": "high"},
        ],
    )
    def test_an_impossible_class_pathway(self, change: dict[str, object], copy: Path) -> None:
        edit_manifest(copy, lambda values: values["bank"]["classes"][0].update(change))
        with pytest.raises(BundleError):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "change",
        [
            {"width": 0},
            {"width": 4},
            {"width": 10**9},
            {"width": None},
            {"parameters": 1},
            {"granularity": "unit"},
            {"granularity": "pixel"},
        ],
    )
    def test_an_impossible_generator(self, change: dict[str, object], copy: Path) -> None:
        edit_manifest(copy, lambda values: values["generator"].update(change))
        with pytest.raises(BundleError):
            load_bundle(copy)

    def test_a_generator_of_another_granularity_than_the_bank(self, tmp_path: Path) -> None:
        save_bundle(replace(tiny_bundle(), generator=tiny_bundle(Granularity.UNIT).generator), tmp_path / "bundle")
        with pytest.raises(BundleError, match="a generator of unit pathways and class pathways of channels"):
            load_bundle(tmp_path / "bundle")

    def test_a_file_of_a_generator_that_the_manifest_does_not_have(self, copy: Path) -> None:
        edit_manifest(copy, lambda values: values.update(generator=None))
        with pytest.raises(BundleError, match="names the files"):
            load_bundle(copy)

    @pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "sub/secret", "..", ""])
    def test_a_path_out_of_the_folder(self, outside: str, copy: Path) -> None:
        secret = copy.parent / "secret"
        secret.write_bytes(b"secret")
        (copy / "sub").mkdir()
        (copy / "sub" / "secret").write_bytes(b"secret")
        digest = hashlib.sha256(b"secret").hexdigest()
        edit_manifest(copy, lambda values: values["files"].update({outside: digest}))
        with pytest.raises(BundleError, match="names the files"):
            load_bundle(copy)

    @pytest.mark.parametrize("name", ALL_FILES)
    def test_a_file_without_a_hash(self, name: str, copy: Path) -> None:
        edit_manifest(copy, lambda values: values["files"].pop(name))
        with pytest.raises(BundleError, match="names the files"):
            load_bundle(copy)

    def test_another_classifier_of_the_same_shape(self, copy: Path) -> None:
        other = tiny_bundle(seed=1).classifier
        (copy / store.WEIGHTS).write_bytes(other.weights_bytes())
        rehash(copy)
        with pytest.raises(BundleError, match=r"was fitted for classifier \w+ but holds"):
            load_bundle(copy)

    @pytest.mark.parametrize("name", [store.BANK, GENERATOR, REFERENCE])
    def test_tensors_of_another_classifier(self, name: str, copy: Path) -> None:
        stamped = safetensors.torch.load_file(copy / name)
        (copy / name).write_bytes(safetensors.torch.save(stamped, {"classifier_sha256": "0" * 64}))
        rehash(copy)
        with pytest.raises(BundleError, match="belongs to classifier 000"):
            load_bundle(copy)

    @pytest.mark.parametrize("name", [store.BANK, GENERATOR, REFERENCE])
    def test_tensors_without_a_stamp(self, name: str, copy: Path) -> None:
        (copy / name).write_bytes(safetensors.torch.save(safetensors.torch.load_file(copy / name)))
        rehash(copy)
        with pytest.raises(BundleError, match="belongs to classifier None"):
            load_bundle(copy)

    @pytest.mark.parametrize("edit", ["shorter", "missing"])
    def test_a_bank_that_does_not_fit_the_classifier(self, edit: str, copy: Path) -> None:
        counts = safetensors.torch.load_file(copy / store.BANK)
        for name in list(counts):
            if edit == "shorter":
                counts[name] = counts[name][:-1].clone()
            elif name == "class_2":
                del counts[name]
        stamp = {"classifier_sha256": tiny_bundle().classifier.fingerprint}
        (copy / store.BANK).write_bytes(safetensors.torch.save(counts, stamp))
        rehash(copy)
        with pytest.raises(BundleError, match="does not fit the classifier"):
            load_bundle(copy)

    @pytest.mark.parametrize("ablation", [Ablation.MEAN, Ablation.OPTIMAL])
    @pytest.mark.parametrize("damage", DAMAGES, ids=[words for _, words in DAMAGES])
    def test_a_bank_whose_tensors_were_changed_with_intent(
        self, ablation: Ablation, damage: tuple[Damage, str], tmp_path: Path
    ) -> None:
        save_bundle(tiny_bundle(ablation=ablation), tmp_path / "tiny")
        change, words = damage
        edit_tensors(tmp_path / "tiny" / store.BANK, change)
        with pytest.raises(BundleError, match=words):
            load_bundle(tmp_path / "tiny")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda tensors: tensors.popitem(), "does not fit the classifier"),
            (lambda tensors: tensors.update(surprise=torch.zeros(1)), "surprise"),
            (lambda tensors: tensors.update({min(tensors): torch.zeros(1, 2, 3)}), "does not fit the classifier"),
            (lambda tensors: tensors[min(tensors)].fill_(torch.nan), "not finite"),
            (lambda tensors: tensors[max(tensors)][:1].fill_(torch.inf), "not finite"),
        ],
    )
    def test_a_generator_whose_parameters_were_changed_with_intent(
        self, change: Damage, words: str, copy: Path
    ) -> None:
        edit_tensors(copy / GENERATOR, change)
        with pytest.raises(BundleError, match=words):
            load_bundle(copy)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda tensors: tensors.pop("transferred.class"), "it holds"),
            (lambda tensors: tensors.update({"transferred.sparsity": torch.zeros(130)}), "it holds"),
            (lambda tensors: tensors.update({DROPS: torch.zeros(129)}), r"expected torch.float32 \[130\]"),
            (lambda tensors: tensors.update({DROPS: torch.zeros(130, 1)}), r"expected torch.float32 \[130\]"),
            (lambda tensors: tensors.update({DROPS: torch.zeros(130).double()}), "float64"),
            (lambda tensors: tensors[DROPS][:1].fill_(-torch.inf), "not finite"),
            (lambda tensors: tensors["transferred.class"][:1].fill_(5), "beyond the 5"),
            (lambda tensors: tensors["transferred.class"][:1].fill_(-1), "beyond the 5"),
        ],
    )
    def test_a_reference_whose_figures_were_changed_with_intent(self, change: Damage, words: str, copy: Path) -> None:
        edit_tensors(copy / REFERENCE, change)
        with pytest.raises(BundleError, match=words):
            load_bundle(copy)

    @pytest.mark.parametrize(
        ("images", "words"),
        [({}, "at least 1"), ({"neuron_intgrad": 40}, "it holds"), ({"transferred": 0}, "greater than 0")],
    )
    def test_a_reference_of_other_sources(self, images: dict[str, int], words: str, copy: Path) -> None:
        edit_manifest(copy, lambda values: values["reference"].update(images=images))
        with pytest.raises(BundleError, match=words):
            load_bundle(copy)

    def test_a_reference_of_too_few_images(self, copy: Path) -> None:
        def shorten(tensors: dict[str, torch.Tensor]) -> None:
            tensors.update({name: values[:29].clone() for name, values in tensors.items()})

        edit_tensors(copy / REFERENCE, shorten)
        edit_manifest(copy, lambda values: values["reference"].update(images=dict.fromkeys(SOURCES, 29)))
        with pytest.raises(BundleError, match="has 29 images; expected at least 30"):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "function",
        ["os.system", "builtins.eval", "operator.attrgetter", "aten.nonsense.default", "prims.add.default", ""],
    )
    def test_a_program_that_calls_anything_but_tensor_operators(self, function: str, copy: Path) -> None:
        program = json.loads((copy / store.PROGRAM).read_text())
        program["calls"][0]["function"] = function
        (copy / store.PROGRAM).write_text(json.dumps(program))
        rehash(copy)
        with pytest.raises(BundleError):
            load_bundle(copy)

    @given(data=st.data())
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_a_changed_program_with_the_right_hash(self, data: st.DataObject, stored: Path) -> None:
        with restored(stored / store.PROGRAM), restored(stored / MANIFEST):
            program = json.loads((stored / store.PROGRAM).read_text())
            before, place = json.dumps(program), program
            while True:
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = data.draw(st.sampled_from(keys))
                if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
                    break
                place = place[key]
            place[key] = data.draw(st.sampled_from([None, -1, 2.5, "", "call", [], {}, {"call": "x"}, {"dtype": "os"}]))
            if json.dumps(program) == before:
                return
            (stored / store.PROGRAM).write_text(json.dumps(program))
            rehash(stored)
            with pytest.raises(BundleError):
                load_bundle(stored)

    @pytest.mark.parametrize("name", ALL_FILES)
    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100, b"{}", b"[" * 100_000])
    def test_nonsense_with_the_right_hash(self, name: str, content: bytes, copy: Path) -> None:
        (copy / name).write_bytes(content)
        rehash(copy)
        with pytest.raises(BundleError):
            load_bundle(copy)


class TestSaving:
    def test_an_earlier_bundle_is_replaced(self, copy: Path) -> None:
        (copy / "left-over").write_text("of an older version")
        save_bundle(replace(tiny_bundle(), instance_sparsity=0.25), copy)
        assert load_bundle(copy).instance_sparsity == 0.25
        assert {file.name for file in copy.iterdir()} == {MANIFEST, *ALL_FILES}
        assert [file.name for file in copy.parent.iterdir()] == ["tiny"]

    @pytest.mark.parametrize("part", ["bank_bytes", "generator_bytes", "reference_bytes", "_manifest", "_sha256"])
    def test_a_failure_half_way_leaves_the_old_bundle_and_no_scratch(
        self, part: str, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = load_bundle(copy).sha256
        monkeypatch.setattr(store, part, interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(replace(tiny_bundle(), instance_sparsity=0.25), copy)
        monkeypatch.undo()
        assert load_bundle(copy).sha256 == before
        assert [file.name for file in copy.parent.iterdir()] == ["tiny"]

    def test_a_failure_half_way_leaves_nothing_where_nothing_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "bank_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_bundle(tiny_bundle(), tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("failing", [1, 2])
    def test_a_failure_while_replacing_leaves_the_old_bundle(
        self, failing: int, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = load_bundle(copy).sha256
        rename = Path.rename
        calls: list[Path] = []

        def failing_rename(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == failing:
                raise OSError("the disk went away")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", failing_rename)
        with pytest.raises(OSError, match="the disk went away"):
            save_bundle(replace(tiny_bundle(), instance_sparsity=0.25), copy)
        monkeypatch.undo()
        assert load_bundle(copy).sha256 == before
        assert [file.name for file in copy.parent.iterdir()] == ["tiny"]

    def test_a_folder_that_is_not_a_bundle_is_never_overwritten(self, tmp_path: Path) -> None:
        photographs = tmp_path / "photographs"
        photographs.mkdir()
        (photographs / "cat.jpg").write_bytes(b"cat")
        with pytest.raises(BundleError, match="is not a bundle"):
            save_bundle(tiny_bundle(), photographs)
        assert (photographs / "cat.jpg").read_bytes() == b"cat"

    def test_a_file_is_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "bundle").write_text("precious")
        with pytest.raises(BundleError, match="is not a bundle"):
            save_bundle(tiny_bundle(), tmp_path / "bundle")
        assert (tmp_path / "bundle").read_text() == "precious"

    @pytest.mark.parametrize("name", ["", "my bundle", ".hidden", "a/b", "../up", "a" * 101, "ünicode", "line\n"])
    def test_a_name_that_a_model_cannot_have_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="The name is"):
            save_bundle(replace(tiny_bundle(), name=name), tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("label", [0, TWO_SIDED])
    def test_a_mask_that_its_statistics_deny_is_refused(self, label: int, tmp_path: Path) -> None:
        bank = copy_module.copy(tiny_bundle().bank)
        bank.masks = {0: bank.masks[TWO_SIDED], TWO_SIDED: bank.masks[TWO_SIDED]} if label == 0 else {}
        with pytest.raises(ValueError, match=f"class {label} is selected"):
            save_bundle(replace(tiny_bundle(), bank=bank), tmp_path / "bundle")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["a", "resnet-50.v1_2", "0", "a" * 100])
    def test_a_usual_name_is_kept(self, name: str, tmp_path: Path) -> None:
        save_bundle(replace(tiny_bundle(), name=name), tmp_path / "bundle")
        assert load_bundle(tmp_path / "bundle").name == name


def test_a_loaded_bundle_serves_under_its_own_hash(stored: Path) -> None:
    bundle: Bundle = load_bundle(stored)
    (result,) = bundle.explainer(version="3.0").predict([pixels(0)])
    assert (result.model.name, result.model.version, result.model.bundle_sha256) == ("tiny", "3.0", bundle.sha256)
    assert bundle.labels == LABELS


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Put a file back as it was: hypothesis shares the folder among its examples."""
    content = path.read_bytes()
    try:
        yield
    finally:
        path.write_bytes(content)
