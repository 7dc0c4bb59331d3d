# The commands of this project. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup run test train lint format-check export-check contracts notebooks pytest coverage benchmark quality studies serve load serving-benchmark attacks image image-test docs readme report lock clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1
export WANDB_SILENT := true

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): requirements.lock settings.ini setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.8"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

setup: $(READY) ## Set up .venv with exactly the versions of requirements.lock

run: setup ## The main job on rendered decks: data, training, evaluation, bundle, one prediction
	card-classifier train --experiment quick

train: setup ## The main job on the real data set (CARD_CLASSIFIER_DATA, else Kaggle)
	card-classifier data prepare
	card-classifier train --experiment cpu

test: setup lint export-check contracts notebooks pytest coverage ## All checks

lint: setup ## Ruff on package, notebooks and tests, workflow linters; fails, never reformats
	ruff check .
	zizmor --offline --quiet .github/workflows
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

export-check: setup ## Fail when card_classifier/ differs from what the notebooks export
	python tests/export_check.py

contracts: setup ## Which layer may import which
	lint-imports

notebooks: setup ## Run every notebook that is a module
	nbdev_test --n_workers 2 --timing --do_print

pytest: setup ## What a notebook cannot test: processes, faults, fresh installs
	rm -f .coverage .coverage.*
	coverage run --parallel-mode -m pytest

coverage: setup ## Coverage of the exported package, notebooks and pytest together
	coverage combine --quiet
	coverage report --fail-under=85

docs: setup ## Execute the training notebook on the deck and build the site into _docs/ (needs Quarto)
	papermill --cwd . --no-progress-bar nbs/recipes/train.ipynb nbs/recipes/train.ipynb
	nbdev_docs

readme: setup ## Make README.md from nbs/index.ipynb
	jupyter nbconvert --to notebook --execute --inplace --log-level ERROR nbs/index.ipynb
	nbdev_clean --fname nbs/index.ipynb
	python reports/readme.py

report: setup ## Make reports/ from the measured results
	python reports/report.py

benchmark: setup ## Measure times on this machine: nbs/studies/benchmark.ipynb and training_speed.ipynb, in place
	for page in benchmark training_speed; do jupyter nbconvert --to notebook --execute --inplace --log-level ERROR nbs/studies/$$page.ipynb && nbdev_clean --fname nbs/studies/$$page.ipynb || exit 1; done

quality: setup ## Measure the released bundle: the public test split, photographs, robustness (in place; needs the real data)
	card-classifier data prepare
	card-classifier evaluate --split test
	for page in studies/robustness studies/photos model_card; do jupyter nbconvert --to notebook --execute --inplace --log-level ERROR nbs/$$page.ipynb && nbdev_clean --fname nbs/$$page.ipynb || exit 1; done

studies: setup ## What each ingredient of the training brings, what smaller networks cost, how long plain fastai takes: nbs/studies/ingredients.ipynb, smaller.ipynb and beside_fastai.ipynb, in place (the first two need the runs they name; hours)
	for page in ingredients smaller beside_fastai; do jupyter nbconvert --to notebook --execute --inplace --log-level ERROR nbs/studies/$$page.ipynb && nbdev_clean --fname nbs/studies/$$page.ipynb || exit 1; done

serve: setup ## The demo and the API on this machine
	card-classifier serve

HOST ?= http://127.0.0.1:8000
load: setup ## A mix of requests against the service at HOST for a minute; fails on a wrong answer or a slow one
	locust --locustfile tests/load/locustfile.py --host $(HOST) --headless --users 20 --spawn-rate 20 --run-time 60s --only-summary

serving-benchmark: setup ## Our service beside LitServe, BentoML and a bare route (needs wrk): nbs/studies/serving_benchmark.ipynb, in place
	@command -v wrk > /dev/null || { echo "wrk is needed: apt-get install wrk"; exit 1; }
	test -x outputs/peers/bin/python || $(PYTHON) -m venv outputs/peers
	uv pip install --quiet --python outputs/peers/bin/python litserve==0.2.19 bentoml==1.4.39 onnxruntime fastapi uvicorn uvloop httptools python-multipart numpy pillow
	jupyter nbconvert --to notebook --execute --inplace --log-level ERROR nbs/studies/serving_benchmark.ipynb
	nbdev_clean --fname nbs/studies/serving_benchmark.ipynb

attacks: setup ## Try to break the service: nbs/studies/attacks.ipynb, in place
	jupyter nbconvert --to notebook --execute --inplace --log-level ERROR nbs/studies/attacks.ipynb
	nbdev_clean --fname nbs/studies/attacks.ipynb

TARGET ?= serve
image: ## Build the container image (TARGET=train for the training stack), with docker or else buildah
	python3 tests/image/build.py $(TARGET)

image-test: ## Start the built image for real: read-only, unprivileged; size, readiness, health, stopping
	python3 tests/image/check.py $(TARGET)

clean: ## Remove what can be made again, except data/, outputs/ and .venv/
	rm -rf _docs _proc _site build dist htmlcov .coverage .coverage.* .pytest_cache .ruff_cache *.egg-info

lock: ## Resolve requirements.lock anew, for every platform and Python 3.11 to 3.13
	uv pip compile --quiet --universal --python-version 3.11.5 --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock setup.py
