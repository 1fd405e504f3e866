# Everything a newcomer needs: `make demo` and `make test`. Both do their own set-up.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
GOOGLE_PROTOS := build/googleapis/google/rpc
MINUTES ?= 10
# A virtual environment of its own: checkov pins half of the world, and nothing else here uses it.
CHECKOV := build/checkov/environment
ENGINE ?= $(notdir $(shell command -v podman || command -v docker))
VARIANT ?= cpu
PIP_SECRET = --secret id=pip.conf,src=$(PIP_CONF)
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' service/pathlens/version.py)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo serve monitor test lint deploy-lint deploy-test format protos dashboards image figures cifar frontier drift load bench onnx slices soak \
	install clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(VENV)/.demo ## Train, fit, pack and serve a digits classifier; explain digits over gRPC; draw a contact sheet.
	$(BIN)/python -m pathlens.demo

serve: $(VENV)/.demo ## Serve the digits classifier until interrupted.
	$(BIN)/python -m pathlens.demo prepare
	$(BIN)/pathlens serve model_store/digits.mar --example build/digits/held-out/3/0003.png

monitor: $(VENV)/.demo ## Watch the digits service with Prometheus and Alertmanager; BREAK=worker breaks it, MINUTES=20 takes longer.
	$(BIN)/python -m pathlens.demo prepare
	cd deploy && ../$(BIN)/python -m local $(if $(filter-out file,$(origin MINUTES)),--minutes $(MINUTES)) $(if $(BREAK),--break $(BREAK))

test: $(VENV)/.dev ## Run every test, on up to four processors.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

soak: $(VENV)/.dev ## Ten minutes of chaos on a real service, then 100,000 malformed requests; MINUTES=60 takes longer.
	$(BIN)/python tests/reliability/soak.py --minutes $(MINUTES); chaos=$$?; \
	$(BIN)/python tests/reliability/fuzz.py && exit $$chaos

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

deploy-lint: $(VENV)/.dev $(CHECKOV)/.installed ## Check the Kubernetes manifests for insecure or careless settings.
	rm -rf build/checkov/rendered && mkdir -p build/checkov/rendered
	for overlay in cpu gpu kserve; do \
		PATH="$(BIN):$$PATH" kubectl kustomize deploy/kubernetes/overlays/$$overlay > build/checkov/rendered/$$overlay.yaml || exit 1; \
	done
	$(CHECKOV)/bin/checkov --config-file deploy/kubernetes/checkov.yaml --directory build/checkov/rendered

format: $(VENV)/.dev ## Put code and protos into their canonical form.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

protos: $(VENV)/.dev ## Generate the stubs of protos/ into service/pathlens/wire/.
	$(BIN)/python protos/generate_stubs.py

dashboards: $(VENV)/.dev ## Write the Grafana dashboards of deploy/grafana/ as JSON.
	cd deploy && ../$(BIN)/python -m grafana

figures: $(VENV)/.dev ## Measure the explanations of the fixture networks and write docs/figures.md; takes an hour.
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/science_figures.py
	$(BIN)/python tests/benchmarks/figure_tables.py > build/figures/figures.md
	cp build/figures/figures.md docs/figures.md

cifar: $(VENV)/.dev ## Fit GEN-CNP to the fixtures' ResNet-20 on CIFAR-10 and measure it; takes about half an hour.
	$(BIN)/python tests/benchmarks/two_sided_frontier.py channel-optimal

frontier: $(VENV)/.dev ## The same for both granularities and all ablations, with the plot; takes hours.
	$(BIN)/python tests/benchmarks/two_sided_frontier.py

drift: $(VENV)/.dev ## Compare the pathways of corrupted images with the fit; table and plot in build/drift, in ten minutes.
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/pathway_drift.py

load: $(VENV)/.dev ## Load the served digits classifier until it refuses calls; tables and a plot in build/reliability.
	$(BIN)/python tests/benchmarks/load.py

bench: $(VENV)/.dev ## Measure what predictions and explanations cost; tables and plots in build/bench, in 25 minutes. DEVICE=cuda, ARGS=--quick.
	PYTHONPATH=tests $(BIN)/python -m benchmarks.bench $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

onnx: $(VENV)/.dev ## Read all classifiers of the tests (ARGS: some) as PyTorch's two exporters write them; table, in ten minutes.
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/onnx_matrix.py $(ARGS)

slices: $(VENV)/.dev ## Compare the slice of every class of the fixture networks with its mask; ARGS='--classes 20' takes minutes.
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/slices.py $(ARGS)

image: ## Build the container image with podman or docker; VARIANT=cuda for GPUs, PIP_CONF=FILE for an index of your own.
	@test -n "$(ENGINE)" || { echo "Neither podman nor docker can be found: install one." >&2; exit 1; }
	$(ENGINE) build --file deploy/image/Dockerfile --build-arg VARIANT=$(VARIANT) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null)" $(if $(PIP_CONF),$(PIP_SECRET)) \
		--tag pathlens:$(VERSION)$(if $(filter cuda,$(VARIANT)),-cuda) .

deploy-test: $(VENV)/.dev ## Build the image and try it and the pod with podman; needs root, takes ten minutes. KEEP=FOLDER keeps it.
	$(BIN)/python -m pytest --capture=no --verbose tests/container/trial.py

install: $(VENV)/.dev ## Make the virtual environment with everything that development needs.

clean: ## Remove everything that was built, but not the virtual environment.
	rm -rf build dist model_store/*.mar

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || (rm -rf $(VENV); false)

$(CHECKOV)/.installed: deploy/kubernetes/checkov-constraints.txt
	$(PYTHON) -m venv --clear $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet --constraint deploy/kubernetes/checkov-constraints.txt checkov
	touch $@

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/.demo
