"""The lines on labels of the report: how many were used, and which contradict each other."""

import pandas as pd

from kd_pipeline.data.examples import contradictions


def describe_labels(examples: pd.DataFrame, splits: pd.DataFrame) -> list[str]:
    """Sentences on the labels of a run.

    Args:
        examples: The table `examples`.
        splits: The table `splits`.
    """
    training = splits[splits["role"].isin(["teacher_train", "transfer"])]
    known = set(examples.loc[examples["label"].notna(), "example_id"])
    held_out = set(splits.loc[~splits.index.isin(training.index), "example_id"])
    used, had = set(training.loc[training["use_label"], "example_id"]), known - held_out
    others = "" if used == had else "; `transfer_split` leaves out the others"
    lines = [
        f"Labels used in training: {len(used):,} of the {len(had):,} that the images outside "
        f"validation and test have{others}."
    ]
    if found := contradictions(examples):
        pairs = ", ".join(f"{names} ({count})" for names, count in list(found.items())[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        lines.append(
            f"{sum(found.values()):,} images are there under more than one label: {pairs}{more}. "
            "They stay, since which label is right is not known."
        )
    return lines
