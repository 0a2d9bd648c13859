-- The trials of sweeps have a database of their own: never MLflow's.
CREATE DATABASE trials;
