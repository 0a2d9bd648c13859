"""Files and folders: whole or not at all."""

import sys
from pathlib import Path

import pytest

from kd_pipeline.atomic import Lock, move_folder, replace_file, replace_folder


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


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first")
    with replace_file(path) as temporary:
        temporary.write_text("sec")
        assert path.read_text() == "first"
        temporary.write_text("second")
    assert path.read_text() == "second"
    with pytest.raises(RuntimeError, match="half way"), replace_file(path) as temporary:
        temporary.write_text("third")
        raise RuntimeError("half way")
    assert path.read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_filled_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path, filled = tmp_path / "deep" / "store", tmp_path / "filled"
    write(path, "first")
    write(filled, "second")
    left = path.parent / ".store.old-12345678"
    left.mkdir()  # By a run that was killed between its renames.
    move_folder(filled, path)
    assert (path / "inner" / "a.txt").read_text() == "second"
    assert not filled.exists()
    assert [p.name for p in path.parent.iterdir()] == ["store"]


def test_a_filled_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    write(tmp_path / "filled", "x")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(NotADirectoryError, match="not a folder"):
        move_folder(tmp_path / "filled", tmp_path / "store")
    assert (tmp_path / "filled").is_dir()


def test_a_folder_of_another_file_system_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, filled = tmp_path / "store", tmp_path / "elsewhere" / "filled"
    write(path, "first")
    write(filled, "second")
    stat = Path.stat

    class Elsewhere:
        st_dev = -1

    def other_device(self: Path, **rest: bool) -> object:
        return Elsewhere() if self == filled else stat(self, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", other_device)
        move_folder(filled, path)
    assert (path / "inner" / "a.txt").read_text() == "second"
    assert not filled.exists()


def test_a_link_to_another_disk_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    disk, path = tmp_path / "large", tmp_path / "store"
    write(disk / "store", "first")
    path.symlink_to(disk / "store")
    write(path, "second")
    write(tmp_path / "filled", "third")
    assert (disk / "store/inner/a.txt").read_text() == "second"
    move_folder(tmp_path / "filled", path)
    assert path.is_symlink()
    assert (disk / "store/inner/a.txt").read_text() == "third"
    assert [p.name for p in disk.iterdir()] == ["store"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large", "store"]


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be locked there")
@pytest.mark.parametrize("move", [False, True])
def test_what_a_killed_run_left_is_swept_and_what_a_living_one_fills_is_not(
    tmp_path: Path, move: bool
) -> None:
    path = tmp_path / "store"
    dead, other = tmp_path / ".store.new-dead0000", tmp_path / ".store2.new-dead0000"
    dead.mkdir()
    (dead / "half.txt").write_text("x")
    other.mkdir()
    with replace_folder(path) as alive:
        (alive / "a.txt").write_text("alive")
        dead.mkdir(exist_ok=True)
        if move:
            write(tmp_path / "filled", "second")
            move_folder(tmp_path / "filled", path)
        else:
            write(path, "second")
        assert not dead.exists()
        assert (alive / "a.txt").read_text() == "alive"
    assert (path / "a.txt").read_text() == "alive"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".store2.new-dead0000", "store"]


def test_a_lock_is_held_until_it_is_let_go(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        Lock(tmp_path / "lock")
    first.release()
    Lock(tmp_path / "lock").release()
