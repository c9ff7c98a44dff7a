# The two commands that everybody needs are `make demo` and `make test`.

CARGO ?= cargo

# The guide's story on an embedded cluster.
.PHONY: demo
demo: build
	$(CARGO) run --quiet -p e2e --bin demo

.PHONY: test fast deep real lint deny deny-advisories e2e build static image release cluster

# All tests: units, properties, faults, the embedded cluster, then the real one (which says so if it cannot run here).
test: fast deep real

build:
	$(CARGO) build --workspace --bins

# Tests of a cluster wait half of their time, so groups of them run two at a time. A terminal shows both as they go; a
# log has each group's output in one piece.
TWO_AT_A_TIME = $(MAKE) --no-print-directory --jobs 2 $(if $(MAKE_TERMOUT),,--output-sync=target)
# Whatever is tested in one package asks for the same features of its dependencies: else these are built once more.
OF_E2E = -p e2e $(addprefix --test ,$(1))
OF_LIBRARIES = -p calico -p kube-ipam $(addprefix --test ,$(1))
OF_SIMULATION = -p kube-ipam -p simulation --test simulation

FAST_SERVERS = apiserver cluster stores transport cli claims
FAST_SCENARIOS = embedded embedded_objects
DEEP_HARM = faults hostile collector agent_status
DEEP_SCENARIOS = embedded_agents embedded_objects_agents embedded_lock
REAL = manifests policy addon rules real real_agents lock hammer

# Needs nothing but Rust.
fast: build
	$(CARGO) test --no-run --workspace --lib
	$(CARGO) test --no-run $(call OF_LIBRARIES,'*')
	$(CARGO) test --no-run $(call OF_E2E,manifests agent $(FAST_SERVERS) $(FAST_SCENARIOS))
	$(TWO_AT_A_TIME) fast-scenarios fast-libraries fast-agent fast-servers fast-units

.PHONY: fast-units fast-libraries fast-agent fast-servers fast-scenarios
fast-units:
	$(CARGO) test --workspace --lib
fast-libraries:
	$(CARGO) test $(call OF_LIBRARIES,'*')
fast-agent:
	$(CARGO) test $(call OF_E2E,agent)
	$(CARGO) test $(call OF_E2E,manifests) -- --skip server::
fast-servers:
	$(CARGO) test $(call OF_E2E,$(FAST_SERVERS))
fast-scenarios:
	$(CARGO) test $(call OF_E2E,$(FAST_SCENARIOS))

# Needs nothing but Rust, and some patience: every fault through the binary, elections, the scenarios with agents, the
# larger models, 50,000 simulated clusters, and bugs of this field planted one by one, each of which some test must catch.
deep: build
	$(CARGO) test --no-run $(call OF_E2E,$(DEEP_HARM) $(DEEP_SCENARIOS))
	$(TWO_AT_A_TIME) deep-harm deep-scenarios
	$(CARGO) test $(call OF_LIBRARIES,model) -- --ignored --skip three_pods_whatever_t --skip a_search
	$(CARGO) test $(OF_SIMULATION) -- --nocapture
	$(CARGO) test $(call OF_LIBRARIES,bugs) -- --ignored --nocapture

.PHONY: deep-harm deep-scenarios
deep-harm:
	$(CARGO) test $(call OF_E2E,$(DEEP_HARM))
deep-scenarios:
	$(CARGO) test $(call OF_E2E,$(DEEP_SCENARIOS))

# Real kube-apiserver, kubelets and containerd: root, Go, containerd, runc, the reference CNI plugins.
real: build
	$(CARGO) test $(call OF_E2E,$(REAL))
	$(CARGO) test -p e2e --test chaos -- --nocapture

# Three pods with two and with three faults (the latter takes 7 minutes of one core, and 5 GiB), and that these searches
# leave out nothing that matters.
.PHONY: model
model:
	$(CARGO) test --profile tool -p kube-ipam --test model -- --ignored --nocapture --test-threads 1 three_pods_whatever_t a_search

# A simulated cluster, one run for each seed: make sim SEEDS=1000000 [FIRST=<seed>]; make sim SEED=<seed> tells its story.
.PHONY: sim
sim:
	$(CARGO) test $(OF_SIMULATION) -- --nocapture

# Parsers and edits by coverage: make fuzz [TARGET_NAME=block] [SECONDS=60]. Needs a C++ compiler.
.PHONY: fuzz
fuzz:
	CARGO=$(CARGO) tests/fuzz/run.sh $(or $(TARGET_NAME),all) $(or $(SECONDS),60)

# The real parts, killed and harmed in an order that a seed gives: make chaos [SEED=<seed>] [KILLS=1000]
# [CALICO_BIN=<dir> CALICO_CRDS=<file>]. As the real tier; clocks are set back where libfaketime is installed.
KILLS ?= 1000
.PHONY: chaos
chaos: build
	CALICO_BIN=$(CALICO_BIN) CALICO_CRDS=$(CALICO_CRDS) $(CARGO) run --quiet -p e2e --bin chaos -- --kills $(KILLS) $(if $(SEED),--seed $(SEED))

# The scenarios under Calico's own plugin: make e2e CALICO_BIN=<dir> CALICO_CRDS=<file>
e2e: build
	CALICO_BIN=$(CALICO_BIN) CALICO_CRDS=$(CALICO_CRDS) $(CARGO) test -p e2e --test real --test real_agents

