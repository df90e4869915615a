# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROUNDS ?= 1

.PHONY: demo test test-slow lint bench clean

demo: $(VENV)/.demo
	$(BIN)/python train.py fit --config configs/train/demo.yaml
	$(BIN)/python evaluate.py --config configs/evaluate/demo.yaml

test: $(VENV)/.test
	$(BIN)/python -m pytest

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow
	SEC4SR_PRETEND=1 $(BIN)/python -m pytest -m "slow or not slow" -k pretend

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One round shows that they run and about how fast; docs/results.md tells the rounds behind its figures.
bench: $(VENV)/.test
	$(BIN)/python benchmarks/power_spectrum.py
	$(BIN)/python benchmarks/prefilter.py
	$(BIN)/python benchmarks/defenses.py --rounds $(ROUNDS)
	$(BIN)/python benchmarks/ivector.py --rounds $(ROUNDS)
	$(BIN)/python benchmarks/pgd.py --rounds $(ROUNDS)
	$(BIN)/python benchmarks/attacks.py --rounds $(ROUNDS)
	$(BIN)/python benchmarks/adversarial_step.py --rounds $(ROUNDS)
	$(BIN)/python benchmarks/overhead.py --rounds $(ROUNDS)
	$(BIN)/python benchmarks/scaling.py --rounds $(ROUNDS)

clean:
	rm -rf $(VENV) build *.egg-info

# One stamp an extra: a changed setup.cfg installs again.
$(VENV)/.%: setup.cfg
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
