"""A bundle: one folder with everything that serving a fitted classifier needs.

    bundle.json             the manifest, with the SHA-256 of every other file
    classifier.json         the captured program
    classifier.safetensors  its weights
    bank.safetensors        the class pathways, stamped with the classifier's hash
    generator.safetensors   the parameters of the pathway generator, stamped likewise; only in a bundle that has one
    reference.safetensors   what explanations of held-out images looked like, likewise
    prediction.onnx         the stages of an explanation as ONNX graphs, stamped likewise; only in a bundle that is
    generation.onnx         served by ONNX Runtime, and generation only in one with a generator
    pathway.onnx

Nothing is pickled, and nothing in a bundle can name code to run but tensor operators.
"""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from pathlens.bundle.bank_file import bank_bytes, bank_part, read_bank
from pathlens.bundle.generator_file import generator_bytes, generator_part, read_generator
from pathlens.bundle.manifest import LONGEST_NAME, NAME, SCHEMA_VERSION, FitPart, Manifest
from pathlens.bundle.reference_file import read_reference, reference_bytes, reference_part
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.classifier.program import Program
from pathlens.errors import BundleError, CaptureError
from pathlens.explainer import DecodingLimits, Explainer
from pathlens.explainer.backend import Backend, BackendName
from pathlens.explainer.onnx_runtime_backend import OnnxRuntimeBackend
from pathlens.explanation import PathwaySource, ServedModel
from pathlens.generator.generator import PathwayGenerator
from pathlens.onnx_export.stage_graphs import ServingGraphs
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.reference import ReferenceDistribution
from pathlens.slicing.cache import DEFAULT_BYTES

_logger = logging.getLogger(__name__)

