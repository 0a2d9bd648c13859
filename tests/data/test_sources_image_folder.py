"""image_folder: which trees are which partition, what a path is called, what is refused."""

import logging
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from kd_pipeline.data.example_ids import example_id_of_path
from kd_pipeline.data.listing import ImageListing
from kd_pipeline.data.settings import ImageFolderSource
from kd_pipeline.data.sources_image_folder import list_image_folder
from kd_pipeline.errors import DataError

Make = Callable[..., None]


def listed(root: Path, labels_file: Any = None, **settings: Any) -> ImageListing:
    block = {"kind": "image_folder", "root": str(root), "labels_file": labels_file, **settings}
    return list_image_folder(ImageFolderSource.model_validate(block))


def labels(listing: ImageListing) -> dict[str, tuple[str, str]]:
    """Partition and class name of each file."""
    names = np.array([*listing.class_names, ""])[listing.labels]
    return dict(zip(listing.sources, zip(listing.partitions, names, strict=True), strict=True))


def partitions(listing: ImageListing) -> dict[str, str]:
    pairs = zip(listing.sources, listing.partitions, strict=True)
    return {source.rpartition("/")[0].rpartition("/")[0]: str(part) for source, part in pairs}


@pytest.mark.parametrize(
    ("trees", "expected"),
    [
        (("",), {"": "pool"}),
        (("train",), {"train": "pool"}),
        (("train", "test"), {"train": "train", "test": "test"}),
        (("train", "val"), {"train": "train", "val": "test"}),
        (("train", "val", "test"), {"train": "train", "val": "train", "test": "test"}),
    ],
)
def test_partitions(
    tmp_path: Path, make_tree: Make, trees: tuple[str, ...], expected: dict[str, str]
) -> None:
    make_tree(*trees)
    assert partitions(listed(tmp_path)) == expected


def test_labels_are_the_sorted_folder_names(tmp_path: Path, make_tree: Make) -> None:
    make_tree("", classes=("zebra", "ant", "Bee"))
    listing = listed(tmp_path)
    assert listing.class_names == ("Bee", "ant", "zebra")
    for source, label in zip(listing.sources, listing.labels, strict=True):
        assert source.split("/")[0] == listing.class_names[label]


def test_ids_are_stable_when_files_are_added(
    tmp_path: Path, make_tree: Make, write_image: Callable[..., Path]
) -> None:
    make_tree("")
    before = listed(tmp_path)
    write_image("ant/0.png", seed=99)
    after = listed(tmp_path)
    old = dict(zip(before.sources, before.example_ids, strict=True))
    new = dict(zip(after.sources, after.example_ids, strict=True))
    assert {source: new[source] for source in old} == old
    assert all(old[source] == example_id_of_path(source) for source in old)
    assert (after.example_ids[1:] > after.example_ids[:-1]).all()
    assert after.example_ids.min() >= 0


def test_extensions_in_any_case_nested_folders_and_no_hidden_files(
    tmp_path: Path, make_tree: Make, write_image: Callable[..., Path]
) -> None:
    make_tree("", num_each=1)
    write_image("cat/UPPER.JPG", seed=1)
    write_image("cat/deeper/x.webp", seed=2)
    write_image("cat/._hidden.png", seed=3)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    assert sorted(listed(tmp_path).sources) == [
        "cat/0.png",
        "cat/UPPER.JPG",
        "cat/deeper/x.webp",
        "dog/0.png",
    ]


