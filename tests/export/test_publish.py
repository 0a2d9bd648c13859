"""Only files that hold to their bounds reach their place, whole, with cards of facts."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kd_pipeline.errors import ExportError
from kd_pipeline.export.jobs import ExportedModel
from kd_pipeline.export.model_card import model_card
from kd_pipeline.export.publish import (
    check_accuracy_drop,
    make_card,
    make_staging_folder,
    publish,
    select_for_registry,
    warn_of_stale_files,
)
from kd_pipeline.export.settings import ModelExportParams

KNOWN = {"test_fingerprint": "0123456789abcdef", "num_test_examples": 36, "group": "g"}
NAMES = {"card.json", "model.int8.onnx", "model.onnx", "model_card.md"}


def test_the_best_replicate_ships(
    exported: list[ExportedModel],
    comparison: dict[str, Any],
    params: ModelExportParams,
    staged: Path,
) -> None:
    best = next(model for model in exported if model.is_best)
    made = best.files["onnx", "int8"].path.read_bytes()
    (card,) = publish(exported, comparison, params, folder=staged, known=KNOWN)
    assert {path.name for path in staged.glob("*/*")} == NAMES
    assert json.loads((staged / "student_kd" / "card.json").read_text()) == card
    assert (staged / "student_kd" / "model.int8.onnx").read_bytes() == made
    assert not best.folder.exists()


def test_a_file_that_loses_too_much_is_refused(comparison: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(comparison))
    int8 = next(file for file in changed["files"] if file["precision"] == "int8")
    values = int8["accuracy"]["values"]
    values[int8["position_of_best"]] -= 0.5
    params = ModelExportParams(max_accuracy_drop=0.25)
    with pytest.raises(ExportError, match=r"0\.25 where student_kd onnx int8 loses 0\.\d+"):
        check_accuracy_drop(changed, params)


def test_a_file_may_lose_exactly_what_is_allowed() -> None:
    exact = [("checkpoint", "float32", 0.95), ("onnx", "int8", 0.94)]
    files = [
        {"role": "student_kd", "target": target, "precision": precision,
         "accuracy": {"values": [accuracy]}, "position_of_best": 0}
        for target, precision, accuracy in exact
    ]  # fmt: skip
    assert 0.95 - 0.94 > 0.01  # In floats.
    check_accuracy_drop({"files": files}, ModelExportParams(max_accuracy_drop=0.01))


def test_what_the_teacher_loses_is_only_measured(comparison: dict[str, Any]) -> None:
    renamed = [{**file, "role": "teacher"} for file in comparison["files"]]
    for file in renamed:
        if file["precision"] == "int8":
            file["accuracy"] = {"values": [0.0, 0.0]}
    check_accuracy_drop({"files": renamed}, ModelExportParams(max_accuracy_drop=0.0))


def test_the_card_has_the_numbers_of_the_replicate_that_ships(
    exported: list[ExportedModel], comparison: dict[str, Any], params: ModelExportParams
) -> None:
    best = next(model for model in exported if model.is_best)
    card = make_card(best, comparison, params, KNOWN)
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["class_names"] == ["low", "middle", "high"]
    assert card["checkpoint"] == best.checkpoint.fingerprint
    assert card["test_fingerprint"] == KNOWN["test_fingerprint"]
    assert [file["file"] for file in card["files"]] == ["model.onnx", "model.int8.onnx"]
    rows = [file for file in comparison["files"] if file["target"] == "onnx"]
    for file, row in zip(card["files"], rows, strict=True):
        assert file["accuracy"] == row["accuracy"]["values"][best.replicate]
        assert file["size_bytes"] == row["size_bytes"]


def test_the_model_card_states_model_files_evaluation_limits_and_origin(
    exported: list[ExportedModel],
    comparison: dict[str, Any],
    params: ModelExportParams,
    staged: Path,
) -> None:
    publish(exported, comparison, params, folder=staged, known=KNOWN)
    text = (staged / "student_kd" / "model_card.md").read_text(encoding="utf-8")
    for stated in (
        "3 classes: low, middle, high",
        "uint8 grey pixels of 8 x 8",
        "a teacher's soft targets",
        "| model.int8.onnx |",
        "All 36 test images",
        "- Teacher t",
    ):
        assert stated in text
    card = json.loads((staged / "student_kd" / "card.json").read_text())
    card["training"]["parameters"]["soft_loss"] = "pseudo_label"
    assert "Learnt from: a teacher's decisions as labels" in model_card(card)


def test_what_a_killed_run_has_left_is_removed_and_a_live_one_is_let_be(tmp_path: Path) -> None:
    ended, alive = tmp_path / ".unfinished-999999999", tmp_path / f".unfinished-{os.getppid()}"
    for folder in (ended, alive, make_staging_folder(tmp_path)):
        folder.mkdir(exist_ok=True)
        (folder / "half").write_text("")
    assert list(make_staging_folder(tmp_path).iterdir()) == []
    assert not ended.exists()
    assert (alive / "half").exists()
    assert [path.name for path in tmp_path.glob("[!.]*")] == []


def test_files_of_an_earlier_checkpoint_are_named(
    exported: list[ExportedModel],
    comparison: dict[str, Any],
    params: ModelExportParams,
    staged: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(exported, comparison, params, folder=staged, known=KNOWN)
    best = next(model for model in exported if model.is_best)
    warn_of_stale_files(staged, {"student_kd": [best.checkpoint], "student_baseline": []})
    assert not caplog.records
    other = replace(best.checkpoint, class_names=("a", "b", "c"))
    warn_of_stale_files(staged, {"student_kd": [other]})
    assert "holds files of an earlier student_kd" in caplog.text


def test_fingerprints_stay_text_whatever_their_digits(
    exported: list[ExportedModel], comparison: dict[str, Any], params: ModelExportParams
) -> None:
    best = next(model for model in exported if model.is_best)
    facts = {**best.checkpoint.facts, "splits": "12345678e1234567", "teacher": ["1234567890123456"]}
    changed = replace(best, checkpoint=replace(best.checkpoint, facts=facts))
    card = make_card(changed, comparison, params, KNOWN)
    assert (card["splits"], card["teacher"]) == ("12345678e1234567", ["1234567890123456"])


def test_the_first_model_is_registered_in_float32_with_its_own_predictions(
    exported: list[ExportedModel],
    comparison: dict[str, Any],
    measured: tuple[Any, Any],
    params: ModelExportParams,
    staged: Path,
) -> None:
    cards = publish(exported, comparison, params, folder=staged, known=KNOWN)
    chosen = select_for_registry(cards, measured[0], params, folder=staged)
    assert chosen["onnx_file"].is_file()
    assert (chosen["card"]["student"], chosen["card"]["group"]) == ("student_kd", "g")
    table, row = chosen["predictions"], next(f for f in cards[0]["files"])
    right = (table["label"] == table["predicted"]).mean()
    assert right == pytest.approx(row["accuracy"])
