//! kube-ipam.
