# Everything a person types; each target makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENVIRONMENT ?=
PORT ?= 5001
NAME ?= student
CONFIRM ?=
NUM ?= 5
PACKAGE ?=
RUN := $(BIN)/kedro run --pipelines=distill $(if $(ENVIRONMENT),--env=$(ENVIRONMENT))

.PHONY: help distill resplits test test-long check format bench results mutants ui serve viz clean-runs clean-environment

help:  ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20
	@echo
	@echo "PYTHON=python3.12 before or after a target makes the environment with that interpreter."

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the environment in $(VENV): about three minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

distill: $(STAMP)  ## Run the main job; ENVIRONMENT=mnist runs a preset
	$(RUN)

resplits: $(STAMP)  ## The whole job under NUM=5 splits, combined; ENVIRONMENT=mnist runs a preset
	$(BIN)/python -m kd_pipeline.resplits --num $(NUM) $(if $(ENVIRONMENT),--env $(ENVIRONMENT))

test: $(STAMP)  ## Run the fast tests, in two processes
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-long: $(STAMP)  ## Run the long tests and the fault campaign of docs/faults.md
	$(BIN)/python -m pytest -q -m "long or fault"

check: $(STAMP)  ## Lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Measure the default run by stage, and training speed as ratios
	$(BIN)/python -m bench

results:  ## List the experiments in docs/experiments, and the commands that repeat them
	@awk 'FNR == 1 { print "\n" substr($$0, 3) " (" FILENAME ")" } \
		/^(kedro|python|make|[A-Z0-9_]+=|\.venv)/ { print "    " $$0 }' docs/experiments/[!R]*.md

mutants: $(STAMP)  ## Print small mistakes in the code that no test finds; PACKAGE=losses tries one package
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	nice -n 10 $(BIN)/python -m bench.mutants $(PACKAGE)

ui: $(STAMP)  ## Serve MLflow's pages; the line it prints opens the newest comparison
	@echo "The newest comparison: http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=latest"
	-@$(BIN)/python -m kd_pipeline.tracking
	@$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

serve: $(STAMP)  ## Serve the registry's champion on 127.0.0.1; PORT=5001 and NAME=student are the defaults
	@$(BIN)/python -m kd_pipeline.tracking.serve --port $(PORT) --name $(NAME)

viz: $(STAMP)  ## Open Kedro-Viz on http://127.0.0.1:4141
	$(BIN)/kedro viz run

clean-runs: $(STAMP)  ## List what deleted MLflow runs have left behind; CONFIRM=yes removes it
	@$(BIN)/python -m kd_pipeline.tracking.clean --confirm "$(CONFIRM)"

clean-environment:  ## Remove the environment
	rm -rf $(VENV)
