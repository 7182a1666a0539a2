# make demo and make test set up what they need; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := docker/requirements/dev.txt

.PHONY: help setup demo test parity browser full-disk lint pipeline lock tiny-checkpoint benchmark-step benchmark-3b clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

setup: $(VENV)/.installed ## Create .venv with the locked, hashed dependencies and this project

$(VENV)/.installed: $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11 to 3.13 is needed, found $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

demo: setup ## Run the whole DAG on the embedded checkpoint and real digits (runs/demo)
	$(BIN)/paligemma demo

test: setup ## Run the tests
	$(BIN)/pytest

browser: setup ## Test the pages in Chromium, which has to be installed (apt-get install chromium)
	$(BIN)/pytest tests/browser

full-disk: setup ## Test on a disk that is full, which needs root to mount one
	$(BIN)/pytest tests/disk

parity: setup ## Compare with transformers on torch, both of which this installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[parity]'
	$(BIN)/pytest tests/parity/test_transformers.py

lint: setup ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

pipeline: setup ## Compile pipeline.yaml
	$(BIN)/paligemma pipeline compile

lock: setup ## Resolve the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --extra dev pyproject.toml --output-file $(LOCK)

tiny-checkpoint: setup ## Pretrain the embedded tiny checkpoint anew (about 20 minutes)
	$(BIN)/python -m pipelines.demo.pretrain --output shared/paligemma/checkpoints/embedded/tiny

benchmark-step: setup ## Time a training step against transformers and keras-hub (makes their environments; needs g++)
	$(BIN)/python tests/benchmarks/step.py

benchmark-3b: setup ## Take training steps of the 3B model with random weights (12 GiB of memory, 6 GiB of disk)
	$(BIN)/python tests/benchmarks/step_3b.py

clean: ## Remove the environment and every run
	rm -rf $(VENV) runs