MANIFEST = "bundle.json"
PROGRAM = "classifier.json"
WEIGHTS = "classifier.safetensors"
BANK = "bank.safetensors"
GENERATOR = "generator.safetensors"
REFERENCE = "reference.safetensors"
FILES = (PROGRAM, WEIGHTS, BANK)
"""What every bundle holds beside its manifest; the other files are there if it has what they hold."""
PREDICTION_GRAPH = "prediction.onnx"
GENERATION_GRAPH = "generation.onnx"
PATHWAY_GRAPH = "pathway.onnx"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A fitted classifier.

    Attributes:
        name: Name under which it is served.
        classifier: The captured classifier.
        preprocessing: From pixels to the classifier's input.
        labels: One per class.
        bank: The class pathways.
        source: Where the instance pathways of the bank came from.
        instance_sparsity: Their sparsity, the default of requests for contribution sources.
        minimum_images: Classes with fewer images have no pathway.
        fit: How it was fitted.
        generator: Makes the pathway of an image, of the bank's granularity; None without one.
        reference: What explanations of held-out images looked like, by source; empty without enough of them.
        graphs: The stages of an explanation, stamped, for ONNX Runtime to serve it; None where PyTorch does.
        sha256: Hash of the stored manifest, and so of everything; empty until stored.
    """

    name: str
    classifier: CapturedClassifier
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    bank: ClassPathwayBank
    source: PathwaySource
    instance_sparsity: float
    minimum_images: int
    fit: FitPart
    generator: PathwayGenerator | None = None
    reference: Mapping[PathwaySource, ReferenceDistribution] = field(default_factory=dict)
    graphs: ServingGraphs | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if self.graphs is not None and (self.graphs.generation is None) != (self.generator is None):
            raise ValueError("a graph of the generation is there without a generator, or the reverse")

    @property
    def backend(self) -> BackendName:
        """What serves it on the CPU."""
        return "torch" if self.graphs is None else "onnxruntime"

    def explainer(
        self,
        device: torch.device | str = "cpu",
        version: str = "",
        limits: DecodingLimits | None = None,
        slice_bytes: int = DEFAULT_BYTES,
    ) -> Explainer:
        """Make the explainer of this bundle.

        Args:
            device: Where to compute. A CUDA device that this torch cannot use is replaced by the CPU, with a warning in
                the log: TorchServe hands out every GPU it sees, whatever torch was built for.
            version: Version under which it is served.
            limits: What images are accepted; None for the limits of `DecodingLimits`.
            slice_bytes: What it may keep of slices of the stored pathways; 0 for none.

        Raises:
            BundleError: If its graphs are damaged or belong to another classifier, or ONNX Runtime is not installed.
        """
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            _logger.warning("This torch cannot use %s; computing on the CPU", device)
            device = "cpu"
        classifier = self.classifier.to(device)
        backend: Backend | None = None
        if self.graphs is None:
            _logger.info("PyTorch computes for %s on %s", self.name, device)
        elif torch.device(device).type == "cpu":
            backend = OnnxRuntimeBackend(self.graphs, classifier, self.bank, slice_bytes)
            _logger.info("ONNX Runtime computes for %s on the CPU", self.name)
        else:
            _logger.info("PyTorch computes for %s on %s; its graphs are for the CPU alone", self.name, device)
        return Explainer(
            classifier,
            self.preprocessing,
            self.labels,
            self.bank,
            self.instance_sparsity,
            ServedModel(self.name, version, self.sha256),
            limits or DecodingLimits(),
            generator=self.generator,
            reference=self.reference,
            backend=backend,
            slice_bytes=slice_bytes,
        )


def save_bundle(bundle: Bundle, folder: Path) -> str:
    """Write a bundle; the folder appears whole or not at all, and replaces an earlier bundle of that path.

    Returns:
        The bundle's SHA-256, equal for equal bundles.

    Raises:
        BundleError: If the path exists and is not a bundle, or if a model cannot have the bundle's name.
    """
    check_destination(folder, bundle.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir(0o755)
        (new / PROGRAM).write_text(bundle.classifier.program.to_json(), encoding="utf-8")
        (new / WEIGHTS).write_bytes(bundle.classifier.weights_bytes())
        (new / BANK).write_bytes(bank_bytes(bundle.bank, bundle.classifier))
        if bundle.generator is not None:
            (new / GENERATOR).write_bytes(generator_bytes(bundle.generator, bundle.classifier))
        if bundle.reference:
            (new / REFERENCE).write_bytes(reference_bytes(bundle.reference, bundle.classifier))
        for name, graph in _graph_files(bundle.graphs).items():
            (new / name).write_bytes(graph)
        files = {file.name: _sha256(file) for file in sorted(new.iterdir())}
        left_out = {"backend"} if bundle.graphs is None else set()
        text = _manifest(bundle, files).model_dump_json(indent=2, exclude=left_out) + "\n"
        (new / MANIFEST).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_destination(folder: Path, name: str) -> None:
    """Check that a bundle of this name can be written to this folder, before the work of making it.

    Raises:
        BundleError: If the path exists and is not a bundle, or if a model cannot have that name.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} exists and is not a bundle; choose another path or remove it.")
    if len(name) > LONGEST_NAME or not re.fullmatch(NAME, name):
        raise BundleError(
            f"The name is {name!r}; it needs letters, digits, '.', '-' and '_' only, a letter or digit first, and at "
            f"most {LONGEST_NAME} of them. Give another name."
        )


