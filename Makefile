# Ringfence's short commands. Each does its own set-up on a Debian machine with a Rust toolchain and root.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench bench-gate bench-doctor eval-deploy lint build

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what building and running needs and is not there
	@tools/setup

build: setup ## build the release binary
	cargo build --release --locked -p ringfence -p ringfence-testkit --bin ringfence --bin demo

demo: build ## run the main job: an agent in its fence, attacked, and the proof
	@export RINGFENCE_UV="$$(tools/setup --uv)"; exec target/release/demo --ringfence target/release/ringfence --example examples/analyst

test: setup ## run every test
	@tools/test

bench: setup ## print the numbers of SPEC.md
	@tools/bench

bench-gate: setup ## measure the gate beside squid and hudsucker
	@tools/bench-gate

bench-doctor: setup ## measure how fast a folder is looked at
	cargo bench --quiet --locked -p ringfence-lock --bench evidence

eval-deploy: setup ## start real apps: CORPUS=FOLDER of checkouts, LIMIT=n
	@cargo build --release --locked -p ringfence
	@export RINGFENCE_UV="$$(tools/setup --uv)"; exec tools/eval-deploy --ringfence target/release/ringfence --corpus "$(CORPUS)" $(if $(LIMIT),--limit $(LIMIT))

lint: ## format and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo run --quiet --locked -p xtask
	if cargo deny --version >/dev/null 2>&1; then cargo deny check; fi
