"""`kedro run --pipelines=distill_live`: the teacher beside the student, and no cache anywhere."""

import json
from typing import Any

from kd_pipeline.errors import ParameterError
from kd_pipeline.pipeline_registry import DISTILL_LIVE

VIEWS = {"num_views": None, "transforms": [{"name": "shift", "max_pixels": 1}]}


def test_a_live_teacher_teaches_over_fresh_views(fresh: Any, run_here: Any) -> None:
    outcome = run_here(fresh, ["distill_live"], params={"views": VIEWS}, to_nodes=["write_report"])
    assert outcome.error is None
    reporting = fresh.data / "08_reporting"
    comparison = json.loads((reporting / "comparison.json").read_text())
    assert set(comparison["arms"]) == {student.name for student in DISTILL_LIVE}
    assert comparison["distilled"] == "student_live"
    assert set(comparison["distilled_over"]) == {"student_smoothed"}
    assert (
        "Distillation" in (reporting / "report.md").read_text()
        or "No evidence" in (reporting / "report.md").read_text()
    )
    assert not (fresh.data / "05_model_input/soft_targets").exists()
    # The cached arms refuse fresh views before anything is trained.
    refused = run_here(fresh, ["distill"], params={"views": VIEWS}).refused(ParameterError)
    assert "`views.num_views` must" in refused
