"""Print all speeds that matter as ratios: training, stacks, views, a cache; and stages.

Absolute figures depend on the machine and on what else runs; the ratios are taken from rounds that
alternate between the contenders in one process, and their median is shown. The stages of the
default run are in seconds. All figures are written as JSON too.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bench import loading, stacked, stages, training, views


def main() -> None:
    """Measure one part after another."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="alternations (default 9)")
    parser.add_argument("--json", type=Path, default=Path("data/08_reporting/bench.json"))
    given = parser.parse_args()
    rounds: int = given.rounds
    measured: dict[str, Any] = {
        "torch": torch.__version__,
        "num_threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "rounds": rounds,
    }
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds")
    print("\n== Stages of the default run")
    measured["stages"] = stages.main()
    print("\n== Training")
    measured["training"] = training.main(rounds)
    print("\n== Replicates that train together")
    measured["stacked"] = stacked.main(min(rounds, 5))
    print("\n== Rendering views")
    measured["views"] = views.main()
    print("\n== Loading a cache")
    measured["loading"] = loading.main(min(rounds, 5))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(measured, indent=2))
    print(f"\nAs JSON: {given.json}")


if __name__ == "__main__":
    sys.exit(main())
