"""Tables and the preset: what each arm has by itself, and what all of them share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_pipeline.errors import DataError
from kd_pipeline.sweep.results import (
    HEAD,
    best_values_table,
    check_preset,
    preset_text,
    preset_values,
    trial_table,
    write_preset,
)
from kd_pipeline.sweep.search import ArmSearch, search_arm
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.sweep.trials import ArmTrials
from kd_pipeline.training.settings import ArmParams, StudentParams

LR, TEMPERATURE = "student.training.optimiser.arguments.lr", "student_kd.temperature"
PARAMETERS: dict[str, Any] = {
    "sweep": {"parameters": {}},
    "views": {"seed": 3},
    "student": {"seed": 7, "training": {"num_epochs": 4, "optimiser": {"arguments": {"lr": 0.1}}}},
    # As Kedro hands on a block that it has validated.
    "student_kd": ArmParams(soft_weight=0.5, temperature=2.0),
    "student_baseline": {"soft_weight": 0.0},
}
Found = tuple[list[ArmSearch], SweepParams]


@pytest.fixture
def found(make_trials: Callable[..., ArmTrials]) -> Found:
    """The searches of two arms, of different seeds so that their best values differ."""
    arms = [make_trials("student_kd", seed=1), make_trials("student_baseline", seed=2)]
    return [search_arm(arm) for arm in arms], arms[0].params


def test_the_table_has_every_trial_of_every_arm(found: Found) -> None:
    table = trial_table(found[0])
    assert list(table["arm"]) == ["student_kd"] * 8 + ["student_baseline"] * 8
    assert table.loc[table["arm"] == "student_baseline", TEMPERATURE].isna().all()


def test_shared_values_are_those_of_one_arm_and_own_values_each_arms_own(found: Found) -> None:
    (kd, baseline), params = found
    assert kd.best[LR] != baseline.best[LR]
    own = {TEMPERATURE: kd.best[TEMPERATURE]}
    assert preset_values(*found) == {LR: baseline.best[LR], **own}
    other = params.model_copy(update={"shared_from": "student_kd"})
    assert preset_values(found[0], other) == kd.best


def test_the_table_of_best_values_has_both(found: Found) -> None:
    (kd, baseline), _ = found
    rows = best_values_table(*found).set_index(["arm", "parameter"])
    assert rows.loc[("student_kd", LR), "best"] == kd.best[LR]
    assert rows.loc[("student_kd", LR), "in_preset"] == baseline.best[LR]
    assert (rows["trials"] == 8).all()


def test_the_preset_has_whole_blocks_with_the_best_values(found: Found, tmp_path: Path) -> None:
    (kd, baseline), _ = found
    text = write_preset(tmp_path, PARAMETERS, *found)
    (file,) = (tmp_path / "sweep_best").iterdir()
    assert file.name == "parameters_sweep_best.yml"
    assert file.read_text() == text
    blocks = yaml.safe_load(text)
    assert set(blocks) == set(PARAMETERS) - {"sweep"}
    assert blocks["student"]["seed"] == 7
    assert blocks["student"]["training"]["optimiser"]["arguments"]["lr"] == baseline.best[LR]
    assert blocks["student_kd"] == {"soft_weight": 0.5, "temperature": kd.best[TEMPERATURE]}
    assert blocks["student_baseline"] == {"soft_weight": 0.0}
    # What the arm would have by itself is in the comment.
    assert f"#   {LR}: {kd.best[LR]} (here {baseline.best[LR]})" in text
    assert PARAMETERS["student"]["training"]["optimiser"]["arguments"]["lr"] == 0.1


def test_a_preset_names_a_users_own_loss_as_the_user_did(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loss_of_a_preset.py").write_text("def loss(student_logits, teacher_logits): ...")
    monkeypatch.syspath_prepend(tmp_path)
    block = {"soft_loss": {"name": "module:loss_of_a_preset:loss", "standardise_logits": True}}
    given = PARAMETERS | {"student_own": ArmParams.model_validate(block)}
    assert yaml.safe_load(preset_text(given, *found))["student_own"] == block


def test_a_preset_keeps_where_models_are_placed(found: Found) -> None:
    """No part of a training's identity, and so of no dump that is compared."""
    training = {"num_epochs": 4, "side_by_side": "never", "placement": "replicas"}
    student = StudentParams(model={"name": "mlp"}, training=training)
    blocks = yaml.safe_load(preset_text(PARAMETERS | {"student": student}, *found))
    assert blocks["student"]["training"].items() >= training.items()


def test_a_preset_of_a_sweep_is_overwritten_and_no_other(found: Found, tmp_path: Path) -> None:
    folder = tmp_path / "sweep_best"
    write_preset(tmp_path, PARAMETERS, *found)
    write_preset(tmp_path, PARAMETERS, *found)
    (folder / "mlflow.yml").write_text("enabled: false\n")
    with pytest.raises(DataError, match=r"got sweep_best, which has mlflow\.yml"):
        write_preset(tmp_path, PARAMETERS, *found)
    assert (folder / "mlflow.yml").exists()
    check_preset(tmp_path, "another")
    (folder / "mlflow.yml").write_text(f"{HEAD}\n")
    check_preset(tmp_path, "sweep_best")
