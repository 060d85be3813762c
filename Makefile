# Everything a person does with this repository. `make help` lists it.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Outside the clone, so that a fresh clone does not compile everything again.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/weir/target
export PATH := $(HOME)/.cargo/bin:$(PATH)

WEIR := $(CARGO_TARGET_DIR)/debug/weir

# What `make demo` builds: the hot dependencies and our hot crates are fully optimised there too. `BENCH_PROFILE=perf`
# optimises everything, like a release without link-time optimisation, and compiles all dependencies once more.
BENCH_PROFILE ?= dev
BENCH ?=

# What `make chaos` is given, as options of the program.
CHAOS_OPTIONS = $(if $(CONTROL),--control "$(CONTROL)",$(if $(MINUTES),--minutes "$(MINUTES)") $(if $(SEED),--seed "$(SEED)")) \
	$(if $(OUT),--out "$(OUT)")

.PHONY: help prerequisites build demo up down status test test-long lint fmt bench bench-embed bench-outage sanitize miri chaos clean-data docs deny

help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo CORPUS=DIR    the same with your own folder of documents"
	@echo "  make bench BENCH=relay  one benchmark only"
	@echo "  make chaos MINUTES=30 SEED=7 OUT=chaos.json"
	@echo "  make chaos CONTROL=all  succeeds when the harness notices each mechanism that is switched off"
	@echo "  Build outputs: $(CARGO_TARGET_DIR)"

prerequisites: ## Check what is needed; as root on Debian or Ubuntu install what is missing
	@scripts/prerequisites.sh

build: prerequisites ## Compile all programs
	@scripts/build.sh

demo: build ## Documents in, five questions, cited answers out, on a stack that ends with it
	@"$(WEIR)" demo $(if $(CORPUS),--corpus "$(CORPUS)")

up: build ## Start the local stack and all services, and leave them running
	@"$(WEIR)" up

down: build ## Stop what `make up` started
	@"$(WEIR)" down

status: build ## What runs, and how far behind it is
	@"$(WEIR)" status

test: prerequisites ## Every test, on real Kafka, each suite with its time, and the lints
	@scripts/test.sh

test-long: prerequisites ## The same with the tests that take many minutes
	@scripts/test.sh --long

lint: prerequisites ## Formatting and clippy, nothing else
	@scripts/test.sh --lint

fmt: prerequisites ## Format the code
	@cargo fmt --all

bench: prerequisites ## Measure; prints tables and writes bench-results/
	@scripts/bench.sh "$(BENCH_PROFILE)" $(BENCH)

bench-embed: prerequisites ## The embedder beside sentence-transformers, OpenVINO and ONNX Runtime, in a virtual environment
	@scripts/bench.sh "$(BENCH_PROFILE)" embed --peers

bench-outage: prerequisites ## The provider of models goes down for two minutes of five; fails when a target is missed
	@scripts/bench.sh "$(BENCH_PROFILE)" outage

sanitize: prerequisites ## The embedder's kernels under AddressSanitizer (needs a nightly compiler)
	@scripts/sanitize.sh

miri: prerequisites ## The same tests, smaller, interpreted by Miri (needs a nightly compiler with it)
	@scripts/miri.sh

chaos: build ## Break a running pipeline on purpose and look whether it kept its word
	@"$(CARGO_TARGET_DIR)/debug/weir-chaos" $(CHAOS_OPTIONS)

docs: build ## Bring docs/metrics.md and docs/configuration.md up to date with the code
	@UPDATE=1 cargo test --workspace --exclude weir-benches --test metrics_doc --test configuration_doc

deny: ## Licences, advisories and bans of dependencies (needs cargo-deny)
	@cargo deny check

clean-data: ## Stop the local stack and delete its data; downloads and build outputs stay
	@if [[ -x "$(WEIR)" ]]; then "$(WEIR)" down >/dev/null; fi
	@rm -rf "$${WEIR_DATA:-.weir}"/{stack,services,logs}
	@rmdir "$${WEIR_DATA:-.weir}" 2>/dev/null || true
