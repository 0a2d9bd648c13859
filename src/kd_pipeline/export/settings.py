"""Settings of the export: which models, for which devices, and what each file must hold to."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.config import BatchSize, Fraction, Params, PositiveInt, at_most
from kd_pipeline.models.settings import GivenCheckpoint, GivenMlflow

TargetName = Literal["onnx", "executorch", "c"]
Source = Annotated[GivenCheckpoint | GivenMlflow, Field(discriminator="kind")]
Repeats = Annotated[PositiveInt, at_most(100_000, "each is a run of the model")]


class Latency(Params):
    """How latency is measured: each repeat is one batch."""

    num_warmup: Repeats = 10
    num_repeats: Repeats = 50
    batch_sizes: Annotated[tuple[BatchSize, ...], Field(min_length=1)] = (1, 64)
    """Tables show that of 1."""


class ModelExportParams(Params):
    """`model_export`."""

    enabled: bool = False
    """Whether it is the last stage of a whole run; `--pipelines=model_export` runs it anyway."""
    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("student_kd",)
    """Students by name, and `teacher`, which is measured beside them in ONNX and does not ship."""
    replicates: Literal["best", "all"] = "best"
    """`best` on validation; `all` measures the others too, and keeps the files of the best."""
    source: Source | None = None
    """Any other model to export instead of `models`."""
    targets: Annotated[tuple[TargetName, ...], Field(min_length=1)] = ("onnx",)
    num_calibration_rows: PositiveInt = 512
    """Images of the transfer set that the ranges of int8 activations are measured on."""
    budget_bytes: PositiveInt | None = None
    """The most flash that a student's int8 file may take."""
    max_accuracy_drop: Fraction | None = None
    """The most test accuracy that a student's file may lose against its checkpoint."""
    latency: Latency = Latency()
    registered_name: Annotated[str, Field(pattern=r"^[\w. -]+$")] | None = None
    """In MLflow's registry, of the first student of `models` in float32; null registers nothing."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("models", "targets"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"`{name}` must name each once, got {values}")
        if self.registered_name is not None and "onnx" not in self.targets:
            raise ValueError(
                "`registered_name` must be null unless `targets` hold onnx, which MLflow serves, "
                f"got {self.registered_name!r}"
            )
        if self.registered_name is not None and self.source is None and self.models == ("teacher",):
            raise ValueError(
                "`registered_name` must be null where `models` hold no student, "
                f"got {self.registered_name!r}"
            )
        return self
