# The commands of this project. `make` alone lists them. They work with GNU make and bash on Linux, macOS and
# Windows (Git Bash).
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup hooks run train check test lint ruff commit-checks file-checks clean-notebooks export-check contracts rhythm notebooks \
	pytest coverage slow-notebooks slow-tests real-parts oldest newest lab docs docs-check docs-changed training-page readme report report-check report-page training-report data-pull data-tests data-report promoted gate \
	benchmark quality studies tables serve load serving-benchmark attacks image image-test image-bundle-test image-file image-push promoted-bundle cloud-deploy space space-push clean lock \
	audit-dependencies sbom dist changelog-check release

VENV := .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
ANY_PYTHON := python
SCRIPTS := Scripts
else
PYTHON ?= python3.11
ANY_PYTHON := python3
SCRIPTS := bin
endif
BIN := $(VENV)/$(SCRIPTS)
READY := $(VENV)/.ready
# A make of Windows itself separates the folders of PATH by semicolons, one that comes with Git Bash by colons
PATH_SEPARATOR := $(if $(findstring ;,$(PATH)),;,:)
export PATH := $(CURDIR)/$(BIN)$(PATH_SEPARATOR)$(PATH)
export DVC_NO_ANALYTICS := 1
export WANDB_SILENT := true
# Without bytecode each process compiles the training stack anew, for longer than it takes to import it
unexport PYTHONDONTWRITEBYTECODE

# Executes notebooks in place and cleans them: $(call execute,nbs/a.ipynb nbs/b.ipynb)
execute = for page in $(1); do jupyter nbconvert --to notebook --execute --inplace --log-level ERROR $$page && nbdev_clean --fname $$page || exit 1; done

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-17s %s\n", $$1, $$2}'

$(READY): requirements.lock settings.ini setup.py pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.8"
	$(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)

setup: $(READY) ## Set up .venv with exactly the versions of requirements.lock

hooks: setup ## Check commits, and merge notebooks cell by cell, in this clone of the repository
	pre-commit install
	git config --local merge.nbdev-merge.name "notebooks, cell by cell"
	git config --local merge.nbdev-merge.driver "$(BIN)/nbdev_merge %O %A %B %P"

EXPERIMENT ?= quick
run: setup ## The main job on rendered decks: data, training, evaluation, bundle, one prediction
	card-classifier train --experiment $(EXPERIMENT) $(OVERRIDES)

train: setup ## The main job on the real data set (CARD_CLASSIFIER_DATA, else Kaggle)
	card-classifier data prepare
	card-classifier train --experiment cpu

check: setup ruff export-check contracts rhythm docs-changed ## What to run while editing, in about a minute

test: setup lint commit-checks export-check contracts rhythm report-check docs-check notebooks pytest coverage ## All checks

