# What a person does with this repository. Everything is built for a static target, so that the programs run in an empty image and
# on every machine; CARGO_TARGET_DIR and PATCHWARDEN_CACHE say where it is kept.

TARGET ?= $(shell uname -m)-unknown-linux-musl
# `dev` shares its build with the tests; `release` is what is shipped, but for the agent (`make packages`).
PROFILE ?= dev
export CARGO_BUILD_TARGET := $(TARGET)
export PATCHWARDEN_PROGRAMS := $(abspath $(or $(CARGO_TARGET_DIR),target))/$(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

WINDOWS := x86_64-pc-windows-gnu
WINDOWS_PROGRAMS := $(abspath $(or $(CARGO_TARGET_DIR),target))/$(WINDOWS)/debug
HAS_WINDOWS = [ -x /usr/lib/wine/wine64 ] && command -v wixl >/dev/null && command -v x86_64-w64-mingw32-gcc >/dev/null && rustup target list --installed | grep -qx $(WINDOWS)

AARCH64 := aarch64-unknown-linux-musl
HAS_AARCH64 = hack/cargo-for $(AARCH64) --version >/dev/null 2>&1 && rustup target list --installed | grep -qx $(AARCH64)

MACOS := aarch64-apple-darwin
HAS_MACOS = rustup target list --installed | grep -qx $(MACOS)

.DEFAULT_GOAL := help
.PHONY: help demo demo-down programs prerequisites windows-prerequisites aarch64-prerequisites macos-prerequisites test format lint deny generated generate unit agent-tests windows-tests images-tests chart cluster-tests chart-tests bench-devices bench-gateway bench-gateway-smoke packages plugin images images-twice test-long

help: ## Show this.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: prerequisites programs ## Patch real machines by Kubernetes Jobs, on a cluster made for it (DEMO_KUBECONFIG=FILE: on that one).
	hack/demo

demo-down: ## Stop the demo and remove everything of it.
	hack/demo down

programs: ## Build all programs (PROFILE=release for those that run in the cluster) and say where they are.
	cargo build --profile $(PROFILE) --locked --workspace --bins
	@echo "programs are in $(PATCHWARDEN_PROGRAMS)"

prerequisites: ## Install what is missing (Debian packages, the Rust target), or say what is needed.
	hack/prerequisites

windows-prerequisites:
	hack/prerequisites --windows

aarch64-prerequisites:
	hack/prerequisites --aarch64

macos-prerequisites:
	hack/prerequisites --macos

test: prerequisites windows-prerequisites aarch64-prerequisites macos-prerequisites format lint deny generated unit images-tests chart agent-tests windows-tests cluster-tests chart-tests ## Everything that CI runs.

format: ## Check the formatting.
	cargo fmt --all --check
	shellcheck -x benches/scan packaging/build packaging/images packaging/plugin packaging/release packaging/sbom packaging/deb/* packaging/macos/install hack/bench-devices hack/bench-gateway hack/boot-grub hack/cargo-deny hack/cargo-for hack/chart hack/cluster hack/demo hack/devices hack/fuzz hack/health hack/images-twice hack/mutants hack/lib/golden-first hack/lib/no-compiler hack/patchwarden hack/prerequisites hack/repository hack/schemathesis hack/selftest
	python3 -c 'import plistlib, sys; plistlib.load(open(sys.argv[1], "rb"))' packaging/macos/io.patchwarden.agent.plist

lint: ## Check with clippy; warnings are errors.
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --test chart --test cluster --test images -- -D warnings
	cargo clippy --locked -p patchwarden-agent --test orders --test windows -- -D warnings
	if $(HAS_WINDOWS); then cargo clippy --locked -p patchwarden-agent --target $(WINDOWS) -- -D warnings; fi
	if $(HAS_AARCH64); then hack/cargo-for $(AARCH64) clippy --locked -p patchwarden-agent -p patchwarden-protocol -- -D warnings; \
	  else echo 'the agent for aarch64 is NOT TESTED: see hack/prerequisites --aarch64'; fi
	if $(HAS_MACOS); then hack/cargo-for $(MACOS) clippy --locked -p patchwarden-agent -- -D warnings; \
	  else echo 'the agent for macOS is NOT CHECKED: see hack/prerequisites --macos'; fi

deny: ## Check licences, sources and duplicates of dependencies.
	hack/cargo-deny check bans licenses sources

generate: ## Write what is generated from the code.
	cargo run --locked --quiet --example generate

generated: generate ## Check that what is generated is current.
	@git diff --exit-code -- charts crds docs || { echo 'run "make generate" and commit what it writes'; exit 1; }

# The same fleets each time, so that what fails is the change's fault; `make test-long` looks for others.
unit: export PROPTEST_RNG_SEED ?= 1
unit: ## Unit, property and golden tests: no cluster.
	cargo test --locked --workspace --no-fail-fast

images-tests: ## Tests of images and SBOMs, made of small programs in the place of ours, where the prerequisites for aarch64 are there.
	if $(HAS_AARCH64); then cargo test --locked --test images; \
	  else echo 'images and SBOMs are NOT TESTED: see hack/prerequisites --aarch64'; fi

chart: ## Check the Helm chart: by Helm, by the schemas of Kubernetes, and against config/base.
	hack/chart check

agent-tests: ## Tests of the agent on a real apt, dnf 4 and 5, zypper, systemd and GRUB, in root file systems of their own (TESTS=NAME: some of them).
	PATCHWARDEN_DEVICE_ROOT=$$(hack/devices root) PATCHWARDEN_DNF_ROOT=$$(hack/devices root dnf) \
	PATCHWARDEN_DNF5_ROOT=$$(hack/devices root dnf5) PATCHWARDEN_ZYPPER_ROOT=$$(hack/devices root zypper) \
	PATCHWARDEN_SYSTEMD_ROOT=$$(hack/devices root systemd) PATCHWARDEN_GRUB_ROOT=$$(hack/devices root grub) \
	  cargo test --locked -p patchwarden-agent --test orders -- $(TESTS)

windows-tests: ## Tests of the agent for Windows, under Wine, with a stand-in for PowerShell, where its prerequisites are there.
	if ! { $(HAS_WINDOWS); }; then echo 'the agent for Windows is NOT TESTED: see hack/prerequisites --windows'; else \
	  cargo build --locked -p patchwarden-agent --target $(WINDOWS) --bins --example powershell && \
	  x86_64-w64-mingw32-gcc -O2 -shared -o $(WINDOWS_PROGRAMS)/bcryptprimitives.dll \
	    agent/tests/windows/bcryptprimitives.c -ladvapi32 && \
	  PATCHWARDEN_WINDOWS=$(WINDOWS_PROGRAMS) cargo test --locked -p patchwarden-agent --test windows -- $(TESTS); \
	fi

cluster-tests: programs ## Tests against a real Kubernetes, with real pods and real machines (TESTS=NAME: some of them).
	cargo build --locked --test cluster --example simulated-agents
	hack/cluster run --name test -- cargo test --locked --test cluster -- $(TESTS)

chart-tests: programs ## The Helm chart in a cluster of its own: installed, upgraded in the middle of an install, removed.
	cargo build --locked --test cluster
	hack/chart cluster

# The program as it is shipped; the agents, for as little of the processors as can be had.
bench-gateway: prerequisites ## Load on a gateway by simulated agents, on SQLite and on PostgreSQL (AGENTS=NUMBER, TIME=SECONDS of each kind of load).
	cargo build --release --locked --bin patchwarden-gateway --example bench-gateway
	PATCHWARDEN_PROGRAMS=$(abspath $(or $(CARGO_TARGET_DIR),target))/$(TARGET)/release hack/bench-gateway --agents $(or $(AGENTS),10000) --seconds $(or $(TIME),20)

bench-devices: DEVICES ?= 1000,10000
bench-devices: prerequisites ## What so many devices cost Kubernetes, the controller and the gateway (DEVICES=NUMBER[,NUMBER]...).
	cargo build --release --locked --bin patchwarden-controller --bin patchwarden-gateway --bin patchwarden-runner --example reported-devices
	PATCHWARDEN_PROGRAMS=$(abspath $(or $(CARGO_TARGET_DIR),target))/$(TARGET)/release hack/bench-devices --devices $(DEVICES)

# That it works, and that nothing is written for nothing: its figures say nothing.
bench-gateway-smoke: programs
	cargo build --locked --example bench-gateway
	hack/bench-gateway --agents 20 --seconds 2

packages: prerequisites aarch64-prerequisites ## Build the agent for x86_64 and aarch64 as it is shipped, check that it is static and small, and pack it.
	packaging/release $(or $(CARGO_TARGET_DIR),target)/packages

plugin: prerequisites aarch64-prerequisites ## Build the kubectl plugin for x86_64 and aarch64 as it is shipped, and pack it as krew wants it.
	packaging/plugin $(or $(CARGO_TARGET_DIR),target)/plugin

images: prerequisites aarch64-prerequisites ## Build the images of controller, gateway and runner as they are shipped, for x86_64 and aarch64, with their SBOMs.
	packaging/images $(or $(CARGO_TARGET_DIR),target)/images

images-twice: prerequisites aarch64-prerequisites ## Build the images in two directories, from nothing: the same digests.
	hack/images-twice

test-long: ## What is too long for `make test`: 100,000 fleets, 200 kills of each kind, 105 installs with gateways that are killed, mutation testing of the decision core, fuzzing, packages (hours).
	PROPTEST_CASES=100000 WINDOW_VECTORS_STEP=1 cargo test --release --locked -p patchwarden-plan --test plan
	PATCHWARDEN_KILLS=200 $(MAKE) agent-tests TESTS='--nocapture kills::'
	PATCHWARDEN_KILLS=200 $(MAKE) windows-tests TESTS='--nocapture kills::'
	PATCHWARDEN_KILLS=200 cargo test --locked --lib -- --nocapture gateway::killed_tests::what_was_confirmed
	cargo test --locked -p patchwarden-agent --lib -- --ignored a_real_grub
	PATCHWARDEN_SIMULATED=100 PATCHWARDEN_REAL=5 $(MAKE) cluster-tests TESTS='--nocapture each_install_ends_exactly_once'
	PATCHWARDEN_DRIFT_MINUTES=10 $(MAKE) cluster-tests TESTS='--nocapture two_who_apply_from_git'
	hack/mutants
	hack/schemathesis
	hack/fuzz
	$(MAKE) packages
	$(MAKE) plugin
	PATCHWARDEN_AGENT=$(abspath $(or $(CARGO_TARGET_DIR),target))/$(TARGET)/agent/patchwarden-agent $(MAKE) agent-tests TESTS='--nocapture an_idle_agent'
	$(MAKE) images-twice
