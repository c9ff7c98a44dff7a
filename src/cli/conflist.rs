//! `conflist`: a 10-calico.conflist from flags.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, bail};
use clap::Args;
use ipnetwork::IpNetwork;

use super::Outcome;
use super::connect::Connection;
use super::output::{self, Format};
use crate::cni::CniVersion;
use crate::conflist::{ConflistArgs, EtcdArgs, SubnetArgs, build};

/// What goes into the list beside the connection's flags.
#[derive(Args, Debug, Clone)]
pub(super) struct Conflist {
    /// A subnet for pods; repeat it for more subnets, and for IPv6.
    #[arg(long, required = true, value_name = "CIDR")]
    subnet: Vec<String>,
    /// The part of a subnet that random pods get; goes to the subnet that holds it. May be repeated.
    #[arg(long, value_name = "FIRST-LAST")]
    range: Vec<String>,
    /// A gateway; goes to the subnet that holds it. May be repeated.
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// A route's destination; by default the whole of each subnet's family. May be repeated.
    #[arg(long, value_name = "CIDR")]
    route: Vec<String>,
    /// The file that pods' name servers are read from.
    #[arg(long, value_name = "FILE")]
    resolv_conf: Option<String>,
    /// How long a pod waits for the old holder of its address to go.
    #[arg(long, value_name = "SECONDS")]
    wait_seconds: Option<u64>,
    /// Name of the list's network.
    #[arg(long, default_value = "k8s-pod-network")]
    name: String,
    /// The list's version of CNI.
    #[arg(long, default_value = "0.3.1", value_name = "VERSION")]
    cni_version: String,
    /// Type of the main plugin.
    #[arg(long, default_value = "calico", value_name = "TYPE")]
    main_plugin: String,
    /// The node's name; by default Calico's file says it.
    #[arg(long, value_name = "NAME")]
    nodename: Option<String>,
    /// MTU of the pods' interfaces; 0 leaves it to the main plugin.
    #[arg(long, default_value_t = 0)]
    mtu: u32,
    /// Level of the log.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
    /// File of the log.
    #[arg(long, default_value = "/var/log/calico/cni/cni.log", value_name = "FILE")]
    log_file: String,
    /// The main plugin's own kubeconfig.
    #[arg(long, default_value = "/etc/cni/net.d/calico-kubeconfig", value_name = "FILE")]
    calico_kubeconfig: String,
    /// Leaves portmap and bandwidth out.
    #[arg(long)]
    no_chained: bool,
}

impl Conflist {
    pub(super) fn run(&self, connection: &Connection, format: Format) -> Result<Outcome> {
        let list = build(&self.arguments(connection)?)?;
        output::print(format, &list, || format!("{list:#}"))
    }

