#!/bin/sh
# All stages in small, in a folder of its own without a tracking server: exit code 0 if they run. From
# the root of a checkout or of the image, with kedro on PATH; what runs there meanwhile is not touched.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -R conf src pyproject.toml .telemetry "$folder"
cd "$folder"
mkdir data
echo "enabled: false" > conf/smoke/mlflow.yml
unset KD_SEED KEDRO_ENV MLFLOW_TRACKING_URI
OMP_NUM_THREADS=1 PYTHONPATH="$folder/src" kedro run --pipelines=distill --env=smoke
