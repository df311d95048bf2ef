# Two commands are enough: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODES ?=
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# The stamp stands for "what the lock file names is installed"; it is made again when either file changes.
$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "ringkv needs Python 3.11 or newer; this is %d.%d (choose one with make PYTHON=...)" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked dependencies into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q cluster kvstore
	@touch $@

.PHONY: install
install: $(VENV)/installed ## make .venv and install the locked dependencies

.PHONY: run
run: $(VENV)/installed ## start a 3-node cluster on loopback with the cities data (NODES=5: of 5); Ctrl-C stops it
	@$(BIN)/kvstore up $(if $(NODES),--nodes $(NODES)) --dir var --demo

.PHONY: test
test: $(VENV)/installed ## run the whole test suite
	@$(BIN)/python -m pytest -q -n 2 --dist loadgroup

.PHONY: lint
lint: $(VENV)/installed ## ruff, strict types, and the rule that cluster/ is pure
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/installed ## put the source into its standard form
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

# What only measuring needs: clients of other stores, plots, py-spy. Tests and nodes go without.
$(VENV)/installed-bench: requirements-bench.lock $(VENV)/installed
	@echo "installing what measuring needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

.PHONY: bench
bench: $(VENV)/installed-bench ## compare with Redis Cluster, etcd and memcached, into docs/benchmarks
	@$(BIN)/python -m scripts.compare $(ARGS)

.PHONY: bench-quick
bench-quick: $(VENV)/installed-bench ## the same in three minutes, rougher, into var/bench-quick
	@$(BIN)/python -m scripts.compare --part main --part bulk --rounds 3 --seconds 0.3 --keys 10000 --bulk-keys 50000 --out var/bench-quick $(ARGS)

.PHONY: bench-own
bench-own: $(VENV)/installed ## measure a real 3-node cluster alone, phase by phase
	@$(BIN)/python scripts/bench.py $(ARGS)

.PHONY: bench-failover
bench-failover: $(VENV)/installed ## measure what clients notice when a node dies, freezes or returns
	@$(BIN)/python -m scripts.bench_failover

.PHONY: bench-membership
bench-membership: $(VENV)/installed ## measure what clients notice while nodes join and leave
	@$(BIN)/python -m scripts.bench_membership $(if $(KEYS),--keys $(KEYS)) $(if $(PAGE),--page $(PAGE))

.PHONY: bench-overload
bench-overload: $(VENV)/installed ## measure five times the load that saturates, and a kill in it
	@$(BIN)/python -m scripts.bench_overload

.PHONY: bench-gossip
bench-gossip: $(VENV)/installed ## the tables of docs/gossip.md: gossip by cluster size, in virtual time
	@$(BIN)/python -m scripts.bench_gossip

.PHONY: bench-placement
bench-placement: $(VENV)/installed ## the tables of docs/decisions/0002: balance and movement by cluster size
	@$(BIN)/python -m scripts.placement_table

.PHONY: bench-slots
bench-slots: $(VENV)/installed ## few slots or many: docs/decisions/0013
	@$(BIN)/python -m scripts.bench_slots $(ARGS)

SEEDS ?= 0:200
.PHONY: simulate
simulate: $(VENV)/installed ## whole clusters in virtual time from seeds: make simulate SEEDS=0:1000
	@$(BIN)/python -m tests.simulation.simulate $(SEEDS) $(if $(SHRINK),--shrink) $(if $(LOG),--log $(LOG))

.PHONY: plants
plants: $(VENV)/installed ## plant each bug of tests/simulation and count seeds until it is noticed
	@$(BIN)/python -m tests.simulation.plants $(PLANTS)

SEED ?= 1
.PHONY: nemesis
nemesis: $(VENV)/installed ## hurt real processes under load: make nemesis SEED=1 SECONDS=60 (or OPERATIONS=1000000)
	@$(BIN)/python -m tests.nemesis.nemesis --seed $(SEED) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(PROXIES),--proxies)

INPUTS ?= 100000
.PHONY: fuzz
fuzz: $(VENV)/installed ## inputs that were valid once for every parser: make fuzz INPUTS=1000000 SEED=1
	@$(BIN)/python -m tests.fuzz.fuzz --inputs $(INPUTS) --seed $(SEED) $(TARGETS)

.PHONY: bench-stages
bench-stages: $(VENV)/installed-bench ## where an operation's processor time goes
	@$(BIN)/python -m scripts.bench_stages

.PHONY: bench-page
bench-page: $(VENV)/installed-bench ## renew the figures of docs/benchmarks.md (needs wrk, quiet)
	@$(BIN)/python scripts/bench.py --page docs/benchmarks.md
	@$(BIN)/python -m scripts.bench_stages --page docs/benchmarks.md

.PHONY: lock
lock: ## renew both lock files after a change of pyproject.toml (needs uv)
	@uv pip compile --quiet --extra dev --generate-hashes --no-emit-index-url --no-header -o requirements.lock pyproject.toml
	@uv pip compile --quiet --extra bench --generate-hashes --no-emit-index-url --no-header -c requirements.lock -o requirements-bench.lock pyproject.toml

.PHONY: clean
clean: ## remove what was built (not the data under var/)
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
