"""The project's errors: each says which name broke which rule with which value."""

from collections.abc import Iterable
from typing import Self


class KdPipelineError(Exception):
    """Base of every error that this project raises on purpose."""


class ParameterError(KdPipelineError, ValueError):
    """A parameter breaks its rule; `name` is spelt as in YAML."""

    def __init__(
        self, name: str, rule: str, value: object, *, legal: Iterable[str] | None = None
    ) -> None:
        """Compose "`<name>` must `<rule>`, got `<value>`", with the legal names where few."""
        self.name, self.rule, self.value, self.legal = name, rule, value, legal
        choices = "" if legal is None else f"; legal: {', '.join(sorted(legal))}"
        super().__init__(f"`{name}` must {rule}, got {value!r}{choices}")

    def within(self, block: str) -> Self:
        """The same error with the name spelt from its block in YAML on."""
        name = self.name if self.name.startswith(f"{block}.") else f"{block}.{self.name}"
        return type(self)(name, self.rule, self.value, legal=self.legal)


class DataError(KdPipelineError, ValueError):
    """The images, labels or splits on hand cannot be used as asked."""


class StaleArtefactError(KdPipelineError):
    """An artefact on disk was made from something else than what the run would use it with."""


class SoftTargetMismatchError(StaleArtefactError):
    """Cached logits are not what the teacher that they are said to be of says."""


class CheckpointError(KdPipelineError):
    """A model checkpoint is damaged, of other classes or of another architecture."""


class TeacherTooWeakError(KdPipelineError):
    """The teacher is less accurate on the validation set than the run asks for."""


class TrainingDivergedError(KdPipelineError):
    """The training loss became NaN or infinite."""


def our_cause(error: BaseException | None) -> KdPipelineError | None:
    """The error of ours that an error is or was raised from: Kedro wraps what datasets raise."""
    while error is not None and not isinstance(error, KdPipelineError):
        error = error.__cause__
    return error
