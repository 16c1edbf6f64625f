# The commands of the house. `make serve` and `make test` are all a stranger needs.
PORT  ?= 8000
MODEL ?= quire-demo
PYTHON ?= python3
VENV  ?= .venv
BIN   := $(VENV)/bin
# Tests that share neither ports nor clocks with others; the rest run one by one.
APART := tests/parity tests/kernels tests/pipelines tests/config tests/tools
# The folders server/, kernels/, ... must not be importable by their flat names.
export PYTHONSAFEPATH = 1

.PHONY: help install install-test serve test test-slow check types kernels-compile bench bench-kernels bench-cpu wheel clean

help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## install        make .venv and install quire (CPU build of torch unless an NVIDIA GPU is here)
install: $(VENV)/.installed

## serve          serve the demo model on 127.0.0.1; PORT=8000 MODEL=folder-or-hub-id
serve: install
	$(BIN)/quire serve --model "$(MODEL)" --port $(PORT)

## test           install the test extra and run the whole suite
test: install-test
	$(BIN)/python -m pytest -q -m "not slow" -n auto --dist loadfile $(APART) $(PYTEST_ARGS)
	$(BIN)/python -m pytest -q -m "not slow" $(APART:%=--ignore %) $(PYTEST_ARGS)

## test-slow      what `make test` leaves out: long fuzzing, lm-eval; minutes
test-slow: $(VENV)/.installed-eval
	$(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

## check          ruff, mypy --strict, layers, file and function budgets
check: install-test types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_budgets.py
	$(BIN)/python tools/render_flags.py --check
	$(BIN)/python tools/render_api.py --check
	$(BIN)/python tools/render_kernels.py --check
	$(BIN)/python tools/render_models.py --check
	$(BIN)/python -m pytest -q tests/test_layering.py tests/test_layout.py

types: install-test
	mkdir -p build/types/quire
	for d in server pipelines kernels config; do ln -sfn ../../../$$d build/types/quire/$$d; done
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p quire

## kernels-compile  compile every Triton kernel for sm_80 and sm_90, no GPU needed; spills fail
kernels-compile: install-test
	$(BIN)/python tools/compile_kernels.py

## bench-kernels  time every op against the machine's limits and torch; BENCH_ARGS='--op rms_norm'
bench-kernels: install-test
	$(BIN)/python benchmarks/kernels.py $(BENCH_ARGS)

## bench          time the kernels, then a load test of a fresh server with the demo model
bench: install-test
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/serving.py

## bench-cpu      Quire and installed peers on this CPU; docs/performance.md has the BENCH_ARGS
bench-cpu: install-test
	$(BIN)/python benchmarks/cpu.py $(BENCH_ARGS)

## wheel          build dist/*.whl
wheel: install-test
	rm -rf build/lib* dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

## clean          remove .venv and everything built
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

install-test: $(VENV)/.installed-test

$(VENV)/.installed: pyproject.toml setup.py tools/install.sh
	sh tools/install.sh $(PYTHON) $(VENV) .
	touch $@

$(VENV)/.installed-test: pyproject.toml setup.py tools/install.sh
	sh tools/install.sh $(PYTHON) $(VENV) ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-eval: pyproject.toml setup.py tools/install.sh
	sh tools/install.sh $(PYTHON) $(VENV) ".[test,eval]"
	touch $@ $(VENV)/.installed-test $(VENV)/.installed
