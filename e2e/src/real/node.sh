# shellcheck shell=sh
# The first program of a node, in namespaces of its own for processes, mounts, network and host name.
# $1 the node's directory, which survives its death; $2 its name; $3 its cgroup; $4 the kubelet;
# $5 where logs go; $6 the file that says the API server is ready. The remaining arguments are kubelet's.
set -eu
directory=$1 name=$2 cgroup=$3 kubelet=$4 logs=$5 api_ready=$6
shift 6
hostname "$name"
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding

# kubelet sets these where they differ, and they belong to the whole machine.
already() {
  echo "$2" >"$directory/sysctl-$(basename "$1")"
  mount --bind "$directory/sysctl-$(basename "$1")" "/proc/sys/$1"
}
already vm/overcommit_memory 1
already kernel/panic 10
already kernel/panic_on_oops 1

# What a disk keeps over a power cut, and what it does not.
keep() {
  mkdir -p "$directory$1" "$1"
  mount --bind "$directory$1" "$1"
}
lose() {
  mkdir -p "$1"
  mount -t tmpfs node "$1"
}
for path in /var/lib/kubelet /var/lib/cni /var/lib/calico /var/log/calico /var/log/pods /etc/cni /etc/kubernetes /opt/cni; do
  keep $path
done
for path in /run/containerd /run/netns /var/log/containers; do
  lose $path
done
rm -rf "$directory/run"
keep /run/kube-ipam

for hierarchy in /sys/fs/cgroup/*/; do
  if [ -e "$hierarchy/cgroup.procs" ]; then mkdir -p "$hierarchy/$cgroup"; fi
done

# A program that is killed comes back, as under any service manager.
respawn() {
  while :; do
    "$@" || true
    sleep 0.2
  done
}

respawn containerd --config "$directory/containerd.toml" >>"$logs/$name-containerd.log" 2>&1 &
until ctr --namespace k8s.io images list >/dev/null 2>&1; do sleep 0.05; done
if [ ! -e "$directory/imported" ]; then
  for image in "$directory"/../images/*.tar; do
    ctr --namespace k8s.io images import "$image"
  done
  touch "$directory/imported"
fi
while [ ! -e "$api_ready" ]; do sleep 0.02; done
respawn "$kubelet" "$@" >>"$logs/$name-kubelet.log" 2>&1 &
wait
