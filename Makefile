# make demo: a first classifier on synthetic scans.  make test: all checks but the slow ones.  make test-all: all of them.
# Each builds .venv by itself, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifdef OCT_DATA
export OCT_DATA := $(abspath $(OCT_DATA))
endif
READY := $(VENV)/.ready
# Tests run two at a time, each in one thread, which is faster than one at a time in two: make test JOBS=4 on four cores.
JOBS ?= 2

.PHONY: setup demo test test-slow test-all test-colab notebooks pytest lint prepare readme clean

setup: $(READY)

$(READY): pyproject.toml settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: run make PYTHON=/path/to/python3.11." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/oct-classify demo

test: notebooks pytest
	@echo 'Left out, as they take long: pytest -m slow, cells under "#| slow", the lessons; make test-slow runs them, make test-all everything.'

test-all: test test-slow

notebooks pytest test-slow: export OMP_NUM_THREADS := 1
notebooks test-slow: export PYTHONWARNINGS := ignore:`torch.jit.script`:FutureWarning

notebooks: $(READY)
	$(BIN)/nbdev-test --n-workers $(JOBS) --timing --skip-file-re '^([_.]|colab|gallery|\d_)' nbs

pytest: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test-slow: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m slow
	export OCT_LESSONS=$$(mktemp -d); trap 'rm -rf "$$OCT_LESSONS"' EXIT; \
	for n in nbs/[1-9]_*.ipynb nbs/colab.ipynb nbs/gallery.ipynb $$(grep -rl --include='*.ipynb' --exclude-dir=.ipynb_checkpoints '"#| slow' nbs/api); do $(BIN)/nbdev-test --n-workers 0 --flags slow --timing $$n || exit 1; done

# The lowest versions that settings.ini promises, which are Colab's. Three steps: the install line changes nothing that is
# there; with the extras that the pages' install lines name the notebooks run, in a copy; with all extras the tests pass.
test-colab: COLAB := .venv-colab
test-colab: PIP := $(COLAB)/bin/python -m pip install -q -c constraints-colab.txt
test-colab: export OMP_NUM_THREADS := 1
test-colab:
	rm -rf $(COLAB) build
	$(PYTHON) -m venv $(COLAB)
	sed '/^# Not in Colab/,$$d' constraints-colab.txt > $(COLAB)/colab.txt
	$(PIP) -r $(COLAB)/colab.txt
	$(COLAB)/bin/python .ci/colab.py
	$(PIP) nbdev '.[offline,onnx,formats,maps,ray]'
	cp -r nbs pyproject.toml $(COLAB)
	cd $(COLAB) && bin/nbdev-test --n_workers $(JOBS) --timing nbs # underscores: an older fastcore
	$(PIP) -e '.[dev,wandb]'
	$(COLAB)/bin/python -m pytest -n $(JOBS) --dist loadgroup

lint: $(READY)
	$(BIN)/ruff check

# What to run after an edit of a notebook: clean, export, README.
prepare: $(READY)
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export
	$(BIN)/python .ci/readme.py

readme: $(READY)
	$(BIN)/python .ci/readme.py

clean:
	rm -rf $(VENV) .venv-colab _proc _docs build dist *.egg-info
