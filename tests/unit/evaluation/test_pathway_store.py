from pathlib import Path

import pytest
import torch

from pathlens.errors import EvaluationError
from pathlens.evaluation.pathway_store import PathwayStore
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from small_networks import captured, images

GRID = (0.0, 0.5, 0.9, 0.99)


def store(folder: Path, granularity: Granularity = Granularity.UNIT) -> PathwayStore:
    return PathwayStore(folder / "work", captured("plain").taps, granularity, GRID)


def scores(granularity: Granularity = Granularity.UNIT, seed: int = 0) -> Contributions:
    return neuron_mct(captured("plain"), images(3, seed), torch.tensor([0, 1, 2]), granularity)


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("sparsity", GRID)
def test_a_stored_pathway_is_the_one_that_was_selected(
    tmp_path: Path, granularity: Granularity, sparsity: float
) -> None:
    kept = store(tmp_path, granularity)
    kept.save(4, {"method": kept.levels(scores(granularity))})
    found = kept.pathway(kept.load([4], "method"), sparsity)
    assert torch.equal(found.flat(), scores(granularity).select(sparsity).flat())


def test_pathways_of_their_own_sparsity_come_back_as_they_were(tmp_path: Path) -> None:
    kept = store(tmp_path)
    pathway = Pathway.concatenate([scores()[row : row + 1].select(sparsity) for row, sparsity in enumerate(GRID[1:])])
    kept.save(0, {"method": kept.level_of(pathway)})
    assert torch.equal(kept.pathway(kept.load([0], "method"), None).flat(), pathway.flat())


def test_batches_are_joined_in_the_order_asked(tmp_path: Path) -> None:
    kept = store(tmp_path)
    one, other = kept.levels(scores()), kept.levels(scores(seed=1))
    kept.save(0, {"method": one})
    kept.save(1, {"method": other})
    assert torch.equal(kept.load([1, 0], "method"), torch.cat([other, one]))


@pytest.mark.parametrize("damage", ["gone", "torn", "other method"])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, damage: str) -> None:
    kept = store(tmp_path)
    kept.save(0, {"other" if damage == "other method" else "method": kept.levels(scores())})
    file = tmp_path / "work" / "pathways-00000.npz"
    if damage == "gone":
        file.unlink()
    elif damage == "torn":
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EvaluationError, match=r"pathways-00000.npz is gone or damaged; remove .* to start anew"):
        kept.load([0], "method")
