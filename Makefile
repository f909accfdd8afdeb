# `make demo` and `make test` do all set-up on a fresh machine with Python >= 3.11. Nothing else is needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
TRANSFUSION := $(VENV)/bin/transfusion
DEMO ?= runs/digits
CORES ?= $(shell nproc 2>/dev/null || echo 1)
# jax without an accelerator stays quiet about the ones that it does not find.
export JAX_PLATFORMS ?= cpu
# Large pages for the arrays of XLA on a CPU: fewer page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

# Tests whose results are floating-point numbers, and which another processor may therefore compute otherwise.
NUMERIC := $(addprefix tests/, kernels model objectives sampling codecs evaluation sequence test_closeness.py \
  test_oracles.py test_optim.py test_frozen.py test_train.py test_evaluate.py test_sharding.py)
# The part of the tests that takes two minutes: all that is quick, of the files that need no trained run.
CHECK := $(addprefix tests/, model objectives data planning sequence config test_closeness.py test_optim.py \
  running/test_metrics.py running/test_guard.py test_storage.py test_house.py)

.PHONY: demo claims test check portable soak gates lint pages install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/demo
	$(TRANSFUSION) prepare --data_dir data digits
	$(TRANSFUSION) train --config digits --workdir $(DEMO)
	$(TRANSFUSION) sample --workdir $(DEMO) --prompt 'a handwritten seven' --output $(DEMO)/samples/seven.png
	$(TRANSFUSION) sample --workdir $(DEMO) --caption $(DEMO)/samples/seven.png
	$(TRANSFUSION) evaluate --workdir $(DEMO)
	$(TRANSFUSION) report --workdir $(DEMO)

# Without the packages of the tests, which take as much room again.
$(VENV)/demo: pyproject.toml constraints.txt
	test -e $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

# Runs what no claim has run yet, a process per core, and writes the verdicts. It may be stopped; the same command goes on.
claims: install
	$(RUN) transfusion.prepare --data_dir data digits text
	$(RUN) transfusion.claims run --parallel $(CORES) --data_dir data

test: install
	$(RUN) pytest

check: install
	$(RUN) pytest -m 'not slow and not soak' $(CHECK)

# Computes as a processor without these registers would, and on one without them as it is.
portable: portable-SSE4_2 portable-AVX2 portable-AVX512

portable-%: install
	XLA_FLAGS=--xla_cpu_max_isa=$* $(RUN) pytest $(NUMERIC)

soak: install
	$(RUN) pytest -m 'soak and not gates' -n 0

# What compiled programs for GPUs and TPUs must be like. The compilers stay out of the environment of the other tests.
gates: $(VENV)-gpu/installed
	$(VENV)-gpu/bin/python -m pytest -m gates -n 0 tests/planning

$(VENV)-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-gpu/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,plan-gpu,tpu]'
	touch $@

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# The site, in build/site; every warning is an error.
pages: install
	NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --strict

clean:
	rm -rf $(VENV) $(VENV)-gpu build runs .jax_cache
