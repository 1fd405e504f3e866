"""The three fixture networks, fitted, packed, served and explained with real images over gRPC."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from pathlens.cli import main as pathlens
from pathlens.errors import FailedPreconditionError
from pathlens.explanation import (
    Ablation,
    ExplanationOptions,
    ExplanationResult,
    Granularity,
    Output,
    PathwaySource,
    Targets,
)
from service.classifiers import FIXTURE_NETWORKS, FIXTURES, WITHOUT_FIXTURES
from service.conftest import IMAGENET_IMAGES, Served

pytestmark = [
    pytest.mark.skipif(not FIXTURES.is_dir(), reason=WITHOUT_FIXTURES),
    pytest.mark.timeout(600),
]

NETWORKS = [network.name for network in FIXTURE_NETWORKS]
EVERYTHING = ExplanationOptions(outputs=frozenset(Output), top_neurons=5)
GENERATED = ExplanationOptions(source=PathwaySource.GENERATED)
UNITS = ExplanationOptions(
    source=PathwaySource.NEURON_MCT, granularity=Granularity.UNIT, sparsity=0.9, targets=Targets(top_k=2)
)


def image_of(network: str) -> bytes | NDArray[np.uint8]:
    """Return a JPEG as it is for the ImageNet classifiers, pixels for CIFAR."""
    if network != "cifar_resnet20":
        return photograph().read_bytes()
    pixels: NDArray[np.uint8] = np.load(FIXTURES / "cifar10_test_jpegged.npz")["images"][0]
    return pixels


def photograph() -> Path:
    # Every fifth, from the first on, is held out; the second helps to build the pathway of its class.
    return sorted((FIXTURES / "imagenet_val").glob("*.JPEG"))[1]


def assert_same(answer: ExplanationResult, expected: ExplanationResult) -> None:
    assert [found.class_index for found in answer.predictions] == [found.class_index for found in expected.predictions]
    for found, wanted in zip(answer.predictions, expected.predictions, strict=True):
        assert found.probability == pytest.approx(wanted.probability, abs=1e-5)
    assert len(answer.explanations) == len(expected.explanations)
    for one, other in zip(answer.explanations, expected.explanations, strict=True):
        assert one.target.label == other.target.label
        assert one.sparsity == other.sparsity
        assert one.class_pathway_iou == other.class_pathway_iou
        assert [part.tap for part in one.pathway] == [part.tap for part in other.pathway]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(one.pathway, other.pathway, strict=True))
        assert one.map is not None
        assert other.map is not None
        allowed = 1e-5 * float(np.abs(other.map).max())
        np.testing.assert_allclose(np.abs(one.map), np.abs(other.map), atol=allowed)
        # Where the strongest of three colours are of opposite sign and equal but for rounding, either is the strongest.
        assert (np.abs(one.map - other.map) > allowed).mean() < 1e-3
        assert one.faithfulness is not None
        assert other.faithfulness is not None
        assert one.faithfulness.pathway_confidence == pytest.approx(other.faithfulness.pathway_confidence, abs=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("options", [EVERYTHING, UNITS], ids=["transferred", "units"])
def test_an_answer_over_grpc_equals_the_python_api(served: Served, network: str, options: ExplanationOptions) -> None:
    image = image_of(network)
    (expected,) = served.explainer(network).explain([image], options)
    with served.client(network) as client:
        assert_same(client.explain(image, options), expected)


@pytest.mark.parametrize("network", ["squeezenet1_1", "cifar_resnet20"])
def test_generated_pathways_over_grpc_equal_the_python_api(served: Served, network: str) -> None:
    image = image_of(network)
    (expected,) = served.explainer(network).explain([image], GENERATED)
    with served.client(network) as client:
        answer = client.explain(image, GENERATED)
    assert_same(answer, expected)
    assert answer.explanations[0].source is PathwaySource.GENERATED
    assert answer.explanations[0].ablation is expected.explanations[0].ablation is not Ablation.ZERO


def test_a_model_without_a_generator_says_what_it_has_instead(served: Served) -> None:
    with served.client("mobilenet_v2") as client, pytest.raises(FailedPreconditionError) as failure:
        client.explain(image_of("mobilenet_v2"), GENERATED)
    assert failure.value.reason == "PATHWAY_SOURCE_UNAVAILABLE"
    assert "NEURON_MCT" in failure.value.metadata["available"]


def test_integrated_gradients_of_neurons_are_answered_over_grpc(served: Served) -> None:
    image = image_of("cifar_resnet20")
    options = ExplanationOptions(
        source=PathwaySource.NEURON_INTGRAD, sparsity=0.9, integration_steps=5, linearity_radius=1.0
    )
    (expected,) = served.explainer("cifar_resnet20").explain([image], options)
    with served.client("cifar_resnet20") as client:
        answer = client.explain(image, options)
    assert_same(answer, expected)
    found, wanted = answer.explanations[0].linearity, expected.explanations[0].linearity
    assert found is not None
    assert wanted is not None
    assert found.relative_error == pytest.approx(wanted.relative_error, rel=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_predictions_are_those_of_the_network_itself(served: Served, network: str) -> None:
    networks = pytest.importorskip("networks")
    image = image_of(network)
    if isinstance(image, bytes):
        photo = Image.open(photograph()).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        pixels = np.asarray(photo)
    else:
        pixels = image
    batch = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = networks.load(network)(networks.preprocess(network, batch)).softmax(1)[0]
    with served.client(network) as client:
        best = client.predict(image).predictions[0]
    assert best.class_index == int(expected.argmax())
    assert best.probability == pytest.approx(float(expected.max()), abs=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_model_describes_the_network(served: Served, network: str) -> None:
    taps, classes = {"squeezenet1_1": (26, 1000), "mobilenet_v2": (35, 1000), "cifar_resnet20": (19, 10)}[network]
    with served.client(network) as client:
        model = client.get_model()
    assert (len(model.taps), len(model.labels)) == (taps, classes)


def test_json_of_the_command_line_equals_the_python_api(served: Served) -> None:
    (expected,) = served.explainer("squeezenet1_1").explain([photograph().read_bytes()], EVERYTHING)
    arguments = ["explain", str(photograph()), "--address", served.service.address, "--model", "squeezenet1_1"]
    for output in Output:
        arguments += ["--output", output.value]
    run = CliRunner().invoke(pathlens, [*arguments, "--format", "json"])
    assert run.exit_code == 0, run.output
    (document,) = json.loads(run.stdout)
    explanation, wanted = document["explanations"][0], expected.explanations[0]
    assert explanation["target"]["class_index"] == wanted.target.class_index
    assert explanation["target"]["probability"] == pytest.approx(wanted.target.probability, abs=1e-5)
    # JSON leaves out what is 0.
    assert explanation.get("sparsity", 0) == wanted.sparsity
    for part, tap in zip(explanation["pathway"], wanted.pathway, strict=True):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(part["mask"]), np.uint8), bitorder="little")
        assert np.array_equal(bits[: tap.mask.size].astype(bool), tap.mask.reshape(-1))
    assert wanted.map is not None
    values = np.frombuffer(base64.b64decode(explanation["map"]["data"]), "<f4").reshape(wanted.map.shape)
    np.testing.assert_allclose(values, wanted.map, atol=1e-5 * float(np.abs(wanted.map).max()))
    overlay = base64.b64decode(explanation["overlay_png"])
    assert overlay == wanted.overlay_png


def test_a_batch_of_photographs_equals_single_calls(served: Served) -> None:
    images = sorted((FIXTURES / "imagenet_val").glob("*.JPEG"))[:5]
    options = ExplanationOptions(source=PathwaySource.NEURON_MCT)
    with served.client("squeezenet1_1") as client:
        batch = client.batch_explain(images, options)
        for image, answer in zip(images, batch, strict=True):
            assert isinstance(answer, ExplanationResult)
            assert_same(answer, client.explain(image, options))


def test_a_class_without_images_has_no_made_up_pathway(served: Served) -> None:
    with served.client("mobilenet_v2") as client:
        stored = client.get_model().class_pathway_count
    assert 0 < stored < IMAGENET_IMAGES


def picture(transform: Callable[[Image.Image], Image.Image], suffix: str, **options: object) -> Callable[[Path], bytes]:
    def make(folder: Path) -> bytes:
        path = folder / f"picture.{suffix}"
        with Image.open(photograph()) as photo:
            transform(photo.convert("RGB")).save(path, **options)  # type: ignore[arg-type]
        return path.read_bytes()

    return make


def opaque(photo: Image.Image) -> Image.Image:
    photo.putalpha(255)
    return photo


def sixteen_bit(photo: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)


ODD_IMAGES = {
    "a PNG with an alpha channel": picture(opaque, "png"),
    "a lossless WebP": picture(lambda photo: photo, "webp", lossless=True),
    "an animated PNG": picture(lambda photo: photo, "png", save_all=True, append_images=[Image.new("RGB", (227, 227))]),
    "a CMYK JPEG": picture(lambda photo: photo.convert("CMYK"), "jpg", quality=95),
    "a greyscale PNG": picture(lambda photo: photo.convert("L"), "png"),
    "a 16-bit greyscale PNG": picture(sixteen_bit, "png"),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_odd_images_are_seen_as_a_photo_viewer_shows_them(served: Served, kind: str, tmp_path: Path) -> None:
    data = ODD_IMAGES[kind](tmp_path)
    grey = "grey" in kind
    with Image.open(photograph()) as photo:
        plain = np.asarray(photo.convert("L").convert("RGB") if grey else photo.convert("RGB"))
    with served.client("squeezenet1_1") as client:
        odd, usual = client.predict(data).predictions[0], client.predict(plain).predictions[0]
    assert odd.class_index == usual.class_index
    # CMYK and JPEG's quantisation lose a little; everything else is exact.
    assert odd.probability == pytest.approx(usual.probability, abs=0.1 if "JPEG" in kind else 1e-5)


def test_a_rotated_photograph_is_turned_upright(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "rotated.png"
    with Image.open(photograph()) as photo:
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        photo.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        plain = np.asarray(photo.convert("RGB"))
    with served.client("squeezenet1_1") as client:
        turned, usual = client.predict(path).predictions[0], client.predict(plain).predictions[0]
    assert turned.class_index == usual.class_index
    assert turned.probability == pytest.approx(usual.probability, abs=1e-5)


def test_the_overlay_has_the_size_of_the_photograph(served: Served, tmp_path: Path) -> None:
    with served.client("squeezenet1_1") as client:
        result = client.explain(photograph(), ExplanationOptions(outputs=frozenset({Output.OVERLAY})))
    (tmp_path / "overlay.png").write_bytes(result.explanations[0].overlay_png)
    with Image.open(tmp_path / "overlay.png") as overlay, Image.open(photograph()) as photo:
        assert overlay.size == photo.size
