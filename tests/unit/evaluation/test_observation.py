import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathlens.evaluation.observation import Observation, summarise

finite = st.floats(-1e6, 1e6)


@given(values=st.lists(finite, min_size=2, max_size=20))
def test_a_summary_holds_mean_error_and_count_over_the_subjects(values: list[float]) -> None:
    (summary,) = summarise(Observation("agreement", value, subject=row) for row, value in enumerate(values))
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert summary.mean == pytest.approx(mean, abs=1e-6)
    assert summary.standard_error == pytest.approx((variance / len(values)) ** 0.5, abs=1e-6)
    assert summary.count == len(values)


def test_a_single_value_has_no_error() -> None:
    (summary,) = summarise([Observation("cost", 4.0)])
    assert (summary.mean, summary.standard_error, summary.count) == (4.0, None, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"measure": "leak"},
        {"method": "random"},
        {"sparsity": 0.5},
        {"control": True},
        {"detail": "hard"},
        {"ablation": "mean"},
    ],
)
def test_observations_under_other_conditions_are_apart(changes: dict[str, object]) -> None:
    one = Observation("agreement", 1.0, "neuron_mct", 0.9)
    other = Observation(**{**one.__dict__, **changes})
    assert len(summarise([one, other, one])) == 2


def test_a_summary_states_the_ablation() -> None:
    (summary,) = summarise([Observation("agreement", 1.0, "neuron_mct", 0.9, ablation="mean")])
    assert summary.ablation == "mean"
