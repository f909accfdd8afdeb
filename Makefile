# `make demo` and `make test` do all set-up on a fresh machine with Python >= 3.11. Nothing else is needed.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
DEMO ?= runs/digits
# jax without an accelerator stays quiet about the ones that it does not find.
export JAX_PLATFORMS ?= cpu
# Large pages for the arrays of XLA on a CPU: fewer page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test soak lint install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(RUN) transfusion.data.prepare --data_dir data digits
	$(RUN) transfusion.train --config configs/digits.py --workdir $(DEMO)
	$(RUN) transfusion.sample --workdir $(DEMO) --prompt 'a handwritten seven' --image $(DEMO)/samples/seven.png
	$(RUN) transfusion.sample --workdir $(DEMO) --caption $(DEMO)/samples/seven.png
	$(RUN) transfusion.evaluate --workdir $(DEMO)
	$(RUN) transfusion.report --workdir $(DEMO)

test: install
	$(RUN) pytest

soak: install
	$(RUN) pytest -m soak -n 0

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) runs .jax_cache
