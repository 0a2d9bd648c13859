"""Settings of a student's loss; a soft loss's own rules come from its record in `SOFT_LOSSES`."""

from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    computed_field,
    model_serializer,
    model_validator,
)

from kd_pipeline.config import Fraction, NonNegativeFloat, Params, Temperature, as_block
from kd_pipeline.errors import ParameterError
from kd_pipeline.import_path import MODULE

if TYPE_CHECKING:
    from kd_pipeline.losses.record import SoftLoss


class SoftLossParams(Params):
    """A soft loss by name; a loss with arguments of its own derives its settings from this."""

    name: str
    standardise_logits: bool = False
    """Give each row of both logits mean 0 and deviation 1 first: `losses.record.standardised`."""

    @property
    def record(self) -> "SoftLoss":
        """The loss of this name."""
        # Imported here: parsing settings that need no loss should not pay for torch.
        from kd_pipeline.losses.record import standardised

        return standardised(self._named()) if self.standardise_logits else self._named()

    def _named(self) -> "SoftLoss":
        from kd_pipeline.losses.distillation import SOFT_LOSSES

        return SOFT_LOSSES[self.name]

    @model_serializer(mode="wrap")
    def _bare_name_where_that_is_all(self, serialise: Any) -> Any:
        values = serialise(self)
        return self.name if values == {"name": self.name, "standardise_logits": False} else values


class OwnLossParams(SoftLossParams):
    """A user's own loss, named `module:<package.module>:<function>`."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further ones of the function, by name."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def code(self) -> str | None:
        """Digest of the function's file: with other code it is another training."""
        from kd_pipeline.losses.own import own_loss_digest

        return own_loss_digest(self.name)

    def _named(self) -> "SoftLoss":
        from kd_pipeline.losses.own import own_loss

        return own_loss(self.name, self.arguments)

    @model_validator(mode="after")
    def _can_be_imported(self) -> Self:
        self._named()
        return self


def _as_soft_loss(value: Any) -> Any:
    from kd_pipeline.losses.distillation import SOFT_LOSSES

    if isinstance(value, SoftLossParams):
        return value
    block = as_block(value)
    name = block.get("name") if isinstance(block, dict) else None
    if isinstance(name, str) and name.startswith(MODULE):
        # Of settings that were serialised, `code` is computed anew.
        return OwnLossParams.model_validate({k: v for k, v in block.items() if k != "code"})
    if name not in list(SOFT_LOSSES):
        rule = f"be one of {', '.join(SOFT_LOSSES)}, by name or {{name: ...}}"
        raise ValueError(
            f"`soft_loss` must {rule}, or {MODULE}<package.module>:<function>, got {value!r}"
        )
    return SOFT_LOSSES[name].settings.model_validate(block)


class SoftWeightSchedule(Params):
    """How the soft term's weight changes while training goes on; the hard term gets the rest."""

    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of all steps over which it rises linearly from near 0 to `soft_weight`."""
    stop_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of all steps after which it is 0, and labels alone teach (early-stopped distillation,
    Cho and Hariharan 2019, arXiv:1910.01348)."""

    def factor(self, progress: float) -> float:
        """By what `soft_weight` is multiplied in a step.

        Args:
            progress: Share of all steps that are done once this one is, in (0, 1].
        """
        if progress > self.stop_fraction:
            return 0.0
        warmup = self.warmup_fraction
        return progress / warmup if progress < warmup else 1.0


class ObjectiveParams(Params):
    """What a student minimises: (1 - soft_weight) x hard loss + soft_weight x soft loss."""

    soft_loss: Annotated[SerializeAsAny[SoftLossParams], BeforeValidator(_as_soft_loss)] = (
        SoftLossParams(name="kl")
    )
    temperature: Temperature = 1.0
    soft_weight: Fraction = 0.0
    """Weight of the soft term; the hard term gets the rest."""
    soft_weight_schedule: SoftWeightSchedule = SoftWeightSchedule()
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    confidence_penalty: NonNegativeFloat = 0.0
    """Weight of a third term, with or without a teacher: `losses.hard.confidence_penalty`."""

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

    @property
    def uses_labels(self) -> bool:
        """Whether the hard term has a weight in any step."""
        return self.soft_weight < 1 or self.soft_weight_schedule != SoftWeightSchedule()

    def at_the_end(self, progress: float = 1.0) -> Self:
        """The same with the weight of the last step throughout, or of the step at `progress`."""
        weight = self.soft_weight * self.soft_weight_schedule.factor(progress)
        constant = {"soft_weight": weight, "soft_weight_schedule": SoftWeightSchedule()}
        return self.model_copy(update=constant)

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
            standardised = self.soft_loss.standardise_logits
            found = f"{self.soft_loss.name}, standardised" if standardised else self.soft_loss.name
            raise ParameterError("soft_loss", rule, found)
        if record.uses_temperature and self.temperature != cached_at:
            rule = f"be {cached_at:g}, which this top-k cache is tied to"
            raise ParameterError("temperature", rule, self.temperature)
