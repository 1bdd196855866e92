# `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
CONFIG ?= configs/reference.yaml
NAME ?= search
IMAGE_TARGETS ?= gateway cpu trainer
NAMESPACE ?= ponder
RELEASE ?= ponder
VALUES ?=
PONDER_EXTRA ?= cpu
export PONDER_EXTRA TORCH_INDEX_URL

BIN := .venv/bin
NODE_STAMP := tests/node/node_modules/.package-lock.json

.PHONY: help setup demo test lint type bench lock image chart chart-golden manifests cluster

help:
	@echo "make demo         set up, start the server, solve a puzzle, go on serving (ONCE=1: end)"
	@echo "make test         set up and run every test (needs Node.js)"
	@echo "make setup        set .venv up; PONDER_EXTRA=gpu for CUDA"
	@echo "make lint type    ruff; mypy"
	@echo "make bench        a shortened benchmark; NAME=search (default), overhead, ..."
	@echo "make lock         resolve constraints/ anew"
	@echo "make image        build the images and try them; IMAGE_TARGETS=gateway, ..."
	@echo "make chart        lint, render and check the Helm chart (gets helm if there is none)"
	@echo "make chart-golden write the chart's golden files and its README's table anew"
	@echo "make manifests    the chart as YAML for kubectl apply; VALUES=FILE NAMESPACE=ponder"
	@echo "make cluster      a release's life in a real Kubernetes: KUBECONFIG's, or one made here (root)"

setup:
	@$(PYTHON) scripts/setup.py

demo: setup
	@$(BIN)/ponder demo --config $(CONFIG) $(if $(ONCE),--once)

test: setup $(NODE_STAMP)
	$(BIN)/pytest --ignore=tests/chart $(ARGS)

$(NODE_STAMP): tests/node/package-lock.json
	@command -v npm >/dev/null || { echo "make test drives the openai-node SDK: install Node.js and npm" \
		"(on Debian: apt-get install nodejs npm)" >&2; exit 1; }
	npm ci --prefix tests/node --no-audit --no-fund

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

type: setup
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.$(NAME) --quick

lock:
	$(PYTHON) scripts/setup.py --lock

image: setup
	deploy/image/build.sh $(IMAGE_TARGETS)
	$(BIN)/pytest $(wildcard $(IMAGE_TARGETS:%=deploy/image/checks/test_%_image.py))

chart: setup
	$(BIN)/pytest tests/chart $(ARGS)

chart-golden: setup
	$(BIN)/python -m tests.chart.rewrite

# Without hooks: the test pod is helm's.
manifests: setup
	@mkdir -p build
	@"$$($(BIN)/python scripts/chart_tools.py)" template $(RELEASE) helm/ponder --namespace $(NAMESPACE) \
		$(VALUES:%=--values %) --no-hooks > build/manifests.yaml
	@echo "kubectl create namespace $(NAMESPACE); kubectl apply -f build/manifests.yaml"

cluster: setup
	deploy/cluster/run.sh