# yaml/calico.yaml on a kind cluster with Calico's own images: docker, kind, kubectl, jq.
.PHONY: e2e-kind
e2e-kind:
	e2e/kind/run.sh

# One static binary: target/<target>/release/kube-ipam. A runtime waits for the start and the end of its process at every
# pod: at a fixed address, as Go's programs are, nothing in it has to be relocated; an allocator without huge pages clears
# none (the two are a millisecond of two), and gives nothing back that ends with the process anyway.
# For another architecture: make static ARCH=arm64 (needs rustup target add aarch64-unknown-linux-gnu, and its C compiler
# and linker, such as Debian's gcc-aarch64-linux-gnu).
ARCH ?= $(if $(filter aarch64 arm64,$(shell uname -m)),arm64,amd64)
TARGET = $(if $(filter arm64,$(ARCH)),aarch64-unknown-linux-gnu,x86_64-unknown-linux-gnu)
STATIC = target/$(TARGET)/release/kube-ipam
static:
	RUSTFLAGS='$(RUSTFLAGS) -C target-feature=+crt-static -C relocation-model=static' \
	  CFLAGS='$(strip $(CFLAGS) -DMI_DEFAULT_ALLOW_THP=0 -DMI_SKIP_COLLECT_ON_EXIT=1)' $(CARGO) build --release --target $(TARGET) -p kube-ipam --bin kube-ipam

# The image kube-ipam:<version>, by whichever of these there is: make image [ENGINE=podman|buildah|docker] [IMAGE=name:tag]
ENGINE ?= $(firstword $(foreach engine,podman buildah docker,$(if $(shell command -v $(engine)),$(engine))))
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
IMAGE ?= kube-ipam:$(VERSION)
image: static
	@test -n "$(ENGINE)" || { echo 'make image needs podman, buildah or docker' >&2; exit 2; }
	$(ENGINE) build --platform linux/$(ARCH) --build-arg BINARY=$(STATIC) -t $(IMAGE) -f Containerfile .

# kube-ipam-v<version>-<architecture>.tgz with its checksum, in target/release-files.
release: static
	rm -rf target/release-files/kube-ipam-v$(VERSION)-$(ARCH)
	install -D -m 0755 $(STATIC) target/release-files/kube-ipam-v$(VERSION)-$(ARCH)/kube-ipam
	install -m 0644 LICENSE README.md target/release-files/kube-ipam-v$(VERSION)-$(ARCH)/
	cd target/release-files && tar -czf kube-ipam-v$(VERSION)-$(ARCH).tgz kube-ipam-v$(VERSION)-$(ARCH) && \
	  sha256sum kube-ipam-v$(VERSION)-$(ARCH).tgz | tee kube-ipam-v$(VERSION)-$(ARCH).tgz.sha256

# What the binary is made of, as CycloneDX: target/release-files/kube-ipam-v<version>-<architecture>.cdx.json
.PHONY: sbom
SBOM = kube-ipam-v$(VERSION)-$(ARCH).cdx
sbom:
	@$(CARGO) cyclonedx --version >/dev/null 2>&1 || { echo 'make sbom needs cargo-cyclonedx (cargo install cargo-cyclonedx --locked)' >&2; exit 2; }
	mkdir -p target/release-files
	$(CARGO) cyclonedx --quiet --format json --spec-version 1.5 --target $(TARGET) --no-build-deps --override-filename $(SBOM)
	rm -f calico/$(SBOM).json e2e/$(SBOM).json
	sed 's|file://$(CURDIR)||g' $(SBOM).json >target/release-files/$(SBOM).json
	rm $(SBOM).json

# A real cluster of two nodes to try things on, until Ctrl-C: make cluster [CALICO_BIN=<dir> CALICO_CRDS=<file>]
cluster: build
	CALICO_BIN=$(CALICO_BIN) CALICO_CRDS=$(CALICO_CRDS) $(CARGO) run --quiet -p e2e --bin cluster

# Not a test: make bench [CALICO_BIN=<dir> CALICO_CRDS=<file>] [ARGS="--blocks 10,10000 -o json"]
.PHONY: bench
bench: static
	$(CARGO) build --profile tool -p e2e --bin bench
	KUBE_IPAM_BIN=$(abspath $(STATIC)) CALICO_BIN=$(CALICO_BIN) CALICO_CRDS=$(CALICO_CRDS) target/tool/bench $(ARGS)

# Many nodes whose pods all come and go: make hammer [ARGS="--nodes 1500 --pods 10 --rounds 10 --fixed 10 --seed 1 -o json"]
.PHONY: hammer
hammer:
	$(CARGO) build --profile tool -p e2e --bin hammer
	target/tool/hammer $(ARGS)

lint: deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run e2e/src/real/node.sh e2e/kind/run.sh tests/fuzz/run.sh; \
	else echo 'LINT SKIPPED: shellcheck is not installed' >&2; fi

# Licences, banned crates and sources of all dependencies.
deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check bans licenses sources; \
	else echo 'LINT SKIPPED: cargo-deny is not installed (cargo install cargo-deny --locked)' >&2; fi

# Known vulnerabilities and yanked crates: downloads the advisory database, so only where that is wanted.
deny-advisories:
	$(CARGO) deny --all-features check advisories
