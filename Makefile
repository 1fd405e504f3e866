# Everything a newcomer needs: `make demo` and `make test`. Both do their own set-up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
GOOGLE_PROTOS := build/googleapis/google/rpc

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo serve test lint format protos figures cifar frontier install clean

help: ## Show this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

demo: $(VENV)/.demo ## Train, fit, pack and serve a digits classifier; explain digits over gRPC; draw a contact sheet.
	$(BIN)/python -m pathlens.demo

serve: $(VENV)/.demo ## Serve the digits classifier until interrupted.
	$(BIN)/python -m pathlens.demo prepare
	$(BIN)/pathlens serve model_store/digits.mar --example build/digits/held-out/3/0003.png

test: $(VENV)/.dev ## Run every test.
	$(BIN)/python -m pytest

lint: $(VENV)/.dev ## Check style, types, architecture, the wire contract and its stubs.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	rm -rf build/googleapis build/stubs && mkdir -p $(GOOGLE_PROTOS) build/stubs
	cp "$$($(BIN)/python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]))')"/*.proto $(GOOGLE_PROTOS)
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/python protos/generate_stubs.py build/stubs
	for folder in v1 internal; do diff -r -x __pycache__ build/stubs/$$folder service/pathlens/wire/$$folder || exit 1; done

format: $(VENV)/.dev ## Put code and protos into their canonical form.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

protos: $(VENV)/.dev ## Generate the stubs of protos/ into service/pathlens/wire/.
	$(BIN)/python protos/generate_stubs.py

figures: $(VENV)/.dev ## Measure the explanations of the fixture networks and write docs/figures.md; takes an hour.
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/science_figures.py
	$(BIN)/python tests/benchmarks/figure_tables.py > build/figures/figures.md
	cp build/figures/figures.md docs/figures.md

cifar: $(VENV)/.dev ## Fit GEN-CNP to the fixtures' ResNet-20 on CIFAR-10 and measure it; takes about half an hour.
	$(BIN)/python tests/benchmarks/two_sided_frontier.py channel-optimal

frontier: $(VENV)/.dev ## The same for both granularities and all ablations, with the plot; takes hours.
	$(BIN)/python tests/benchmarks/two_sided_frontier.py

install: $(VENV)/.dev ## Make the virtual environment with everything that development needs.

clean: ## Remove everything that was built, but not the virtual environment.
	rm -rf build dist model_store/*.mar

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); false)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.demo
