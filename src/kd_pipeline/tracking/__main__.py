"""`python -m kd_pipeline.tracking`: send what could not be sent to MLflow during a run.

Before that the locations in the project's own database are corrected if its folder was moved.
"""

import argparse
import sys
from pathlib import Path

from kd_pipeline.errors import DataError, TrackingStoreError
from kd_pipeline.tracking.settings import MLflowParams
from kd_pipeline.tracking.store import adopt_folder, locate_store, reason_of
from kd_pipeline.tracking.unsent import find_unsent, is_being_written, send_unsent


def main(arguments: list[str] | None = None) -> int:
    """Send all files of unsent operations of a project; 1 if some could not be sent."""
    parser = argparse.ArgumentParser(prog="python -m kd_pipeline.tracking", description=__doc__)
    parser.add_argument("--project", type=Path, default=Path.cwd(), help="the project's root")
    project: Path = parser.parse_args(arguments).project
    try:
        adopt_folder(locate_store(project, MLflowParams()))
    except TrackingStoreError as unreadable:
        sys.stderr.write(f"{unreadable}\n")
        return 1
    files = find_unsent(project / "data" / "09_tracking")
    if not files:
        sys.stdout.write("Nothing waits to be sent.\n")
    status = 0
    for file in files:
        num_sent, error = 0, None
        try:
            if is_being_written(file):
                sys.stdout.write(f"{file.name}: its run still goes on; send it afterwards.\n")
                continue
            num_sent, error = send_unsent(file, project)
        except DataError as damaged:
            error = damaged
        sys.stdout.write(f"{file.name}: {num_sent} operations sent.\n")
        if error is not None:
            sys.stderr.write(f"{file.name}: the others are kept: {reason_of(error)}\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
