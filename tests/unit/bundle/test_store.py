"""Bundles on disk: what is read is what was written, and nothing else is accepted."""

import hashlib
import json
import shutil
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
from pathlens.bundle.store import FILES, MANIFEST, Bundle, load_bundle, save_bundle
from pathlens.errors import BundleError
from pathlens.explanation import ExplanationOptions, Granularity, Output, PathwaySource, Targets
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank
from tiny_bundle import LABELS, pixels, png, tiny_bundle

EVERYTHING = [
    ExplanationOptions(Targets(class_indices=(0, 1, 2, 3)), outputs=frozenset(Output), top_neurons=5),
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
        values["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}

    edit_manifest(folder, edit)


class TestRoundTrip:
    @pytest.mark.parametrize("granularity", list(Granularity))
    @pytest.mark.parametrize("options", EVERYTHING)
    def test_explanations_stay_identical(
        self, granularity: Granularity, options: ExplanationOptions, tmp_path: Path
    ) -> None:
        bundle = tiny_bundle(granularity)
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

    def test_the_hash_names_the_content(self, stored: Path, tmp_path: Path) -> None:
        assert tiny_bundle().sha256 == ""
        digest = save_bundle(tiny_bundle(), tmp_path / "elsewhere" / "again")
        assert digest == load_bundle(stored).sha256 == load_bundle(tmp_path / "elsewhere" / "again").sha256
        for name in (MANIFEST, *FILES):
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
            {0: replace(bundle.bank.statistics[0], image_count=images)},
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
    @given(data=st.data(), name=st.sampled_from(FILES))
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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

    @pytest.mark.parametrize("name", FILES)
    def test_a_truncated_file(self, name: str, copy: Path) -> None:
        (copy / name).write_bytes((copy / name).read_bytes()[:-1])
        with pytest.raises(BundleError, match="was changed"):
            load_bundle(copy)

    @pytest.mark.parametrize("name", FILES)
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

    @pytest.mark.parametrize("version", [0, 2, "1", None])
    def test_another_schema_version(self, version: object, copy: Path) -> None:
        edit_manifest(copy, lambda values: values.update(schema_version=version))
        with pytest.raises(BundleError, match="schema version"):
            load_bundle(copy)

    @pytest.mark.parametrize(
        "part", [(), ("bank",), ("fit",), ("bank", "classes", 0), ("bank", "classes", 0, "figures")]
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
        "change", [{"threshold": 0}, {"threshold": 1.5}, {"instance_sparsity": 1}, {"granularity": "pixel"}]
    )
    def test_an_impossible_bank(self, change: dict[str, object], copy: Path) -> None:
        edit_manifest(copy, lambda values: values["bank"].update(change))
        with pytest.raises(BundleError):
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

    @pytest.mark.parametrize("name", FILES)
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

    def test_a_bank_of_another_classifier(self, copy: Path) -> None:
        stamped = safetensors.torch.load_file(copy / store.BANK)
        (copy / store.BANK).write_bytes(safetensors.torch.save(stamped, {"classifier_sha256": "0" * 64}))
        rehash(copy)
        with pytest.raises(BundleError, match="belongs to classifier 000"):
            load_bundle(copy)

    def test_a_bank_without_a_stamp(self, copy: Path) -> None:
        (copy / store.BANK).write_bytes(safetensors.torch.save(safetensors.torch.load_file(copy / store.BANK)))
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
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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

    @pytest.mark.parametrize("name", [store.PROGRAM, store.WEIGHTS, store.BANK])
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
        assert {file.name for file in copy.iterdir()} == {MANIFEST, *FILES}
        assert [file.name for file in copy.parent.iterdir()] == ["tiny"]

    @pytest.mark.parametrize("part", ["_bank_bytes", "_manifest", "_sha256"])
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
        monkeypatch.setattr(store, "_bank_bytes", interrupted)
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
