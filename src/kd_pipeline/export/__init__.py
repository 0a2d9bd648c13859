"""From a checkpoint to files that run on a device, and the proof that they compute the same."""
