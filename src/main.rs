//! The kube-ipam binary: a CNI plugin when a runtime calls it, a command line when a person does.

use std::path::Path;
use std::process::ExitCode;

/// Gives memory back that a burst of calls or a long list took: an agent runs for months on every node.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let called_as = std::env::args_os().next();
    let called_as = called_as.as_deref().map(Path::new).and_then(Path::file_name).and_then(|n| n.to_str());
    if std::env::var_os("CNI_COMMAND").is_some() {
        return kube_ipam::plugin::run(called_as.unwrap_or("kube-ipam"));
    }
    kube_ipam::store::choose_tls();
    kube_ipam::cli::run()
}
