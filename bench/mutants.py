"""Mutation testing with mutmut: one package after another, each with the tests of that package.

A mutant is the code with one small mistake put in; it is killed when a test fails. What survives is
printed with its change, unless docs/mutants.md lists it as equivalent. Results lie in
build/mutants: a run that was stopped goes on where it was, and what has changed is tried again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"

_ENGINE = ("engine", "epochs", "steps")
# Of the slow tests of models those that are enough for the sender.
_MODEL = "tracking/test_models.py::test_a_model_is_logged_once_and_holds_its_test_metrics"
_SOFT_TARGETS = (
    "damage",
    "encoding",
    "ensemble",
    "gathering",
    "imported",
    "inspection",
    "manifest",
    "parts",
    "parts_folder",
    "seconds",
    "settings",
    "shards",
    "shared_parts",
    "store",
)
PACKAGES = {
    # Not own.py: it reads signatures, which mutmut's wrappers of functions change.
    "losses": (["losses/[!o]*", "losses/objective.py"], ["losses"]),
    "paired": (["evaluation/paired.py"], ["evaluation/test_paired.py"]),
    "splits": (["data/splits.py"], ["data/test_splits.py"]),
    # Not test_memory.py, which takes longer than all others, nor test_readers.py: in a process
    # that was forked, Polars waits for its threads for ever.
    "soft_targets": (
        ["soft_targets/*"],
        [f"soft_targets/test_{name}.py" for name in _SOFT_TARGETS],
    ),
    "views": (["views/*"], ["views"]),
    "engine": (["training/engine.py"], [f"training/test_{name}.py" for name in _ENGINE]),
    "tracking": (
        ["tracking/sender.py"],
        ["tracking/test_sender.py", "tracking/test_runs.py", _MODEL],
    ),
}
"""What is mutated, below src/kd_pipeline, and the tests that must notice, below tests."""


# As a plugin of pytest: a mutant is done when one test fails, of which the message is not read.


def pytest_configure() -> None:
    """Let Hypothesis not look for the smallest example that fails."""
    from hypothesis import Phase, settings

    settings.register_profile("mutants", settings(), phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Run the fastest tests first."""
    from mutmut.state import state

    items.sort(key=lambda item: state().duration_by_test.get(item.nodeid, 0.0))


def prepare(package: str) -> Path:
    """A folder in which mutmut may write, with its settings and links to the project."""
    folder = ROOT / "build" / "mutants" / package
    # mutmut imports from here; Python ignores a folder of its path that is not there at its start.
    (folder / "mutants" / "src").mkdir(parents=True, exist_ok=True)
    for name in ("src", "tests", "docs", "conf"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    sources, tests = PACKAGES[package]
    plugins = ["-p", "no:cacheprovider", "-p", "bench.mutants"]
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/kd_pipeline/{path}" for path in sources],
        "also_copy": ["docs", "conf"],
        "pytest_add_cli_args_test_selection": [f"tests/{path}" for path in tests],
        "pytest_add_cli_args": ["-c", str(ROOT / "pyproject.toml"), *plugins],
    }
    # A list of strings is the same in JSON and TOML.
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (folder / "pyproject.toml").write_text("\n".join(["[tool.mutmut]", *lines, ""]))
    return folder


def mutmut(folder: Path, *arguments: str, quiet: bool = False) -> list[str]:
    """Run a command of mutmut in the folder; the lines that it printed, where it is quiet."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    # A forked process would wait for ever for threads that tests have started in its parent.
    threads = {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"}
    path = os.pathsep.join([str(folder / "mutants" / "src"), str(ROOT)])
    variables = os.environ | threads | {"PYTHONPATH": path}
    done = subprocess.run(
        command, cwd=folder, env=variables, check=True, text=True, capture_output=quiet
    )
    return done.stdout.splitlines() if quiet else []


def change(folder: Path, mutant: str) -> tuple[str, str]:
    """The lines that differ in a mutant, as they were and as they are."""
    shown = mutmut(folder, "show", mutant, quiet=True)
    was, now = (
        [line[1:].strip() for line in shown if line[:1] == sign and line[:3] != sign * 3]
        for sign in "-+"
    )
    return " ".join(was), " ".join(now)


def readable(mutant: str) -> str:
    """The function of a mutant: `losses.hard.has_label` of `...losses.hard.x_has_label__mut...`."""
    module, _, function = mutant.rpartition("__mutmut_")[0].rpartition(".")
    plain = function[2:].replace("ǁ", ".")
    return f"{module.removeprefix('kd_pipeline.')}.{plain}"


def results(folder: Path) -> dict[str, str]:
    """How each mutant has ended, by name."""
    lines = [line.strip() for line in mutmut(folder, "results", "--all", "true", quiet=True)]
    return dict(line.rsplit(": ", 1) for line in lines if "__mutmut_" in line)


def survivors_of(ends: Mapping[str, str]) -> list[str]:
    """Those that no test has killed."""
    return [name for name, end in ends.items() if end in ("survived", "no tests")]


def report(package: str, folder: Path) -> None:
    """Print the counts of a package, and each survivor that is not listed as equivalent."""
    ends = results(folder)
    survivors = survivors_of(ends)
    tried = len(ends) - Counter(ends.values())["not checked"]
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    left = 0
    for name in survivors:
        function = readable(name)
        was, now = change(folder, name)
        if not any(fnmatch(function, where) and what in now for where, what in rows):
            left += 1
            print(f"\n{function} ({ends[name]})\n  - {was}\n  + {now}")
    killed, equivalent = tried - len(survivors), len(survivors) - left
    print(
        f"\n{package}: {tried} of {len(ends)} mutants tried, {equivalent} equivalent, {killed} "
        f"killed ({killed / max(tried - equivalent, 1):.1%} of the others), {left} left"
    )


def main() -> None:
    """Try the mutants of the named packages, or of all, and print what survives."""
    sys.stdout.reconfigure(line_buffering=True)  # Beside what mutmut prints.
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("packages", nargs="*", help=f"of {', '.join(PACKAGES)}; default: all")
    parser.add_argument("--processes", default="1", help="mutants tried at once (default 1)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tenth", metavar="DIGIT", help="only mutants whose number ends in it")
    only.add_argument("--again", action="store_true", help="only those that have survived so far")
    options = parser.parse_args()
    for package in options.packages or PACKAGES:
        folder = prepare(package)
        names = [] if options.tenth is None else [f"*__mutmut_*{options.tenth}"]
        if options.again:
            names = survivors_of(results(folder))
        if names or not options.again:
            mutmut(folder, "run", "--max-children", options.processes, *names)
        report(package, folder)


if __name__ == "__main__":
    sys.exit(main())
