"""The base of all typed settings: strictness, and the types of numbers.

Each package declares its blocks of YAML in its `settings.py`. Kedro validates a block before any
node runs; nodes and domain functions take the validated object whole.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def at_most(bound: int, reason: str) -> AfterValidator:
    """An upper bound, with its reason, of a number by which memory is taken or work repeated."""

    def check(value: int) -> int:
        if value > bound:
            raise ValueError(f"must be at most {bound:,}: {reason}, got {value}")
        return value

    return AfterValidator(check)


def _readable(temperature: float) -> float:
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise ValueError(
            f"must lie in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}]: below, the rounding of "
            "float16 logits outweighs what they hold; above, all classes are nearly alike, and "
            f"`soft_loss: logit_mse` is the limit, got {temperature:g}"
        )
    return temperature


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
BatchSize = Annotated[PositiveInt, at_most(2**20, "a batch is in memory as a whole")]
NumModels = Annotated[
    PositiveInt, at_most(32_767, "members of an ensemble are numbered in 16 bits")
]
ImageSide = Annotated[PositiveInt, at_most(4096, "a larger image takes over 200 MB in float32")]
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 100.0
"""Logits between 8 and 16 are rounded by up to 0.004 in float16, which changes the odds of two
classes by exp(0.004 / temperature): 8 % at 0.05. At 100, logits that lie 20 apart give odds of 1.2.
The loss has reached its limit there, logits' squared error, and its float32 is a difference of
nearly equal numbers."""
Temperature = Annotated[float, AfterValidator(_readable)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


def as_block(value: Any) -> Any:
    """A bare name, as in YAML, stands for `{name: ...}`."""
    return {"name": value} if isinstance(value, str) else value


AS_IN_YAML = {"settings": "all"}
"""Context of a dump that has also what is no part of an identity, as where models are placed."""


class Params(BaseModel):
    """Frozen, and strict about names: a typing mistake is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Computing(Params):
    """How a model is run over images: fields that several blocks share."""

    batch_size: BatchSize = 1024
    device: Device = "auto"
    precision: Precision = "float32"
