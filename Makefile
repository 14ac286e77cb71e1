# Everything runs in .venv, made on first use. TORCH chooses the build of torch, for example
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
INSTALLED := $(VENV)/installed
VLLM := .venv-vllm
LMMS := .venv-lmms-eval

# For `make wheel`: another toolkit, other architectures, as in
#   make wheel CUDA_HOME=/usr/local/cuda-12.8 VS_KERNELS_CUDA_ARCHS="80 90"
export CUDA_HOME VS_KERNELS_CUDA VS_KERNELS_CUDA_ARCHS

.PHONY: demo bench bench-full test test-all test-vllm test-lmms-eval lint gates sanitize wheel test-wheel clean

demo: $(INSTALLED)  ## prefill with and without selection, on a real photo; what a trained selector keeps
	$(VENV)/bin/python -m bench prefill --rounds 2
	$(VENV)/bin/python -m bench quality --tasks tiles --pictures 200

bench: $(INSTALLED)  ## every suite in 10 to 15 minutes; ends with the path of the report
	$(VENV)/bin/python -m bench all

bench-full: $(INSTALLED)  ## every suite with all sizes and repetitions: hours
	$(VENV)/bin/python -m bench all --full

test: $(INSTALLED)  ## the whole test suite, in two processes
	$(VENV)/bin/python -m pytest -n 2

test-all: $(INSTALLED)  ## every operator test in Triton's interpreter as well: an hour
	$(VENV)/bin/python -m pytest -n 2 --all

test-vllm: $(VLLM)/installed  ## the vLLM plugin, in an environment of its own: Python >= 3.11, 4 GB
	$(VLLM)/bin/python -m pytest tests/serving

test-lmms-eval: $(LMMS)/installed  ## the lmms-eval plugin through its command line, in an environment of its own: 3 GB
	$(LMMS)/bin/python -m pytest tests/test_lmms_eval.py

lint: $(INSTALLED)  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

gates: $(INSTALLED)  ## what the GPU kernels move, launch and take on every architecture; every family against every input
	$(VENV)/bin/python -m bench traffic --check
	$(VENV)/bin/python -m bench compile --check
	$(VENV)/bin/python -m bench families --check

sanitize: $(INSTALLED)  ## the C++ kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	$(MAKE) -C tests/sanitize PYTHON=$(abspath $(VENV))/bin/python -j2 run

wheel: $(INSTALLED)  ## dist/*.whl with the compiled libraries, for every Linux that is not much older
	rm -rf dist build/wheel
	$(VENV)/bin/python -m pip wheel --no-deps -w build/wheel .
	PATH="$(abspath $(VENV))/bin:$$PATH" auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' \
	  -w dist build/wheel/*.whl
	ls -l dist

test-wheel: $(INSTALLED)  ## that wheel in an environment of its own, outside of the checkout
	$(VENV)/bin/python tests/check_wheel.py dist/*.whl

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(TORCH)
	touch $@

$(INSTALLED): $(VENV)/torch pyproject.toml setup.py $(wildcard build_backend/*.py csrc/*/* csrc/*/*/*)
	$(VENV)/bin/python -m pip install -e '.[demo,dev]'
	touch $@

$(VLLM)/installed: $(addprefix tests/serving/,requirements.txt torchvision_ops.py) pyproject.toml setup.py \
  $(wildcard build_backend/*.py csrc/*/* csrc/*/*/*)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install $(TORCH)
	$(VLLM)/bin/python -m pip install --no-deps -r tests/serving/requirements.txt
	$(VLLM)/bin/python tests/serving/torchvision_ops.py \
	  "$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(VLLM)/bin/python -m pip install --no-deps -e .
	touch $@

$(LMMS)/installed: $(addprefix tests/,lmms_eval_requirements.txt serving/torchvision_ops.py) pyproject.toml setup.py \
  $(wildcard build_backend/*.py csrc/*/* csrc/*/*/*)
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/python -m pip install $(TORCH)
	$(LMMS)/bin/python -m pip install --no-deps -r tests/lmms_eval_requirements.txt
	$(LMMS)/bin/python tests/serving/torchvision_ops.py \
	  "$$($(LMMS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(LMMS)/bin/python -m pip install --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) $(LMMS) build dist out *.egg-info vs_kernels/*.so
