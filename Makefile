# The two commands that everybody needs are `make demo` and `make test`.

CARGO ?= cargo

# The guide's story on an embedded cluster.
.PHONY: demo
demo: build
	$(CARGO) run --quiet -p e2e --bin demo

.PHONY: test fast real lint e2e build

# All tests: units, properties, faults, the embedded cluster, then the real one (which says so if it cannot run here).
test: fast real

build:
	$(CARGO) build --workspace --bins

# Needs nothing but Rust.
fast: build
	$(CARGO) test --workspace --lib --bins
	$(CARGO) test -p calico
	$(CARGO) test -p kube-ipam --tests
	$(CARGO) test -p e2e --test apiserver --test cluster --test stores --test transport --test cli --test embedded

# Real kube-apiserver, kubelets and containerd: root, Go, containerd, runc, the reference CNI plugins.
real: build
	$(CARGO) test -p e2e --test real

# The scenarios under Calico's own plugin: make e2e CALICO_BIN=<dir> CALICO_CRDS=<file>
e2e: build
	CALICO_BIN=$(CALICO_BIN) CALICO_CRDS=$(CALICO_CRDS) $(CARGO) test -p e2e --test real

# Not a test: make bench [CALICO_BIN=<dir> CALICO_CRDS=<file>] [ARGS="--blocks 10,10000 -o json"]
.PHONY: bench
bench:
	$(CARGO) build --release -p kube-ipam -p e2e --bin kube-ipam --bin bench
	CALICO_BIN=$(CALICO_BIN) CALICO_CRDS=$(CALICO_CRDS) target/release/bench $(ARGS)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets
