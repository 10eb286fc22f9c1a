# make demo: see it work. make test: everything CI runs. make serve: a service to stay.

VENV := .venv
BIN := $(VENV)/bin
# The first Python 3.11 or 3.12 on PATH that can make virtual environments.
PYTHON ?= $(shell for python in python3.11 python3.12 python3; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
	>/dev/null 2>&1; then echo $$python; break; fi; done)
# An index with CPU builds of torch saves some GB: make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO_DIR ?=
# Processes that tests run in, a file of them at a time: more than cores, as many tests wait for
# services. In the order of tests/conftest.py, or the longest files would come last.
TEST_PROCESSES ?= 4
PYTEST := $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder
export OMP_NUM_THREADS ?= 1

.PHONY: install demo serve test lint type format pytest docs screenshots hostile schemathesis chaos nightly clean

install: $(VENV)/.installed

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "certserve needs Python 3.11 or 3.12 with venv on PATH (Debian: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: a plain range would let pip pull a newer release with its CUDA packages.
$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) install -c requirements.lock -e '.[cpu,dev]'
	@touch $@

demo: install
	$(BIN)/certserve demo $(if $(DEMO_DIR),--data-dir $(DEMO_DIR)) --out out/demo

serve: install
	$(BIN)/certserve serve

test: install lint type pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install
	$(BIN)/mypy

pytest: install
	$(PYTEST)

# README's tables of methods and the operators in docs/inputs.md, from their rows; tests fail where they differ.
docs: install
	$(BIN)/python -m service.contract.catalogue README.md
	$(BIN)/python -m models.onnx.documentation docs/inputs.md

# What the browser's tests see, all of it in out/screenshots, and of it the pictures of docs/quickstart.md.
screenshots: install
	CERTSERVE_SCREENSHOTS=out/screenshots $(BIN)/python -m pytest tests/e2e/console
	for name in form job samples report; do cp out/screenshots/docs-$$name.png docs/img/quickstart-$$name.png; done

# The whole corpus of hostile uploads; "make test" leaves out what unit tests refuse too.
hostile: install
	CERTSERVE_TEST_ALL=1 $(BIN)/python -m pytest tests/e2e/hostile --timeout 900

# Five minutes without a key and five with one; "make test" takes 20 seconds with one.
schemathesis: install
	CERTSERVE_TEST_SCHEMATHESIS_S=300 $(BIN)/python -m pytest tests/e2e/schemathesis

# 30 jobs over four workers while everything is killed at random for two minutes.
chaos: install
	CERTSERVE_CHAOS_S=120 $(BIN)/python -m pytest -s tests/e2e/chaos

# All of what "make test" takes a slice of (docs/testing.md), then what looks for wrong certificates
# at length: random graphs against ONNX Runtime, known wrong inputs, shards and threads.
nightly: install
	CERTSERVE_TEST_ALL=1 CERTSERVE_TEST_SCHEMATHESIS_S=300 CERTSERVE_CHAOS_S=120 \
		$(PYTEST) --timeout 7200
	$(BIN)/python -m benchmarks.verification.differential --graphs 5000 --mutants 5000
	$(BIN)/python -m benchmarks.verification.adversary --graphs 3000 --share 0.1
	$(BIN)/python -m benchmarks.verification.adversary --graphs 1000 --share 0.1 --newest
	$(BIN)/python -m benchmarks.verification.soundness --points 20000 --newest
	$(BIN)/python -m benchmarks.verification.clipping --networks 6000
	$(BIN)/python -m benchmarks.verification.invariance --decisions 100000

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
