"""Searches over a formula: equal budgets, pruning, going on after a kill."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pytest

from kd_pipeline.errors import DataError, ParameterError, TrainingDivergedError
from kd_pipeline.events import Event, Progress, TrialEnded, listening
from kd_pipeline.sweep.search import ArmSearch, search_arm
from kd_pipeline.sweep.storage import JOURNAL
from kd_pipeline.sweep.trials import ArmTrials

LR = "student.training.optimiser.arguments.lr"
TEMPERATURE = "student_kd.temperature"
Make = Callable[..., ArmTrials]


def rates(search: ArmSearch) -> list[float]:
    return list(search.trials[LR])


def raise_at(number: int, error: type[BaseException]) -> Callable[[int], None]:
    def before(at: int) -> None:
        if at == number:
            raise error

    return before


@pytest.mark.parametrize("pruner", ["median", "hyperband", "none"])
def test_every_arm_gets_as_many_trials_pruned_ones_among_them(
    make_trials: Make, pruner: str
) -> None:
    found = [
        search_arm(make_trials(arm, pruner=pruner)) for arm in ("student_kd", "student_baseline")
    ]
    assert [len(search.trials) for search in found] == [8, 8]
    assert all(set(search.trials["state"]) <= {"complete", "pruned"} for search in found)
    assert [TEMPERATURE in search.trials for search in found] == [True, False]
    if pruner == "none":
        assert {state for search in found for state in search.trials["state"]} == {"complete"}


def test_the_first_trial_has_the_settings_at_hand(make_trials: Make, formula: Any) -> None:
    search_arm(make_trials(num_trials=1))
    assert formula.tried == [(0.1, 2.0)]


def test_trials_are_placed_as_the_student_is_but_never_side_by_side(make_trials: Make) -> None:
    """One that is pruned stops all; where models are placed is no part of a sweep's identity."""
    trials = make_trials()
    training = trials.student.training.model_copy(  # type: ignore[attr-defined]
        update={"stack_replicates": "never", "placement": "replicas"}
    )
    student = trials.student.model_copy(update={"training": training})
    placed = dataclasses.replace(trials, student=student)
    of_trial = placed.settings({})[0].training  # type: ignore[attr-defined]
    assert (of_trial.stack_replicates, of_trial.placement) == ("never", "replicas")
    assert of_trial.side_by_side == "never"
    assert (placed.sweep, placed.study) == (trials.sweep, trials.study)


def test_the_best_trial_is_that_of_the_best_mean_over_replicates(make_trials: Make) -> None:
    search = search_arm(make_trials(num_replicates=2, pruner="none"))
    best = search.trials.sort_values("validation/accuracy").iloc[-1]
    assert search.best == {LR: best[LR], TEMPERATURE: best[TEMPERATURE]}
    assert search.best_trial == best["trial"]
    one = search_arm(make_trials(num_replicates=1, pruner="none"))
    # The second replicate of the formula is worse by 0.01.
    ours, theirs = search.trials.iloc[0], one.trials.iloc[0]
    assert ours["validation/accuracy"] == pytest.approx(theirs["validation/accuracy"] - 0.005)
    assert (ours["epochs"], theirs["epochs"]) == (8, 4)
    assert set(search.importances) == {LR, TEMPERATURE}
    assert sum(search.importances.values()) == pytest.approx(1.0)


def test_a_loss_is_minimised(make_trials: Make) -> None:
    search = search_arm(make_trials(metric="validation/loss", pruner="none"))
    best = search.trials.set_index("trial").loc[search.best_trial]
    assert best["validation/loss"] == search.trials["validation/loss"].min()


def test_a_trial_that_lags_behind_is_stopped(make_trials: Make) -> None:
    search = search_arm(make_trials(num_trials=12, pruner={"name": "median", "min_epochs": 2}))
    pruned = search.trials[search.trials["state"] == "pruned"]
    assert 0 < len(pruned) < 12
    assert set(pruned["epochs"]) <= {2, 3, 4}
    # The first three trials start up.
    assert set(search.trials["state"][:3]) == {"complete"}


def test_a_training_that_diverges_counts_as_a_pruned_trial(make_trials: Make, formula: Any) -> None:
    formula.before = raise_at(0, TrainingDivergedError)
    # Those that failed are not in `tried`, so that every one of them is the first.
    with pytest.raises(ParameterError, match=r"`sweep\.parameters` must leave student_kd a trial"):
        search_arm(make_trials(num_trials=2))
    formula.before = lambda _number: None
    search = search_arm(make_trials(num_trials=4))
    assert list(search.trials["state"])[:2] == ["pruned", "pruned"]
    assert len(search.trials) == 4


