# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.demo
	$(BIN)/python train.py fit --config configs/train/demo.yaml
	$(BIN)/python evaluate.py --config configs/evaluate/demo.yaml

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python benchmarks/power_spectrum.py
	$(BIN)/python benchmarks/prefilter.py
	$(BIN)/python benchmarks/defenses.py
	$(BIN)/python benchmarks/ivector.py
	$(BIN)/python benchmarks/pgd.py
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/adversarial_step.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/scaling.py

clean:
	rm -rf $(VENV) build *.egg-info

# One stamp an extra: a changed setup.cfg installs again.
$(VENV)/.%: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
