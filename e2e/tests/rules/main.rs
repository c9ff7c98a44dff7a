//! The rights of `yaml/kube-ipam.yaml`: every scenario works with them, none of them is left unused, and what is
//! taken away is missed.
//!
//! Two labs one after the other, without and with agents, on the real API server with stand-in nodes. What nodes
//! and people asked for is read from its audit log.

fn main() -> std::process::ExitCode {
    e2e::run::scenarios("rules", || async { e2e::lab::Lab::restricted(true).await })
}
