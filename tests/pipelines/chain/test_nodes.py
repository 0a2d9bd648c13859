"""What a hop hears is looked at as the hop hears it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.splits import ids_with_role
from kd_pipeline.pipelines.chain.nodes import cache_summariser
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.soft_targets.store import SoftTargets
from kd_pipeline.training.block_settings import ChainParams

CHAIN = ChainParams.model_validate(
    {"hops": [{"name": name, "model": {"name": "mlp"}} for name in ("first", "second")]}
)


@pytest.fixture
def disagreeing(
    images: ImageSet,
    splits: pd.DataFrame,
    make_cache: Callable[..., SoftTargets],
    tmp_path: Path,
) -> SoftTargets:
    """Two members; the weaker voice is always wrong."""
    ids = ids_with_role(splits, "transfer")
    right = np.eye(3, dtype=np.float32)[images.positions(ids) % 3] * 6
    wrong = np.roll(right, 1, axis=1) * 0.9
    return make_cache(
        tmp_path / "cache",
        images,
        splits,
        teacher_fingerprints=("right", "wrong"),
        logits=[[right], [wrong]],
    )


@pytest.mark.parametrize(("role", "agreement"), [("first", 0.0), ("second", 1.0)])
def test_weights_are_of_the_first_teachers_members_alone(
    role: str, agreement: float, disagreeing: SoftTargets, examples: pd.DataFrame
) -> None:
    reading = SoftTargetsParams.model_validate({"member_weights": [0.1, 0.9]})
    data: dict[str, Any] = {"soft_targets": disagreeing, "examples": examples}
    summary, confusions = cache_summariser(role)(**data, chain=CHAIN, reading=reading)
    heard = summary.set_index("teacher").loc["mixed"]
    assert heard["agreement_with_labels"] == agreement
    assert len(confusions)
