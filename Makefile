# Two commands matter: `make run` and `make test`. Neither needs root, protoc, Docker or a cluster.
CARGO ?= cargo
PYTHON ?= python3
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/release
# What the tests run: built with the same settings as the unit tests, so that nothing is built twice.
DEV := $(TARGET)/debug
VENV ?= .venv
PROGRAMS := --bin kfp-local --bin kfp-pod-init --bin launcher-v2 --bin kfp-compile
ALL := --bin apiserver --bin persistence_agent --bin controller --bin driver --bin kfp-metadata
DEMO ?=
UP ?=
BENCH ?=
FUZZ_SECONDS ?= 600

.PHONY: build binaries dev-binaries run up test test-rust test-e2e conformance lint test-cluster audit bench-controllers bench-api bench-local bench-compiler bench-launcher fuzz-compiler fuzz-api dist clean help

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | column -t -s "$$(printf '\t')"

build: ## Build kfp-local, the launcher and the compiler in release mode
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust 1.94 or newer (https://rustup.rs)"; exit 1; }
	$(CARGO) build --release --locked $(PROGRAMS)

binaries: ## Build every program in release mode
	$(CARGO) build --release --locked $(PROGRAMS) $(ALL)

run: build ## Start the platform, run the bundled ML pipeline to its end, print what it made
	$(BIN)/kfp-local demo $(DEMO)

up: build ## Serve until interrupted
	$(BIN)/kfp-local up $(UP)

test: test-rust test-e2e ## All tests

test-rust:
	$(CARGO) test --locked --workspace

$(VENV)/.ready: tests/requirements.txt
	$(PYTHON) -m venv $(VENV) || { echo "cannot make a virtual environment: on Debian or Ubuntu install python3-venv"; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

dev-binaries:
	$(CARGO) build --locked --workspace --bins

test-e2e: dev-binaries $(VENV)/.ready ## Tests of the running platform with the stock kfp SDK
	BIN=$(abspath $(DEV)) $(VENV)/bin/python -m pytest -q tests/e2e

test-cluster: ## Controllers, recurring runs, pipelines as objects against a real Kubernetes API: that of KUBECONFIG, else a private one
	tests/cluster/run.sh sh -ec '$(CARGO) test --locked --no-fail-fast -p kfp-test-cluster -p kfp-tests -p kfp-scheduledworkflow -p kfp-persistence-agent; $(CARGO) test --locked -p kfp-apiserver --test pipelines_in_cluster'

bench-controllers: ## The two controllers with 10,000 objects each: punctuality, lag, memory
	$(CARGO) build --release --locked --bin controller --bin persistence_agent
	$(CARGO) run --release --locked -p kfp-test-cluster --example bench_controllers -- $(BIN)/controller $(BIN)/persistence_agent

fuzz-compiler: ## Feed the compiler random files for ten minutes; needs cargo-fuzz and a C++ compiler
	mkdir -p crates/compiler/fuzz/corpus
	cd crates/compiler && RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none package fuzz/corpus ../../tests/pipelines -- -dict=fuzz/tokens.dict -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=30

fuzz-api: ## Feed transcoder, filters and page tokens random input for ten minutes each; needs cargo-fuzz and a C++ compiler
	for target in transcoder lists; do (cd crates/apiserver && RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=30) || exit 1; done

bench-compiler: ## Time and peak memory of the compiler
	$(CARGO) bench --locked -p kfp-compiler --bench compile
	$(CARGO) run --locked --release -p kfp-compiler --example peak_memory

conformance: dev-binaries $(VENV)/.ready ## The reference pipelines; KFP_CONFORMANCE_DIR names their folder
	BIN=$(abspath $(DEV)) VENV=$(abspath $(VENV)) tests/conformance.sh

lint: ## Formatting and clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

audit: ## Licences, advisories and sources of all dependencies; needs cargo-deny
	for path in . crates/apiserver/fuzz crates/compiler/fuzz; do $(CARGO) deny --manifest-path $$path/Cargo.toml --config deny.toml check --hide-inclusion-graph || exit 1; done

bench-local: build $(VENV)/.ready ## Overhead per task and peak memory, beside kfp.local's SubprocessRunner; BENCH="wide runs python memory" adds cases
	BIN=$(abspath $(BIN)) $(VENV)/bin/python tests/bench_local.py $(BENCH)

bench-api: ## Lists and reads over 200,000 runs on each database; BENCH="sqlite --runs 1000000" chooses others
	$(CARGO) run --locked --release -p kfp-apiserver --example bench_api -- $(BENCH)

dist: $(TARGET)/dist/launcher-v2 ## Small, optimised programs for images; the launcher, which runs in users' images, is static
	$(CARGO) build --locked --profile dist $(subst --bin launcher-v2,,$(PROGRAMS)) $(ALL)

# Static against musl: glibc's resolver would load libraries of whatever image it runs in. At a fixed address, so that
# nothing has to be corrected before the first instruction.
MUSL := $(shell uname -m)-unknown-linux-musl
$(TARGET)/dist/launcher-v2: FORCE
	rustup target add $(MUSL)
	RUSTFLAGS="$$RUSTFLAGS -C relocation-model=static" CC_$(subst -,_,$(MUSL))=$${CC:-cc} $(CARGO) build --locked --profile dist --target $(MUSL) -p kfp-launcher --bin launcher-v2
	install -D $(TARGET)/$(MUSL)/dist/launcher-v2 $@

bench-launcher: $(TARGET)/dist/launcher-v2 ## Size, start, memory and throughput of the static launcher
	LAUNCHER=$(abspath $(TARGET)/dist/launcher-v2) $(CARGO) bench --locked -p kfp-launcher --bench transfer

FORCE:

clean: ## Remove build products
	$(CARGO) clean
	rm -rf $(VENV)
