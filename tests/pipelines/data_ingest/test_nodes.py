"""Data ingest: its node, and its catalog and parameters as they stand in conf/base."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog
from kedro.runner import SequentialRunner
from kedro.validation.exceptions import DataValidationError

from kd_pipeline.data.images import ImageSet
from kd_pipeline.data.settings import DataIngestParams
from kd_pipeline.memory import MemoryBudget
from kd_pipeline.pipelines.data_ingest import create_pipeline
from kd_pipeline.pipelines.data_ingest.nodes import ingest_image_source

CONF = Path(__file__).parents[3] / "conf" / "base"


def read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONF / name).read_text(encoding="utf-8"))
    return loaded


def test_base_parameters_state_every_default() -> None:
    block = read("parameters_data_ingest.yml")["data_ingest"]
    assert DataIngestParams(**block) == DataIngestParams.model_validate({"source": block["source"]})
    assert set(block) == set(DataIngestParams.model_fields)


def test_the_pipeline_writes_what_the_catalog_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = {k: v for k, v in read("catalog_data_ingest.yml").items() if not k.startswith("_")}
    catalog = DataCatalog.from_config(config)
    params = DataIngestParams(**read("parameters_data_ingest.yml")["data_ingest"])
    catalog["params:data_ingest"] = params
    catalog["memory_budget"] = MemoryBudget(2**30)
    assert create_pipeline().outputs() == set(config) - {"memory_budget"}
    SequentialRunner().run(create_pipeline(), catalog)
    images, examples = catalog.load("images"), catalog.load("examples")
    assert isinstance(images, ImageSet)
    assert examples["example_id"].tolist() == images.example_ids.tolist()
    rejected = catalog.load("rejected_images")
    assert list(rejected.columns) == ["source", "example_id", "reason"]
    assert len(rejected) == 0
    with pytest.raises(DataValidationError, match="must have the columns"):
        catalog.save("examples", pd.DataFrame({"example_id": [1]}))


def test_the_node_hands_every_parameter_on() -> None:
    params = DataIngestParams.model_validate(
        {"source": {"kind": "digits"}, "image_size": 4, "colour": "rgb"}
    )
    images, examples, rejected = ingest_image_source(params, MemoryBudget(2**30))
    assert images.pixels.shape == (1797, 3, 4, 4)
    assert len(examples) == 1797
    assert rejected.empty
