# Everything sets itself up: PYTHON (3.11 to 3.13) is all that a machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Processes that share the tests, a file at a time, in the order of tests/conftest.py.
WORKERS ?= 2
SHARED = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
export JAX_PLATFORMS ?= cpu
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: quickstart docs test test-quick lint notebook clean

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# timm's torchvision is compiled for CUDA, and breaks beside a PyTorch for CPUs; its networks do not need it.
$(VENV)/.developed: $(VENV)/.installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31
	touch $@

## Pretrains, evaluates and draws on photographs that are on this machine already.
quickstart: $(VENV)/.installed
	$(BIN)/python -m conic_jax.main --config=configs/conic.py:photos

## The whole test suite, and its ten slowest.
test: $(VENV)/.developed
	$(BIN)/python -m pytest $(SHARED) --durations=10

## What a developer runs while typing.
test-quick: $(VENV)/.developed
	$(BIN)/python -m pytest $(SHARED) -q -m "not slow"

## The documentation as a site, in site/.
docs: $(VENV)/.developed
	$(BIN)/python -m mkdocs build --strict -q

## Style and types.
lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf $(VENV) site .compiled .pytest_cache .ruff_cache .hypothesis
