# `make demo` shows the main job on real input, `make test` and `make check` prove the code, `make bench` measures it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-frameworks check bench format clean help

help:
	@echo "make demo    write a real Megatron checkpoint, export it, verify it, compare logits (under 3 minutes)"
	@echo "make test    run the tests (CPU; tests/gpu is skipped without a GPU)"
	@echo "make test-frameworks    run verl's own checkpoint manager through the bridge (installs verl, 500 MB)"
	@echo "make check   lint, types, import floors"
	@echo "make bench   measure against the usual converter and against cp (needs 20 GB of disk, about 15 minutes)"

# torch comes first and pinned: other packages would pull in a newer one.
$(READY): setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,check]"
	@touch $@

demo: export PYTHONWARNINGS := ignore
demo: export HF_HUB_DISABLE_PROGRESS_BARS := 1
demo: $(READY)
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

test: $(READY)
	$(BIN)/python -m pytest

# Real frameworks are large, so they live beside the tests' own packages, not among them.
FRAMEWORKS := $(VENV)/frameworks
$(FRAMEWORKS)/.ready: tests/frameworks/requirements.txt $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(FRAMEWORKS) -r $<
	@touch $@

test-frameworks: $(FRAMEWORKS)/.ready
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH=$(CURDIR)/$(FRAMEWORKS) $(BIN)/python -m pytest tests/frameworks

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/cpu/test_floors.py

bench: $(READY)
	$(BIN)/python -m bench

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