    fn arguments(&self, connection: &Connection) -> Result<ConflistArgs> {
        for (given, flag) in
            [(connection.conflist.is_some(), "--conflist"), (connection.context.is_some(), "--context")]
        {
            if given {
                bail!("{flag}: is not for this command, which prints a list; give its values as flags");
            }
        }
        let Some(cni_version) = CniVersion::ALL.into_iter().find(|version| version.as_str() == self.cni_version) else {
            let known = CniVersion::ALL.map(CniVersion::as_str);
            bail!("--cni-version: {:?} is not spoken; give one of {}", self.cni_version, known.join(", "));
        };
        let defaults = ConflistArgs::default();
        Ok(ConflistArgs {
            network: self.name.clone(),
            cni_version,
            main_plugin: self.main_plugin.clone(),
            nodename: self.nodename.clone(),
            mtu: self.mtu,
            log_level: self.log_level.clone(),
            log_file_path: Some(self.log_file.clone()),
            calico_kubeconfig: Some(self.calico_kubeconfig.clone()),
            ledger: connection.network.clone(),
            kubeconfig: connection.kubeconfig.as_deref().map(text),
            etcd: etcd(connection),
            subnets: subnets(&self.subnet, &self.range, &self.gateway)?,
            routes: if self.route.is_empty() { routes(&self.subnet) } else { self.route.clone() },
            resolv_conf: self.resolv_conf.clone(),
            wait_seconds: self.wait_seconds,
            chained: if self.no_chained { Vec::new() } else { defaults.chained },
        })
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// As soon as one flag speaks of etcd, the parser says what is missing.
fn etcd(connection: &Connection) -> Option<EtcdArgs> {
    let file = |path: &Option<std::path::PathBuf>| path.as_deref().map(text);
    let args = EtcdArgs {
        endpoints: connection.etcd_url.clone(),
        cert_file: file(&connection.etcd_cert),
        key_file: file(&connection.etcd_key),
        ca_file: file(&connection.etcd_ca),
        prefix: connection.etcd_prefix.clone(),
        username: connection.etcd_user.clone(),
        password_file: file(&connection.etcd_password_file),
    };
    (args != EtcdArgs::default()).then_some(args)
}

/// Everything, in each family that has a subnet.
fn routes(subnets: &[String]) -> Vec<String> {
    let all = [("0.0.0.0/0", false), ("::/0", true)];
    let wanted = all.into_iter().filter(|(_, six)| subnets.iter().any(|subnet| subnet.contains(':') == *six));
    wanted.map(|(route, _)| route.to_owned()).collect()
}

/// Ranges and gateways go to the subnet that holds them; with one subnet there is nothing to choose, and the
/// parser judges.
fn subnets(subnets: &[String], ranges: &[String], gateways: &[String]) -> Result<Vec<SubnetArgs>> {
    let mut built: Vec<SubnetArgs> =
        subnets.iter().map(|subnet| SubnetArgs { subnet: subnet.clone(), ..SubnetArgs::default() }).collect();
    for range in ranges {
        let Some((first, last)) = range.split_once('-').map(|(first, last)| (first.trim(), last.trim())) else {
            bail!("--range: {range:?} is not a range; write FIRST-LAST, such as 10.244.0.10-10.244.0.200");
        };
        let at = place(&built, "--range", if first.is_empty() { last } else { first })?;
        let subnet = &mut built[at];
        if subnet.range_start.is_some() || subnet.range_end.is_some() {
            bail!("--range: {range:?} is a second range in {}; give one range for each subnet", subnet.subnet);
        }
        subnet.range_start = Some(first.to_owned());
        subnet.range_end = Some(last.to_owned());
    }
    for gateway in gateways {
        let at = place(&built, "--gateway", gateway)?;
        let subnet = &mut built[at];
        if subnet.gateway.is_some() {
            bail!("--gateway: {gateway:?} is a second gateway in {}; give one for each subnet", subnet.subnet);
        }
        subnet.gateway = Some(gateway.clone());
    }
    Ok(built)
}

/// Index of the subnet that an address belongs to.
fn place(subnets: &[SubnetArgs], flag: &str, address: &str) -> Result<usize> {
    if subnets.len() == 1 {
        return Ok(0);
    }
    let Ok(ip) = address.parse::<IpAddr>() else {
        bail!("{flag}: {address:?} is not an address; write it like 10.244.0.1");
    };
    let holds = |subnet: &SubnetArgs| subnet.subnet.parse::<IpNetwork>().is_ok_and(|network| network.contains(ip));
    match subnets.iter().position(holds) {
        Some(at) => Ok(at),
        None => {
            let all: Vec<&str> = subnets.iter().map(|subnet| subnet.subnet.as_str()).collect();
            bail!("{flag}: {address:?} lies in no subnet; choose an address of {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{Arguments, Command};
    use super::*;

    fn list(words: &[&str]) -> Result<Value> {
        let words = ["kube-ipam", "conflist"].iter().chain(words).map(Into::into).collect();
        let arguments = Arguments::of(words)?;
        let Command::Conflist(conflist) = arguments.command else { panic!("another command") };
        Ok(build(&conflist.arguments(&arguments.connection)?)?)
    }

    fn refused(words: &[&str]) -> String {
        format!("{:#}", list(words).unwrap_err())
    }

    #[test]
    fn the_guides_values_as_flags_give_the_guides_list() {
        let mut expected: Value =
            serde_json::from_str(include_str!("../../tests/fixtures/guide-10-calico.conflist")).unwrap();
        // The doubled File is a slip that the parser forgives and nobody needs to repeat.
        let etcd = expected.pointer_mut("/plugins/0/ipam/etcdConfig").unwrap().as_object_mut().unwrap();
        let authority = etcd.remove("etcdTrustedCAFileFile").unwrap();
        etcd.insert("etcdTrustedCAFile".to_owned(), authority);
        let words = "--subnet 10.244.0.0/16 --range 10.244.0.10-10.244.0.200 --gateway 10.244.0.1 \
            --nodename 192.168.56.82 --network kube-subnet --kubeconfig /etc/kubernetes/ssl/kube.kubeconfig \
            --etcd-url https://192.168.1.50:2379,https://192.168.1.58:2379,https://192.168.1.63:2379 \
            --etcd-cert /etc/kubernetes/ssl/kubernetes.pem --etcd-key /etc/kubernetes/ssl/kubernetes-key.pem \
            --etcd-ca /etc/kubernetes/ssl/k8s-root-ca.pem --resolv-conf /etc/resolv.conf";
        assert_eq!(list(&words.split_whitespace().collect::<Vec<_>>()).unwrap(), expected);
    }

    #[test]
    fn in_dual_stack_everything_goes_to_its_subnet() {
        let words = "--subnet 10.1.0.0/24 --subnet fd00::/112 --gateway fd00::1 --gateway 10.1.0.1 \
            --range fd00::10-fd00::ff --range 10.1.0.9- --main-plugin ptp --no-chained --wait-seconds 5";
        let list = list(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        let ipam = &list["plugins"][0]["ipam"];
        let expected = json!([
            [{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "gateway": "10.1.0.1"}],
            [{"subnet": "fd00::/112", "rangeStart": "fd00::10", "rangeEnd": "fd00::ff", "gateway": "fd00::1"}],
        ]);
        assert_eq!(ipam["ranges"], expected);
        assert_eq!(ipam["routes"], json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]));
        assert_eq!((&ipam["waitSeconds"], list["plugins"].as_array().unwrap().len()), (&json!(5), 1));
    }

    #[test]
    fn an_etcd_user_and_its_password_file_are_written() {
        let words = "--subnet 10.1.0.0/24 --etcd-url http://h:1 --etcd-user u --etcd-password-file /p";
        let list = list(&words.split_whitespace().collect::<Vec<_>>()).unwrap();
        let expected = json!({"etcdURL": "http://h:1", "etcdUsername": "u", "etcdPasswordFile": "/p"});
        assert_eq!(list["plugins"][0]["ipam"]["etcdConfig"], expected);
    }

    #[test]
    fn wrong_values_are_refused_by_field_and_value() {
        for (words, says) in [
            (&["--subnet", "10.244.0.1/16"][..], &["ipam.subnet: \"10.244.0.1/16\"", "10.244.0.0/16"][..]),
            (&["--subnet", "10.244.0.0/16", "--gateway", "10.9.0.1"], &["ipam.gateway: \"10.9.0.1\""]),
            (&["--subnet", "10.244.0.0/16", "--range", "10.244.0.9"], &["--range: \"10.244.0.9\"", "FIRST-LAST"]),
            (
                &["--subnet", "10.1.0.0/24", "--subnet", "fd00::/112", "--gateway", "10.9.0.1"],
                &["--gateway: \"10.9.0.1\" lies in no subnet"],
            ),
            (&["--subnet", "10.1.0.0/24", "--cni-version", "0.1.0"], &["--cni-version: \"0.1.0\"", "1.1.0"]),
            (&["--subnet", "10.1.0.0/24", "--etcd-url", "h:1"], &["ipam.etcdConfig.etcdURL: \"h:1\""]),
            (&["--subnet", "10.1.0.0/24", "--wait-seconds", "1000"], &["ipam.waitSeconds: 1000"]),
            (&["--subnet", "10.1.0.0/24", "--resolv-conf", "resolv.conf"], &["ipam.resolvConf: \"resolv.conf\""]),
            (&["--subnet", "10.1.0.0/24", "--conflist", "/f"], &["--conflist: is not for this command"]),
        ] {
            let said = refused(words);
            assert!(says.iter().all(|part| said.contains(part)), "{words:?}: {said}");
        }
    }
}
