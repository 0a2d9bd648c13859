"""From a teacher to soft targets."""
