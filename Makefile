# One word per thing a person does. `make` alone lists them.
# Needs make, git, a C compiler and some Python 3 with pip; everything else is found or fetched.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

UV_VERSION := 0.13.9
PUCCINIALIN_VERSION := 0.1.14
TOOLS := .tools
export PATH := $(HOME)/.cargo/bin:$(CURDIR)/$(TOOLS)/uv/bin:$(PATH)
export UV_PYTHON_PREFERENCE ?= managed
PY := .venv/bin/python
RUST_SOURCES := Cargo.toml Cargo.lock $(shell find core-rs -name '*.rs' -o -name Cargo.toml)

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

setup: $(TOOLS)/built.stamp ## find or fetch uv, Python 3.13 and Rust; sync packages; build the core

$(TOOLS)/uv.stamp:
	@mkdir -p $(TOOLS)
	@command -v uv >/dev/null 2>&1 || { \
	  py=$$(command -v python3 || command -v python) || { echo "setup: install Python 3 (any version, with pip), then run make again" >&2; exit 1; }; \
	  "$$py" -m pip install -q --disable-pip-version-check --root-user-action=ignore --target $(TOOLS)/uv uv==$(UV_VERSION) \
	  || { echo "setup: install uv (https://docs.astral.sh/uv) or pip for $$py, then run make again" >&2; exit 1; }; }
	@touch $@

$(TOOLS)/venv.stamp: $(TOOLS)/uv.stamp .python-version
	@uv venv -q --allow-existing --python "$$(cat .python-version)" .venv \
	  || { echo "setup: no Python $$(cat .python-version) found and uv could not fetch one; install it, then run make again" >&2; exit 1; }
	@touch $@

$(TOOLS)/packages.stamp: $(TOOLS)/venv.stamp requirements.lock
	uv pip sync -q --python $(PY) requirements.lock
	@touch $@

$(TOOLS)/built.stamp: $(TOOLS)/packages.stamp pyproject.toml README.md $(RUST_SOURCES)
	@$(MAKE) -s rust
	.venv/bin/maturin develop --uv --release --quiet
	@touch $@

rust:
	@command -v cargo >/dev/null 2>&1 || { \
	  uv tool run puccinialin==$(PUCCINIALIN_VERSION) >/dev/null 2>&1 \
	  || { echo "setup: install Rust 1.88 or newer (https://rustup.rs), then run make again" >&2; exit 1; }; }

lock: $(TOOLS)/uv.stamp ## pin the packages anew
	uv pip compile -q --universal --python-version 3.13 --generate-hashes --no-header --no-emit-index-url --group dev pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.13 --generate-hashes --no-header --no-emit-index-url -c requirements.lock --group bench pyproject.toml -o requirements-bench.lock

test: setup ## run every test (Rust and Python)
	cargo test --release --quiet --workspace --exclude qbtc-python
	$(PY) -m pytest

check: setup ## format, lint, types, import contracts
	cargo fmt --check
	cargo clippy --quiet --release --workspace --all-targets -- -D warnings
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

fix: setup ## format and mend what the tools can
	cargo fmt
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

bench: setup ## benchmarks against strong peers; writes benchmarks/out/report.{json,md}
	uv pip install -q --python $(PY) -r requirements-bench.lock
	$(PY) -m pytest benchmarks -m benchmark -p no:cacheprovider

.PHONY: help setup rust lock test check fix bench demo
