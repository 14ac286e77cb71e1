# Everything runs in .venv, made on first use. TORCH chooses the build of torch, for example
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
INSTALLED := $(VENV)/installed

.PHONY: demo test lint sanitize clean

demo: $(INSTALLED)  ## prefill with and without selection, on a real photo; what a trained selector keeps
	$(VENV)/bin/python -m bench prefill
	$(VENV)/bin/python -m bench quality --tasks tiles --pictures 200

test: $(INSTALLED)  ## the whole test suite
	$(VENV)/bin/python -m pytest

lint: $(INSTALLED)  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

sanitize: $(INSTALLED)  ## the C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(MAKE) -C tests/sanitize PYTHON=$(abspath $(VENV))/bin/python -j2 run

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(TORCH)
	touch $@

$(INSTALLED): $(VENV)/torch pyproject.toml setup.py $(wildcard build_backend/*.py csrc/*/* csrc/*/*/*)
	$(VENV)/bin/python -m pip install -e '.[demo,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist out *.egg-info vs_kernels/*.so
