#!/usr/bin/env bash
# yaml/calico.yaml on a kind cluster, as the guide has it: Calico, kube-ipam, etcd with certificates, and the guide's
# pods. Needs docker, kind, kubectl and jq, and what `make image` needs.
#
#   e2e/kind/run.sh          IMAGE=<an image> instead of one built here; KEEP=1 keeps the cluster afterwards
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly cluster=kube-ipam-e2e fixed=10.244.0.216
image=${IMAGE:-}
work=$(mktemp -d)
export KUBECONFIG=$work/kubeconfig

say() { printf '\n== %s\n' "$*"; }

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

finish() {
  local status=$?
  if [ "$status" -ne 0 ] && [ -s "$KUBECONFIG" ]; then
    say "what there is"
    kubectl get pods -A -o wide || true
    kubectl get events -A --sort-by=.lastTimestamp | tail -40 || true
    kubectl -n kube-system logs daemonset/calico-node -c install-kube-ipam --tail=20 || true
    kubectl -n kube-system logs daemonset/calico-node -c kube-ipam-agent --tail=40 || true
  fi
  [ -n "${KEEP:-}" ] || kind delete cluster --name "$cluster" >/dev/null 2>&1 || true
  rm -rf "$work"
  exit "$status"
}

# Tries a command every two seconds, for so many seconds.
within() {
  local limit=$1 started=$SECONDS
  shift
  until "$@"; do
    [ $((SECONDS - started)) -lt "$limit" ] || fail "after $limit s there is still not: $*"
    sleep 2
  done
}

build_image() {
  [ -z "$image" ] || return 0
  image=kube-ipam:0.3.0
  say "building $image"
  make image ENGINE=docker IMAGE="$image"
}

control_plane() { kind get nodes --name "$cluster" | grep -- '-control-plane$'; }

