//! Where the stores are: by flags, and for what no flag says by a network configuration list, or by what
//! [`search`](super::search) finds.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use calico::{IPAMBlock, IPPool, cidr_name};
use clap::Args;
use kube::config::KubeConfigOptions;
use serde_json::{Map, Value};

use super::ledger::{Choice, LedgerKind};
use super::search::{self, Found};
use crate::cni::object::Object;
use crate::cni::{CniError, code};
use crate::conflist::plugin_conf;
use crate::netconf::{EtcdConfig, NetConf};
use crate::store::group::of_cluster;
use crate::store::kube::KubeStore;
use crate::store::{Failure, Group, Objects as _, StoreError};

/// The flags of every command.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Connection")]
pub(super) struct Connection {
    /// The node's network configuration list: what no other flag says is taken from it.
    #[arg(long, global = true, value_name = "FILE")]
    pub conflist: Option<PathBuf>,
    /// Where the lists of this machine are, if it is a node: the first one counts for what neither a flag nor
    /// --conflist says.
    #[arg(long, global = true, value_name = "DIRECTORY", default_value = "/etc/cni/net.d")]
    pub conflists: PathBuf,
    /// The kubeconfig file; by default the list's, else KUBECONFIG, ~/.kube/config or the pod's service account.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig; by default its current one.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The ledger's network: `ipam.name` of the CNI config. By default it is found on the node or in the cluster.
    #[arg(long, global = true, value_name = "NAME")]
    pub network: Option<String>,
    /// Where the claims are; by default in etcd if one is named, else IPClaims if there are some or if a
    /// configuration was found.
    #[arg(long, global = true, value_enum, value_name = "KIND")]
    pub ledger: Option<LedgerKind>,
    /// etcd's client URLs, separated by commas.
    #[arg(long, global = true, value_delimiter = ',', value_name = "URL")]
    pub etcd_url: Vec<String>,
    /// File with the client certificate for etcd.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,
    /// File with the key of that certificate.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
    /// File with the authority that signed etcd's certificate.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// Prefix of the claims' keys; /kube-ipam/v1 by default.
    #[arg(long, global = true, value_name = "PREFIX")]
    pub etcd_prefix: Option<String>,
    /// User of etcd.
    #[arg(long, global = true, value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// File with that user's password.
    #[arg(long, global = true, value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
}

/// What the flags and the list come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Site {
    /// The network's configuration, with --conflist.
    pub net: Option<NetConf>,
    /// The kubeconfig file, unless it is to be looked for.
    pub kubeconfig: Option<PathBuf>,
    /// Its context, unless it is the current one.
    pub context: Option<String>,
    /// The ledger's network, if it is known.
    pub network: Option<String>,
    /// The etcd that is named, if one is.
    pub etcd: Option<EtcdConfig>,
    /// Which ledger is meant.
    pub choice: Choice,
    /// Where what no flag said was found.
    pub found: Option<String>,
}

/// Flags by the fields of `etcdConfig` whose place they take. Longer names go first, for the errors' sake.
const FLAGS: [(&str, &str); 8] = [
    ("etcdTrustedCAFileFile", "--etcd-ca"),
    ("etcdTrustedCAFile", "--etcd-ca"),
    ("etcdCertFile", "--etcd-cert"),
    ("etcdKeyFile", "--etcd-key"),
    ("etcdPasswordFile", "--etcd-password-file"),
    ("etcdUsername", "--etcd-user"),
    ("etcdPrefix", "--etcd-prefix"),
    ("etcdURL", "--etcd-url"),
];

// === impl Connection ===

