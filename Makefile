# make demo: a first classifier on synthetic scans.  make test: everything that CI checks.
# Both build .venv by themselves, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifdef OCT_DATA
export OCT_DATA := $(abspath $(OCT_DATA))
endif
READY := $(VENV)/.ready
# Tests run two at a time, each in one thread, which is faster than one at a time in two: make test JOBS=4 on four cores.
JOBS ?= 2

.PHONY: setup demo test notebooks pytest prepare readme clean

setup: $(READY)

$(READY): pyproject.toml settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: run make PYTHON=/path/to/python3.11." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/oct-classify demo

test: notebooks pytest
notebooks pytest: export OMP_NUM_THREADS := 1

notebooks: $(READY)
	PYTHONWARNINGS='ignore:`torch.jit.script`:FutureWarning' $(BIN)/nbdev-test --n-workers $(JOBS) --timing nbs

pytest: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# What to run after an edit of a notebook: clean, export, README.
prepare: $(READY)
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python .ci/readme.py

readme: $(READY)
	$(BIN)/python .ci/readme.py

clean:
	rm -rf $(VENV) _proc _docs build dist *.egg-info
