# `make demo` shows the main job on real input, `make test` and `make check` prove the code, `make bench` measures it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# torch comes first and pinned: other packages would pull in a newer one.
TORCH := torch==2.13.0
export OMP_NUM_THREADS ?= 1

.PHONY: help demo export plan verify test test-slurm test-faults test-frameworks test-signing test-notebook test-browser figures test-clients test-vllm fuzz fuzz-coverage test-pythons test-oldest test-newest check docs pages coverage bench bench-gpu format hooks dist tutorial clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{ printf "make %-16s %s\n", $$1, $$2 }'

$(READY): setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) "$(TORCH)"
	$(BIN)/python $(PIP_INSTALL) -e ".[test,check]"
	@touch $@

demo: export PYTHONWARNINGS := ignore
demo: export HF_HUB_DISABLE_PROGRESS_BARS := 1
demo: $(READY) ## write a real Megatron checkpoint, export it, verify it, compare logits (under 3 minutes)
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	@echo "1. megatron-core writes a Qwen2-shaped checkpoint, TP2 PP2, with 4 processes on the CPU"
	@$(BIN)/torchrun --standalone --nproc-per-node 4 -m tests.fixtures.write_checkpoints qwen2 $(DEMO)/checkpoint tp2pp2
	@$(BIN)/python -m tests.fixtures.reference qwen2 $(DEMO)/reference
	@echo "2. pp_export exports it with 4 ranks"
	@$(BIN)/torchrun --standalone --nproc-per-node 4 -m pp_export export configs/demo.yaml
	@echo "3. pp_export proves the folder, offline, and loads it"
	@$(BIN)/python -m pp_export verify --load $(DEMO)/export
	@echo "4. transformers answers as Megatron does"
	@$(BIN)/python -m tests.fixtures.compare_logits $(DEMO)/checkpoint/tp2pp2 qwen2 $(DEMO)/export

test: $(READY) ## run the tests (CPU; tests/gpu is skipped without a GPU)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-faults: $(READY) ## let every filesystem call of an export meet every kind of fault (an hour)
	PP_EXPORT_TEST_ALL_FAULTS=1 $(BIN)/python -m pytest tests/cpu/faults

# Real frameworks are large, so they live beside the tests' own packages, not among them.
FRAMEWORKS := $(VENV)/frameworks
$(FRAMEWORKS)/.ready: tests/frameworks/requirements.txt $(READY)
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(FRAMEWORKS) -r $<
	@touch $@

test-frameworks: $(FRAMEWORKS)/.ready ## run verl's own checkpoint manager through the bridge (installs verl, 500 MB)
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH=$(CURDIR)/$(FRAMEWORKS) $(BIN)/python -m pytest tests/frameworks

SIGNING := $(VENV)/signing
$(SIGNING)/.ready: tests/signing/requirements.txt
	$(PYTHON) -m venv $(SIGNING)
	$(SIGNING)/bin/python $(PIP_INSTALL) -r $<
	@touch $@

test-signing: $(READY) $(SIGNING)/.ready ## sign an export as docs/verify.md says (installs OpenSSF's model-signing)
	PATH="$(CURDIR)/$(SIGNING)/bin:$$PATH" $(CURDIR)/$(BIN)/python -m pytest tests/signing

NOTEBOOK := $(VENV)/notebook
$(NOTEBOOK)/.ready: tests/notebook/requirements.txt $(READY)
	$(BIN)/python $(PIP_INSTALL) --upgrade --target $(NOTEBOOK) -r $<
	@touch $@

test-notebook: $(NOTEBOOK)/.ready ## run docs/live_export.ipynb from its first cell to its last (installs a Jupyter kernel)
	PYTHONPATH=$(CURDIR)/$(NOTEBOOK) $(BIN)/python -m pytest tests/notebook

BROWSER := $(VENV)/browser
$(BROWSER)/.ready: tests/browser/requirements.txt $(READY)
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(BROWSER) -r $<
	@touch $@

test-browser: $(BROWSER)/.ready ## look at the reports' pages in a real browser (as root; installs Debian's chromium, 400 MB)
	.ci/browser-packages
	PYTHONPATH=$(CURDIR)/$(BROWSER) $(BIN)/python -m pytest tests/browser

figures: export PP_EXPORT_FIGURES := 1
figures: test-browser ## the same, and put its pictures of the pages into docs/figures

# Clients share the tests' own packages, but for transformers 4, which lies before those of release 5 when it is asked.
CLIENTS := $(VENV)/clients
$(CLIENTS)/.ready: tests/clients/requirements.txt tests/clients/transformers-4.txt $(READY)
	rm -rf $(CLIENTS)
	$(BIN)/python $(PIP_INSTALL) --no-deps --target $(CLIENTS)/beside -r tests/clients/requirements.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps --target $(CLIENTS)/transformers-4 -r tests/clients/transformers-4.txt
	@touch $@

test-clients: $(CLIENTS)/.ready ## let transformers 4, mergekit, ctranslate2, mlx-lm and others load exports (installs them, 350 MB)
	PP_EXPORT_TEST_CLIENTS=$(CURDIR)/$(CLIENTS) $(BIN)/python -m pytest tests/clients

