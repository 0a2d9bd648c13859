"""The report's sentences on labels: how many were used, and which contradict each other."""

import pandas as pd

from kd_pipeline.data.settings import TransferSplitParams
from kd_pipeline.data.splits import split_examples
from kd_pipeline.evaluation.labels_used import describe_labels


def examples_of(hashes: list[str]) -> pd.DataFrame:
    """Two classes in turn, and two images without a label."""
    num, labels = len(hashes), pd.array([at % 2 for at in range(len(hashes))], dtype="Int64")
    labels[-2:] = pd.NA
    names = pd.array([None if pd.isna(v) else "ab"[v] for v in labels], dtype="string")
    table = {"example_id": range(num), "label": labels, "class_name": names, "partition": "pool"}
    return pd.DataFrame({**table, "source": "s", "content_hash": hashes})


def described(examples: pd.DataFrame, **share: object) -> list[str]:
    params = TransferSplitParams.model_validate(
        {"test_fraction": 0.2, "validation_fraction": 0.1, "teacher": share}
    )
    return describe_labels(examples, split_examples(examples, "ab", params))


def test_labels_used_are_counted_among_those_there_are() -> None:
    """100 labelled images: 20 for the test set, 8 of the rest for validation, 72 to train on."""
    examples = examples_of([str(at) for at in range(102)])
    (line,) = described(examples, labels_per_class=10)
    assert line == (
        "Labels used in training: 20 of the 72 that the images outside validation and test have; "
        "`transfer_split` leaves out the others."
    )
    (line,) = described(examples, fraction=1.0)
    assert line.startswith("Labels used in training: 72 of the 72 that")
    assert line.endswith("test have.")


def test_contradicting_labels_are_counted() -> None:
    hashes = [str(at) for at in range(102)]
    hashes[4] = hashes[6] = hashes[9]  # a, a and b
    hashes[101] = hashes[20]  # the second one has no label
    lines = described(examples_of(hashes), fraction=1.0)
    assert lines[1].startswith("3 images are there under more than one label: a / b (3). They stay")
