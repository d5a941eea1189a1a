# Everything a fresh machine needs is one of these; the first one creates .venv and installs the exact pins.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# Beside pip, which says nothing while it unpacks: minutes on a slow machine.
GROWS := while sleep 15 > /dev/null 2>&1 && kill -0 $$$$; do du -sh $(VENV); done & trap "kill $$!" EXIT;

.PHONY: install test test-all test-faults fresh lint demo bench docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Into $(VENV): 2.5 GB (more where pip finds torch for CUDA), in three minutes on two quiet cores"
	$(PYTHON) -m venv $(VENV)
	@echo "1 of 2: torch"
	@$(GROWS) $(PIP) torch
	@echo "2 of 2: the others, and scdgn itself"
	@$(GROWS) $(PIP) -e ".[dev]"
	@touch $@
	@echo "Next: . $(BIN)/activate; scdgn --help"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes with a thread each: much of the tests is waiting, and small networks gain nothing from a second thread.
# Each takes half of the tests in their order, so that a file's fixtures are mostly made once, and then from the other's.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: lint
	$(PYTEST) -m "not long"

test-all: lint
	$(PYTEST)

# The campaigns of docs/reliability.md at their full length: killed, stopped, without disk, fed rubbish. They end with
# the figures that stand there.
test-faults: install
	$(PYTEST) tests/faults tests/security

# `make test` as on a stranger's machine, in the order of SEED or a random one.
fresh:
	tests/fresh.sh $(SEED)

# Simulated islets of four platforms, thirteen types, each training platform with seven of them: from a search of the three
# methods, the plain network beside the adversarial ones, to the registered champion.
demo: install
	mkdir -p demo
	$(BIN)/scdgn simulate demo/islets.h5ad --blocks pancreas1 --cells 1200 --genes 3000
	$(BIN)/scdgn search demo/islets.h5ad --labels-key celltype --batch-key tech --test-batch fluidigmc1 --name islets \
		--method all --trials 8 --confirm 3 --set 'hidden=[32, 64]' --studies demo/studies

bench: install
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.pack
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.startup

# The documentation as a site in build/docs; to read it: python -m http.server --bind 127.0.0.1 -d build/docs
docs: install
	$(PIP) --quiet -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) demo build *.egg-info
