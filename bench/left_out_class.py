"""What a student learns of a class of which it is never shown an image.

    MNIST_ROOT=/where/mnist/lies python -m bench.left_out_class --seeds 2

Hinton, Vinyals and Dean (2015, arXiv:1503.02531, section 3) left all images of the digit 3 out of
the transfer set: their student made 206 test errors, of which 133 were threes, and 109 after its
bias for threes was raised until test errors were fewest. Here the bias is fitted without labels: it
is raised until the mean probability of a three over the validation images is the share of threes
among the teacher's labels. Student and teacher are built as in the preset `mnist_views`, but with
one CNN of 10 epochs and 20 views of each image, shifted by up to 2 pixels.
"""

import argparse

import pandas as pd
import torch
from scipy.optimize import brentq
from torch import Tensor

from bench.experiment import Experiment, Seed, training
from kd_pipeline.models.settings import Model
from kd_pipeline.training.settings import StudentParams, TeacherParams

LEFT_OUT = "3 - three"
CLASS = 3
TEACHER = {"channels": [16, 32, 64], "convolutions_per_stage": 2}
EXPERIMENT = Experiment(
    split={
        "validation_fraction": 0.05,
        "teacher": {"fraction": 1.0},
        "transfer": {"relation": "equal", "excluded_classes": [LEFT_OUT]},
    },
    teacher=TeacherParams(
        model=Model(name="small_cnn", arguments=TEACHER),
        transforms=[{"name": "shift", "max_pixels": 2}],
        training=training(10, 128, 0.003, "auto"),
    ),
    student=StudentParams(
        num_replicates=2,
        model=Model(name="mlp", arguments={"hidden": [800, 800]}),
        training=training(30, 256, 0.001, "auto"),
    ),
    num_views=(20,),
    temperatures=(4.0, 8.0),
)


def main() -> None:
    """Run all seeds; print the errors of each student, and their means by temperature."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    rows = []
    for seed in EXPERIMENT.seeds("mnist", parser.parse_args().seeds):
        rows += _one_seed(seed)
    print(pd.DataFrame(rows).groupby("temperature").mean().round(1).to_string())


def _one_seed(seed: Seed) -> list[dict[str, float]]:
    (num_views,) = seed.experiment.num_views
    members = seed.train_teacher()
    teacher, rows = seed.cache(members, num_views), []
    of_teacher = sum(_errors(seed, seed.logits(members[0]), 0.0).values())
    for temperature in seed.experiment.temperatures:
        for student in seed.students(teacher, num_views, temperature=temperature):
            bias = fit_bias(seed.logits(student, "validation"), seed.share_of(CLASS))
            logits = seed.logits(student)
            before, after = _errors(seed, logits, 0.0), _errors(seed, logits, bias)
            row = {"seed": seed.seed, "temperature": temperature, "teacher": of_teacher}
            row |= {f"{name}, before": count for name, count in before.items()}
            row |= {"bias": bias, **{f"{name}, after": count for name, count in after.items()}}
            print({name: round(value, 2) for name, value in row.items()}, flush=True)
            rows.append(row)
    return rows


def fit_bias(logits: Tensor, share: float) -> float:
    """What to add to the logit of the left-out class, so that its mean probability is `share`."""

    def excess(bias: float) -> float:
        return float(_biased(logits, bias).softmax(1)[:, CLASS].mean()) - share

    return float(brentq(excess, -50, 50))


def _biased(logits: Tensor, bias: float) -> Tensor:
    added = torch.zeros(logits.shape[1])
    added[CLASS] = bias
    return logits.double() + added


def _errors(seed: Seed, logits: Tensor, bias: float) -> dict[str, float]:
    """Test errors: of the left-out class, and of the others."""
    labels = seed.labels()
    wrong = _biased(logits, bias).argmax(1) != labels
    threes = labels == CLASS
    return {"threes": float(wrong[threes].sum()), "others": float(wrong[~threes].sum())}


if __name__ == "__main__":
    main()
