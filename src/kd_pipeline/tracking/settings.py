"""Settings of tracking."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator

from kd_pipeline.config import Params, PositiveFloat

Models = Literal["best", "all", "none"]

_MOST_GROUPS = 100


class MLflowParams(Params):
    """`mlflow.yml`."""

    enabled: bool = True
    tracking_uri: str | None = None
    """Null is the database `mlflow.db` at the project's root."""
    experiment: str = "kd_pipeline"
    models: Models = "best"
    """Whose models are uploaded: of each role the best on validation, all replicates, or none."""
    max_wait_seconds: PositiveFloat = 60.0
    """How long a run waits for MLflow, all in all; what is not sent by then is kept on disk.

    A registration and the fetching of a model each may take as long."""


def _split(value: Any) -> Any:
    """Ids in one text, as `--params` has them: there a comma begins the next parameter."""
    return value.split() if isinstance(value, str) and not value.isdecimal() else value


class CompareGroupsParams(Params):
    """`compare_groups`."""

    groups: Annotated[int | tuple[str, ...], BeforeValidator(_split)] = 2
    """So many of the newest, or ids of groups, in the order in which they are compared."""

    @field_validator("groups")
    @classmethod
    def _two_or_more(cls, groups: int | tuple[str, ...]) -> int | tuple[str, ...]:
        if isinstance(groups, int) and not 2 <= groups <= _MOST_GROUPS:
            rule = f"lie in [2, {_MOST_GROUPS}], as the predictions of all are in memory"
            raise ValueError(f"must {rule}, or name two groups or more, got {groups}")
        if isinstance(groups, tuple) and len({*groups}) < max(2, len(groups)):
            raise ValueError(f"must name two groups or more, each once, got {list(groups)}")
        return groups
