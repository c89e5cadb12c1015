# `make demo` and `make test` set up everything they need, in .venv, from PyPI alone.
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
ROOMS = configuration processing command_line corpora publishing training evaluation inference shipped_adapter
TYPES = build/types/audiollm
# Two processes of one thread each: many small tests gain more from that than from threads. Each goes through half of
# the files in their order, and takes over tests of the other when it is done.
FAST_TESTS = -m pytest --numprocesses 2 --dist worksteal
# Threads that wait let others run, as the audiollm command has them do.
export OMP_WAIT_POLICY ?= PASSIVE
TORCH = $(shell grep ^torch== constraints.txt)
# What `make test-floor` and `make test-newest` run; by default all fast tests.
TESTS ?=

.PHONY: demo time-to-hear test test-quick test-all test-floor test-newest check bench gpu-check clean
.DEFAULT_GOAL := demo

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,check,voice]'
	touch $(READY)

demo: $(READY)
	$(RUN) benchmarks/demo.py

# Training from nothing, in a quarter of an hour on a fast machine.
time-to-hear: $(READY)
	PATH=$(CURDIR)/$(VENV)/bin:$$PATH benchmarks/time_to_hear.sh

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) $(FAST_TESTS)

# The invariants that matter most, in under a minute: only files with such tests are imported.
test-quick: $(READY)
	OMP_NUM_THREADS=1 $(RUN) $(FAST_TESTS) -m quick $$(grep -rl --include='test_*.py' pytest.mark.quick tests)

test-all: $(READY)
	$(RUN) -m pytest -m "slow or not slow"

# The tests with the lowest release of each package that setup.cfg allows, and with the newest, in environments made
# anew; the resolution is printed. torch is that of constraints.txt in both: on Linux, PyPI's other releases bring 3 to
# 4 GB of CUDA packages.
test-floor: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-floor test-newest: test-%:
	$(PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip uv
	.venv-$*/bin/python -m pip install --quiet --no-deps $(TORCH)
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --resolution $(RESOLUTION) $(TORCH) --editable '.[test,voice]'
	.venv-$*/bin/uv pip freeze --python .venv-$*/bin/python
	OMP_NUM_THREADS=1 .venv-$*/bin/python $(FAST_TESTS) $(TESTS)

# The import package is spread over top-level folders; mypy sees it through a tree of links. Benchmarks import from tests.
check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)
	for file in modeling_audiollm/*; do ln -sfn ../../../$$file $(TYPES)/$$(basename $$file); done
	for room in $(ROOMS); do ln -sfn ../../../$$room $(TYPES)/$$room; done
	MYPYPATH=build/types $(VENV)/bin/mypy -p audiollm
	MYPYPATH=build/types:tests:tests/training $(VENV)/bin/mypy benchmarks

bench: $(READY)
	$(RUN) benchmarks/bench.py

# What only a GPU can show, in under eight minutes and without network.
gpu-check: $(READY)
	$(RUN) benchmarks/gpu_check.py --output benchmarks/results/gpu_check.json

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
