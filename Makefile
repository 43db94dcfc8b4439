SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
OUT ?= out
CLUSTER ?= default
NODE_NAME ?= default
TESTS ?= tests/unit tests/controller tests/adapters tests/chart tests/argocd tests/security tests/integration
export PYTHONPATH := operator:.

help: ## Print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@echo "Installing the locked Python packages into $(VENV) (about a minute the first time)" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Funicular needs Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --require-hashes -r requirements/dev.txt
	@$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

setup: $(VENV)/.installed ## Install the Python packages (every other target does it too)

binaries: setup ## Find or build Kubernetes, etcd, Prometheus, Helm, Argo CD and a node's parts (18 to 40 minutes on two cores, once)
	@$(RUN) -m hack.cluster binaries --all

demo: setup ## Run the ramp's two stories on real parts, live, with a report at the end (OUT=dir, REGRESSION=errors|latency|thumbs, NODE=real)
	@$(RUN) -m hack.demo --out $(OUT) $(if $(REGRESSION),--regression $(REGRESSION)) $(if $(NODE),--node $(NODE))

test: setup ## Run all tests that need no node: unit, controller, adapters, chart, Argo CD's scripts, attacks, integration on real parts
	@$(RUN) -m hack.cluster binaries
	@$(RUN) -m pytest $(TESTS)

e2e: binaries ## Install, ramp, upgrade and break it on a real node with real pods and a real Argo CD; needs root (OUT=dir, E2E=tests)
	@$(RUN) -m pytest $(or $(E2E),tests/e2e) --out $(OUT)

check: setup ## Lint, types, import contracts, drift of generated files
	@test ! -e operator/__init__.py -a ! -e operator/operator.py || { echo "operator/ must stay a plain folder: a package there would shadow the standard library" >&2; exit 1; }
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(RUN) -m funicular.api.crd --check
	@$(RUN) -m hack.state_diagram --check
	@$(RUN) -m hack.embed_example --check
	@$(RUN) -m hack.dashboards --check

break-rules: setup ## Break each rule of the ramp once, in a copy, and show which test notices
	@$(RUN) -m hack.break_rules

generate: setup ## Write the generated files: the CRD, the README's diagram and example, dashboards, kustomization
	@$(RUN) -m funicular.api.crd
	@$(RUN) -m hack.state_diagram
	@$(RUN) -m hack.embed_example
	@$(RUN) -m hack.dashboards
	@$(RUN) -m hack.chart

chart: setup ## Write what is made from the chart: charts/kustomize, the table of values in its README
	@$(RUN) -m hack.chart

play: setup ## Funicular with simulated providers and users, to try policies of your own, until Ctrl-C
	@$(RUN) -m hack.playground

bench: setup ## Compare with plain Envoy and LiteLLM in one run, and time reverts (OUT=dir)
	@$(RUN) -m hack.bench --out $(OUT)

cluster: setup ## Start a real control plane, a process node and Prometheus here; prints the KUBECONFIG line (CLUSTER=name)
	@$(RUN) -m hack.cluster up --name $(CLUSTER)

cluster-down: setup ## End what `make cluster` started
	@$(RUN) -m hack.cluster down --name $(CLUSTER)

images: setup ## Build the container images from Debian's packages, without an engine (OUT=dir; Debian 12)
	@$(RUN) -m hack.image build --out $(OUT)

node: setup ## Start a real node with real pods here, as root; prints the KUBECONFIG line (NODE_NAME=name)
	@$(RUN) -m hack.node up --name $(NODE_NAME)

node-down: setup ## End what `make node` started
	@$(RUN) -m hack.node down --name $(NODE_NAME)

audit: setup ## Known vulnerabilities of the locked packages, and the code's security rules
	@$(RUN) -m hack.image audit

lock: setup ## Pin the dependencies again, with hashes
	@$(VENV)/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 pyproject.toml -o requirements/runtime.txt
	@$(VENV)/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 --extra dev pyproject.toml -o requirements/dev.txt
	@$(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' | $(VENV)/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 --constraint requirements/dev.txt - -o requirements/build.txt

clean: ## Remove the virtual environment and everything that runs left behind
	rm -rf $(VENV) .run out .pytest_cache .mypy_cache .ruff_cache

.PHONY: audit images help setup binaries play demo test e2e check break-rules generate chart bench cluster cluster-down node node-down lock clean
