import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pathlens.bundle.store import save_bundle
from pathlens.classifier.images import ImageSource
from pathlens.errors import FitError
from pathlens.explanation import Ablation
from pathlens.fitting import checkpoint, training_loop
from pathlens.fitting.fit import fit
from pathlens.fitting.subject import FitSubject
from small_fits import BY_FREQUENCY, PREPROCESSING, TRAINED, Recorder, fitted, folder, npz, subject_of
from small_networks import captured

STAGES = (
    *(("Survey", 16), ("Class pathways", 1), ("Class pathways", 17), ("Generator", 1), ("Generator", 17)),
    *(("Generator", 30), ("Instance pathways", 20), ("Held-out images", 1), ("Testing class pathways", 1)),
)
interrupted_anywhere = pytest.mark.parametrize(("stage", "after"), STAGES)


@pytest.fixture(autouse=True)
def _checkpoint_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Below 0, as a clock may not move between two steps.
    monkeypatch.setattr(checkpoint, "INTERVAL", -1.0)


def interrupt(source: ImageSource, unfinished: Path, stage: str, after: int, **changes: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        fitted(source, unfinished, TRAINED, Recorder(stage, after), **changes)  # type: ignore[arg-type]


class TestAnInterruptedFit:
    @interrupted_anywhere
    def test_goes_on_to_the_bundle_of_an_uninterrupted_one(self, stage: str, after: int, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz")
        whole = save_bundle(fitted(source, tmp_path / "whole.unfinished", TRAINED), tmp_path / "whole")
        interrupt(source, tmp_path / "u", stage, after)
        resumed = fitted(npz(tmp_path / "images.npz"), tmp_path / "u", TRAINED)
        assert save_bundle(resumed, tmp_path / "resumed") == whole

    def test_goes_on_so_in_the_middle_of_a_long_plan(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = npz(tmp_path / "images.npz")
        whole = save_bundle(fitted(source, tmp_path / "whole.unfinished", TRAINED), tmp_path / "whole")
        monkeypatch.setattr(training_loop, "ROUND", 7)
        interrupt(source, tmp_path / "u", "Generator", 17)
        assert save_bundle(fitted(source, tmp_path / "u", TRAINED), tmp_path / "resumed") == whole

    def test_goes_on_so_with_learned_constants_and_a_searched_price(self, tmp_path: Path) -> None:
        source, changes = npz(tmp_path / "images.npz"), {"ablation": Ablation.OPTIMAL, "agreement": 0.8}
        whole = save_bundle(fitted(source, tmp_path / "w", TRAINED, **changes), tmp_path / "whole")  # type: ignore[arg-type]
        for stage in ("Class pathways", "Generator"):
            interrupt(source, tmp_path / "u", stage, 19, **changes)
        resumed = fitted(source, tmp_path / "u", TRAINED, **changes)  # type: ignore[arg-type]
        assert save_bundle(resumed, tmp_path / "resumed") == whole

    def test_begins_where_it_stopped(self, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz")
        interrupt(source, tmp_path / "u", "Generator", 17)
        again = Recorder("Generator", 1)
        with pytest.raises(KeyboardInterrupt):
            fitted(source, tmp_path / "u", TRAINED, again)
        # The step during which it was interrupted is taken again; earlier stages are not.
        assert again.seen == {"Class pathways": (30, 30), "Generator": (17, 30)}

    def test_may_be_interrupted_again_and_again(self, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz")
        whole = save_bundle(fitted(source, tmp_path / "w", TRAINED), tmp_path / "whole")
        for _ in range(3):
            interrupt(source, tmp_path / "u", "Class pathways", 4)
        assert save_bundle(fitted(source, tmp_path / "u", TRAINED), tmp_path / "resumed") == whole

    def test_does_not_go_on_with_other_images(self, tmp_path: Path) -> None:
        interrupt(npz(tmp_path / "images.npz"), tmp_path / "u", "Class pathways", 4)
        with np.load(tmp_path / "images.npz") as file:
            np.savez(tmp_path / "inverted.npz", images=255 - file["images"])
        with pytest.raises(FitError, match="unfinished fit with other settings, images"):
            fitted(ImageSource(tmp_path / "inverted.npz"), tmp_path / "u", TRAINED)

    def test_still_counts_and_names_the_images_that_could_not_be_read(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=[0, 7, 8])
        whole = save_bundle(fitted(source, tmp_path / "w", TRAINED), tmp_path / "whole")
        interrupt(ImageSource(tmp_path / "images"), tmp_path / "u", "Generator", 3)
        again = ImageSource(tmp_path / "images")
        bundle = fitted(again, tmp_path / "u", TRAINED)
        assert bundle.fit.skipped_images == 3
        assert sorted(again.skipped) == sorted(source.skipped)
        assert save_bundle(bundle, tmp_path / "resumed") == whole

    def test_holds_no_half_written_file(self, tmp_path: Path) -> None:
        interrupt(npz(tmp_path / "images.npz"), tmp_path / "u", "Generator", 3)
        names = {path.name for path in (tmp_path / "u").iterdir()}
        assert names == {"lock", "settings.json", "survey.pt", "class-pathways.pt", "generator.pt"}


class TestAnotherFit:
    @pytest.mark.parametrize("changes", [{"seed": 1}, {"price": 2.0}, {"name": "other"}, {"generator_steps": 31}])
    def test_with_other_settings_is_refused_until_it_discards_the_unfinished_one(
        self, changes: dict[str, object], tmp_path: Path
    ) -> None:
        source = npz(tmp_path / "images.npz")
        whole = save_bundle(fitted(source, tmp_path / "w", TRAINED, **changes), tmp_path / "whole")  # type: ignore[arg-type]
        interrupt(source, tmp_path / "u", "Generator", 3)
        with pytest.raises(FitError, match=r"unfinished fit with other settings.*--restart"):
            fitted(source, tmp_path / "u", TRAINED, **changes)  # type: ignore[arg-type]
        restarted = fitted(source, tmp_path / "u", TRAINED, restart=True, **changes)  # type: ignore[arg-type]
        assert save_bundle(restarted, tmp_path / "restarted") == whole

    def test_with_other_files_is_refused(self, tmp_path: Path) -> None:
        source = folder(tmp_path / "images", bad=[])
        interrupt(source, tmp_path / "u", "Generator", 3)
        (tmp_path / "images" / "000.png").rename(tmp_path / "images" / "zzz.png")
        with pytest.raises(FitError, match="other settings, images or another classifier"):
            fitted(ImageSource(tmp_path / "images"), tmp_path / "u", TRAINED)

    def test_with_another_classifier_preprocessing_or_number_of_images_is_refused(self, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz")
        interrupt(source, tmp_path / "u", "Generator", 3)
        subject = subject_of(source)
        others = (
            FitSubject(captured("dense"), PREPROCESSING, subject.labels, source),
            dataclasses.replace(subject, preprocessing=dataclasses.replace(PREPROCESSING, std=(0.2,) * 3)),
            dataclasses.replace(subject, images=npz(tmp_path / "more.npz", count=61)),
        )
        for other in others:
            with pytest.raises(FitError, match="other settings, images or another classifier"):
                fit(other, TRAINED, tmp_path / "u")

    def test_of_the_same_settings_may_use_other_workers(self, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz")
        interrupt(source, tmp_path / "u", "Generator", 3)
        assert fit(dataclasses.replace(subject_of(source), workers=1), TRAINED, tmp_path / "u") is not None

    def test_at_the_same_time_is_refused(self, tmp_path: Path) -> None:
        source = npz(tmp_path / "images.npz")

        class Second(Recorder):
            def advance(self, count: int, figures: object = None) -> None:  # noqa: ARG002
                with pytest.raises(FitError, match="Another fit is writing"):
                    fitted(source, tmp_path / "u", BY_FREQUENCY)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fitted(source, tmp_path / "u", BY_FREQUENCY, Second())


def test_the_folder_says_in_plain_text_what_is_unfinished(tmp_path: Path) -> None:
    source = npz(tmp_path / "images.npz")
    interrupt(source, tmp_path / "u", "Survey", 1)
    stored = json.loads((tmp_path / "u" / "settings.json").read_text())
    assert stored["settings"] == dict(TRAINED.to_json())
    assert (stored["images"], stored["classifier"]) == (source.fingerprint, captured("decisive").fingerprint)
