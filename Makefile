PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-fast check bench screenshots gpu-check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group test
	touch $@

$(VENV)/.checked: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group check
	touch $@

$(VENV)/.benched: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group bench
	touch $@

run: $(VENV)/.installed
	$(BIN)/python -m cotenant.cli.main demo $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not gpu"

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not gpu and not slow and not engine"

check: $(VENV)/.checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not gpu"

bench: $(VENV)/.benched
	$(BIN)/python -m bench

screenshots: $(VENV)/.benched
	$(BIN)/python -m bench.screenshots

gpu-check: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu -s

clean:
	rm -rf $(VENV) build dist