# torchvision, torchaudio and torchcodec of the index are built for CUDA and don't load beside a torch for the CPU.
VLLM := $(VENV)/vllm
$(VLLM)/.ready: tests/clients/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python $(PIP_INSTALL) -r $<
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-vllm: $(READY) $(VLLM)/.ready ## let vLLM load a model of each kind (for the night: installs it, 3.5 GB, Python 3.11)
	PP_EXPORT_TEST_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest tests/clients/test_vllm.py

FUZZ_INPUTS ?= 10000
FUZZED := tests/cpu/fuzz tests/cpu/verification/test_any_input.py tests/cpu/verification/test_header.py tests/cpu/torch_file/test_opcodes.py
fuzz: $(READY) ## try 10,000 broken inputs of each kind, new ones each time (for the night: hours; FUZZ_INPUTS=N for others)
	PP_EXPORT_FUZZ_INPUTS=$(FUZZ_INPUTS) $(BIN)/python -m pytest --numprocesses 2 --dist load $(FUZZED)

FUZZING := $(VENV)/fuzzing
$(FUZZING)/.ready: $(READY)
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target $(FUZZING) atheris
	@touch $@

FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= json index yaml table header pickle metadata common
fuzz-coverage: $(FUZZING)/.ready ## search for inputs that break a reader, guided by what they reach (installs atheris; FUZZ_SECONDS each)
	for target in $(FUZZ_TARGETS); do \
	  PYTHONPATH=$(CURDIR)/$(FUZZING) $(BIN)/python -m tests.fixtures.coverage_fuzz $$target -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 || exit 1; \
	done

test-slurm: $(READY) ## run the templates of launch/ on a real Slurm of two nodes, on this machine (as root; installs Debian's slurm)
	.ci/slurm-packages
	$(BIN)/python -m pytest tests/slurm

export: $(READY) ## export the job file JOB: make export JOB=job.yaml [ARGS="--dtype bfloat16"]
	$(BIN)/python -m pp_export export "$(JOB)" $(ARGS)

plan: $(READY) ## show what an export of JOB would do: make plan JOB=job.yaml [ARGS="--world-size 8"]
	$(BIN)/python -m pp_export plan "$(JOB)" $(ARGS)

verify: $(READY) ## prove a folder: make verify DIR=/exports/my_run
	$(BIN)/python -m pp_export verify "$(DIR)" $(ARGS)

# The oldest and newest Python, each in an environment of its own. tests/oldest.txt: the lowest versions that setup.py admits.
test-pythons: test-oldest test-newest ## run a selection on Python 3.10 with the lowest packages, and 3.13 with the newest

test-oldest:
	TORCH=$(TORCH) .ci/test-python 3.10 tests/oldest.txt

test-newest:
	TORCH=$(TORCH) .ci/test-python 3.13

check: $(READY) ## lint, format, types, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/cpu/test_floors.py

# The site's generator has an environment of its own: it needs none of the packages here, and none of them needs it.
DOCS := $(VENV)/docs
$(DOCS)/.ready: setup.py
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP_INSTALL) "$$(sed -n 's/.*"\(zensical==[0-9.]*\)".*/\1/p' setup.py)"
	@touch $@

# Pages lie there as they lie here (zensical.toml says why), with what they link to.
SITE_PAGES := build/pages
docs: $(READY) $(DOCS)/.ready ## build the documentation's site, strictly, into build/site
	@rm -rf $(SITE_PAGES) build/site && mkdir -p $(SITE_PAGES)
	@cp --parents -r *.md LICENSE docs launch configs pp_export/schemas/*.json $(SITE_PAGES)
	$(BIN)/python -m tests.fixtures.generated_pages messages $(SITE_PAGES)/docs/messages.md
	$(DOCS)/bin/zensical build --clean --strict

pages: $(READY) ## write the pages that are made of the code: commands, options, Python, JSON, settings
	$(BIN)/python -m tests.fixtures.generated_pages
	$(BIN)/python -m tests.fixtures.settings_page

# Settings are in pyproject.toml: processes that the tests start count too.
coverage: $(READY) ## which lines the tests run, in child processes too; build/coverage/index.html
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report

bench: $(READY) ## measure against the usual converter, cp and a bare exchange (needs 20 GB of disk, about 20 minutes)
	$(BIN)/python -m bench
	$(BIN)/python -m bench.exchange
	$(BIN)/python -m bench.resume
	$(BIN)/python -m bench.consolidate

bench-gpu: $(READY) ## measure exports of a model on a GPU against the machine (skipped without a GPU; under 5 minutes)
	$(BIN)/python -m bench.gpu

format: $(READY) ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(READY) ## run what `make check` runs before each commit (installs pre-commit)
	$(BIN)/python $(PIP_INSTALL) "pre-commit>=3.2"
	$(BIN)/pre-commit install

dist: $(READY) ## build wheel and sources into build/dist (PP_EXPORT_HOME: where the project is published)
	rm -rf build/dist build/lib build/bdist.*
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/dist .
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('build/dist')"

TUTORIAL := build/tutorial
tutorial: dist ## play docs/tutorial.md: install the wheel afresh, run its commands (ARGS="--checkpoint DIR --reference DIR")
	@rm -rf $(TUTORIAL)
	@$(BIN)/python -m tests.fixtures.tutorial build/dist/*.whl $(TUTORIAL) $(ARGS)

clean: ## remove environments and what was built
	rm -rf $(VENV) .venv-* build *.egg-info
