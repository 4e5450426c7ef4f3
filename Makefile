# The commands of this repository. `make` alone lists them.

# `dev` shares its build of the dependencies (optimized there too) with the tests; `make run PROFILE=release` is faster
# once it runs, but builds everything a second time.
PROFILE ?= dev
SOAK_SEEDS ?= 10000
# Their tests plant mistakes in the product's code (base::simulation). They are built apart, so that nothing else is built
# with those switches.
SIMULATED := sim multiraft

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
MUSTER := $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/muster

.PHONY: help
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST)

## make setup   install what is missing (apt), saying what and why
.PHONY: setup
setup:
	@scripts/setup

## make build   build the binary `muster` (PROFILE=release for one to keep)
.PHONY: build
build:
	$(CARGO) build --profile $(PROFILE) -p muster
	@echo "built $(MUSTER)"

## make install put the binary into PREFIX/bin (/usr/local; PROFILE=release for one to keep)
PREFIX ?= /usr/local
.PHONY: install
install: build
	install -D -m 755 $(MUSTER) $(DESTDIR)$(PREFIX)/bin/muster

## make run     set up, build, and run the demo: three nodes, a VM, its console read from Kafka
.PHONY: run
run: setup build
	$(MUSTER) demo

## make test    set up, build, and run every test: units, tidy, the simulator over 500 seeds, real clusters
.PHONY: test
test: setup
	$(CARGO) build -p muster
	$(CARGO) test --workspace --exclude testkit $(SIMULATED:%=--exclude %) --no-fail-fast
	$(CARGO) test $(SIMULATED:%=-p %) --no-fail-fast
	MUSTER_BIN=$(TARGET_DIR)/debug/muster $(CARGO) test -p testkit --no-fail-fast

## make plants  hunt the planted mistakes that are hard to find (most take the simulator more than 100 seeds)
.PHONY: plants
plants:
	$(CARGO) test $(SIMULATED:%=-p %) --test rare -- --nocapture

## make soak-sim   the simulator over SOAK_SEEDS seeds (10000) of 60 virtual seconds, half on 3 nodes, half on 5
SOAK_SEED ?= 1
.PHONY: soak-sim
soak-sim:
	MUSTER_COMMIT=$$(git describe --always --dirty --abbrev=12) $(CARGO) build --profile soak -p sim
	failed=0; for nodes in 3 5; do $(TARGET_DIR)/soak/muster-sim run --seed $(SOAK_SEED) --seeds $$(($(SOAK_SEEDS) / 2)) \
		--nodes $$nodes --seconds 60 --locks --marks --keep-going || failed=1; done; exit $$failed

## make bench   the figures that the documents quote, on real clusters of a release build
.PHONY: bench
bench: setup
	$(CARGO) build --release -p muster
	MUSTER_BIN=$(TARGET_DIR)/release/muster $(CARGO) run --release -p testkit --example figures
	$(CARGO) run --release -p vmm --example boot_time -- 10 1 $(TARGET_DIR)/images

## make soak-consensus   consensus shaken on real processes, about an hour and a half (SOAK="kills --kills 5" for a part)
SOAK ?=
.PHONY: soak-consensus
soak-consensus: setup
	$(CARGO) build --release -p muster
	MUSTER_BIN=$(TARGET_DIR)/release/muster $(CARGO) run --release -p testkit --example soak -- $(SOAK)

## make bench-consensus   three nodes of muster beside three of etcd: puts and linearizable gets
.PHONY: bench-consensus
bench-consensus: setup
	command -v etcd >/dev/null || { echo "installing etcd-server (Debian): what muster is compared with"; \
		apt-get install -y -q --no-install-recommends etcd-server; }
	$(CARGO) build --release -p muster
	MUSTER_BIN=$(TARGET_DIR)/release/muster $(CARGO) run --release -p testkit --example consensus

## make ci      what must pass before a change lands: formatting, tidy, clippy, `make test`, `make plants`
.PHONY: ci
ci: setup
	$(CARGO) xtask ci