def test_folders_beside_train_are_named(
    tmp_path: Path, make_tree: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make_tree("train", "test", "extra")
    with caplog.at_level(logging.WARNING):
        listed(tmp_path)
    assert "left out: extra" in caplog.text


@pytest.mark.parametrize("names", [("Train", "Test"), ("Training",), ("TEST", "other")])
def test_splits_that_are_spelt_otherwise_are_not_taken_for_classes(
    tmp_path: Path, make_tree: Make, names: tuple[str, ...]
) -> None:
    make_tree(*names)
    with pytest.raises(DataError, match=f"spelt like this, got .*{names[0]}"):
        listed(tmp_path)


def test_a_class_called_training_is_a_class(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    for seed, name in enumerate(("Training", "swimming")):
        write_image(f"{name}/0.png", seed=seed)
    assert listed(tmp_path).class_names == ("Training", "swimming")


def test_a_test_set_without_class_folders_is_refused(
    tmp_path: Path, make_tree: Make, write_image: Callable[..., Path]
) -> None:
    make_tree("train")
    write_image("test/0.png", seed=9)
    with pytest.raises(DataError, match=r"test must hold a folder of images per class.*labels_fil"):
        listed(tmp_path)


def test_images_beside_the_class_folders_are_named(
    tmp_path: Path, make_tree: Make, write_image: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    make_tree("train", "test")
    write_image("train/loose.png", seed=9)
    with caplog.at_level(logging.WARNING):
        listed(tmp_path)
    assert "1 images in no class folder are left out: loose.png" in caplog.text


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`data_ingest.source.root` must be a folder, got .*gone"):
        listed(tmp_path / "gone")


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold a folder of images per class, got none"):
        listed(tmp_path)


def test_an_empty_class(tmp_path: Path, make_tree: Make) -> None:
    make_tree("train", "test")
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(DataError, match="an empty class: train/emu"):
        listed(tmp_path)


def test_test_without_train(tmp_path: Path, make_tree: Make) -> None:
    make_tree("test")
    with pytest.raises(DataError, match="must hold `train` beside `test`"):
        listed(tmp_path)


AGREEING = "path,label\ncat/0.png,cat\ndog/0.png,dog\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\ncat/0.png,dog\ndog/0.png,cat\n", "cat/0.png is 'dog' in the file and 'cat'"),
        (AGREEING + "cat/9.png,cat\n", "cat/9.png is in the file and not in the folders"),
        ("path,label\ncat/0.png,cat\n", "dog/0.png is not in the file"),
        (AGREEING + "cat/0.png,cat\n", "must name every path once"),
        ("file,label\n", "must have the columns path and label"),
        ("", "cannot be read as a table"),
        ('path,label\n"cat/0.png,cat\n', "cannot be read as a table"),
        ("path,label,split\ncat/0.png,cat,dev\n", "train, val or test as `split`, got 'dev'"),
        ("path,label,split\ncat/0.png,cat,\n", "train, val or test as `split`, got ''"),
        ("path,label\n", "must have rows"),
    ],
)
def test_labels_that_disagree(tmp_path: Path, make_tree: Make, text: str, message: str) -> None:
    make_tree("images", num_each=1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path / "images", str(tmp_path / "labels.csv"))


def test_labels_that_agree(tmp_path: Path, make_tree: Make) -> None:
    make_tree("images", num_each=1)
    (tmp_path / "labels.csv").write_text(AGREEING)
    assert listed(tmp_path / "images", str(tmp_path / "labels.csv")).sources
    with pytest.raises(DataError, match=r"`data_ingest.source.labels_file` must be a CSV or parq"):
        listed(tmp_path / "images", str(tmp_path / "gone.csv"))


