"""Trials of one arm by several shards: each once, as many as asked for, a killed one run again."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from kd_pipeline.errors import DataError
from kd_pipeline.events import Progress, TrialEnded, listening
from kd_pipeline.shards import Shard
from kd_pipeline.sweep.search import run_left, search_arm
from kd_pipeline.sweep.storage import JOURNAL
from kd_pipeline.sweep.study import ask_trial, finished_trials, open_study
from kd_pipeline.sweep.trials import ArmTrials

LR = "student.training.optimiser.arguments.lr"
NUM_TRIALS = 8
Make = Callable[..., ArmTrials]


def study_of(trials: ArmTrials) -> Any:
    return open_study(trials.folder, trials.study, trials.params)


def states(trials: ArmTrials) -> list[str]:
    return sorted(trial.state.name for trial in study_of(trials).get_trials())


def kill_at(number: int) -> Callable[[int], None]:
    def before(at: int) -> None:
        if at == number:
            raise KeyboardInterrupt

    return before


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
@pytest.mark.parametrize("count", [1, 3, 4, 20])
def test_shards_in_any_order_draw_what_one_process_draws(
    make_trials: Make, formula: Any, count: int, order: int
) -> None:
    """Random draws depend on the position alone; TPE's also on which trials have ended."""
    settings = {"sampler": "random", "pruner": "none"}
    alone = search_arm(make_trials(train=type(formula)(), seed=1, **settings))
    (make_trials().folder / JOURNAL).unlink()
    for index in range(count)[::order]:
        run_left(make_trials(seed=1, shard=Shard(index, count), **settings))
    assert len(formula.tried) == NUM_TRIALS
    found = search_arm(make_trials(seed=1, **settings))
    assert len(formula.tried) == NUM_TRIALS
    assert list(found.trials[LR]) == list(alone.trials[LR])
    assert found.best == alone.best


def test_shards_that_learn_from_each_other_run_each_trial_once(
    make_trials: Make, formula: Any
) -> None:
    for index in range(4):
        run_left(make_trials(shard=Shard(index, 4)))
    assert len(set(formula.tried)) == len(formula.tried) == NUM_TRIALS
    assert len(search_arm(make_trials()).trials) == NUM_TRIALS
    for index in range(4):
        run_left(make_trials(shard=Shard(index, 4)))
    assert len(formula.tried) == NUM_TRIALS


@pytest.mark.parametrize("again", [Shard(1, 2), None], ids=["the shard", "one process"])
def test_a_killed_trial_is_run_again_with_its_values(
    make_trials: Make, formula: Any, again: Shard | None
) -> None:
    run_left(make_trials(shard=Shard(0, 2)))
    formula.before = kill_at(5)
    with pytest.raises(KeyboardInterrupt):
        run_left(make_trials(shard=Shard(1, 2)))
    formula.before = lambda _number: None
    run_left(make_trials(shard=again))
    assert len(set(formula.tried)) == len(formula.tried) == NUM_TRIALS
    assert formula.states[5] == formula.states[6]
    assert states(make_trials()).count("FAIL") == 1
    assert len(search_arm(make_trials()).trials) == NUM_TRIALS


def test_another_number_of_shards_does_what_is_missing(make_trials: Make, formula: Any) -> None:
    formula.before = kill_at(2)
    with pytest.raises(KeyboardInterrupt):
        run_left(make_trials(shard=Shard(1, 2)))
    formula.before = lambda _number: None
    for index in range(3):
        run_left(make_trials(shard=Shard(index, 3)))
    assert len(set(formula.tried)) == len(formula.tried) == NUM_TRIALS
    assert len(search_arm(make_trials()).trials) == NUM_TRIALS


def test_a_trial_that_another_shard_may_be_running_is_left_alone(make_trials: Make) -> None:
    ask_trial(study_of(make_trials()), 1, Shard(1, 4))
    ask_trial(study_of(make_trials()), 0, Shard(0, 4))
    study_of(make_trials()).ask()  # Killed before it had a position.
    run_left(make_trials(shard=Shard(0, 4)))
    # The one of this shard was killed; it has run its two.
    assert states(make_trials()) == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING", "RUNNING"]
    run_left(make_trials())
    assert states(make_trials()).count("RUNNING") == 0
    assert len(finished_trials(study_of(make_trials()), NUM_TRIALS)) == NUM_TRIALS


def test_a_trial_taken_up_by_another_process_ends_the_one_that_ran_it(
    make_trials: Make, formula: Any
) -> None:
    """Machines with one server and no folder in common have no lock between them."""

    def run_the_same_shard(at: int) -> None:
        formula.before = lambda _number: None
        if at == 0:
            run_left(make_trials(shard=Shard(0, 4)))

    formula.before = run_the_same_shard
    with pytest.raises(DataError, match="taken up a trial of this one: run a shard once"):
        run_left(make_trials(shard=Shard(0, 4)))
    assert len(finished_trials(study_of(make_trials()), NUM_TRIALS)) == 2
    assert len(search_arm(make_trials()).trials) == NUM_TRIALS


def test_of_two_trials_at_one_position_the_first_counts(make_trials: Make) -> None:
    trials = make_trials()
    study = study_of(trials)
    for value in (0.5, 0.9):
        study.tell(ask_trial(study, 3, None), value)
    (found,) = finished_trials(study_of(trials), NUM_TRIALS)
    assert found.value == 0.5


def test_a_shard_reports_its_own_trials(make_trials: Make) -> None:
    heard: list[Any] = []
    with listening(heard.append):
        run_left(make_trials(shard=Shard(2, 3)))
    assert [type(event) for event in heard] == [TrialEnded, Progress] * 2
    assert (heard[-1].done, heard[-1].total) == (2, 2)
    heard.clear()
    with listening(heard.append):
        run_left(make_trials(shard=Shard(19, 20)))
    assert heard == []


def test_the_positions_of_all_shards_are_those_of_one_process(make_trials: Make) -> None:
    for count in (1, 2, 3, 8, 30):
        dealt = [make_trials(shard=Shard(index, count)).positions for index in range(count)]
        assert sorted(itertools.chain(*dealt)) == list(make_trials().positions)
