"""A bundle: one folder with everything that serving a fitted classifier needs.

    bundle.json             the manifest, with the SHA-256 of every other file
    classifier.json         the captured program
    classifier.safetensors  its weights
    bank.safetensors        how often the pathways of each class keep each neuron, stamped with the classifier's hash

Nothing is pickled, and nothing in a bundle can name code to run but tensor operators.
"""

import hashlib
import json
import logging
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pathlens.bundle.manifest import (
    LONGEST_NAME,
    NAME,
    SCHEMA_VERSION,
    BankPart,
    ClassPathwayPart,
    FitPart,
    Manifest,
    TransferFiguresPart,
)
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.classifier.program import Program
from pathlens.description import ClassPathwayStatistics, TransferFigures
from pathlens.errors import BundleError, CaptureError
from pathlens.explainer import Explainer
from pathlens.explanation import Ablation, PathwaySource, ServedModel
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank

_logger = logging.getLogger(__name__)

MANIFEST = "bundle.json"
PROGRAM = "classifier.json"
WEIGHTS = "classifier.safetensors"
BANK = "bank.safetensors"
FILES = (PROGRAM, WEIGHTS, BANK)
"""What a bundle holds beside its manifest."""


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
    sha256: str = ""

    def explainer(self, device: torch.device | str = "cpu", version: str = "") -> Explainer:
        """Make the explainer of this bundle.

        Args:
            device: Where to compute. A CUDA device that this torch cannot use is replaced by the CPU, with a warning in
                the log: TorchServe hands out every GPU it sees, whatever torch was built for.
            version: Version under which it is served.
        """
        if torch.device(device).type == "cuda" and not torch.cuda.is_available():
            _logger.warning("This torch cannot use %s; computing on the CPU", device)
            device = "cpu"
        return Explainer(
            self.classifier.to(device),
            self.preprocessing,
            self.labels,
            self.bank,
            self.instance_sparsity,
            ServedModel(self.name, version, self.sha256),
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
        (new / BANK).write_bytes(_bank_bytes(bundle))
        files = {name: _sha256(new / name) for name in FILES}
        text = _manifest(bundle, files).model_dump_json(indent=2) + "\n"
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
    return Bundle(
        name=manifest.name,
        classifier=classifier,
        preprocessing=preprocessing,
        labels=manifest.labels,
        bank=_read_bank(folder, manifest, classifier),
        source=manifest.bank.source,
        instance_sparsity=manifest.bank.instance_sparsity,
        minimum_images=manifest.bank.minimum_images,
        fit=manifest.fit,
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
            raise BundleError(f"{folder} has schema version {version}; this pathlens reads version {SCHEMA_VERSION}.")
        manifest = Manifest.model_validate_json(text)
    except (AttributeError, ValueError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST} is damaged: {error}") from error
    if set(manifest.files) != set(FILES):
        raise BundleError(f"{folder / MANIFEST} names the files {sorted(manifest.files)}; expected {sorted(FILES)}.")
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
    classes = []
    for label, counts in bundle.bank.counts.items():
        statistics = bundle.bank.statistics[label]
        classes.append(
            ClassPathwayPart(
                class_index=label,
                image_count=counts.images,
                sparsity_sum=counts.sparsity_sum,
                mean_instance_iou=statistics.mean_instance_iou,
                figures=TransferFiguresPart(**asdict(statistics.figures)),
                random_control=TransferFiguresPart(**asdict(statistics.random_control)),
            )
        )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=bundle.name,
        classifier_sha256=bundle.classifier.fingerprint,
        files=files,
        labels=bundle.labels,
        preprocessing=bundle.preprocessing.to_json(),
        bank=BankPart(
            granularity=bundle.bank.granularity,
            ablation=Ablation.ZERO,
            threshold=bundle.bank.threshold,
            source=bundle.source,
            instance_sparsity=bundle.instance_sparsity,
            minimum_images=bundle.minimum_images,
            classes=tuple(classes),
        ),
        fit=bundle.fit,
    )


def _bank_bytes(bundle: Bundle) -> bytes:
    tensors: dict[str, Tensor] = {}
    for label, counts in bundle.bank.counts.items():
        # The smallest type that holds the number of images: banks of units are large.
        smallest = next(
            kind for kind in (torch.uint8, torch.int16, torch.int32) if counts.images <= torch.iinfo(kind).max
        )
        tensors[f"class_{label}"] = counts.kept.to(smallest)
    return safetensors.torch.save(tensors, {"classifier_sha256": bundle.classifier.fingerprint})


def _read_bank(folder: Path, manifest: Manifest, classifier: CapturedClassifier) -> ClassPathwayBank:
    part = manifest.bank
    counts: dict[int, ClassCounts] = {}
    statistics: dict[int, ClassPathwayStatistics] = {}
    try:
        with safetensors.safe_open(folder / BANK, framework="pt") as file:
            stamp = (file.metadata() or {}).get("classifier_sha256")
            if stamp != classifier.fingerprint:
                raise BundleError(f"{folder / BANK} belongs to classifier {stamp}, not to {classifier.fingerprint}.")
            for entry in part.classes:
                kept = file.get_tensor(f"class_{entry.class_index}").to(torch.int32)
                counts[entry.class_index] = ClassCounts(kept, entry.image_count, entry.sparsity_sum)
                statistics[entry.class_index] = ClassPathwayStatistics(
                    image_count=entry.image_count,
                    threshold=part.threshold,
                    source=part.source,
                    mean_instance_sparsity=entry.sparsity_sum / entry.image_count,
                    mean_instance_iou=entry.mean_instance_iou,
                    figures=TransferFigures(**entry.figures.model_dump()),
                    random_control=TransferFigures(**entry.random_control.model_dump()),
                )
        return ClassPathwayBank(classifier.taps, part.granularity, part.threshold, counts, statistics)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise BundleError(f"{folder / BANK} does not fit the classifier: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