@pytest.fixture
def tiny_imagenet(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """The layout of tiny-imagenet-200, with two classes."""
    root = tmp_path / "tiny"
    for seed, name in enumerate(("n01443537", "n01629819")):
        write_image(f"tiny/train/{name}/images/{name}_0.JPEG", seed=seed)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t9\t9\n")
        write_image(f"tiny/val/images/val_{seed}.JPEG", seed=seed + 2)
    write_image("tiny/test/images/test_0.JPEG", seed=4)
    (root / "val" / "val_annotations.txt").write_text(
        "val_0.JPEG\tn01629819\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t52\t55\t57\t59\n"
    )
    (root / "wnids.txt").write_text("n01443537\nn01629819\n")
    return root


def annotations(root: Path, **changes: Any) -> dict[str, Any]:
    file = str(root / "val" / "val_annotations.txt")
    block = {"file": file, "folder": "val/images", "columns": ["path", "label"], "separator": "\t"}
    return block | changes


def test_a_flat_test_set_has_its_labels_from_a_table(tiny_imagenet: Path) -> None:
    listing = listed(tiny_imagenet, annotations(tiny_imagenet), test_set="val")
    assert listing.class_names == ("n01443537", "n01629819")
    assert labels(listing) == {
        "train/n01443537/images/n01443537_0.JPEG": ("train", "n01443537"),
        "train/n01629819/images/n01629819_0.JPEG": ("train", "n01629819"),
        "val/images/val_0.JPEG": ("test", "n01629819"),
        "val/images/val_1.JPEG": ("test", "n01443537"),
    }


@pytest.mark.parametrize(
    ("labelled", "test_set", "message"),
    [
        (False, "val", r"more classes in val than in train: images; `val` was taken for the test"),
        (False, None, r"more classes in (val|test) than in train: images; `\1` was taken for"),
        (True, None, r"more classes in test than in train: images; `test` was taken for the test"),
    ],
)
def test_a_folder_that_is_no_class_is_refused_with_what_it_was_taken_for(
    tiny_imagenet: Path, labelled: bool, test_set: str | None, message: str
) -> None:
    table = annotations(tiny_imagenet) if labelled else None
    with pytest.raises(
        DataError, match=message + r".*`data_ingest.source.labels_file`.*`test_set`"
    ):
        listed(tiny_imagenet, table, test_set=test_set)


@pytest.mark.parametrize("changes", [{"separator": ","}, {"columns": ["label"]}, {"columns": None}])
def test_a_table_read_in_the_wrong_way_is_refused(
    tiny_imagenet: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"`data_ingest.source.labels_file`"):
        listed(tiny_imagenet, annotations(tiny_imagenet, **changes), test_set="val")


def test_a_test_set_that_is_not_there(tmp_path: Path, make_tree: Make) -> None:
    make_tree("train", "test")
    with pytest.raises(DataError, match=r"beside `val`, got .* without `val`"):
        listed(tmp_path, test_set="val")


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("has_test", [True, False])
def test_a_table_labels_and_splits_flat_images(
    tmp_path: Path, write_image: Callable[..., Path], form: str, has_test: bool
) -> None:
    splits = ["train", "train", "val", "test" if has_test else "train"]
    rows = pd.DataFrame(
        {"label": ["owl", "emu", "", "owl"], "path": [f"{n}.png" for n in range(4)]}
    )
    for name in rows["path"]:
        write_image(f"images/{name}", seed=int(name[0]))
    write_image("images/.hidden/9.png", seed=9)
    getattr(rows.assign(split=splits), f"to_{form}")(tmp_path / f"t.{form}", index=False)
    listing = listed(tmp_path, {"file": str(tmp_path / f"t.{form}"), "folder": "images"})
    assert labels(listing) == {
        "images/0.png": ("train", "owl"),
        "images/1.png": ("train", "emu"),
        "images/2.png": ("train" if has_test else "test", ""),
        "images/3.png": ("test" if has_test else "train", "owl"),
    }


@pytest.mark.parametrize("dtype", ["Int64", "float64"])
@pytest.mark.parametrize("writer", ["pandas", "another"])
def test_numbers_of_a_parquet_table_may_have_gaps(
    tmp_path: Path, write_image: Callable[..., Path], writer: str, dtype: str
) -> None:
    names = ["0.png", "1.png", "2.png"]
    for name in names:
        write_image(name, seed=int(name[0]))
    rows = pd.DataFrame({"path": names, "label": pd.Series([1, None, 7], dtype=dtype)})
    table = pa.Table.from_pandas(rows, preserve_index=False)
    if writer == "another":  # Without pandas' own note of its types.
        table = table.replace_schema_metadata()
    pq.write_table(table, tmp_path / "t.parquet")
    found = labels(listed(tmp_path, str(tmp_path / "t.parquet")))
    assert [found[name][1] for name in names] == ["1", "", "7"]


def test_a_table_without_splits_labels_a_pool(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    for number in range(2):
        write_image(f"{number}.png", seed=number)
    (tmp_path / "t.csv").write_text("path,label\n./0.png,owl\n1.png,emu\n")
    listing = listed(tmp_path, str(tmp_path / "t.csv"))
    assert labels(listing) == {"0.png": ("pool", "owl"), "1.png": ("pool", "emu")}


def test_a_loop_of_links_in_a_labelled_tree_is_listed(
    tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    write_image("i/0.png", seed=0)
    (tmp_path / "i/loop").symlink_to(tmp_path / "i")
    (tmp_path / "i/self").symlink_to(tmp_path / "i/self")
    (tmp_path / "t.csv").write_text("path,label,split\n0.png,owl,train\n")
    listing = listed(tmp_path / "i", str(tmp_path / "t.csv"))
    assert labels(listing) == {"0.png": ("pool", "owl"), "loop": ("pool", "")}


def test_the_template_reads_tiny_imagenet_as_its_comment_says(
    tiny_imagenet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = Path(__file__).parents[2] / "conf/image_folder/parameters_image_folder.yml"
    comment = template.read_text().partition("#   source:\n")[2].partition("# A block")[0]
    block = yaml.safe_load(textwrap.dedent(comment.replace("#", " ")))
    (tiny_imagenet.parent / "data/01_raw").mkdir(parents=True)
    tiny_imagenet.rename(tiny_imagenet.parent / block["root"])
    monkeypatch.chdir(tiny_imagenet.parent)
    listing = list_image_folder(ImageFolderSource.model_validate(block))
    assert sorted(part for part, _ in labels(listing).values()) == ["test"] * 2 + ["train"] * 2
