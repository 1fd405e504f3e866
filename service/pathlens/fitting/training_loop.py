"""The loop of a training: batches in, progress and checkpoints out."""

import torch

from pathlens.errors import FitError
from pathlens.fitting.batch_plan import BatchPlan
from pathlens.fitting.checkpoint import Checkpoint
from pathlens.fitting.progress import FitProgress
from pathlens.fitting.reading import ImageReader
from pathlens.generator.parallel import ProcessGroup
from pathlens.generator.training import Training

SMOOTHING = 0.95
"""Weight of the past in the figures that are shown: a single batch jumps."""

ROUND = 2000
"""Steps whose images are asked for at once: a long training's whole plan would fill the memory of every reader."""

LOST = "Images that could be read before cannot be read any more; is a disk failing? The same command goes on later."


def run_training(
    training: Training,
    name: str,
    plan: BatchPlan,
    reader: ImageReader,
    checkpoint: Checkpoint,
    progress: FitProgress,
    group: ProcessGroup,
    device: torch.device,
) -> None:
    """Take all steps of a training that its checkpoint does not hold yet.

    Args:
        training: What to train.
        name: Of its checkpoint and, with spaces, of its progress bar.
        plan: Which images each step sees.
        reader: Reads them.
        checkpoint: Where the state is kept.
        progress: Shows how far it is.
        group: The processes that train together.
        device: Where to compute.

    Raises:
        FitError: If an image cannot be read any more.
    """
    done = 0
    stored = checkpoint.load(name)
    # Nobody writes a newer checkpoint before all have read this one.
    group.wait()
    if stored is not None:
        training.load_state_dict(stored["training"])
        done = stored["steps"]
    shown: dict[str, float] = {}
    taken = done
    title = name.replace("-", " ").capitalize()
    with progress.stage(title, len(plan), done) as stage:
        for first in range(done, len(plan), ROUND):
            batches = [group.share(batch) for batch in plan[first : first + ROUND]]
            for (read, images), wanted in zip(reader.read(batches), batches, strict=False):
                if read != wanted:
                    raise FitError(LOST)
                for key, value in training.step(images.to(device)).items():
                    shown[key] = SMOOTHING * shown.get(key, value) + (1 - SMOOTHING) * value
                stage.advance(1, shown)
                taken += 1
                if checkpoint.is_due:
                    checkpoint.save(name, {"training": training.state_dict(), "steps": taken})
            if taken < first + len(batches):
                raise FitError(LOST)
    if taken > done:
        checkpoint.save(name, {"training": training.state_dict(), "steps": taken})