address_of() { docker inspect --format '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }

# The files that the guide's configuration names, on every node: etcd's certificates are those of the cluster's own etcd.
prepare_nodes() {
  local first node token
  first=$(control_plane)
  mkdir "$work/ssl"
  docker cp -q "$first:/etc/kubernetes/pki/etcd/ca.crt" "$work/ssl/k8s-root-ca.pem"
  docker cp -q "$first:/etc/kubernetes/pki/etcd/healthcheck-client.crt" "$work/ssl/kubernetes.pem"
  docker cp -q "$first:/etc/kubernetes/pki/etcd/healthcheck-client.key" "$work/ssl/kubernetes-key.pem"
  docker cp -q "$first:/etc/kubernetes/pki/ca.crt" "$work/ca.crt"
  token=$(kubectl -n kube-system create token kube-ipam --duration=24h)
  kubectl config --kubeconfig "$work/ssl/kube.kubeconfig" set-cluster here --embed-certs \
    --server "https://$(address_of "$first"):6443" --certificate-authority "$work/ca.crt" >/dev/null
  kubectl config --kubeconfig "$work/ssl/kube.kubeconfig" set-credentials kube-ipam --token "$token" >/dev/null
  kubectl config --kubeconfig "$work/ssl/kube.kubeconfig" set-context here --cluster here --user kube-ipam >/dev/null
  kubectl config --kubeconfig "$work/ssl/kube.kubeconfig" use-context here >/dev/null
  for node in $(kind get nodes --name "$cluster"); do
    docker exec "$node" mkdir -p /etc/kubernetes/ssl
    docker cp -q "$work/ssl/." "$node:/etc/kubernetes/ssl/"
  done
}

install_calico() {
  local etcd
  etcd=https://$(address_of "$(control_plane)"):2379
  # The guide's account first: its token is in a file that the plugin wants.
  sed -e "s#https://192.168.1.50:2379,https://192.168.1.58:2379,https://192.168.1.63:2379#$etcd#" \
    -e "s#image: kube-ipam:0.3.0#image: $image#" yaml/calico.yaml >"$work/calico.yaml"
  grep -q "$etcd" "$work/calico.yaml" || fail "yaml/calico.yaml names no etcd that could be replaced"
  kubectl apply --server-side -f "$work/calico.yaml"
  prepare_nodes
  kubectl -n kube-system rollout status daemonset/calico-node --timeout=10m
  kubectl -n kube-system rollout status deployment/calico-kube-controllers --timeout=5m
  kubectl -n kube-system rollout status deployment/coredns --timeout=5m
  kubectl wait --for=condition=Ready node --all --timeout=2m
}

# Name, address and node of the running pods of an app, one a line.
pods_of() {
  kubectl get pods -l "app=$1" -o json | jq -r '.items[]
    | select(.status.phase == "Running" and .status.podIP != null and .metadata.deletionTimestamp == null)
    | "\(.metadata.name) \(.status.podIP) \(.spec.nodeName)"'
}

running() { [ "$(pods_of "$1" | wc -l)" -eq "$2" ]; }

# kube-ipam's command line on a node, by the node's own conflist.
kube_ipam() {
  docker exec "$(control_plane)" /opt/cni/bin/kube-ipam "$@" --conflist /etc/cni/net.d/10-calico.conflist
}

# nginx answers a node, by the routes that felix makes of the blocks.
reaches() { docker exec "$1" curl --silent --max-time 2 --output /dev/null "http://$2/"; }

guides_pods() {
  local name address node second moved
  kubectl apply -f yaml/fixed-ip-test.yaml -f yaml/random-ip-test.yaml
  within 300 running fixed-ip-test 1
  within 300 running random-ip-test 2
  read -r name address node < <(pods_of fixed-ip-test)
  [ "$address" = "$fixed" ] || fail "pod $name has $address instead of $fixed"
  pods_of random-ip-test | while read -r name address _; do
    [[ $address =~ ^10\.244\.0\.([0-9]+)$ ]] || fail "pod $name has $address"
    last=${BASH_REMATCH[1]}
    if [ "$last" -lt 10 ] || [ "$last" -gt 200 ]; then fail "$address of pod $name is outside of the range"; fi
  done
  [ "$(pods_of random-ip-test | cut -d' ' -f2 | sort -u | wc -l)" -eq 2 ] || fail "two pods have one address"
  within 60 reaches "$(control_plane)" "$fixed"

  say "the pod moves, and its address with it"
  kubectl cordon "$node"
  kubectl delete pod -l app=fixed-ip-test
  within 300 running fixed-ip-test 1
  kubectl uncordon "$node"
  read -r second address moved < <(pods_of fixed-ip-test)
  [ "$address" = "$fixed" ] || fail "pod $second has $address instead of $fixed"
  [ "$moved" != "$node" ] || fail "pod $second is still on $node"
  within 60 reaches "$(control_plane)" "$fixed"
}

second_owner() {
  sed 's/fixed-ip-test/second-owner/' yaml/fixed-ip-test.yaml | kubectl apply -f -
  within 120 refused
  kubectl delete deployment second-owner
}

refused() {
  kubectl get events -o json | jq -e '[.items[].message // "" | select(contains("belongs to Deployment default/fixed-ip-test"))] | length > 0' >/dev/null
}

# A new agent, and calico-node's installer, which writes the conflist again.
restarted() {
  kubectl -n kube-system rollout restart daemonset/calico-node
  kubectl -n kube-system rollout status daemonset/calico-node --timeout=10m
  [ "$(pods_of fixed-ip-test | cut -d' ' -f2)" = "$fixed" ] || fail "the pod lost its address"
  kubectl scale deployment random-ip-test --replicas=4
  within 300 running random-ip-test 4
}

all_given_back() {
  kubectl delete -f yaml/fixed-ip-test.yaml -f yaml/random-ip-test.yaml
  within 120 running fixed-ip-test 0
  within 120 running random-ip-test 0
  kube_ipam show --ip "$fixed"
  within 60 sound
}

sound() { kube_ipam check; }

trap finish EXIT
build_image
say "a cluster of three nodes"
kind create cluster --name "$cluster" --config e2e/kind/kind.yaml --kubeconfig "$KUBECONFIG"
kind load docker-image "$image" --name "$cluster"
say "Calico with kube-ipam"
install_calico
say "the guide's pods"
guides_pods
kube_ipam show
within 60 sound
say "another owner is refused"
second_owner
say "calico-node is restarted everywhere"
restarted
say "everything is given back"
all_given_back
say "all is well"