lint: setup ruff ## Ruff, and linters of the workflows; fails, never reformats
	zizmor --offline --quiet .github
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	check-jsonschema --builtin-schema vendor.github-actions .github/actions/*/action.yml
	check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	check-jsonschema --builtin-schema vendor.cloudbuild deploy/cloud/cloudbuild.yaml

commit-checks: setup ## What `make hooks` checks at a commit, on all files
	pre-commit run --all-files --show-diff-on-failure

ruff: setup ## Ruff on notebooks and tests; and names that the package uses and only a hidden cell imports
	ruff check .
	ruff check --isolated --select F821,F822,F823 --target-version py311 card_classifier

file-checks: setup ## No private keys, markers of conflicts or large files in git; files end with one newline
	git ls-files -z | xargs -0 -n 2000 detect-private-key
	git ls-files -z | xargs -0 -n 2000 check-merge-conflict --assume-in-merge
	git ls-files -z ':!card_classifier/released' | xargs -0 -n 2000 check-added-large-files --enforce-all --maxkb=3000
	git ls-files -z ':!card_classifier' ':!data.dvc' ':!*.ipynb' | xargs -0 grep -IlZ '' | xargs -0 -n 2000 end-of-file-fixer

clean-notebooks: setup ## Remove from notebooks what changes with every run
	nbdev_clean

export-check: setup ## Fail when card_classifier/ differs from what the notebooks export
	python tests/export_check.py

contracts: setup ## Which room may import which
	lint-imports

rhythm: setup ## Small cells, each with its demonstration: what a notebook of this project looks like
	python tests/rhythm_check.py

# Two workers on two cores; WORKERS=0 runs all tests in one process. Each has one thread for its numbers, or they would
# wait for each other; a file's tests stay together, because they share what is slow to set up.
WORKERS ?= 2
IN_WORKERS = OMP_NUM_THREADS=1 coverage run --parallel-mode -m pytest --numprocesses $(WORKERS)
notebooks: setup ## Run every notebook: modules with the exported package, pages as they are
	rm -f .coverage .coverage.*
	$(IN_WORKERS) --dist worksteal tests/test_notebooks.py

pytest: setup ## What a notebook cannot test: processes, faults, fresh installs
	$(IN_WORKERS) --dist loadfile --no-loadscope-reorder --ignore tests/test_notebooks.py

coverage: setup ## Coverage of the exported package, notebooks and pytest together
	coverage combine --quiet
	mkdir -p outputs && coverage xml --quiet -o outputs/coverage.xml
	test -z "$${GITHUB_STEP_SUMMARY:-}" || coverage report --format=markdown >> "$$GITHUB_STEP_SUMMARY"
	coverage report --fail-under=85

SLOW_TESTS ?= tests
slow-tests: setup ## The tests that `make test` leaves out because they take long
	pytest -m slow $(SLOW_TESTS)

real-parts: ## On Debian and Ubuntu: install what tests of alerts and databases start, where it is allowed
	sudo apt-get update --quiet
	sudo apt-get install --quiet --yes --no-install-recommends prometheus prometheus-alertmanager libfaketime postgresql

SLOW ?= nbs
slow-notebooks: setup ## The cells that `make test` leaves out because they take long
	nbdev_test --path $(SLOW) --flags slow --n_workers 2 --timing --do_print

EXTRAS ?= serve train parquet heic watch video
oldest: setup ## Test with the oldest versions that settings.ini allows, in an environment of their own
	python tests/ranges.py oldest $(EXTRAS)

newest: setup ## The same with the newest
	python tests/ranges.py newest $(EXTRAS)

lab: setup ## JupyterLab on nbs/; saved notebooks are cleaned
	nbdev_trust
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" jupyter lab --notebook-dir nbs

docs: docs-check ## Build the site into _docs/, where Quarto is installed; without it, process and check it
	python reports/site_build.py --processed

docs-check: setup ## Process every page of the site and check its links and pictures; needs no Quarto
	python tests/docs_check.py

docs-changed: setup ## The same for pages that have changed
	python tests/docs_check.py --changed

training-page: setup ## Put the newest run's executed notebook into the docs, where the training recipe stands
	python reports/training_page.py

readme: setup ## Make README.md from nbs/index.ipynb
	$(call execute,nbs/index.ipynb)
	python reports/readme.py

report: setup ## Make reports/ from the measured results
	python reports/report.py

report-check: setup ## What the answers of the report lack
	python reports/report.py check

report-page: setup ## The report as a page, in outputs/
	python reports/report.py html

data-pull: setup ## Get the data that data.dvc names from this machine's cache or the DVC remote
	card-classifier data pull

DATA_TESTS ?= tests/test_shards.py tests/test_audit.py tests/test_splits.py tests/test_data_versions.py
data-tests: setup ## The tests of what reads and packs images
	pytest $(DATA_TESTS)

data-report: setup ## What data/ has changed since the commit BEFORE, and the newest run on it
	python .github/scripts/data_report.py

promoted: setup ## Get the bundle that a tag or an event put into production, and the one before it, into outputs/promoted/
	python .github/scripts/promotion.py

RECIPE ?= release
release: setup ## Make the bundle of a recipe, from raw images to its figures: RECIPE, a file in configs/recipes/ (hours; deck: minutes)
	dvc repro quality@$(RECIPE)

CANDIDATE ?= outputs/promoted/candidate
AGAINST ?= outputs/promoted/before
gate: setup ## Judge the bundle CANDIDATE beside the bundle AGAINST
	card-classifier gate $(CANDIDATE) --against $(AGAINST)

BASE ?= outputs/base
training-report: setup ## What this checkout's newest run changes beside the one of the checkout BASE
	python .github/scripts/training_report.py $(BASE)

benchmark: setup ## Measure times on this machine: nbs/studies/benchmark.ipynb and training_speed.ipynb, in place
	$(call execute,nbs/studies/benchmark.ipynb nbs/studies/training_speed.ipynb)

quality: setup ## Measure the released bundle: the public splits, photographs, robustness, drift (in place; needs the real data)
	card-classifier data prepare
	card-classifier evaluate --split valid --keep
	card-classifier evaluate --split test --keep
	$(call execute,nbs/studies/robustness.ipynb nbs/studies/photos.ipynb nbs/studies/hands.ipynb nbs/studies/decks.ipynb nbs/studies/refusals.ipynb nbs/studies/drift.ipynb nbs/model_card.ipynb)

studies: setup ## What each ingredient of the training brings, what smaller networks cost, how long plain fastai takes, in place (hours; the first two need the runs that they name)
	$(call execute,nbs/studies/ingredients.ipynb nbs/studies/smaller.ipynb nbs/studies/beside_fastai.ipynb)

# Those that no other command runs; the last one shows the sweep that lies in outputs/
OTHER_STUDIES := $(addsuffix .ipynb,$(addprefix nbs/studies/,audit augmentation container processes scale sweep))
tables: setup quality benchmark serving-benchmark attacks studies ## Measure every table of this repository: all of these, the other studies and the report, in place (a day; needs what each of them needs)
	$(call execute,$(OTHER_STUDIES))
	$(MAKE) report

serve: setup ## The demo and the API on this machine
	card-classifier serve

HOST ?= http://127.0.0.1:8000
load: setup ## A mix of requests against the service at HOST for a minute; fails on a wrong answer or a slow one
	locust --locustfile tests/load/locustfile.py --host $(HOST) --headless --users 20 --spawn-rate 20 --run-time 60s --only-summary

PEERS := outputs/peers/$(SCRIPTS)/python
serving-benchmark: setup ## Our service beside LitServe, BentoML and a bare route (needs wrk): nbs/studies/serving_benchmark.ipynb, in place
	@command -v wrk > /dev/null || { echo "wrk is needed: apt-get install wrk"; exit 1; }
	test -x $(PEERS) || $(PYTHON) -m venv outputs/peers
	uv pip install --quiet --python $(PEERS) litserve==0.2.19 bentoml==1.4.39 onnxruntime fastapi uvicorn uvloop httptools python-multipart numpy pillow
	$(call execute,nbs/studies/serving_benchmark.ipynb)

attacks: setup ## Try to break the service: the notebooks nbs/studies/attacks*.ipynb, in place
	$(call execute,nbs/studies/attacks.ipynb)
	$(call execute,nbs/studies/attacks_decoding.ipynb)
	$(call execute,nbs/studies/attacks_server.ipynb)

TARGET ?= serve
image: ## Build the container image (TARGET=train for the training stack), with docker or else buildah
	$(ANY_PYTHON) tests/image/build.py $(TARGET)

image-test: ## Start the built image for real: read-only, unprivileged; size, readiness, health, stopping
	$(ANY_PYTHON) tests/image/check.py $(TARGET)

image-file: ## Write the built image to outputs/image/image.tar, which can be scanned, moved and pushed
	$(ANY_PYTHON) tests/image/push.py save $(TARGET)

image-push: ## Push outputs/image/image.tar to ARTIFACT_REGISTRY (host/project/repository); a login must be there
	$(ANY_PYTHON) tests/image/push.py push

promoted-bundle: ## Put outputs/promoted/candidate where the image takes its bundle from (make promoted gets it)
	test -f outputs/promoted/candidate/bundle.json
	rm -rf card_classifier/released && cp -r outputs/promoted/candidate card_classifier/released

IMAGE ?=
CLOUD ?=
cloud-deploy: setup ## Deploy IMAGE on Cloud Run: without traffic, tested, a tenth of the traffic, compared, then on or back
	card-classifier cloud deploy --yes --image "$(IMAGE)" $(CLOUD)

space: ## Lay out the Hugging Face Space in outputs/space
	$(ANY_PYTHON) .github/scripts/space.py make

space-push: ## Send outputs/space to the Space SPACE (OWNER/NAME); HF_TOKEN may write to it
	$(ANY_PYTHON) .github/scripts/space.py push

BUNDLE ?= card_classifier/released
image-bundle-test: setup ## Start the built image with the bundle BUNDLE and compare its answers with the bundle's own
	python tests/image/bundle.py $(BUNDLE)

clean: ## Remove what can be made again, except data/, outputs/ and .venv/
	rm -rf _docs _proc _site build dist htmlcov .coverage .coverage.* .pytest_cache .ruff_cache *.egg-info

lock: ## Resolve requirements.lock anew, with checksums, for every platform and Python 3.11 to 3.13
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11.5 --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.lock setup.py

AUDIT ?= --vulnerability-service osv
audit-dependencies: setup ## Known vulnerabilities of the versions in requirements.lock (needs a network)
	pip-audit --requirement requirements.lock --no-deps --disable-pip --progress-spinner off --strict $(AUDIT)

sbom: setup ## The bill of materials of requirements.lock, as CycloneDX, into outputs/sbom.cdx.json
	mkdir -p outputs && cyclonedx-py requirements --output-reproducible --output-file outputs/sbom.cdx.json requirements.lock

dist: setup ## The package as it goes to PyPI, into dist/
	rm -rf dist && uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist
	python tests/dist_check.py

changelog-check: setup ## Whether TAG (v1.2.0) may be released: one version everywhere, and a changelog that says what changed
	python .github/scripts/changelog.py
