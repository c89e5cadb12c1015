# `make demo` and `make test` set up everything they need, in .venv, from PyPI alone.
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
ROOMS = configuration processing corpora publishing training evaluation inference shipped_adapter
TYPES = build/types/audiollm

.PHONY: demo test test-all check bench clean
.DEFAULT_GOAL := demo

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,check,voice]'
	touch $(READY)

demo: $(READY)
	$(RUN) benchmarks/demo.py

# Two processes of one thread each: many small tests gain more from that than from threads.
test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile

test-all: $(READY)
	$(RUN) -m pytest -m "slow or not slow"

# The import package is spread over top-level folders; mypy sees it through a tree of links.
check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p $(TYPES)
	for file in modeling_audiollm/*; do ln -sfn ../../../$$file $(TYPES)/$$(basename $$file); done
	for room in $(ROOMS); do ln -sfn ../../../$$room $(TYPES)/$$room; done
	MYPYPATH=build/types $(VENV)/bin/mypy -p audiollm
	MYPYPATH=build/types $(VENV)/bin/mypy benchmarks

bench: $(READY)
	$(RUN) benchmarks/bench.py

clean:
	rm -rf build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
