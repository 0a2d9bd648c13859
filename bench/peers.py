"""Seconds per epoch beside what people use: the usual script, torchdistill, KD_Lib, a good loop.

Same images (5,000 JPEG files of 32 x 32), student, teacher, batch size and number of epochs, on one
thread, in rounds that alternate. torchdistill and KD_Lib come from a folder of their own, because
KD_Lib pins packages of 2021; a contender that is not there is left out:

    pip install --no-deps --only-binary :all: --target .peers torchdistill==1.1.5 KD-Lib==0.0.32
    python -m bench.peers
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bench.experiment import SHIFT_AND_FLIP, cnn, training
from bench.timing import alternate, seconds
from kd_pipeline.data.dataset import LabelledImages
from kd_pipeline.data.ingest import ingest_images
from kd_pipeline.data.settings import DataIngestParams, TransferSplitParams
from kd_pipeline.data.splits import split_examples
from kd_pipeline.labelling.settings import SoftTargetCachingParams
from kd_pipeline.labelling.soft_targets import label_transfer_set
from kd_pipeline.models.checkpoint import ModelCheckpoint
from kd_pipeline.models.convolutional import build_small_cnn
from kd_pipeline.models.state_folder import StateFolder
from kd_pipeline.soft_targets.parts_folder import PartsFolder
from kd_pipeline.soft_targets.settings import SoftTargetsParams
from kd_pipeline.training.settings import ArmParams, StudentParams, TeacherParams
from kd_pipeline.training.students import train_students
from kd_pipeline.training.teacher_sources import CachedTeacher
from kd_pipeline.training.teachers import train_teachers
from kd_pipeline.views.settings import ViewsParams

NUM_IMAGES, BATCH_SIZE, NUM_VIEWS, EPOCHS = 5_000, 128, 4, 3
STUDENT, TEACHER = (16, 32, 64), (64, 128, 256)
TEMPERATURE = 4.0
MEAN, STD = (0.5,) * 3, (0.25,) * 3
WHOLE_JOB = {"arms": 4, "arms with a teacher": 2, "replicates": 3, "epochs": 60}


def main() -> None:
    """Measure all contenders that are there, print a table and write JSON beside it."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=Path(".peers"), help="their folder")
    parser.add_argument("--json", type=Path, default=Path("data/08_reporting/bench_peers.json"))
    parser.add_argument("--first", choices=["ours", "script"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = _write_images(Path(folder) / "images")
        ours = Ours(images, Path(folder))
        if arguments.first:
            work = ours.job if arguments.first == "ours" else Script(ours).job
            print(seconds(work))
            return
        measured = _measure(ours, images, arguments.rounds, arguments.peers)
    measured["first"] = _first_jobs(arguments.rounds)
    arguments.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    _print(measured)


def _measure(ours: "Ours", images: Path, rounds: int, peers: Path) -> dict[str, Any]:
    usual = Usual(images)
    contenders: dict[str, Callable[[], object]] = {
        "kd_pipeline, cached": lambda: ours.student(soft_weight=1.0),
        "kd_pipeline, labels": lambda: ours.student(soft_weight=0.0),
        "good script, cached": Script(ours).student,
        "usual script, live teacher": usual.live,
        "usual script, labels": usual.labels,
    }
    if (peers / "torchdistill").is_dir():
        sys.path.append(str(peers))
        contenders["torchdistill, live teacher"] = Torchdistill(usual).epochs
        contenders["KD_Lib, live teacher"] = KdLib(usual).epochs
    timed = {name: (lambda work=work: seconds(work) / EPOCHS) for name, work in contenders.items()}
    timed["kd_pipeline, caching a view"] = lambda: seconds(ours.cache) / NUM_VIEWS
    return {"torch": torch.__version__, "epoch_seconds": alternate(timed, rounds)}


class Ours:
    """This project, by the functions that its nodes call."""

    def __init__(self, images: Path, folder: Path) -> None:
        ingested = ingest_images(
            DataIngestParams(source={"kind": "image_folder", "root": str(images)})
        )
        split = TransferSplitParams(
            validation_fraction=0.01, teacher={"fraction": 1.0}, transfer={"relation": "equal"}
        )
        names = ingested.images.class_names
        splits = split_examples(ingested.examples, names, split)
        self.data = LabelledImages(ingested.images, ingested.examples, splits)
        self.views = ViewsParams(num_views=NUM_VIEWS, transforms=SHIFT_AND_FLIP)
        self.folder = folder
        params = TeacherParams(model=cnn(*TEACHER), training=training(1, BATCH_SIZE, 0.001, "auto"))
        self.teacher: list[ModelCheckpoint] = train_teachers(
            self.data, params, StateFolder(folder / "teacher")
        )[0]
        self.caches = 0
        self.cached = self.cache()

    def cache(self) -> CachedTeacher:
        """Label all views of all images, in a new store."""
        self.caches += 1
        cache = label_transfer_set(
            self.teacher,
            self.data,
            PartsFolder(self.folder / f"cache_{self.caches}"),
            SoftTargetCachingParams(batch_size=512, precision="auto"),
            self.views,
        )
        fingerprints = [member.fingerprint for member in self.teacher]
        return CachedTeacher(cache, SoftTargetsParams(), fingerprints)

    def student(self, *, soft_weight: float) -> object:
        """Train one replicate."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            return train_students(
                self.data,
                StudentParams(
                    model=cnn(*STUDENT),
                    num_replicates=1,
                    training=training(EPOCHS, BATCH_SIZE, 0.001, "auto"),
                ),
                ArmParams(soft_weight=soft_weight, temperature=TEMPERATURE),
                self.views,
                teacher=self.cached if soft_weight else None,
                states=StateFolder(Path(folder)),
            )

    def job(self) -> None:
        """Cache and train, as the first work of a process."""
        self.cached = self.cache()
        self.student(soft_weight=1.0)


class Script:
    """Forty lines by hand: tensors in memory, views by batch, bfloat16, logits kept."""

    def __init__(self, ours: Ours) -> None:
        images = ours.data.images
        self.pixels = torch.from_numpy(np.array(images.pixels[:NUM_IMAGES]))
        self.logits = torch.zeros(NUM_VIEWS, NUM_IMAGES, 10)

    def views(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Crop with a reflected margin of 4 and flip, drawn per image."""
        count = len(pixels)
        padded = F.pad(pixels.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
        windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)
        x, y = torch.randint(0, 9, (2, count), generator=generator)
        crops = windows[torch.arange(count), :, y, x]
        flip = torch.rand(count, generator=generator) < 0.5
        crops = torch.where(flip[:, None, None, None], crops.flip(3), crops)
        normalised = (crops.float() / 255 - 0.5) / 0.25
        return normalised.contiguous(memory_format=torch.channels_last)

    def cache(self) -> None:
        """Keep the logits of every view of every image."""
        teacher = _network(TEACHER).eval()
        for view in range(NUM_VIEWS):
            for batch in torch.arange(NUM_IMAGES).split(512):
                pixels = self.views(self.pixels[batch], torch.Generator().manual_seed(view))
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                    self.logits[view, batch] = teacher(pixels).float()

    def student(self) -> None:
        """Train for all epochs; epoch e is shown view e."""
        student = _network(STUDENT).train()
        optimiser = torch.optim.AdamW(student.parameters(), lr=0.001, fused=True)
        steps = EPOCHS * (NUM_IMAGES // BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for epoch in range(EPOCHS):
            generator = torch.Generator().manual_seed(epoch)
            for batch in torch.randperm(NUM_IMAGES).split(BATCH_SIZE)[: steps // EPOCHS]:
                pixels = self.views(self.pixels[batch], generator)
                with torch.autocast("cpu", torch.bfloat16):
                    logits = student(pixels)
                loss = _kd_loss(logits.float(), self.logits[epoch % NUM_VIEWS, batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()

    def job(self) -> None:
        """Cache and train, as the first work of a process."""
        self.cache()
        self.student()


class Usual:
    """What most scripts do: DataLoader, PIL transforms, float32, the teacher in the loop."""

    def __init__(self, images: Path) -> None:
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.dataset = ImageFolder(str(images / "train"), transforms.Compose(steps))

    def loader(self) -> DataLoader[Any]:
        """Batches of the training images, decoded in the training process."""
        return DataLoader(self.dataset, BATCH_SIZE, shuffle=True, drop_last=True)

    def live(self) -> None:
        """Distil from a teacher that runs beside the student."""
        teacher = _network(TEACHER, channels_last=False).eval()

        def loss(pixels: Tensor, logits: Tensor, _labels: Tensor) -> Tensor:
            with torch.no_grad():
                targets = teacher(pixels)
            return _kd_loss(logits, targets)

        self._train(loss)

    def labels(self) -> None:
        """Train on labels alone."""
        self._train(lambda _pixels, logits, labels: F.cross_entropy(logits, labels))

    def _train(self, loss_of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        student = _network(STUDENT, channels_last=False).train()
        optimiser = torch.optim.AdamW(student.parameters(), lr=0.001)
        for _ in range(EPOCHS):
            for pixels, labels in self.loader():
                loss = loss_of(pixels, student(pixels), labels)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()


class Torchdistill:
    """torchdistill's own box, loss and data loader."""

    def __init__(self, usual: Usual) -> None:
        self.usual = usual

    def epochs(self) -> None:
        """Distil with the loop of its examples."""
        from torchdistill.core.distillation import get_distillation_box

        sgd = {"module": "student", "kwargs": {"lr": 0.001}}
        loss = {"key": "KDLoss", "kwargs": _TORCHDISTILL_LOSS}
        config = {
            "num_epochs": EPOCHS,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": {"batch_size": BATCH_SIZE, "drop_last": True},
            },
            "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {"key": "AdamW", "kwargs": sgd["kwargs"]},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
            },
        }
        box = get_distillation_box(
            _network(TEACHER, channels_last=False),
            _network(STUDENT, channels_last=False),
            {"train": self.usual.dataset},
            config,
            torch.device("cpu"),
            None,
            False,
            1,
        )
        for epoch in range(EPOCHS):
            box.pre_epoch_process(epoch=epoch)
            for batch, labels, supplement in box.train_data_loader:
                box.pre_forward_process()
                value = box.forward_process(batch, targets=labels, supp_dict=supplement)
                box.post_forward_process(loss=value)


_TORCHDISTILL_LOSS = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
    "temperature": TEMPERATURE,
    "alpha": 0.0,
}


class KdLib:
    """KD_Lib's VanillaKD."""

    def __init__(self, usual: Usual) -> None:
        self.usual = usual

    def epochs(self) -> None:
        """Distil with its own loop; its validation is given one batch."""
        with _without_text():
            from KD_Lib.KD import VanillaKD
        student = _network(STUDENT, channels_last=False)
        optimiser = torch.optim.AdamW(student.parameters(), lr=0.001)
        some = torch.utils.data.Subset(self.usual.dataset, range(BATCH_SIZE))
        trainer = VanillaKD(
            _network(TEACHER, channels_last=False),
            student,
            self.usual.loader(),
            DataLoader(some, BATCH_SIZE),
            None,
            optimiser,
            temp=TEMPERATURE,
            distil_weight=1.0,
        )
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train_student(epochs=EPOCHS, plot_losses=False, save_model=False)


@contextlib.contextmanager
def _without_text() -> Iterator[None]:
    """Replace the parts of KD_Lib that ask for packages which no longer exist."""
    text: Any = ModuleType("KD_Lib.KD.text")
    text.BERT2LSTM = text.get_essentials = None
    board: Any = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = None
    sys.modules.setdefault("KD_Lib.KD.text", text)
    sys.modules.setdefault("torch.utils.tensorboard", board)
    yield


def _kd_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    student = F.log_softmax(student_logits / TEMPERATURE, dim=1)
    teacher = F.softmax(teacher_logits / TEMPERATURE, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean") * TEMPERATURE**2


def _network(channels: tuple[int, ...], *, channels_last: bool = True) -> nn.Module:
    network = build_small_cnn(shape=(3, 32, 32), num_classes=10, channels=channels)
    return network.to(memory_format=torch.channels_last) if channels_last else network


def _write_images(folder: Path) -> Path:
    """Ten classes of smooth random images: their files are of the size of natural ones."""
    generator = np.random.default_rng(0)
    for role, count in (("train", NUM_IMAGES), ("test", 100)):
        coarse = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        for number, pixels in enumerate(coarse):
            of_class = folder / role / f"class_{number % 10}"
            of_class.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
            image.save(of_class / f"{number}.jpg", quality=75)
    return folder


def _first_jobs(rounds: int) -> dict[str, list[float]]:
    """Seconds to cache and train in a process that has done nothing before."""

    def run(which: str) -> float:
        command = [sys.executable, "-m", "bench.peers", "--first", which]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return float(shown.split()[-1])

    return alternate({one: (lambda one=one: run(one)) for one in ("ours", "script")}, rounds)


def _print(measured: dict[str, Any]) -> None:
    epochs = measured["epoch_seconds"]
    ours = epochs["kd_pipeline, cached"]
    print(f"{'':32}{'s / epoch':>10}{'over ours':>11}{'least':>8}{'most':>8}")
    for name, values in epochs.items():
        ratios = [value / own for value, own in zip(values, ours, strict=True)]
        row = f"{name:32}{statistics.median(values):>10.2f}{statistics.median(ratios):>11.2f}"
        print(row + f"{min(ratios):>8.2f}{max(ratios):>8.2f}")
    print(f"\nThe whole job, caching of {NUM_VIEWS} views counted: {WHOLE_JOB}")
    for name in (one for one in epochs if one.endswith("live teacher")):
        print(f"{name:32}{_whole_job(epochs, name):>10.1f} times ours")
    first = measured["first"]
    ratio = statistics.median(a / b for a, b in zip(first["script"], first["ours"], strict=True))
    print(f"\nCaching and {EPOCHS} epochs, the first work of a process: script / ours {ratio:.2f}")


def _whole_job(epochs: dict[str, list[float]], peer: str) -> float:
    """Median ratio of seconds; a peer's arms without a teacher are the usual script on labels."""
    runs = WHOLE_JOB["replicates"] * WHOLE_JOB["epochs"]
    taught = WHOLE_JOB["arms with a teacher"] * runs
    untaught = WHOLE_JOB["arms"] * runs - taught

    def ratio(number: int) -> float:
        at = {name: values[number] for name, values in epochs.items()}
        ours = taught * at["kd_pipeline, cached"] + untaught * at["kd_pipeline, labels"]
        ours += NUM_VIEWS * at["kd_pipeline, caching a view"]
        return (taught * at[peer] + untaught * at["usual script, labels"]) / ours

    return statistics.median(ratio(number) for number in range(len(epochs[peer])))


if __name__ == "__main__":
    main()
