"""The base of all typed settings: strictness, and the types of numbers.

Each package declares its blocks of YAML in its `settings.py`. Kedro validates a block before any
node runs; nodes and domain functions take the validated object whole.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


class Params(BaseModel):
    """Frozen, and strict about names: a typing mistake is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Computing(Params):
    """How a model is run over images: fields that several blocks share."""

    batch_size: PositiveInt = 1024
    device: Device = "auto"
    precision: Precision = "float32"
