"""Settings of a student's loss; a soft loss's own rules come from its record in `SOFT_LOSSES`."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_serializer, model_validator

from kd_pipeline.config import Fraction, Params, Temperature
from kd_pipeline.errors import ParameterError

if TYPE_CHECKING:
    from kd_pipeline.losses.distillation import SoftLoss


class SoftLossParams(Params):
    """A soft loss by name; a loss with arguments of its own derives its settings from this."""

    name: str

    @property
    def record(self) -> "SoftLoss":
        """The loss of this name."""
        # Imported here: parsing settings that need no loss should not pay for torch.
        from kd_pipeline.losses.distillation import SOFT_LOSSES

        return SOFT_LOSSES[self.name]

    @model_serializer(mode="wrap")
    def _bare_name_where_that_is_all(self, serialise: Any) -> Any:
        values = serialise(self)
        return self.name if set(values) == {"name"} else values


def _as_soft_loss(value: Any) -> Any:
    from kd_pipeline.losses.distillation import SOFT_LOSSES

    if isinstance(value, SoftLossParams):
        return value
    block = {"name": value} if isinstance(value, str) else value
    name = block.get("name") if isinstance(block, dict) else None
    if name not in list(SOFT_LOSSES):
        rule = f"be one of {', '.join(SOFT_LOSSES)}, by name or {{name: ...}}"
        raise ValueError(f"`soft_loss` must {rule}, got {value!r}")
    return SOFT_LOSSES[name].settings.model_validate(block)


class ObjectiveParams(Params):
    """What a student minimises: (1 - soft_weight) x hard loss + soft_weight x soft loss."""

    soft_loss: Annotated[SerializeAsAny[SoftLossParams], BeforeValidator(_as_soft_loss)] = (
        SoftLossParams(name="kl")
    )
    temperature: Temperature = 1.0
    soft_weight: Fraction = 0.0
    """Weight of the soft term; the hard term gets the rest."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    @model_validator(mode="after")
    def _no_temperature_is_ignored(self) -> Self:
        if self.temperature != 1 and not self.soft_loss.record.uses_temperature:
            raise ValueError(
                f"`temperature` must be 1 for {self.soft_loss.name}, which has none, "
                f"got {self.temperature}"
            )
        return self

    @property
    def read_temperature(self) -> float | None:
        """The temperature at which the teacher's logits are read; None for a loss without one."""
        return self.temperature if self.soft_loss.record.uses_temperature else None

    def check_top_k(self, *, cached_at: float) -> None:
        """Refuse a loss that a top-k cache cannot serve.

        Args:
            cached_at: The temperature that the cache is tied to.

        Raises:
            ParameterError: Naming the parameter within its block.
        """
        record = self.soft_loss.record
        if record.read_top_k is None:
            rule = "not need every logit of a top-k cache"
            raise ParameterError("soft_loss", rule, self.soft_loss.name)
        if record.uses_temperature and self.temperature != cached_at:
            rule = f"be {cached_at:g}, which this top-k cache is tied to"
            raise ParameterError("temperature", rule, self.temperature)
