//! Calico IPAM objects.
