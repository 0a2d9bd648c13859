"""Files and folders: whole or not at all."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kd_pipeline.atomic import is_alive, move_folder, replace_file, replace_folder

KILLED = """
import sys, time
from kd_pipeline.atomic import replace_folder
with replace_folder(sys.argv[1]) as folder:
    (folder / "half.txt").write_text("x")
    print("filling", flush=True)
    time.sleep(60)
"""


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


def test_a_folder_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    write(tmp_path / "store", "x")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "store").stat().st_mode == (tmp_path / "usual").stat().st_mode


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


def kill_a_run_that_fills(path: Path) -> Path:
    """What it leaves."""
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "filling\n"
        assert is_alive(run.pid)
        run.kill()
    assert not is_alive(run.pid)
    (left,) = path.parent.glob(f".{path.name}.new-*")
    return left


@pytest.mark.parametrize("move", [False, True])
def test_what_a_killed_run_left_is_swept_and_what_a_living_one_fills_is_not(
    tmp_path: Path, move: bool
) -> None:
    path = tmp_path / "store"
    other = kill_a_run_that_fills(tmp_path / "store2")
    dead = kill_a_run_that_fills(path)
    write(tmp_path / "filled", "second")
    with replace_folder(path) as alive:
        assert not dead.exists()
        (alive / "a.txt").write_text("alive")
        if move:
            move_folder(tmp_path / "filled", path)
        else:
            write(path, "second")
        assert (alive / "a.txt").read_text() == "alive"
    assert (path / "a.txt").read_text() == "alive"
    assert other.exists()


def test_what_another_machine_fills_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = kill_a_run_that_fills(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        write(tmp_path / "store", "second")
    assert (left / "half.txt").exists()
    write(tmp_path / "store", "third")
    assert not left.exists()


def test_what_an_earlier_process_of_this_number_left_is_swept(tmp_path: Path) -> None:
    """A container that is started again has the same host name and process ids."""
    left = kill_a_run_that_fills(tmp_path / "store")
    left.rename(tmp_path / re.sub(r"new-\d+", f"new-{os.getpid()}", left.name))
    write(tmp_path / "store", "second")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_no_process_has_the_number_0_or_below() -> None:
    assert is_alive(os.getpid())
    assert not is_alive(0)
    assert not is_alive(-1)
