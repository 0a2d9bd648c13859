"""Speed as ratios measured in one run: `make bench`."""

from kd_pipeline.memory import keep_freed_memory

keep_freed_memory()  # As a run does.
