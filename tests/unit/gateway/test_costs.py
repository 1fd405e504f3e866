from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathlens.gateway.costs import Costs, Work
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import predict_call

WORK = Work.of("digits", [predict_call()])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def explain_call(source: int = 0) -> worker_pb2.WorkerCall:
    options = messages.ExplanationOptions(source=messages.PathwaySource.ValueType(source))
    return worker_pb2.WorkerCall(explain=messages.ExplainRequest(options=options))


def test_nothing_is_expected_of_work_that_was_never_done() -> None:
    costs = Costs()
    costs.learn(WORK, 1.0)
    assert costs.expected(Work.of("letters", [predict_call()])) is None


def test_the_model_the_method_the_source_and_the_number_of_items_make_the_kind_of_work() -> None:
    generated = messages.PATHWAY_SOURCE_GENERATED
    kinds = [
        WORK,
        Work.of("letters", [predict_call()]),
        Work.of("digits", [predict_call(), predict_call()]),
        Work.of("digits", [explain_call()]),
        Work.of("digits", [explain_call(generated)]),
        Work.of("digits", [explain_call(generated), explain_call()]),
    ]
    assert len(set(kinds)) == len(kinds)


def test_no_source_is_the_source_that_it_means() -> None:
    assert Work.of("digits", [explain_call()]) == Work.of("digits", [explain_call(messages.PATHWAY_SOURCE_TRANSFERRED)])


def test_the_mean_follows_what_is_observed_and_forgives_one_odd_request() -> None:
    costs = Costs()
    costs.learn(WORK, 1.0)
    costs.learn(WORK, 2.0)
    assert costs.expected(WORK) == pytest.approx(1.2)
    for _ in range(30):
        costs.learn(WORK, 3.0)
    assert costs.expected(WORK) == pytest.approx(3.0, rel=0.01)


def test_a_probe_is_allowed_now_and_then() -> None:
    clock = Clock()
    costs = Costs(clock)
    assert costs.may_probe(WORK)
    assert not costs.may_probe(WORK)
    clock.now += 4.9
    assert not costs.may_probe(WORK)
    clock.now += 0.2
    assert costs.may_probe(WORK)


def test_a_probe_that_was_not_sent_leaves_its_turn_to_another() -> None:
    costs = Costs(Clock())
    assert costs.may_probe(WORK)
    costs.withdraw_probe(WORK)
    assert costs.may_probe(WORK)


def test_the_mean_of_others_does_not_change_with_a_canary() -> None:
    assert Work.canary("digits") != WORK


def test_a_probe_that_cost_less_takes_the_place_of_the_mean() -> None:
    costs = Costs(Clock())
    costs.learn(WORK, 60.0)
    assert costs.may_probe(WORK)
    costs.learn(WORK, 0.5)
    assert costs.expected(WORK) == 0.5


def test_a_probe_that_cost_more_is_an_observation_like_others() -> None:
    costs = Costs(Clock())
    costs.learn(WORK, 1.0)
    assert costs.may_probe(WORK)
    costs.learn(WORK, 2.0)
    assert costs.expected(WORK) == pytest.approx(1.2)


def test_a_probe_that_went_with_others_costs_no_more_than_all_of_them() -> None:
    costs = Costs(Clock())
    costs.learn(WORK, 60.0)
    assert costs.may_probe(WORK)
    costs.learn(replace(WORK, items=4), 0.5)
    assert costs.expected(WORK) == 0.5
    assert costs.together(WORK, 1) == 0.5
    # It is an observation of four, and of one only for the probe.
    costs.learn(replace(WORK, items=4), 0.1)
    assert costs.expected(WORK) == 0.5


def test_others_tell_nothing_of_one_alone_without_a_probe() -> None:
    costs = Costs(Clock())
    costs.learn(WORK, 60.0)
    costs.learn(replace(WORK, items=4), 0.5)
    assert costs.expected(WORK) == 60.0


def test_work_ahead_counts_nothing_until_some_was_waited_for() -> None:
    costs = Costs()
    costs.learn_wait("digits", 0.0, 5.0)
    assert costs.wait("digits", 10.0) == 0.0


def test_several_workers_shorten_the_wait() -> None:
    costs = Costs()
    for _ in range(3):
        costs.learn_wait("digits", 8.0, 2.0)
    assert costs.wait("digits", 10.0) == pytest.approx(2.5)
    assert costs.wait("letters", 10.0) == 0.0


def test_a_wait_is_never_expected_to_be_longer_than_the_work_ahead() -> None:
    costs = Costs()
    costs.learn_wait("digits", 1.0, 100.0)
    assert costs.wait("digits", 10.0) == 10.0


LEARNED = st.lists(st.tuples(st.integers(1, 12), st.floats(1e-3, 1e3)), max_size=30)


@given(LEARNED, st.integers(1, 20))
def test_the_cost_of_a_batch_is_the_least_in_proportion_to_batches_no_larger(
    learned: list[tuple[int, float]], items: int
) -> None:
    costs = Costs()
    for count, seconds in learned:
        costs.learn(replace(WORK, items=count), seconds)
        # Of another kind, which tells nothing.
        costs.learn(Work("letters", WORK.methods, WORK.sources, count), seconds / 1e3)
    means = [(count, costs.expected(replace(WORK, items=count))) for count in range(1, items + 1)]
    least = min((mean * items / count for count, mean in means if mean is not None), default=None)
    assert costs.together(WORK, items) == (least if least is None else pytest.approx(least, rel=1e-12))
