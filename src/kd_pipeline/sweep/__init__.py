"""Search over the settings of arms with Optuna; what trains a trial is given to it."""
