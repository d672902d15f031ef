# Every target prepares what it needs: a fresh clone and Python 3.11 or newer are enough.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
MODELS := arith digits
# The small models of papers: one format each, loaded when they are first asked for.
CATALOGUE := $(sort $(patsubst models/checkpoints/%/card.json,%,$(wildcard models/checkpoints/*/card.json)))

BIN := $(VENV)/bin
PIP_ARGS = -c constraints-cpu.txt -e '.[$(EXTRAS)]'

# uv does not read pip's settings: show it the local wheels. Where there are none, ask it for the CPU build of torch.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
else
export UV_TORCH_BACKEND ?= cpu
endif

# docker, or else podman, which needs to be told to keep the health check.
ENGINE ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo podman)
TARGET ?= cpu
IMAGE := fathom-serving:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export BUILDAH_FORMAT := docker
# As in the image: weights in huge pages, where the kernel lends them to who asks.
serve bench: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
export BUILD_ARGS RUN_ARGS

.PHONY: serve test retrain compiled soak check bench image image-test clean

serve: $(VENV)/.serve $(MODELS:%=repository/%/1/manifest.json) repository/.catalogue
	FATHOM_MODELS_BYTES=1000000000 exec $(BIN)/fathom serve --repository repository --port $(PORT)

# One thread for each of the two processes: more would fight over two cores. A file stays on one of them, and what its
# tests share is made once.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not image and not retrain and not compiled" $(ARGS)

# Every recipe of the catalogue from the start: is the card what comes of it?
retrain: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m retrain tests/contracts/test_catalogue.py $(ARGS)

# Every family as machine code, a minute or more each.
compiled: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m compiled tests/contracts/test_compiled_forms.py $(ARGS)

# An hour of everything at once; SOAK_S=60 for a minute.
SOAK_S ?= 3600
soak: $(VENV)/.dev
	FATHOM_SOAK_S=$(SOAK_S) OMP_NUM_THREADS=1 $(BIN)/pytest -q -s tests/e2e/test_soak.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

bench: $(VENV)/.bench
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

image:
	$(ENGINE) build --target $(TARGET) --tag $(IMAGE)-$(TARGET) $(BUILD_ARGS) .

image-test: $(VENV)/.dev
	ENGINE="$(ENGINE)" $(BIN)/pytest -m image tests/deploy/test_image.py

clean:
	rm -rf $(VENV) repository build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A model is exported once, and again when its checkpoint changes.
.SECONDEXPANSION:
repository/%/1/manifest.json: $$(wildcard models/checkpoints/$$*/*) | $(VENV)/.serve
	$(BIN)/fathom export $* --repository repository --overwrite

repository/.catalogue: $(wildcard models/checkpoints/*/card.json) | $(VENV)/.serve
	$(BIN)/fathom export $(CATALOGUE) --formats onnx --repository repository --overwrite
	touch $@

$(VENV)/.serve: EXTRAS := cpu
$(VENV)/.dev: EXTRAS := cpu,grpc,hub,remote,signed,quantized,train,study,ray,dev
$(VENV)/.bench: EXTRAS := cpu,grpc,hub,remote,signed,quantized,train,study,ray,bench,dev
$(VENV)/.serve $(VENV)/.dev $(VENV)/.bench: pyproject.toml constraints-cpu.txt | $(BIN)/python
	$(BIN)/uv pip install --python $(BIN)/python $(PIP_ARGS) || $(BIN)/pip install $(PIP_ARGS)
	touch $@

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/pip install --quiet uv
