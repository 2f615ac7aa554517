# make test    all checks, as the continuous integration runs them
# make demo    one run on the built-in simulator: a report, NeXus files and a picture
#
# Both need Python 3.11 or newer, make and a network to install from; everything goes into .venv.

.PHONY: help test demo docs bench chaos soak fuzz clean
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable
NAME := first_light_$(shell date +%Y%m%d_%H%M%S)

help:
	@sed -n 's/^# make/make/p' Makefile
	@echo 'make docs    the documents as HTML'
	@echo 'make bench   the benchmarks'
	@echo 'make fuzz    bad messages by the million, two minutes'
	@echo 'make chaos   200 runs to which random things happen (CHAOS_SEEDS=17,42: these again)'
	@echo 'make soak    5 000 runs, a run of 5 million frames, 1 000 disturbed runs: for an hour'
	@echo 'make clean   delete what was built here'

$(VENV)/made:
	@for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        $$python -m venv $(VENV) && touch $@ && exit; \
	    fi; \
	done; \
	echo 'lima2py needs Python 3.11 or newer with its venv module, and found none as python3,' >&2; \
	echo 'python3.11 ...; on Debian and Ubuntu: apt install python3 python3-venv' >&2; exit 1

$(VENV)/all: $(VENV)/made pyproject.toml
	@echo 'installing into $(VENV), about a minute'
	@$(INSTALL) '.[all]'
	@touch $@

$(VENV)/dev: $(VENV)/made pyproject.toml
	@echo 'installing into $(VENV), some minutes'
	@$(INSTALL) '.[dev]'
	@touch $(VENV)/all $@

test: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sphinx-build -q -n -W --keep-going docs docs/_build
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(VENV)/all
	@$(BIN)/lima2py run first_light --processing-nodes 2 --nb-frames 500 --expo-time '2 ms' \
	    --output demo --name $(NAME)
	@echo 'NeXus file: demo/$(NAME)_raw_master.h5'
	@echo "picture:    $$($(BIN)/lima2py show demo/$(NAME)_raw_master.h5 --sum --png demo/$(NAME).png)"

docs: $(VENV)/dev
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -q -n -W --keep-going docs docs/_build
	@echo 'read docs/_build/index.html'

bench: $(VENV)/dev
	$(BIN)/python -m benchmarks

fuzz: $(VENV)/dev
	$(BIN)/python -m tests.fuzz

chaos: $(VENV)/dev
	$(BIN)/python -m tests.chaos

soak: $(VENV)/dev
	SOAK_RUNS=5000 SOAK_FRAMES=5000000 SOAK_DISTURBED=1000 \
	    $(BIN)/python -m pytest -s tests/system/test_soak.py

clean:
	rm -rf $(VENV) build docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
