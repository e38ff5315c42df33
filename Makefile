# make sweep: the first thing to try.  make test: everything that CI checks.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: sweep test setup example clean

sweep: setup
	$(BIN)/lora-exp experiment=rank_by_digit

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

setup: $(VENV)/ready

# pip alone finds a CPU or CUDA build of torch that suits the platform.
$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The one report that git keeps.
example: setup
	$(BIN)/lora-exp experiment=rank_by_digit report.name=example

clean:
	rm -rf $(VENV) cache runs mlflow.db mlartifacts .pytest_cache .mypy_cache .ruff_cache
