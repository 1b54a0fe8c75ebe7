# `make` lists what there is to make.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
CORPUS ?= corpus
FUZZ_SECONDS ?= 5
SIM_SEEDS ?= 100000
KILLS ?= 300
TARGET ?=
ARGS ?=

# One profile for the program, its tests and the lints: RocksDB's C++ is then compiled once.
CARGO_ARGS := --release --workspace
BIN = $(or $(CARGO_TARGET_DIR),target)/release/undercroft

.PHONY: help setup build test faults check lint demo bench peers simulate fuzz fuzz-smoke corpus doc clean install

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the Debian packages that building and testing need (if missing)
	@scripts/setup.sh build test

build: setup ## compile the program (target/release/undercroft)
	$(CARGO) build --release

test: setup ## run all tests (ARGS="pattern" for some)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  echo "$(CARGO) nextest run $(CARGO_ARGS) $(ARGS)"; $(CARGO) nextest run $(CARGO_ARGS) $(ARGS); \
	  echo "$(CARGO) test $(CARGO_ARGS) --doc"; $(CARGO) test $(CARGO_ARGS) --doc; \
	else \
	  echo "$(CARGO) test $(CARGO_ARGS) $(ARGS)"; $(CARGO) test $(CARGO_ARGS) $(ARGS); \
	fi

faults: build ## long runs of faults: kills (KILLS=300), long partitions, 64 clients (a quarter of an hour)
	UNDERCROFT_KILL_SEED=$(or $(SEED),$$RANDOM) UNDERCROFT_KILL_ROUNDS=$(KILLS) \
	  $(CARGO) test --release --test kill_served -- --nocapture
	$(CARGO) test --release --test network -- --ignored --nocapture
	BIN="$(BIN)" scripts/many-clients

check: lint ## format, clippy, docs, dependencies: what must be clean before a commit

# Advisories are left out: they need the RustSec database from GitHub, and a check that must pass
# everywhere may not depend on a network. Run `cargo deny check advisories` where there is one.
lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGO_ARGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(CARGO_ARGS) --no-deps
	@scripts/cargo-tools.sh cargo-deny
	$(CARGO) deny --workspace check --hide-inclusion-graph bans licenses sources

demo: build ## back up and restore three days of two virtual machines (in ./demo-data)
	@BIN="$(BIN)" demo/run.sh

bench: setup ## micro-benchmarks of each pipeline stage (Criterion)
	$(CARGO) bench --workspace $(ARGS)

peers: build ## the same work by restic, borg, rustic and benji (CORPUS=DIR; tens of minutes)
	BIN="$(BIN)" benches/peers/run.sh $(CORPUS) $(or $(TARGET),peers.json)

simulate: setup ## simulate SIM_SEEDS runs of clients, server and repository (UNDERCROFT_SIM_SEED=n: one, told in full)
	UNDERCROFT_SIM_SEEDS=$(SIM_SEEDS) $(CARGO) test --release -p undercroft-dataplane --test simulation seeds -- --nocapture

fuzz: ## fuzz one decoder until stopped (TARGET=name; without: lists them)
	@scripts/fuzz.sh $(TARGET) $(ARGS)

fuzz-smoke: ## every fuzz target for FUZZ_SECONDS each
	@scripts/fuzz-smoke.sh $(FUZZ_SECONDS)

corpus: ## the full set of disk images that performance is measured on (CORPUS=DIR; 13 GiB)
	scripts/make-corpus --full $(CORPUS)

doc: setup ## API documentation (target/doc)
	$(CARGO) doc $(CARGO_ARGS) --no-deps

clean: ## remove what was built, and the demo's data
	$(CARGO) clean
	rm -rf demo-data

install: ## program, man pages, completions and systemd units, after `make build` (PREFIX=/usr/local)
	@[ -x "$(BIN)" ] || { echo "make install: build first: make build" >&2; exit 1; }
	install -Dm755 "$(BIN)" "$(DESTDIR)$(PREFIX)/bin/undercroft"
	install -d "$(DESTDIR)$(PREFIX)/share/man/man1"
	"$(BIN)" man --out "$(DESTDIR)$(PREFIX)/share/man/man1"
	install -d "$(DESTDIR)$(PREFIX)/share/bash-completion/completions" \
	  "$(DESTDIR)$(PREFIX)/share/zsh/site-functions" "$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d"
	"$(BIN)" completions bash >"$(DESTDIR)$(PREFIX)/share/bash-completion/completions/undercroft"
	"$(BIN)" completions zsh >"$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_undercroft"
	"$(BIN)" completions fish >"$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/undercroft.fish"
	install -d "$(DESTDIR)$(PREFIX)/lib/systemd/system" "$(DESTDIR)$(PREFIX)/lib/sysusers.d"
	for unit in packaging/systemd/*.service; do \
	  sed 's|/usr/local/bin|$(PREFIX)/bin|' "$$unit" >"$(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}"; done
	install -m644 packaging/systemd/undercroft.sysusers "$(DESTDIR)$(PREFIX)/lib/sysusers.d/undercroft.conf"
