"""replace_folder: whole or not at all."""

from pathlib import Path

import pytest

from kd_pipeline.atomic import replace_folder


def write(path: Path, text: str) -> None:
    with replace_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text(text)


def test_makes_parents_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store"
    write(path, "first")
    (path / "stale.txt").write_text("left by an earlier run")
    write(path, "second")
    assert (path / "inner" / "a.txt").read_text() == "second"
    assert not (path / "stale.txt").exists()
    assert [p.name for p in path.parent.iterdir()] == ["store"]


def test_an_error_leaves_the_old_folder_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "store"
    write(path, "first")
    with pytest.raises(RuntimeError, match="half way"), replace_folder(path) as folder:
        (folder / "a.txt").write_text("half")
        raise RuntimeError("half way")
    assert (path / "inner" / "a.txt").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_nothing_appears_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with replace_folder(path) as folder:
        (folder / "a.txt").write_text("x")
        assert not path.exists()
        assert folder.parent == path.parent
    assert path.exists()


def test_gives_the_old_folder_back_if_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    write(path, "first")
    rename = Path.rename

    def fail_on_new(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with pytest.raises(OSError, match="disk gone"):
        write(path, "second")
    assert (path / "inner" / "a.txt").read_text() == "first"


def test_refuses_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        write(tmp_path / "store", "x")
