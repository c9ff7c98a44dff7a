//! A real cluster of two nodes to try the manifests on, until Ctrl-C. With CALICO_BIN and CALICO_CRDS its plugins are
//! Calico's own.

use std::path::PathBuf;

use anyhow::Result;
use e2e::real::Crds;
use e2e::site;
use e2e::tools::Tools;

fn path(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}

#[tokio::main]
async fn main() -> Result<()> {
    kube_ipam::store::choose_tls();
    let Some(tools) = Tools::or_skip()? else { return Ok(()) };
    eprintln!("starting a control plane and two nodes ...");
    let crds = path("CALICO_CRDS").map_or_else(|| Crds::Definitions(calico::crds()), Crds::File);
    let cluster = site::start(tools.clone(), path("CALICO_BIN"), crds).await?;
    let _routes = cluster.keep_routes();
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!(
        "export PATH={}:$PATH",
        tools.path("kubectl").parent().map_or_else(Default::default, |d| d.display().to_string())
    );
    for node in cluster.nodes() {
        println!("# files of {}: {}", node.name(), node.file("/").display());
    }
    eprintln!("the cluster runs until Ctrl-C");
    tokio::signal::ctrl_c().await?;
    Ok(())
}
