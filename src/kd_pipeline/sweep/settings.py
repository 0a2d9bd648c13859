"""Settings of a sweep: which parameters are searched, for which arms, with how many trials."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kd_pipeline.config import NumModels, Params, PositiveInt, Seed, as_block, at_most
from kd_pipeline.shards import Sharded

Metric = Literal["validation/accuracy", "validation/loss"]

BASELINE = "student_baseline"
SHARED = "student"
"""The block that all arms share."""
NOT_SEARCHED = {
    "student.seed": "seeds are drawn, not chosen",
    "student.num_replicates": "`sweep.num_replicates` has those of a trial",
    "student.quantisation": "trials are trained in float",
}
"""Settings of the student stage that no sweep may search, and why."""


Finite = Annotated[float, Field(allow_inf_nan=False)]


class SearchRange(Params):
    """Where a parameter is searched: {low, high}, with `log` or `integer`, or {choices}."""

    low: Finite | None = None
    high: Finite | None = None
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] | None = None
    """Values as in YAML, blocks too."""

    @model_validator(mode="after")
    def _bounds_or_choices(self) -> Self:
        if self.choices is not None:
            self._check_choices(self.choices)
            return self
        if self.low is None or self.high is None:
            raise ValueError("give `low` and `high`, or `choices`")
        if not self.low < self.high:
            raise ValueError(f"`high` must be above `low` ({self.low:g}), got {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low` must be above 0 where `log` is true, got {self.low:g}")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"`low` must be a whole number, and `high`, got {self.low:g}")
        return self

    def _check_choices(self, choices: tuple[Any, ...]) -> None:
        if (self.low, self.high, self.log, self.integer) != (None, None, False, False):
            raise ValueError("`choices` must stand alone, got bounds as well")
        try:
            different = {json.dumps(choice, sort_keys=True) for choice in choices}
        except TypeError as error:  # YAML has dates too.
            raise ValueError(f"`choices` must be plain values: {error}") from error
        if len(different) < 2:
            raise ValueError(f"`choices` must be two or more, got {list(choices)}")

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Every choice, or both bounds: what is legal there is legal between."""
        if self.choices is not None:
            return self.choices
        kind = int if self.integer else float
        return tuple(kind(bound) for bound in (self.low, self.high) if bound is not None)

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if self.choices is not None:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        low, high = self.extremes
        return bool(low <= value <= high)


class Pruner(Params):
    """What stops a trial that lags behind the others at the same epoch of its first replicate."""

    name: Literal["median", "hyperband", "none"]
    min_epochs: PositiveInt = 1
    """No trial is stopped before it has trained so many."""


def _legal_folder(name: str) -> str:
    plain = name.replace("_", "").replace("-", "")
    if not (plain.isascii() and plain.isalnum()) or name in ("base", "local"):
        raise ValueError(f"must be a new folder of `conf`: letters, digits, - and _, got {name!r}")
    return name


class SweepParams(Sharded):
    """`sweep`."""

    seed: Seed = 0
    arms: tuple[str, ...] = ("student_kd", BASELINE)
    num_trials: Annotated[PositiveInt, at_most(100_000, "each is kept in one file")] = 20
    """Of each arm; pruned ones count, killed ones do not."""
    num_replicates: NumModels = 1
    """Students that are trained in a trial; its value is their mean."""
    num_processes: Annotated[PositiveInt, at_most(1024, "each is a process")] = 1
    """More than one are processes of one thread each; one is this process."""
    metric: Metric = "validation/accuracy"
    """At the end of training, or at the best epoch where `student` stops early."""
    sampler: Literal["tpe", "random"] = "tpe"
    num_startup_trials: PositiveInt = 5
    """Finished trials of an arm before the sampler learns from them, and `median` stops any."""
    pruner: Annotated[Pruner, BeforeValidator(as_block)] = Pruner(name="median")
    parameters: Annotated[Mapping[str, SearchRange], Field(min_length=1)]
    """By dotted name: `student...` is searched for each arm, `<arm>...` for that arm."""
    shared_from: str | None = None
    """Whose best values of `student` the preset has; null: the baseline's, or the first arm's."""
    preset: Annotated[str, AfterValidator(_legal_folder)] = "sweep_best"
    """Folder of `conf` for the best values."""

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"`arms` must name one arm or more, each once, got {list(self.arms)}")
        if self.shared_from not in (None, *self.arms):
            raise ValueError(f"`shared_from` must be one of `arms`, got {self.shared_from!r}")
        for name in self.parameters:
            if "." not in name:
                raise ValueError(f"`parameters` must be dotted names of settings, got {name!r}")
            if below := [one for one in self.parameters if one.startswith(f"{name}.")]:
                raise ValueError(
                    f"`parameters` must not lie in one another, got {name}, {below[0]}"
                )
            for fixed, reason in NOT_SEARCHED.items():
                if f"{name}.".startswith(f"{fixed}."):
                    raise ValueError(f"`parameters` must leave out {fixed}: {reason}, got {name}")
        return self

    @property
    def shared_source(self) -> str:
        """The arm whose best values of `student` the preset has."""
        default = BASELINE if BASELINE in self.arms else self.arms[0]
        return self.shared_from or default

    @property
    def maximised(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.metric == "validation/accuracy"

    def ranges_of(self, arm: str) -> dict[str, SearchRange]:
        """What is searched for an arm: the shared parameters, and its own."""
        blocks = (f"{SHARED}.", f"{arm}.")
        return {name: one for name, one in self.parameters.items() if name.startswith(blocks)}
