"""Print all speeds that matter as ratios: training, stacks of replicates, views, a cache.

Absolute figures depend on the machine and on what else runs; the ratios are taken from rounds that
alternate between the contenders in one process, and their median is shown.
"""

import argparse
import sys

import torch

from bench import loading, stacked, training, views


def main() -> None:
    """Measure one part after another."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="alternations (default 9)")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds")
    print("\n== Training")
    training.main(rounds)
    print("\n== Replicates that train together")
    stacked.main(min(rounds, 5))
    print("\n== Rendering views")
    views.main()
    print("\n== Loading a cache")
    loading.main(min(rounds, 5))


if __name__ == "__main__":
    sys.exit(main())
