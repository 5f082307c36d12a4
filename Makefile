# make demo: the whole pipeline on handwritten digits        make test: every check and test
# Both need only Python >= 3.10; they make .venv and install into it when that has not been done.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
INSTALL = $(BIN)/python -m pip install --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install gpu-test gpu-first-run demo test quick lint types imports unit coverage jetpack test-aarch64 package format bench-startup schema families matrix clean distclean

help:
	@echo "make demo           train, export, quantize, build, bench and report on handwritten digits"
	@echo "make install        the development environment, in .venv"
	@echo "make test           lint, types, imports and unit; each is a target of its own"
	@echo "make quick          lint, types, imports and all tests but those marked slow: for the inner loop"
	@echo "make coverage       all tests, with the share of lines and branches that they reach; fails below the floor"
	@echo "make docs           the documentation as a site in docs/_build/html; a link that leads nowhere fails; Python >= 3.11"
	@echo "make package        wheel and sdist into dist/"
	@echo "make test-aarch64   from an ONNX file to predictions on an emulated aarch64; needs qemu-user-static on Debian"
	@echo "make gpu-test       the tests that need an NVIDIA GPU; says what it could not do"
	@echo "make gpu-first-run  asks a GPU what only a GPU can tell; writes benchmarks/results/gpu_first_run.json"
	@echo "make format         let ruff reformat"
	@echo "make schema         renews docs/report.schema.json"
	@echo "make bench-startup  seconds and modules of 'vitdeploy --help' and of an up-to-date 'vitdeploy run'"
	@echo "make families       train every family on the digits, take it through the pipeline, renew docs/support-matrix.md"
	@echo "make matrix         every family at full size through every stage; renews docs/support-matrix.md, graph-size.md"
	@echo "make clean          remove the demo's folder and caches; make distclean also .venv"

# Runs again when pyproject.toml or constraints.txt changed; a killed installation leaves no stamp.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) found: install Python >= 3.10, or name it with 'make PYTHON=/path/to/python3'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$$($(PYTHON) --version) is too old: vitdeploy needs Python >= 3.10, name one with 'make PYTHON=/path/to/python3'" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { echo "$(PYTHON) cannot make a virtual environment: on Debian and Ubuntu 'apt-get install python3-venv'" >&2; exit 1; }
	$(INSTALL) --constraint constraints.txt --config-settings editable_mode=compat --editable '.[all,dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/vitdeploy run

test: lint types imports unit

quick: lint types imports
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports

# Says at its end what was skipped, and why: no GPU, a library that is not installed, a GPU that a library does not serve.
gpu-test: $(STAMP)
	$(BIN)/pytest -m gpu -rs

# Needs the models of make demo; a question that cannot be asked here has its reason in the JSON.
gpu-first-run: $(STAMP)
	@test -f vitdeploy-run/model.int8.onnx || $(BIN)/vitdeploy run
	$(BIN)/python benchmarks/gpu_first_run.py vitdeploy-run

unit: $(STAMP)
	$(BIN)/pytest -n 2 --dist worksteal

# The same tests; fails below the share of lines and branches that pyproject.toml names.
coverage: $(STAMP)
	$(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

# What JetPack 6 gets: the built wheel with NumPy 2.2 and ONNX Runtime 1.23, no torch; everything from an ONNX file onwards.
jetpack: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/jetpack/run.py

# The same versions on an emulated aarch64: Debian's arm64 Python under qemu-user. Not in CI: it takes minutes.
test-aarch64: $(STAMP)
	PYTHONPATH=tests/support $(BIN)/python tests/aarch64/run.py

# Pages that follow from the code (errors, recipes, API) are made first; warnings are errors.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable '.[docs]'
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

package: $(STAMP)
	$(BIN)/python -m build

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What a test compares docs/report.schema.json with.
schema: $(STAMP)
	$(BIN)/python -m vitdeploy.report.schema > docs/report.schema.json

bench-startup: $(STAMP)
	$(BIN)/python benchmarks/startup.py

# Both end with an error where a family falls short, and write the tables all the same; see docs/support-matrix.md.
families: $(STAMP)
	$(BIN)/python benchmarks/families.py

matrix: $(STAMP)
	$(BIN)/python benchmarks/matrix.py
	$(BIN)/python benchmarks/graph_size.py
	$(BIN)/python benchmarks/exporters.py

clean:
	rm -rf vitdeploy-run docs/_build docs/made build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
