"""The project's errors; those of parameters read "`name` must rule, got value"."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Self


class KdPipelineError(Exception):
    """Base of every error that this project raises on purpose."""


class ParameterError(KdPipelineError, ValueError):
    """A parameter breaks its rule; `name` is spelt as in YAML."""

    def __init__(
        self, name: str, rule: str, value: object, *, legal: Iterable[str] | None = None
    ) -> None:
        """Compose "`<name>` must `<rule>`, got `<value>`", with the legal names where few."""
        self.name, self.rule, self.value = name, rule, value
        self.legal = None if legal is None else sorted(legal)
        choices = "" if self.legal is None else f"; legal: {', '.join(self.legal)}"
        super().__init__(f"`{name}` must {rule}, got {value!r}{choices}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it: processes pass errors on."""
        return partial(type(self), legal=self.legal), (self.name, self.rule, self.value)

    def within(self, block: str) -> Self:
        """The same error with its name prefixed by its block in YAML, unless it is already."""
        name = f"{block}.{self.name.removeprefix(f'{block}.')}"
        return type(self)(name, self.rule, self.value, legal=self.legal)


class SettingsError(KdPipelineError, ValueError):
    """Parameters are no settings or break their rules; a line for each."""


class DataError(KdPipelineError, ValueError):
    """The images, labels or splits at hand cannot be used as the settings demand."""


class StaleArtefactError(KdPipelineError):
    """An artefact on disk was made from other inputs than those of this run."""


class SoftTargetMismatchError(StaleArtefactError):
    """Cached logits differ from those that their teacher computes."""


class CheckpointError(KdPipelineError):
    """A model checkpoint is damaged, of other classes or of another architecture."""


class TeacherTooWeakError(KdPipelineError):
    """The teacher's validation accuracy is below the required one."""


class ExportError(KdPipelineError):
    """A model cannot be exported as asked, or its file breaks a bound."""


class ObjectStorageError(KdPipelineError):
    """Object storage cannot be used, or what it holds and what lies here do not fit."""


class TrackingStoreError(KdPipelineError):
    """MLflow's store cannot be used as it is."""


class ProcessesError(KdPipelineError):
    """The processes of one training are not alike, or one of them does not answer."""


class TrainingDivergedError(KdPipelineError):
    """The training loss became NaN or infinite."""


def our_cause(error: BaseException | None) -> KdPipelineError | None:
    """The project's error that an error is, or was raised from: Kedro wraps what datasets raise."""
    while error is not None and not isinstance(error, KdPipelineError):
        error = error.__cause__
    return error
