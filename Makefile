# make demo | test | lint | up | bench: each also makes the environment in .venv first, once.
# Settings: PYTHON=<a Python 3.11>, PIP_ARGS=<more arguments for pip install>, ARGS=<arguments for the command>.

PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PIP_ARGS ?=
ARGS ?=
BENCHES ?= encoders train sample catalogue
BIN := .venv/bin

# The stamp is written last and names the folder it was made in: an interrupted set-up, a moved clone (scripts hold
# absolute paths) or a Python that has gone all lead to a new environment.
STAMP := .venv/.ready
HERE := $(shell pwd -P)
ifneq ($(shell cat $(STAMP) 2>/dev/null && $(BIN)/python -I -c 'import diffsfsr' 2>/dev/null && echo works),$(HERE) works)
STALE := stale
endif

.PHONY: help setup demo test lint up bench clean $(STALE)

help:
	@echo "make setup   the environment in .venv (about 3 GB, some minutes)"
	@echo "make demo    portraits at once, then a model's life through the graph; ARGS='--data DIR' for your own photographs"
	@echo "make test    the default tests; ARGS='-k guard' for some, ARGS='-m slow' for the slow ones"
	@echo "make lint    ruff and mypy"
	@echo "make up      Dagster and MLflow on this machine only, until Ctrl-C"
	@echo "make bench   every benchmark; BENCHES='encoders sample' for some"
	@echo "make clean   remove the environment and caches; your results in .diffsfsr stay"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(STALE)
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found; name one: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@rm -f $@
	$(if $(STALE),"$(PYTHON)" -m venv --clear .venv)
	$(BIN)/python -m pip install --progress-bar off $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip check
	@pwd -P > $@.part && mv $@.part $@

demo: $(STAMP)
	$(BIN)/diffsfsr demo $(ARGS)

# Folders of data and weights beside the clone are used where there are any; tests that need them skip otherwise.
test: $(STAMP)
	@export DIFFSFSR_DATA="$${DIFFSFSR_DATA:-$$(cd ../shared/faces 2>/dev/null && pwd)}"; \
	export DIFFSFSR_WEIGHTS="$${DIFFSFSR_WEIGHTS:-$$(cd ../shared/weights 2>/dev/null && pwd)}"; \
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .; failed=$$?; $(BIN)/mypy && exit $$failed

up: $(STAMP)
	$(BIN)/diffsfsr up $(ARGS)

bench: $(STAMP)
	for bench in $(BENCHES); do $(BIN)/diffsfsr bench "$$bench" $(ARGS) || exit 1; done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
