# The two commands that everybody needs are `make demo` and `make test`.

CARGO ?= cargo

# The guide's story on an embedded cluster.
.PHONY: demo
demo: build
	$(CARGO) run --quiet -p e2e --bin demo

.PHONY: test verify fast lint deny deny-advisories e2e build static image release cluster

# What gates every change: one of everything. It says at its end where the time went.
test:
	tests/parts.sh $(GATE)

# Everything there is, for whoever releases: make verify [PARTS="seeds bugs"]. A part that passed on this commit is not run
# again. Each can be run by itself as make part-<name>.
PARTS ?= $(EVERYTHING)
verify:
	tests/parts.sh --once $(PARTS)

# What needs nothing but Rust, and little patience.
fast:
	tests/parts.sh build units libraries embedded

# Joined by a plus: at the same time, since the tests of a real cluster wait half of theirs.
GATE = lint build units libraries embedded programs kubelets+faults rules+lock-agents manifests agents chaos hammer \
  seeds-few bugs-few
EVERYTHING = lint build units libraries embedded models seeds bugs fuzz programs kubelets+faults rules+agents rules-v3 \
  manifests kubelets-direct kubelets-v3 lock+hammer lock-v3 migration releases chaos three-faults

build:
	$(CARGO) build --workspace --bins

# Tests of a cluster wait half of their time, so groups of them run two at a time. A terminal shows both as they go; a
# log has each group's output in one piece.
TWO_AT_A_TIME = $(MAKE) --no-print-directory --jobs 2 $(if $(MAKE_TERMOUT),,--output-sync=target)
# Whatever is tested in one package asks for the same features of its dependencies: else these are built once more.
OF_E2E = -p e2e $(addprefix --test ,$(1))
OF_LIBRARIES = -p calico -p kube-ipam $(addprefix --test ,$(1))
OF_SIMULATION = -p kube-ipam -p simulation --test simulation

SERVERS = apiserver cluster stores transport cli claims
SCENARIOS = embedded embedded_objects embedded_v3
HARM = faults hostile collector agent_status
SCENARIOS_OF_AGENTS = embedded_agents embedded_objects_agents embedded_lock

PART_NAMES = $(sort $(subst +, ,$(GATE) $(EVERYTHING)))
.PHONY: $(addprefix part-,$(PART_NAMES))

# They run the program, which cargo does not build with the tests of another package.
$(addprefix part-,embedded agents faults manifests rules rules-v3 kubelets kubelets-direct kubelets-v3 lock lock-v3 \
  migration releases lock-agents hammer chaos): build

# Formatting, lints, licences.
part-lint: lint

# Every program and every test, so that the other parts' times are their own.
part-build: build
	$(CARGO) test --no-run --workspace --lib
	$(CARGO) test --no-run $(call OF_LIBRARIES,'*')
	$(CARGO) test --no-run $(call OF_E2E,'*')
	$(CARGO) test --no-run $(OF_SIMULATION)

part-units:
	$(CARGO) test --workspace --lib

# Driver, collector, model, parsers and documents over stores in memory.
part-libraries:
	$(CARGO) test $(call OF_LIBRARIES,'*')

# The agent, the servers of the tests, and the scenarios of plugins alone on an embedded cluster.
part-embedded:
	$(TWO_AT_A_TIME) embedded-scenarios embedded-agent embedded-servers

# The scenarios with agents on an embedded cluster.
part-agents:
	$(CARGO) test $(call OF_E2E,$(SCENARIOS_OF_AGENTS))

# Every fault through the binary, hostile clients, elections.
part-faults:
	$(CARGO) test $(call OF_E2E,$(HARM))

.PHONY: embedded-scenarios embedded-agent embedded-servers
embedded-scenarios:
	$(CARGO) test $(call OF_E2E,$(SCENARIOS))
embedded-agent:
	$(CARGO) test $(call OF_E2E,agent)
	$(CARGO) test $(call OF_E2E,manifests) -- --skip server::
embedded-servers:
	$(CARGO) test $(call OF_E2E,$(SERVERS))

# The models that take a minute each.
part-models:
	$(CARGO) test $(call OF_LIBRARIES,model) -- --ignored --skip three_pods_whatever_t --skip a_search

# 50,000 simulated clusters, and in the gate the first tenth of them.
part-seeds:
	$(CARGO) test $(OF_SIMULATION) -- --nocapture
part-seeds-few:
	SEEDS=5000 $(CARGO) test $(OF_SIMULATION) -- --nocapture

# Bugs of this field planted one by one, each of which some test must catch. In the gate some of them, which the commit's
# hash chooses, so that all come round.
part-bugs:
	$(CARGO) test $(call OF_LIBRARIES,bugs) -- --ignored --nocapture
part-bugs-few:
	BUGS_OF_COMMIT=$$(git rev-parse HEAD 2>/dev/null) $(CARGO) test $(call OF_LIBRARIES,bugs) -- --ignored --nocapture

# Parsers and edits by coverage, where there is a C++ compiler.
part-fuzz:
	@if command -v c++ >/dev/null; then CARGO=$(CARGO) tests/fuzz/run.sh all 30; \
	else echo 'FUZZ SKIPPED: there is no C++ compiler' >&2; [ "$$CI" != true ]; fi

# The parts from here on run on a real kube-apiserver, and most on kubelets and containerd: root, Go, containerd, runc, the
# reference CNI plugins. Where that cannot be they say so, and count as skipped.
part-programs:
	$(CARGO) run --quiet -p e2e --bin programs
part-manifests:
	$(CARGO) test $(call OF_E2E,manifests policy addon)
part-rules:
	$(CARGO) test $(call OF_E2E,rules)
# The same where Calico's objects are in its newer API group.
IN_V3 = E2E_API_GROUP=projectcalico.org/v3
part-rules-v3:
	$(IN_V3) $(CARGO) test $(call OF_E2E,rules)
part-kubelets-v3:
	$(IN_V3) $(CARGO) test $(call OF_E2E,real_agents)
part-lock-v3:
	$(IN_V3) $(CARGO) test $(call OF_E2E,lock) -- lock_rights
part-kubelets:
	$(CARGO) test $(call OF_E2E,real_agents)
part-kubelets-direct:
	$(CARGO) test $(call OF_E2E,real)
# The scenarios under the definitions of Calico's older releases.
part-releases:
	$(CARGO) test $(call OF_E2E,releases)
# Calico's migration from its older API group to the newer one, while pods come and go.
part-migration:
	$(CARGO) test $(call OF_E2E,migration)
part-lock:
	$(CARGO) test $(call OF_E2E,lock)
part-lock-agents:
	$(CARGO) test $(call OF_E2E,lock) -- lock_agents
part-hammer:
	$(CARGO) test $(call OF_E2E,hammer)
part-chaos:
	$(CARGO) test -p e2e --test chaos -- --nocapture

# Three pods with two and with three faults (the latter takes 7 minutes of one core, and 5 GiB), and that these searches
# leave out nothing that matters.
.PHONY: model
model part-three-faults:
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
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run e2e/src/real/node.sh e2e/kind/run.sh tests/fuzz/run.sh tests/parts.sh; \
	else echo 'LINT SKIPPED: shellcheck is not installed' >&2; fi

# Licences, banned crates and sources of all dependencies.
deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check bans licenses sources; \
	else echo 'LINT SKIPPED: cargo-deny is not installed (cargo install cargo-deny --locked)' >&2; fi

# Known vulnerabilities and yanked crates: downloads the advisory database, so only where that is wanted.
deny-advisories:
	$(CARGO) deny --all-features check advisories