impl Connection {
    /// Reads the list, if one is named, and lets the flags override it.
    pub(super) fn site(&self) -> Result<Site> {
        let Some(path) = &self.conflist else { return self.over(None) };
        let named = || format!("--conflist {}", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        let list: Value = serde_json::from_str(&text).with_context(named)?;
        self.over(Some(&list)).with_context(named)
    }

    /// The API server, and where everything else is: what neither a flag nor --conflist says is looked for on this
    /// machine and in the cluster. It is said which was found.
    pub(super) async fn open(&self) -> Result<(Site, KubeStore)> {
        if self.conflist.is_some() {
            let site = self.site()?;
            let store = site.store().await?;
            return Ok((site, store));
        }
        let (reached, store, found) = self.reach().await?;
        let found = match found {
            Some(found) => Some(found),
            None => search::add_on(&store).await?,
        };
        let mut site = match &found {
            Some(found) => self.by_found(found).with_context(|| found.at.clone())?,
            None => self.over(None)?,
        };
        let named = site.net.as_ref().and_then(|net| net.api_group);
        let named = match named {
            None if store.group().known().is_none() => of_cluster(&store).await.ok().flatten(),
            named => named,
        };
        // Else by what answers first.
        let store = named.map_or(store.clone(), |group| store.in_group(group.into()));
        if site.network.is_none() || site.choice == Choice::Unsaid {
            self.ask_claims(&mut site, &store).await;
        }
        if let Some(said) = site.used() {
            eprintln!("kube-ipam: {said}");
        }
        Ok((Site { kubeconfig: reached.kubeconfig, context: reached.context, ..site }, store))
    }

    /// The API server: by the flags, else as the environment says, else as the list of this node does. And that list,
    /// if it is of the same cluster.
    async fn reach(&self) -> Result<(Site, KubeStore, Option<Found>)> {
        let site = Site { kubeconfig: self.kubeconfig.clone(), context: self.context.clone(), ..Site::default() };
        let node = search::node_list(&self.conflists);
        let by_node = node.as_ref().and_then(|node| node.kubeconfig.clone());
        match (site.store().await, by_node) {
            (Ok(store), _) => {
                let found = match node {
                    Some(node) if node.is_of(&store).await => Some(node.found),
                    _ => None,
                };
                Ok((site, store, found))
            }
            (Err(_), Some(kubeconfig)) if self.kubeconfig.is_none() && self.context.is_none() => {
                let site = Site { kubeconfig: Some(kubeconfig), ..site };
                let store = site.store().await?;
                Ok((site, store, node.map(|node| node.found)))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The API server alone.
    pub(super) async fn store(&self) -> Result<KubeStore> {
        match self.conflist {
            Some(_) => self.site()?.store().await,
            None => Ok(self.reach().await?.1),
        }
    }

    fn by_found(&self, found: &Found) -> Result<Site> {
        let mut site = Site { found: Some(found.at.clone()), ..self.over(Some(&found.list))? };
        // The nodes' certificates need not be here. Then nothing is known of the ledger, instead of a wrong one.
        let elsewhere = site.etcd.as_ref().filter(|_| self.etcd_url.is_empty());
        if self.ledger.is_none()
            && let Some(why) = elsewhere.and_then(|etcd| search::elsewhere(etcd, &found.at))
        {
            site.choice = Choice::Unknown(why);
        }
        Ok(site)
    }

    /// What neither a flag nor a configuration says, by the claims that there are.
    async fn ask_claims(&self, site: &mut Site, store: &KubeStore) {
        let claims = match search::networks(store).await {
            Ok(claims) => claims,
            Err(error) if site.choice == Choice::Unsaid => {
                site.choice = Choice::Unknown(format!("list ipclaims: {error}"));
                return;
            }
            Err(_) => return,
        };
        let (network, choice) = search::by_claims(site.network.as_deref(), claims.as_ref());
        let told = choice == Choice::Implied;
        match &site.choice {
            Choice::Unsaid => site.choice = choice,
            // Claims in an etcd have nothing to do with these.
            Choice::Said(LedgerKind::Etcd) => return,
            _ => {}
        }
        if told && (site.network.is_none() || site.found.is_none()) {
            site.found.get_or_insert_with(|| "the IPClaims that exist".to_owned());
        }
        site.network = network;
    }

    /// The flags over the list's content.
    fn over(&self, list: Option<&Value>) -> Result<Site> {
        let section = list.map(our_section).transpose()?;
        let net = section.as_ref().map(|conf| NetConf::parse(conf, "kube-ipam")).transpose()?;
        let etcd_section = section.as_ref().and_then(|conf| conf.pointer("/ipam/etcdConfig"));
        let etcd = self.etcd(etcd_section)?;
        let choice = match (self.ledger, &etcd, &net) {
            (Some(kind), _, _) => Choice::Said(kind),
            (None, Some(_), _) => Choice::Said(LedgerKind::Etcd),
            (None, None, Some(_)) => Choice::Implied,
            (None, None, None) => Choice::Unsaid,
        };
        let listed = |of: fn(&NetConf) -> Option<PathBuf>| net.as_ref().and_then(of);
        Ok(Site {
            // With a context somebody's own kubeconfig is meant.
            kubeconfig: match self.context {
                None => self.kubeconfig.clone().or_else(|| listed(|net| net.kubeconfig.clone())),
                Some(_) => self.kubeconfig.clone(),
            },
            context: self.context.clone(),
            network: match (&self.network, &net) {
                (Some(network), _) => Some(network.clone()),
                (None, net) => net.as_ref().map(|net| net.ipam.network.clone()),
            },
            etcd,
            choice,
            net,
            found: None,
        })
    }

    /// A URL by flag replaces the list's whole section; any other flag replaces its one field.
    fn etcd(&self, section: Option<&Value>) -> Result<Option<EtcdConfig>> {
        let mut fields = match section.and_then(Value::as_object) {
            Some(section) if self.etcd_url.is_empty() => section.clone(),
            _ => Map::new(),
        };
        let mut given = Vec::new();
        for (field, value) in self.etcd_fields()? {
            if field == "etcdTrustedCAFile" {
                fields.remove("etcdTrustedCAFileFile");
            }
            given.push(field);
            fields.insert(field.to_owned(), value.into());
        }
        if fields.is_empty() {
            return Ok(None);
        }
        let fields = Value::Object(fields);
        let parsed = Object::new("", &fields).and_then(|fields| EtcdConfig::parse(&fields));
        parsed
            .map(Some)
            .map_err(|error| if section.is_none() || !given.is_empty() { by_flag(&error) } else { error.into() })
    }

    fn etcd_fields(&self) -> Result<Vec<(&'static str, String)>> {
        let url = (!self.etcd_url.is_empty()).then(|| self.etcd_url.join(","));
        let mut fields: Vec<(&str, String)> = Vec::new();
        for (field, text) in [("etcdURL", &url), ("etcdPrefix", &self.etcd_prefix), ("etcdUsername", &self.etcd_user)] {
            fields.extend(text.clone().map(|text| (field, text)));
        }
        for (field, file) in [
            ("etcdCertFile", &self.etcd_cert),
            ("etcdKeyFile", &self.etcd_key),
            ("etcdTrustedCAFile", &self.etcd_ca),
            ("etcdPasswordFile", &self.etcd_password_file),
        ] {
            if let Some(file) = file {
                let file = std::path::absolute(file).with_context(|| format!("{field} {}", file.display()))?;
                fields.push((field, file.display().to_string()));
            }
        }
        Ok(fields)
    }
}

/// The section of our plugin, under either of its names.
fn our_section(list: &Value) -> Result<Value, CniError> {
    plugin_conf(list, "kube-ipam").or_else(|error| plugin_conf(list, "calico-ipam").map_err(|_| error))
}

/// The parser's error in the words of the command line.
fn by_flag(error: &CniError) -> anyhow::Error {
    debug_assert_eq!(error.code, code::INVALID_CONFIG);
    let text = FLAGS.iter().fold(error.to_string(), |text, (field, flag)| text.replace(field, flag));
    anyhow!(text)
}

// === impl Site ===

impl Site {
    /// What is gone by, if it was found rather than said.
    fn used(&self) -> Option<String> {
        let at = self.found.as_ref()?;
        let network = self.network.as_deref().map_or_else(|| "of no known name".to_owned(), |name| format!("{name:?}"));
        Some(format!("going by {at}: network {network}, claims in {}", self.place()))
    }

    /// Where the claims are, in a word.
    pub(super) fn place(&self) -> &'static str {
        match &self.choice {
            Choice::Said(LedgerKind::Etcd) => "etcd",
            Choice::Said(LedgerKind::Objects) | Choice::Implied => "IPClaims",
            Choice::Unsaid | Choice::Unknown(_) => "a place that is not known",
        }
    }

    pub(super) async fn store(&self) -> Result<KubeStore> {
        let group = Group::of(self.net.as_ref().and_then(|net| net.api_group));
        Ok(KubeStore::from_config(self.kube_config().await?)?.in_group(group))
    }

    /// How the API server is reached.
    pub(super) async fn kube_config(&self) -> Result<kube::Config> {
        let named = |context: &str| format!("--context {context:?}; name a context of the kubeconfig");
        if let Some(path) = &self.kubeconfig {
            let config = KubeStore::config(path, self.context.as_deref()).await;
            return match &self.context {
                Some(context) => config.with_context(|| named(context)),
                None => Ok(config?),
            };
        }
        let right = "no cluster is named; give --kubeconfig or --conflist, or set KUBECONFIG";
        match &self.context {
            None => kube::Config::infer().await.context(right),
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
                kube::Config::from_kubeconfig(&options).await.with_context(|| named(context))
            }
        }
    }
}

/// The blocks that hold an address: by its pool's block size, or, if there is none, by whatever size it has.
pub(super) async fn blocks_around(
    store: &KubeStore,
    pools: &[IPPool],
    addresses: &[IpAddr],
) -> Result<Vec<IPAMBlock>, StoreError> {
    let mut names: Vec<String> = addresses
        .iter()
        .filter_map(|address| calico::covering(pools, *address).map(|pool| cidr_name(&pool.spec.block_of(*address))))
        .collect();
    names.sort();
    names.dedup();
    let reads = names.iter().map(|name| store.get::<IPAMBlock>(None, name));
    let found: Vec<IPAMBlock> = futures::future::try_join_all(reads).await?.into_iter().flatten().collect();
    let holds = |blocks: &[IPAMBlock], address: &IpAddr| blocks.iter().any(|b| b.spec.cidr.contains(*address));
    if addresses.iter().all(|address| holds(&found, address)) {
        return Ok(found);
    }
    let all: Vec<IPAMBlock> = store.list("").await?;
    Ok(all.into_iter().filter(|block| addresses.iter().any(|a| block.spec.cidr.contains(*a))).collect())
}

/// A list of a kind that old versions of Calico do not have.
pub(super) fn optional<K>(listed: Result<Vec<K>, StoreError>) -> Result<Vec<K>, StoreError> {
    match listed {
        Err(StoreError { failure: Failure::NoKind, .. }) => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn guide() -> Value {
        serde_json::from_str(include_str!("../../tests/fixtures/guide-10-calico.conflist")).unwrap()
    }

    fn refused(connection: &Connection, list: Option<&Value>) -> String {
        format!("{:#}", connection.over(list).unwrap_err())
    }

    #[test]
    fn a_list_says_where_everything_is() {
        let site = Connection::default().over(Some(&guide())).unwrap();
        assert_eq!(site.kubeconfig.as_deref(), Some(Path::new("/etc/kubernetes/ssl/kube.kubeconfig")));
        assert_eq!(site.network.as_deref(), Some("kube-subnet"));
        let etcd = site.etcd.unwrap();
        assert_eq!((etcd.endpoints.len(), etcd.endpoints[0].as_str()), (3, "https://192.168.1.50:2379"));
        assert_eq!(Some(etcd), site.net.unwrap().ipam.etcd);
    }

    #[test]
    fn the_add_ons_configuration_says_where_claims_are_unless_its_certificates_are_elsewhere() {
        let by = |connection: &Connection, section: &Value| {
            let found = Found { list: search::around(section), at: "ConfigMap kube-system/kube-ipam".to_owned() };
            connection.by_found(&found).unwrap()
        };
        let section = json!({"type": "kube-ipam", "name": "kube-subnet", "subnet": "10.244.0.0/16"});
        let site = by(&Connection::default(), &section);
        assert_eq!((site.network.as_deref(), &site.choice), (Some("kube-subnet"), &Choice::Implied));
        assert!(site.net.is_some());
        let said = site.used().unwrap();
        assert_eq!(said, "going by ConfigMap kube-system/kube-ipam: network \"kube-subnet\", claims in IPClaims");
        let mut etcd = section;
        etcd["etcdConfig"] = json!({"etcdURL": "https://h:1", "etcdTrustedCAFile": "/no/such/ca.pem"});
        let Choice::Unknown(why) = by(&Connection::default(), &etcd).choice else { panic!("a file is missing") };
        assert!(why.contains("ConfigMap kube-system/kube-ipam") && why.contains("/no/such/ca.pem"), "{why}");
        let said = Connection { ledger: Some(LedgerKind::Objects), ..Connection::default() };
        assert_eq!(by(&said, &etcd).choice, Choice::Said(LedgerKind::Objects));
        etcd["etcdConfig"] = json!({"etcdURL": "http://h:1"});
        assert_eq!(by(&Connection::default(), &etcd).choice, Choice::Said(LedgerKind::Etcd));
    }

    #[test]
    fn flags_override_the_list() {
        let connection = Connection {
            kubeconfig: Some("/k".into()),
            network: Some("net".into()),
            etcd_ca: Some("/ca.pem".into()),
            ..Connection::default()
        };
        let site = connection.over(Some(&guide())).unwrap();
        let etcd = site.etcd.unwrap();
        assert_eq!((site.kubeconfig, site.network), (Some("/k".into()), Some("net".to_owned())));
        assert_eq!(etcd.ca_file.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(etcd.cert_file.as_deref(), Some(Path::new("/etc/kubernetes/ssl/kubernetes.pem")));
        // Another etcd has nothing to do with the list's certificates.
        let connection = Connection { etcd_url: vec!["http://127.0.0.1:2379".into()], ..Connection::default() };
        let etcd = connection.over(Some(&guide())).unwrap().etcd.unwrap();
        assert_eq!((etcd.endpoints, etcd.cert_file), (vec!["http://127.0.0.1:2379".to_owned()], None));
    }

    #[test]
    fn without_anything_neither_network_nor_ledger_is_guessed() {
        assert_eq!(Connection::default().over(None).unwrap(), Site::default());
    }

    #[test]
    fn the_ledger_is_the_one_that_is_named_nearest() {
        let choice = |ledger, url: &[&str], list: Option<&Value>| {
            let etcd_url = url.iter().map(|url| (*url).to_owned()).collect();
            Connection { ledger, etcd_url, ..Connection::default() }.over(list).unwrap().choice
        };
        let mut without = guide();
        without["plugins"][0]["ipam"].as_object_mut().unwrap().remove("etcdConfig");
        assert_eq!(choice(None, &[], None), Choice::Unsaid);
        assert_eq!(choice(None, &[], Some(&without)), Choice::Implied);
        assert_eq!(choice(None, &[], Some(&guide())), Choice::Said(LedgerKind::Etcd));
        assert_eq!(choice(None, &["http://h:1"], Some(&without)), Choice::Said(LedgerKind::Etcd));
        let objects = Some(LedgerKind::Objects);
        assert_eq!(choice(objects, &[], Some(&guide())), Choice::Said(LedgerKind::Objects));
    }

    #[test]
    fn wrong_flags_are_named_with_what_is_right() {
        let url = |text: &str| Connection { etcd_url: vec![text.to_owned()], ..Connection::default() };
        let said = refused(&url("localhost"), None);
        assert!(said.starts_with("--etcd-url: \"localhost\" ") && said.contains("https://host:port"), "{said}");
        let said = refused(&url("https://h:1"), None);
        assert!(said.starts_with("--etcd-ca: missing"), "{said}");
        let said = refused(&Connection { etcd_user: Some("u".into()), ..url("http://h:1") }, None);
        assert!(said.starts_with("--etcd-password-file: missing") && said.contains("--etcd-user is given"), "{said}");
        let said = refused(&Connection { etcd_prefix: Some("/p".into()), ..Connection::default() }, None);
        assert!(said.starts_with("--etcd-url: missing"), "{said}");
    }

    #[test]
    fn a_list_that_is_not_ours_or_stores_elsewhere_is_refused() {
        let mut list = guide();
        list["plugins"][0]["ipam"]["type"] = "host-local".into();
        assert!(refused(&Connection::default(), Some(&list)).contains("none has ipam.type \"kube-ipam\""));
        let mut list = guide();
        list["plugins"][0]["datastore_type"] = "etcdv3".into();
        let said = refused(&Connection::default(), Some(&list));
        assert!(said.contains("datastore_type: \"etcdv3\"") && said.contains("\"kubernetes\""), "{said}");
        let missing = Connection { conflist: Some("/no/such.conflist".into()), ..Connection::default() };
        let said = format!("{:#}", missing.site().unwrap_err());
        assert!(said.starts_with("--conflist /no/such.conflist: No such file"), "{said}");
    }
}
