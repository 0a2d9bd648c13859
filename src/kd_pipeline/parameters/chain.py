"""The block `chain`: the list of hops, which is also the list of pipelines."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kd_pipeline.parameters.base import Params, PositiveInt, Seed
from kd_pipeline.parameters.students import ArmParams
from kd_pipeline.parameters.training import Model, Training

LABELS_ALONE = "chain_labels_alone"
"""The last hop's twin that has no teacher."""
DIRECT = "chain_direct"
"""The last hop's twin that learns from the first teacher, without the hops between."""
FIRST_TEACHER = "teacher"
_TAKEN = (
    *(FIRST_TEACHER, "student", "comparison"),
    *("images", "examples", "splits", "params", "chain", "reading", "soft_targets"),
)
"""Blocks, roles, a folder, and what the node that measures all hops calls its other inputs."""
_TAKEN_BEGINNINGS = ("student_", "chain_")


class ChainHop(ArmParams):
    """One hop: a model that learns from the hop before it, and what its loss is made of."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """Names the namespace, the folders and the runs in MLflow."""
    model: Model
    training: Training | None = None
    """Null is `student.training`."""
    soft_weight: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    num_members: Annotated[int, Field(ge=1, le=32767)] = 1
    """More than one, each with a seed of its own, teach the next hop as an ensemble."""

    @model_validator(mode="after")
    def _own_name(self) -> Self:
        if self.name in _TAKEN or self.name.startswith(_TAKEN_BEGINNINGS):
            taken = ", ".join([*_TAKEN, *(f"{beginning}..." for beginning in _TAKEN_BEGINNINGS)])
            raise ValueError(f"`name` must be none of {taken}, got {self.name!r}")
        return self


class ChainParams(Params):
    """`chain`: who learns from whom, from the teacher on."""

    seed: Seed = 0
    num_replicates: PositiveInt = 3
    """Students of the last hop, and of each of its twins."""
    hops: Annotated[tuple[ChainHop, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _a_chain(self) -> Self:
        names = [hop.name for hop in self.hops]
        if len(set(names)) < len(names):
            raise ValueError(f"`hops` must have names of their own, got {names}")
        if (last := self.hops[-1]).num_members != 1:
            raise ValueError(
                f"`num_members` of the last hop, {last.name}, must be 1: nobody learns from it "
                f"(`num_replicates` repeats it), got {last.num_members}"
            )
        return self

    @property
    def twins(self) -> dict[str, Literal["labels", "teacher"]]:
        """What else the last hop's architecture learns from, to see what the hops are worth."""
        return twins_of(len(self.hops))

    @property
    def learnt_from(self) -> dict[str, str]:
        """The role that each role is compared with: its teacher, or the first where it has none."""
        names = [hop.name for hop in self.hops]
        before = dict(zip(names, [FIRST_TEACHER, *names], strict=False))
        return before | dict.fromkeys(self.twins, FIRST_TEACHER)

    def hop(self, role: str) -> ChainHop:
        """The hop of that name; a twin's is the last."""
        return next((hop for hop in self.hops if hop.name == role), self.hops[-1])


def twins_of(num_hops: int) -> dict[str, Literal["labels", "teacher"]]:
    """The twins of the last of so many hops, and what each learns from.

    A single hop learns from the first teacher as it is.
    """
    direct: dict[str, Literal["labels", "teacher"]] = {DIRECT: "teacher"} if num_hops > 1 else {}
    return {LABELS_ALONE: "labels", **direct}
