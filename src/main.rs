//! The kube-ipam binary.

fn main() {}
