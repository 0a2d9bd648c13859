"""What these experiments share: their data sets, and all that is trained for one seed."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_pipeline.config import Computing
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.ingest import ingest_images
from kd_pipeline.data.settings import DataIngestParams, TransferSplitParams
from kd_pipeline.data.splits import split_examples
from kd_pipeline.labelling.members import open_predictor
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.settings import Model
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import ArmParams, StudentParams, TeacherParams, Training
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher, Teacher
from kd_pipeline.training.teachers import train_teachers
from kd_pipeline.views.settings import ViewsParams

SOURCES: dict[str, dict[str, str]] = {
    "digits": {"kind": "digits"},
    "cifar10": {"kind": "image_folder", "root": os.environ.get("CIFAR10_ROOT", "")},
    **{
        f"{prefix}mnist": {
            "kind": "torchvision",
            "name": name,
            "root": os.environ.get(f"{prefix.upper()}MNIST_ROOT", ""),
        }
        for prefix, name in (("", "MNIST"), ("fashion_", "FashionMNIST"))
    },
}
SHIFT_AND_FLIP: list[dict[str, Any]] = [
    {"name": "shift", "max_pixels": 4, "padding": "reflect"},
    {"name": "horizontal_flip", "probability": 0.5},
]


def split_by_seeds(source: str, split: dict[str, Any], count: int) -> Iterator[LabelledImages]:
    """A data set, ingested once, under the splits of the seeds from 0."""
    ingested = ingest_images(DataIngestParams(source=SOURCES[source]))
    images, examples = ingested.images, ingested.examples
    for seed in range(count):
        params = TransferSplitParams(seed=seed, **split)
        splits = split_examples(examples, images.class_names, params)
        yield LabelledImages(images, examples, splits)


def cnn(*channels: int) -> Model:
    """A CNN of a stage per number of channels."""
    return Model(name="small_cnn", arguments={"channels": list(channels)})


def training(epochs: int, batch_size: int, lr: float, precision: str) -> Training:
    """AdamW under a cosine; validation is measured once, at the end."""
    return Training(
        num_epochs=epochs,
        batch_size=batch_size,
        optimiser={"name": "AdamW", "arguments": {"lr": lr, "weight_decay": 0.01}},
        schedule={"name": "cosine", "warmup_fraction": 0.05},
        evaluate_every=epochs,
        checkpoint_every=epochs,
        precision=precision,
    )


@dataclass(frozen=True)
class Experiment:
    """The settings of one data set, in blocks as in YAML; seeds are set by `seeds`."""

    split: dict[str, Any]
    teacher: TeacherParams
    """Its transforms are those of the students' views."""
    student: StudentParams
    num_views: tuple[int, ...]
    """Of each cache."""
    temperatures: tuple[float, ...]

    def seeds(self, source: str, count: int) -> Iterator["Seed"]:
        """One after another: of split, teacher, students and views together."""
        for seed, data in enumerate(split_by_seeds(source, self.split, count)):
            with tempfile.TemporaryDirectory() as folder:
                yield Seed(seed, self, data, Path(folder))


@dataclass(frozen=True)
class Seed:
    """One repetition of an experiment."""

    seed: int
    experiment: Experiment
    data: LabelledImages
    folder: Path

    def train_teacher(self) -> list[ModelCheckpoint]:
        """Train all members."""
        params = self.experiment.teacher.model_copy(update={"seed": self.seed})
        return train_teachers(self.data, params, StateFolder(self.folder / "teacher"))[0]

    def cache(self, teacher: list[ModelCheckpoint], num_views: int) -> CachedTeacher:
        """Label so many views of the transfer set."""
        caching = SoftTargetCachingParams(precision=self.experiment.student.training.precision)
        parts = PartsFolder(self.folder / f"cache of {num_views}")
        cache = label_transfer_set(teacher, self.data, parts, caching, self._views(num_views))
        fingerprints = [member.fingerprint for member in teacher]
        return CachedTeacher(cache, SoftTargetsParams(), fingerprints)

    def students(
        self, teacher: Teacher | None, num_views: int | None, *, temperature: float = 1.0
    ) -> list[ModelCheckpoint]:
        """Train all students on soft targets alone; on labels alone without a teacher."""
        return train_students(
            self.data,
            self.experiment.student.model_copy(update={"seed": self.seed}),
            ArmParams(soft_weight=0.0 if teacher is None else 1.0, temperature=temperature),
            self._views(num_views),
            teacher=teacher,
            states=StateFolder(self.folder / "students"),
        )[0]

    def _views(self, num_views: int | None) -> ViewsParams:
        transforms = self.experiment.teacher.transforms
        return ViewsParams(seed=self.seed, num_views=num_views, transforms=transforms)

    def labels(self, role: str = "test") -> Tensor:
        """Of all rows of a role."""
        return self.data.labels_of(self.data.ids(role))

    def share_of(self, label: int) -> float:
        """Of a class, among the labels that the teacher trains on."""
        return float((self.labels("teacher_train") == label).double().mean())

    def logits(self, checkpoint: ModelCheckpoint, role: str = "test") -> Tensor:
        """Of the clean images of a role."""
        ids = self.data.ids(role)
        return open_predictor(checkpoint, self.data, ids, Computing()).logits(slice(None))

    def accuracy(self, logits: Tensor, role: str = "test") -> float:
        """In percent."""
        return 100 * float((logits.argmax(1) == self.labels(role)).double().mean())
