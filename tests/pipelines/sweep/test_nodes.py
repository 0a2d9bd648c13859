"""The nodes of a sweep over real trainings: what they read, and that processes change nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from torch import Tensor

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.models.settings import Model
from kd_pipeline.pipelines.sweep.nodes import make_search
from kd_pipeline.soft_targets.encoding import Encoding
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.sweep import search as sweep_search
from kd_pipeline.sweep import trials
from kd_pipeline.sweep.search import ArmSearch
from kd_pipeline.sweep.settings import SweepParams
from kd_pipeline.training.settings import ArmParams, StudentParams
from kd_pipeline.views.settings import ViewsParams

STUDENT = StudentParams(
    num_replicates=2,
    model={"name": "mlp", "arguments": {"hidden": [8]}},
    training={
        "num_epochs": 2,
        "batch_size": 16,
        "optimiser": {"arguments": {"lr": 0.01}},
        "device": "cpu",
        "precision": "float32",
    },
)
SWEEP = SweepParams(
    num_trials=2,
    parameters={
        "student.training.optimiser.arguments.lr": {"low": 1e-3, "high": 0.1, "log": True},
        "student_kd.soft_loss": {"choices": ["kl", "logit_mse", {"name": "cross_entropy"}]},
        "student_kd.temperature": {"low": 1.0, "high": 8.0},
    },
)
MakeCache = Callable[..., SoftTargets]


class WatchedImages(ImageSet):
    """Refuses to give a row of the test set."""

    forbidden: NDArray[np.int64]

    def take_rows(self, rows: NDArray[np.int64]) -> Tensor:
        assert not np.isin(rows, self.forbidden).any(), "pixels of the test set were read"
        return super().take_rows(rows)


def search(
    tables: dict[str, Any],
    make_cache: MakeCache,
    tmp_path: Path,
    sweep: SweepParams = SWEEP,
    folder: str = "trials",
    student: StudentParams = STUDENT,
    **encoded: Any,
) -> list[ArmSearch]:
    cache = make_cache(tmp_path / "cache", tables["images"], tables["splits"], **encoded)
    node = make_search("student_kd")
    found: list[ArmSearch] = node(
        **tables,
        soft_targets=cache,
        teacher_card={"fingerprints": ["t"]},
        trial_folder=tmp_path / folder,
        memory_budget=MemoryBudget(2**30),
        sweep=sweep,
        student=student,
        arm=ArmParams(soft_weight=1.0),
        views=ViewsParams(),
        soft_target_params=SoftTargetsParams(),
    )
    return found


def test_the_test_set_is_never_opened(
    tables: dict[str, Any], make_cache: MakeCache, tmp_path: Path
) -> None:
    images, splits = tables["images"], tables["splits"]
    in_test = ids_with_role(splits, "test")
    # The fingerprint comes with the images, as from the catalog: none is computed.
    watched = WatchedImages(
        images.example_ids, images.pixels, images.class_names, images.fingerprint
    )
    watched.forbidden = images.positions(in_test)
    with pytest.raises(AssertionError, match="test set"):
        watched.take(in_test[:1])
    examples = tables["examples"]
    plain = search(tables, make_cache, tmp_path, folder="plain")
    # Labels of the test set that any reader would refuse.
    wrong = examples.assign(label=examples["label"].mask(examples["example_id"].isin(in_test), 99))
    hidden = search(
        tables | {"images": watched, "examples": wrong}, make_cache, tmp_path, folder="hidden"
    )
    columns = ["state", "validation/accuracy", "validation/loss"]
    pd.testing.assert_frame_equal(plain[0].trials[columns], hidden[0].trials[columns])


def test_an_arm_that_is_not_asked_for_trains_nothing(
    tables: dict[str, Any], make_cache: MakeCache, tmp_path: Path
) -> None:
    others = SWEEP.model_copy(update={"arms": ("student_baseline",)})
    assert search(tables, make_cache, tmp_path, others) == []
    assert not (tmp_path / "trials").exists()


def test_an_arm_of_labels_is_searched_without_a_cache(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    (found,) = make_search("student_baseline")(
        **tables,
        trial_folder=tmp_path,
        memory_budget=MemoryBudget(0),
        sweep=SWEEP,
        student=STUDENT,
        arm=ArmParams(),
        views=ViewsParams(),
        soft_target_params=SoftTargetsParams(),
    )
    assert list(found.best) == ["student.training.optimiser.arguments.lr"]
    assert len(found.trials) == 2


def test_two_processes_run_as_many_trials_as_one_does(
    tables: dict[str, Any], make_cache: MakeCache, tmp_path: Path
) -> None:
    two = SWEEP.model_copy(update={"num_processes": 2})
    (found,) = search(tables, make_cache, tmp_path, two)
    assert list(found.trials["state"]) == ["complete"] * 2
    lr = found.trials["student.training.optimiser.arguments.lr"]
    assert lr.nunique() == 2
    # The trial of the settings at hand, whichever process ran it, is that of one process.
    (alone,) = search(tables, make_cache, tmp_path, SWEEP, folder="alone")
    columns = ["validation/accuracy", "validation/loss", "epochs"]
    pd.testing.assert_series_equal(found.trials.loc[0, columns], alone.trials.loc[0, columns])


def test_trials_of_another_cache_or_another_code_do_not_count(
    tables: dict[str, Any], make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of the same teacher in another encoding, and a user's network that was changed."""
    code = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 3))
"""
    (tmp_path / "net_of_a_sweep.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    own = STUDENT.model_copy(update={"model": Model(name="module:net_of_a_sweep:Net")})
    lr = "student.training.optimiser.arguments.lr"
    lr_alone = SWEEP.model_copy(update={"parameters": {lr: SWEEP.parameters[lr]}})
    begun: list[int] = []
    run = trials.run_trial
    monkeypatch.setattr(sweep_search, "run_trial", lambda *one: begun.append(1) or run(*one))

    def count() -> int:
        """Trainings that a search begins."""
        begun.clear()
        search(tables, make_cache, tmp_path, lr_alone, student=own, **encoded)
        return len(begun)

    encoded: dict[str, Any] = {}
    assert [count(), count()] == [2, 0]
    shutil.rmtree(tmp_path / "cache")
    encoded["encoding"] = Encoding(top_k=1, temperature=1.0)
    assert [count(), count()] == [2, 0]
    (tmp_path / "net_of_a_sweep.py").write_text(code + "# Changed.")
    assert [count(), count()] == [2, 0]
