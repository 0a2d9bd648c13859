"""The last step: bounds that files must hold to, their cards, and the move to their final place."""

import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kd_pipeline.atomic import is_alive, replace_folder
from kd_pipeline.errors import ExportError
from kd_pipeline.export.c_run import size_compiler
from kd_pipeline.export.jobs import ExportedModel, describe
from kd_pipeline.export.model_card import model_card
from kd_pipeline.export.selection import GIVEN, TEACHER
from kd_pipeline.export.settings import ModelExportParams
from kd_pipeline.models.checkpoint import ModelCheckpoint

_STAGING = ".unfinished-"
_ROUNDING = 1e-9
CARD_FILE = "card.json"
MODEL_CARD_FILE = "model_card.md"

logger = logging.getLogger(__name__)

_Json = Mapping[str, Any]


def make_staging_folder(folder: Path) -> Path:
    """Make a hidden folder of this process in `folder`, and remove those of ended processes."""
    for left in folder.glob(f"{_STAGING}*"):
        pid = left.name.removeprefix(_STAGING)
        if not pid.isdigit() or int(pid) == os.getpid() or not is_alive(int(pid)):
            shutil.rmtree(left)
    staging = folder / f"{_STAGING}{os.getpid()}"
    staging.mkdir(parents=True)
    return staging


def warn_of_stale_files(folder: Path, models: Mapping[str, Sequence[ModelCheckpoint]]) -> None:
    """Name the models of which there are files of another checkpoint than this run's."""
    for role, checkpoints in models.items():
        card = folder / role / CARD_FILE
        known = {checkpoint.fingerprint for checkpoint in checkpoints}
        if card.is_file() and json.loads(card.read_text())["checkpoint"] not in known:
            logger.warning(
                "%s holds files of an earlier %s: `kedro run --pipelines=model_export` replaces "
                "them", card.parent, role,
            )  # fmt: skip


def publish(
    exported: Sequence[ExportedModel],
    comparison: _Json,
    params: ModelExportParams,
    *,
    folder: Path,
    known: _Json,
) -> list[dict[str, Any]]:
    """Move each student's best files to `<folder>/<role>/`, with card.json and model_card.md.

    The folder appears whole or not at all.

    Args:
        exported: From `export_models`; files of other replicates and of the teacher are left.
        comparison: Of the files on the test set, as in export_comparison.json.
        params: `model_export`.
        folder: For a folder per role.
        known: `test_fingerprint`, `num_test_examples` and `group` of this run, for the cards.

    Returns:
        The cards, in the order of `exported`.
    """
    cards = []
    for model in exported:
        if not model.is_best or model.role == TEACHER:
            continue
        card = make_card(model, comparison, params, known)
        with replace_folder(folder / model.role) as temporary:
            shutil.copytree(model.folder, temporary, dirs_exist_ok=True)
            (temporary / CARD_FILE).write_text(json.dumps(card, indent=2, allow_nan=False) + "\n")
            (temporary / MODEL_CARD_FILE).write_text(model_card(card), encoding="utf-8")
        cards.append(card)
    for model in exported[:1]:
        shutil.rmtree(model.folder.parents[1])
    return cards


def select_for_registry(
    cards: Sequence[_Json], predictions: pd.DataFrame, params: ModelExportParams, *, folder: Path
) -> dict[str, Any]:
    """The first student of `models` in float32: its `onnx_file`, `card` and test `predictions`."""
    first = next((name for name in params.models if name != TEACHER), None)
    card = next(card for card in cards if card["model"] in (first, GIVEN))
    rows = predictions.set_index(["role", "replicate", "target", "precision"]).sort_index()
    own = rows.loc[(card["model"], card["replicate"], "onnx", "float32")]
    return {
        "onnx_file": folder / card["model"] / "model.onnx",
        "card": {**card, "student": card["model"]},
        "predictions": own[["example_id", "label", "predicted"]].reset_index(drop=True),
    }


def check_accuracy_drop(comparison: _Json, params: ModelExportParams) -> None:
    """Refuse a student's files whose test accuracy is too far below their checkpoint's.

    Raises:
        ExportError: Naming each with its loss.
    """
    if params.max_accuracy_drop is None:
        return
    files = {(f["role"], f["target"], f["precision"]): f for f in comparison["files"]}
    broken = []
    for (role, target, precision), file in files.items():
        if role == TEACHER:
            continue
        reference = files[role, "checkpoint", "float32"]
        drop = _best(reference) - _best(file)
        if drop > params.max_accuracy_drop + _ROUNDING:
            broken.append(f"{role} {target} {precision} loses {drop:.4f}")
    if broken:
        raise ExportError(
            "`model_export.max_accuracy_drop` must hold for every file, got a bound of "
            f"{params.max_accuracy_drop:g} where {'; '.join(broken)}: nothing was published"
        )


def _best(file: _Json) -> float:
    """Accuracy of the replicate that ships."""
    values: list[float] = file["accuracy"]["values"]
    return values[file["position_of_best"]]


def make_card(
    model: ExportedModel, comparison: _Json, params: ModelExportParams, known: _Json
) -> dict[str, Any]:
    """All that is known of one model's files, JSON-able."""
    stated = describe(
        model.checkpoint,
        role=model.role,
        replicate=model.replicate,
        input_shape=model.input_shape,
    )
    rows = [file for file in comparison["files"] if file["role"] == model.role]
    paths = {k: str(file.path.relative_to(model.folder)) for k, file in model.files.items()}
    return {
        **stated,
        "validation_accuracy": _or_null(model.validation_accuracy),
        "parameters": model.facts["parameters"],
        "macs": model.facts["macs"],
        "training": {
            k: model.checkpoint.facts[k]
            for k in ("seed", "epochs", "steps", "num_training_rows", "parameters")
            if k in model.checkpoint.facts
        },
        "num_calibration_rows": params.num_calibration_rows,
        # Whose code `flash_bytes` of C counts.
        **({"c_compiler": size_compiler()} if "c" in params.targets else {}),
        **known,
        "checkpoint_on_test": _measured(next(r for r in rows if r["target"] == "checkpoint")),
        "files": [
            {"file": paths[r["target"], r["precision"]], "target": r["target"],
             "precision": r["precision"], **_measured(r)}
            for r in rows if (r["target"], r["precision"]) in paths
        ],
    }  # fmt: skip


def _measured(row: _Json) -> dict[str, Any]:
    """The numbers of the replicate that ships."""
    at = row["position_of_best"]
    spreads = {k: v["values"][at] for k, v in row.items() if isinstance(v, Mapping)}
    names = ("size_bytes", "flash_bytes", "ram_bytes", "max_logit_difference", "agreement")
    single = {k: v for k, v in row.items() if k in names or k.startswith("latency_")}
    return {**spreads, **single}


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