def load_bundle(folder: Path | str) -> Bundle:
    """Read a bundle and check it against its own hashes.

    Raises:
        BundleError: If it is missing, damaged, of another schema version, or if its classifier is not the one it was
            fitted for.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    try:
        program = Program.from_json((folder / PROGRAM).read_text(encoding="utf-8"))
        classifier = CapturedClassifier(program, safetensors.torch.load_file(folder / WEIGHTS))
        preprocessing = Preprocessing.from_json(manifest.preprocessing)
    except (CaptureError, SafetensorError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder} is damaged: {error}") from error
    if classifier.fingerprint != manifest.classifier_sha256:
        raise BundleError(
            f"{folder} was fitted for classifier {manifest.classifier_sha256} but holds {classifier.fingerprint}; "
            "fit it again."
        )
    if len(manifest.labels) != classifier.classes:
        raise BundleError(f"{folder} has {len(manifest.labels)} labels for {classifier.classes} classes; fit it again.")
    generator = None
    if manifest.generator is not None:
        generator = read_generator(folder / GENERATOR, manifest.generator, classifier)
        if generator.granularity is not manifest.bank.granularity:
            raise BundleError(
                f"{folder} has a generator of {generator.granularity.value} pathways and class pathways of "
                f"{manifest.bank.granularity.value}s; fit it again."
            )
    reference: Mapping[PathwaySource, ReferenceDistribution] = {}
    if manifest.reference is not None:
        reference = read_reference(folder / REFERENCE, manifest.reference, classifier)
    graphs = None
    if manifest.backend == "onnxruntime":
        graphs = ServingGraphs(
            prediction=(folder / PREDICTION_GRAPH).read_bytes(),
            generation=None if generator is None else (folder / GENERATION_GRAPH).read_bytes(),
            pathway=(folder / PATHWAY_GRAPH).read_bytes(),
        )
    return Bundle(
        name=manifest.name,
        classifier=classifier,
        preprocessing=preprocessing,
        labels=manifest.labels,
        bank=read_bank(folder / BANK, manifest.bank, classifier),
        source=manifest.bank.source,
        instance_sparsity=manifest.bank.instance_sparsity,
        minimum_images=manifest.bank.minimum_images,
        fit=manifest.fit,
        generator=generator,
        reference=reference,
        graphs=graphs,
        sha256=_sha256(folder / MANIFEST),
    )


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a bundle.

    Raises:
        BundleError: If there is none, or it is of another schema version, or a value is wrong.
    """
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: {MANIFEST} cannot be read ({error.strerror}).") from error
    try:
        version = json.loads(text).get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{folder} has schema version {version}; this pathlens reads version {SCHEMA_VERSION}: fit it again."
            )
        manifest = Manifest.model_validate_json(text)
    except (AttributeError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: {error}") from error
    expected = {*FILES}
    if manifest.generator is not None:
        expected.add(GENERATOR)
    if manifest.reference is not None:
        expected.add(REFERENCE)
    if manifest.backend == "onnxruntime":
        expected |= {PREDICTION_GRAPH, PATHWAY_GRAPH}
        if manifest.generator is not None:
            expected.add(GENERATION_GRAPH)
    if set(manifest.files) != expected:
        raise BundleError(f"{folder / MANIFEST} names the files {sorted(manifest.files)}; expected {sorted(expected)}.")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check the files of a bundle against the hashes in its manifest.

    Raises:
        BundleError: If a file is missing or was changed.
    """
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder} lacks the file {name}; fit it again.")
        actual = _sha256(folder / name)
        if actual != expected:
            raise BundleError(f"{folder / name} has SHA-256 {actual}, the manifest says {expected}: it was changed.")


def _manifest(bundle: Bundle, files: dict[str, str]) -> Manifest:
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=bundle.name,
        classifier_sha256=bundle.classifier.fingerprint,
        files=files,
        labels=bundle.labels,
        preprocessing=bundle.preprocessing.to_json(),
        bank=bank_part(bundle.bank, bundle.source, bundle.instance_sparsity, bundle.minimum_images),
        generator=None if bundle.generator is None else generator_part(bundle.generator),
        reference=reference_part(bundle.reference) if bundle.reference else None,
        backend=bundle.backend,
        fit=bundle.fit,
    )


def _graph_files(graphs: ServingGraphs | None) -> dict[str, bytes]:
    if graphs is None:
        return {}
    files = {PREDICTION_GRAPH: graphs.prediction, GENERATION_GRAPH: graphs.generation, PATHWAY_GRAPH: graphs.pathway}
    return {name: graph for name, graph in files.items() if graph is not None}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