@pytest.mark.parametrize("at", [0, 1, 4, 7])
def test_a_killed_search_goes_on_as_if_it_had_not_been_killed(
    make_trials: Make, formula: Any, at: int
) -> None:
    unbroken = search_arm(make_trials(train=type(formula)(), seed=0))
    first = make_trials(seed=0)
    (first.folder / JOURNAL).unlink()
    formula.before = raise_at(at, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        search_arm(first)
    formula.before = lambda _number: None
    again = search_arm(make_trials(seed=0))
    assert rates(again) == rates(unbroken)
    assert list(again.trials["state"]) == list(unbroken.trials["state"])
    assert len(formula.tried) == 8
    # The killed trial goes on from where its training was.
    assert formula.states[at] == formula.states[at + 1]
    assert len(set(formula.states)) == 8


def test_a_search_that_is_done_trains_nothing_and_a_longer_one_goes_on(
    make_trials: Make, formula: Any
) -> None:
    first = search_arm(make_trials())
    assert len(formula.tried) == 8
    again = search_arm(make_trials())
    assert len(formula.tried) == 8
    assert again.best == first.best
    longer = search_arm(make_trials(num_trials=10))
    assert len(formula.tried) == 10
    assert rates(longer)[:8] == rates(first)


def test_of_a_longer_search_before_only_as_many_trials_count(make_trials: Make) -> None:
    longer = search_arm(make_trials(num_trials=8))
    shorter = search_arm(make_trials(num_trials=3))
    assert rates(shorter) == rates(longer)[:3]
    assert shorter.best_trial < 3


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_replicates": 3},
        {"metric": "validation/loss"},
        {"parameters": {LR: {"low": 0.01, "high": 1.0}}},
    ],
)
def test_trials_of_a_search_that_was_set_up_otherwise_do_not_count(
    make_trials: Make, change: dict[str, Any]
) -> None:
    first, other = make_trials(), make_trials(**change)
    assert first.study != other.study
    assert (first.sweep == other.sweep) == ("parameters" in change)
    same = make_trials(num_trials=99, num_processes=4, preset="other", shared_from="student_kd")
    assert first.study == same.study


def test_an_error_of_training_ends_the_search_and_its_trial_does_not_count(
    make_trials: Make, formula: Any
) -> None:
    formula.before = raise_at(2, DataError)
    with pytest.raises(DataError):
        search_arm(make_trials())
    formula.before = lambda _number: None
    search = search_arm(make_trials())
    assert len(search.trials) == 8
    assert len(formula.tried) == 8


def test_half_a_line_at_the_end_of_the_journal_is_removed(
    make_trials: Make, formula: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trials = make_trials(num_trials=3)
    first = search_arm(trials)
    with (trials.folder / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "wor')
    with caplog.at_level(logging.WARNING):
        again = search_arm(make_trials(num_trials=4))
    assert "half a line" in caplog.text
    assert rates(again)[:3] == rates(first)


def test_a_damaged_journal_is_refused_by_name(make_trials: Make) -> None:
    trials = make_trials(num_trials=2)
    search_arm(trials)
    file = trials.folder / JOURNAL
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], "{]\n", *lines[1:]]))
    with pytest.raises(DataError, match=r"trials\.log is damaged .* delete it"):
        search_arm(make_trials(num_trials=2))


def test_trials_are_told_as_events_of_their_own_and_trainings_are_not(make_trials: Make) -> None:
    heard: list[Event] = []
    with listening(heard.append):
        search_arm(make_trials(num_trials=2, num_replicates=2))
    assert [type(event) for event in heard] == [TrialEnded, Progress] * 2
    first = heard[0]
    assert isinstance(first, TrialEnded)
    assert (first.number, first.state, first.parameters) == (0, "complete", {"lr": 0.1})
    assert list(first.curves) == [1, 2, 3, 4]
    # Of two replicates the mean: 0.65 of the first, 0.64 of the second, minus 0.001 x temperature.
    assert first.curves[4]["validation/accuracy"] == pytest.approx(0.645 - 0.002)
    assert first.metrics["cost/train_seconds"] > 0
    (progress,) = heard[-1:]
    assert isinstance(progress, Progress)
    assert (progress.done, progress.total) == (2, 2)


def test_a_temperature_is_tried_only_with_a_loss_that_has_one(make_trials: Make) -> None:
    loss = "student_kd.soft_loss"
    parameters = {
        LR: {"low": 1e-3, "high": 0.1, "log": True},
        TEMPERATURE: {"low": 1.0, "high": 8.0},
        loss: {"choices": ["kl", "logit_mse"]},
    }
    search = search_arm(make_trials(num_trials=10, parameters=parameters, pruner="none"))
    without = search.trials[loss] == "logit_mse"
    assert set(without) == {True, False}
    assert list(search.trials[TEMPERATURE].isna()) == list(without)
