# Each target sets up what it needs; a machine with Python 3.11-3.13 and make is enough.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	"$$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo "$$name"; break; }; done)
VENV := .venv
ADDONS := .venv-addons
BIN := $(VENV)/bin
# Half of TensorFlow's start-up lines say nothing to a reader.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow test-browser test-addons test-addons-short lint types format docs notebooks bench-quality bench-speed clean
.DELETE_ON_ERROR:

demo: $(VENV)/.package
	$(BIN)/tfalign demo --out runs/demo

# In parts: a process keeps what TensorFlow compiled, some GB in a thousand tests.
FILES := tests/data tests/export tests/jobs
NETWORKS := tests/models tests/benchmarks
PARTS := "$(FILES)" "$(NETWORKS)" "tests/ops" "tests $(patsubst %,--ignore=%,$(FILES) $(NETWORKS) tests/ops)"

test: $(VENV)/.develop
	for part in $(PARTS); do $(BIN)/python -m pytest -n 2 -m "not slow and not browser" $$part || exit 1; done

test-slow: $(VENV)/.develop
	$(BIN)/python -m pytest -m slow

# A Chromium of the system, e.g. Debian's package: none is downloaded.
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
test-browser: $(VENV)/.develop
	@test -n "$(CHROMIUM)" || { echo "Chromium is needed: apt-get install chromium, or CHROMIUM=/path/to/it make ..."; exit 1; }
	$(BIN)/python -m pip install --quiet --editable ".[browser]"
	CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest -m browser tests/browser

# Of the benchmarks only what tells whether the loss does the same here: they are run on the newest TensorFlow.
# Trained models go from one environment to the other and back, so both are made.
OLDER = $(ADDONS)/bin/python -m pytest -n 2 -m "not slow and not browser" \
	$(addprefix --ignore tests/benchmarks/test_,quality.py registration.py speed.py)
test-addons: $(ADDONS)/.develop $(VENV)/.package
	for part in $(PARTS); do $(OLDER) $$part || exit 1; done

# Where two Kerases may differ: fit, losses, metrics, layers, callbacks, replicas and saving; tensorflow-addons itself.
BETWEEN_KERASES := tests/addons tests/export $(addprefix tests/test_,fit.py losses.py metrics.py layers.py callbacks.py \
	distributed.py)
test-addons-short: $(ADDONS)/.develop $(VENV)/.package
	$(OLDER) $(BETWEEN_KERASES)

lint: $(VENV)/.develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.develop
	$(BIN)/mypy

# The pages of docs/ and the reference from docstrings, with their links checked: build/site/index.html.
docs: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --quiet

# Runs the sources in notebooks/src, a few minutes each, into the notebooks beside them.
notebooks: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[notebooks]"
	$(BIN)/python notebooks/build.py

format: $(VENV)/.develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# QUALITY=gate measures the three gate tasks, for hours.
QUALITY ?= quick
bench-quality: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python -m benchmarks.quality $(QUALITY) --jobs 2

bench-speed: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	$(BIN)/python -m benchmarks.speed

$(VENV)/.package: setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 with venv is needed: PYTHON=/path/to/python make ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.develop: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --editable ".[test,bench,lint]"
	touch $@

$(ADDONS)/.develop: setup.cfg pyproject.toml
	python3.11 -m venv $(ADDONS)
	$(ADDONS)/bin/python -m pip install --quiet --upgrade pip
	$(ADDONS)/bin/python -m pip install --quiet --editable ".[test,addons]"
	touch $@

clean:
	rm -rf $(VENV) $(ADDONS) build dist *.egg-info
