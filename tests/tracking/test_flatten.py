"""Parameters without blocks, numbers that can be drawn, names of the gains."""

import numpy as np

from kd_pipeline.tracking.flatten import cost_metrics, finite_numbers, flat_params, gain_metrics


def test_params_are_flat_without_names_of_blocks_and_spelt_as_in_yaml() -> None:
    settings = {
        "seed": 3,
        "training": {"optimiser": {"name": "AdamW", "arguments": {"lr": 1e-3}}, "limit": None},
        "arm": {"temperature": 4.0},
        "transforms": [{"name": "shift", "max_pixels": 1}],
        "checked": True,
    }
    assert flat_params(settings) == {
        "seed": "3",
        "optimiser.name": "AdamW",
        "optimiser.arguments.lr": "0.001",
        "limit": "null",
        "temperature": "4.0",
        "transforms": '[{"name": "shift", "max_pixels": 1}]',
        "checked": "true",
    }


def test_a_name_that_two_blocks_share_is_not_lost() -> None:
    settings = {"student": {"seed": 1}, "training": {"seed": 2}, "views": {"seed": 3}}
    assert flat_params(settings) == {"seed": "1", "training.seed": "2", "views.seed": "3"}


def test_a_loss_is_found_under_one_name_with_or_without_settings() -> None:
    assert flat_params({"arm": {"soft_loss": "kl"}}) == {"soft_loss": "kl"}
    block = {"name": "dkd", "non_target_weight": 8.0}
    found = flat_params({"arm": {"soft_loss": block}})
    assert found == {"soft_loss": "dkd", "soft_loss.non_target_weight": "8.0"}


def test_long_values_are_cut() -> None:
    assert len(flat_params({"names": ["x" * 100] * 100})["names"]) == 500


def test_only_finite_numbers_are_drawn() -> None:
    values = {
        "a": np.float32(0.5),
        "b": 2,
        "c": None,
        "d": float("nan"),
        "e": float("inf"),
        "f": "1",
        "g": True,
        "h": {},
    }
    assert finite_numbers(values) == {"a": 0.5, "b": 2.0}


def test_gains_of_the_distilled_student_have_the_plain_names() -> None:
    def gain(mean: float) -> dict[str, object]:
        accuracy = {
            "mean": mean,
            "ci95": [mean - 0.01, mean + 0.02],
            "p_value": 0.25,
            "p_value_holm": 0.5,
            "smallest_detectable": 0.125,
        }
        return {"accuracy": accuracy, "nll": {"mean": -mean}, "gap_recovered": None}

    calibrated = {"nll_calibrated": {"mean": -0.125, "ci95": [-0.25, 0.0]}}
    gains = {
        "student_kd": gain(0.5) | calibrated | {"gap_recovered": 0.75},
        "student_smoothed": gain(0.25),
    }
    assert gain_metrics({"gains": gains, "distilled": "student_kd"}) == {
        "gain/accuracy": 0.5,
        "gain/accuracy_ci_low": 0.49,
        "gain/accuracy_ci_high": 0.52,
        "gain/p_value": 0.25,
        "gain/p_value_holm": 0.5,
        "gain/smallest_detectable": 0.125,
        "gain/nll": -0.5,
        "gain/nll_calibrated": -0.125,
        "gain/nll_calibrated_ci_low": -0.25,
        "gain/nll_calibrated_ci_high": 0.0,
        "gain/gap_recovered": 0.75,
        "gain/student_smoothed/accuracy": 0.25,
        "gain/student_smoothed/accuracy_ci_low": 0.24,
        "gain/student_smoothed/accuracy_ci_high": 0.27,
        "gain/student_smoothed/p_value": 0.25,
        "gain/student_smoothed/p_value_holm": 0.5,
        "gain/student_smoothed/smallest_detectable": 0.125,
        "gain/student_smoothed/nll": -0.25,
    }


def test_costs_are_named_by_student_and_what_is_not_on_record_is_left_out() -> None:
    cost = {"teacher_seconds": None, "train_seconds": 2.0}
    assert cost_metrics({"costs": {"student_kd": cost}}) == {"cost/student_kd/train_seconds": 2.0}
