# make demo, make smoke and make test need nothing but python3 (3.11 or newer) and make: all build on `make setup`.
PYTHON ?= python3
BACKEND ?= torch
BIN := .venv/bin
RUN = $(BIN)/python

.PHONY: setup demo smoke test test-machines test-more test-full crash-test check docs format clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "booth needs Python 3.11 or newer; set PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# The embedded base learns an example subject, with torchbooth or with BACKEND=jax.
demo: setup
	$(RUN) -m $(BACKEND)booth.train --config configs/demo.py --workdir demo/robot-$(BACKEND)
	@echo "Done: before and after in demo/robot-$(BACKEND)/samples/before_after.png, previews beside it," \
		"the pipeline in demo/robot-$(BACKEND)/pipeline"

# Train and sample with both backends: a tiny model with random weights, pictures drawn on the spot.
smoke: setup
	test -d demo/tiny || $(RUN) scripts/make_pipeline.py --size tiny --out demo/tiny
	test -d demo/photos || $(RUN) scripts/draw_photos.py --out demo/photos
	$(RUN) -m torchbooth.train --config configs/smoke.py --workdir demo/smoke-torch
	$(RUN) -m jaxbooth.train --config configs/smoke.py --workdir demo/smoke-jax
	$(BIN)/torchbooth sample --model demo/smoke-torch/pipeline --prompt "a photo of sks robot" \
		--prompt "a photo of robot" --steps 10 --seeds 0 1 --out demo/smoke-torch-samples
	$(BIN)/jaxbooth sample --model demo/smoke-jax/pipeline --prompt "a photo of sks robot" \
		--prompt "a photo of robot" --steps 10 --seeds 0 1 --out demo/smoke-jax-samples
	@echo "Done: pipelines in demo/smoke-*/pipeline, pictures in demo/smoke-*-samples/grid.png"

IN_TWO = -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(RUN) -m pytest $(IN_TWO) -m "not full"

# What compares numbers, as two older processors would compute it.
test-machines: setup
	$(RUN) scripts/check_machines.py --machine avx2 --machine avx512 -- $(IN_TWO) -m "not full" \
		tests/parity tests/booth/test_solvers.py tests/torchbooth/test_memory.py

# Of the full suite as much as fits into MINUTES, what guards the training first.
MINUTES ?= 20
test-more: setup
	$(RUN) -m pytest $(IN_TWO) -m full --minutes $(MINUTES) tests/parity tests/contract tests/torchbooth \
		tests/jaxbooth tests/e2e tests/booth

test-full: setup
	$(RUN) -m pytest

# Half an hour: see docs/reference/reliability.md.
crash-test: setup
	rm -rf runs/crash-test
	$(RUN) scripts/crash_test.py --kills 50 --out runs/crash-test

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The pages as a site in site/, which needs no network to build or to read.
docs: setup
	$(RUN) scripts/make_reference.py
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .cache demo site .mypy_cache .pytest_cache .ruff_cache *.egg-info
