//! The runtime's network configurations: which of them are Calico's, and whose `ipam` section they have.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use calico::ApiGroup;
use serde_json::Value;

use super::{InstallError, Written, read_json, replace};
use crate::cni::CniError;
use crate::conflist::{self, DefaultNetwork};
use crate::netconf::NetConf;

/// Calico's own section of a list is kept beside it, under its name with this behind: a runtime does not read it.
const BEFORE: &str = ".before-kube-ipam";
/// The name that our plugin has in a section.
const OURS: &str = "kube-ipam";

/// Mode of a list that was not there before: Calico's installer writes the same.
const MODE: u32 = 0o600;

type Edits = Vec<Result<Vec<Written>, InstallError>>;

/// Puts our section into each list of Calico's, and the API group, if one is to be named. Gives how many lists there are, too.
pub(super) fn put_ours(directory: &Path, section: &Value, group: Option<ApiGroup>) -> (usize, Edits) {
    each(directory, |path, list| {
        let section = for_list(path, list, section);
        let edited = conflist::with_ours(list, &section).map_err(invalid(path))?;
        let in_group = group.and_then(|group| conflist::with_api_group(edited.as_ref().unwrap_or(list), group));
        let Some(edited) = in_group.or(edited) else { return Ok(Vec::new()) };
        if let Some(calicos) = conflist::ipam_section(list).filter(|found| conflist::is_calicos(found)) {
            replace(&before(path), &text(calicos), MODE)?;
        }
        write(path, list, &edited, "has kube-ipam's section now")
    })
}

/// The section by the template for one list. What Calico's own said is in the list, or beside it since ours is there.
fn for_list(path: &Path, list: &Value, template: &Value) -> Value {
    let found = conflist::ipam_section(list).filter(|found| conflist::is_calicos(found)).cloned();
    conflist::carried_over(template, found.or_else(|| read_json(&before(path)).ok()).as_ref())
}

/// Puts Calico's own section back into each list that has ours, as it was before.
pub fn restore_calico(directory: &Path) -> Vec<Result<Vec<Written>, InstallError>> {
    let (_, edits) = each(directory, |path, list| {
        let kept = before(path);
        let section = read_json(&kept).ok();
        let Some(edited) = conflist::with_calicos(list, section.as_ref()).map_err(invalid(path))? else {
            return Ok(Vec::new());
        };
        let written = write(path, list, &edited, "has calico-ipam's section again")?;
        match fs::remove_file(&kept) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(InstallError::Io { path: kept, error }),
            _ => Ok(written),
        }
    });
    edits
}

/// What the first list of Calico's would be with our section.
pub(super) fn network_with(directory: &Path, section: &Value) -> Option<NetConf> {
    let mut lists =
        configurations(directory).ok()?.into_iter().filter_map(|path| read_json(&path).ok().map(|list| (path, list)));
    let (path, list) = lists.find(|(_, list)| conflist::ipam_section(list).is_some())?;
    let edited = conflist::with_ours(&list, &for_list(&path, &list, section)).ok()?.unwrap_or(list);
    NetConf::parse(&conflist::plugin_conf(&edited, OURS).ok()?, OURS).ok()
}

/// Applies `edit` to each configuration whose addresses come from Calico's IPAM or from ours.
fn each(directory: &Path, edit: impl Fn(&Path, &Value) -> Result<Vec<Written>, InstallError>) -> (usize, Edits) {
    let paths = match configurations(directory) {
        Ok(paths) => paths,
        Err(error) => return (0, vec![Err(InstallError::Io { path: directory.to_owned(), error })]),
    };
    // One that is no JSON, or not Calico's, is not ours to judge.
    let lists = paths.into_iter().filter_map(|path| read_json(&path).ok().map(|list| (path, list)));
    let edits: Edits = lists
        .filter(|(_, list)| conflist::ipam_section(list).is_some())
        .map(|(path, list)| edit(&path, &list))
        .collect();
    (edits.len(), edits)
}

/// The files that a runtime looks at, in its order.
pub(crate) fn configurations(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let is_one = |path: &PathBuf| {
        path.extension().and_then(|x| x.to_str()).is_some_and(|x| ["conflist", "conf", "json"].contains(&x))
    };
    let mut files: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).filter(is_one).collect();
    files.sort();
    Ok(files)
}

/// The configuration that the runtime uses, and what it comes to.
pub(crate) struct InUse {
    path: PathBuf,
    /// Where in that file a pod's own network is named.
    place: &'static str,
    /// That network's configuration; `None` if it is not to be seen here.
    network: Option<Value>,
}

impl InUse {
    /// The first of the directory that is one; `None` if there is none yet.
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        let valid = |path: PathBuf| {
            let is_list = path.extension().is_some_and(|x| x == "conflist");
            let conf = read_json(&path).ok().filter(|conf| conflist::is_configuration(conf, is_list))?;
            Some((path, conf))
        };
        let mut valid = configurations(directory).ok()?.into_iter().filter_map(valid);
        let (path, conf) = valid.next()?;
        let (place, network) = match conflist::default_network(&conf) {
            DefaultNetwork::Own => ("", Some(conf)),
            DefaultNetwork::Delegate(delegate) => ("delegates[0]", Some(delegate.clone())),
            DefaultNetwork::Named(name) => {
                // Multus sees the node's files below a directory of its own.
                let file = name.contains('/').then(|| Path::new(name).file_name()).flatten();
                let is_it = |(path, conf): &(PathBuf, Value)| match file {
                    Some(file) => path.file_name() == Some(file),
                    None => conf.get("name").and_then(Value::as_str) == Some(name),
                };
                ("clusterNetwork", valid.find(is_it).map(|(_, conf)| conf))
            }
            DefaultNetwork::Unsaid => ("", None),
        };
        Some(Self { path, place, network })
    }

    /// The configuration of the network that pods get by default, as a list and as our plugin reads it; `None` if it cannot be
    /// seen, or is not ours.
    pub(crate) fn ours(self) -> Option<(PathBuf, Value, NetConf)> {
        let list = self.network?;
        let net = NetConf::parse(&conflist::plugin_conf(&list, OURS).ok()?, OURS).ok()?;
        Some((self.path, list, net))
    }

    /// Why pods do not get their addresses from us, and what to do about it; `None` if they do.
    fn unused(self) -> Option<InstallError> {
        let Self { path, place, network } = self;
        let section = network.as_ref().and_then(conflist::ipam_section);
        let (why, remedy) = match (section, place) {
            (Some(section), _) if conflist::is_ours(section) => return None,
            // Such a list was edited, or why it was not is told already.
            (Some(_), "" | "clusterNetwork") => return None,
            (Some(_), _) => (
                "is Multus's, and its delegates[0] is a copy of Calico's list with calico-ipam: pods get their addresses there",
                "write \"clusterNetwork\" with the path of Calico's list in the place of delegates, or restart Multus's pods \
                 so that they copy the list again",
            ),
            (None, "") if network.is_some() => (
                "is another network plugin's: pods get their addresses there",
                "remove it, or give Calico's list a name that comes before it",
            ),
            (None, "") => (
                "is Multus's, and names neither delegates nor clusterNetwork: where pods get their addresses cannot be seen",
                "write \"clusterNetwork\" with the path of Calico's list",
            ),
            (None, _) if network.is_none() => (
                "is Multus's, and its clusterNetwork is no configuration of this directory: pods get their addresses elsewhere",
                "write \"clusterNetwork\" with the path of Calico's list",
            ),
            (None, _) => (
                "is Multus's, and its default network is not Calico's: pods get their addresses there",
                "write \"clusterNetwork\" with the path of Calico's list",
            ),
        };
        Some(InstallError::Unused { path, why, remedy })
    }
}

/// The API group that the configuration names which the runtime uses, be it ours or Calico's.
pub(crate) fn api_group(directory: &Path) -> Option<ApiGroup> {
    conflist::api_group(&InUse::of(directory)?.network?)
}

/// Why the runtime does not come by our section, though it is in place.
pub(super) fn unused(directory: &Path) -> Option<InstallError> {
    InUse::of(directory).and_then(InUse::unused)
}

/// Unless somebody else has written the file meanwhile: whoever did is answered by the next look at it.
fn write(path: &Path, seen: &Value, edited: &Value, what: &'static str) -> Result<Vec<Written>, InstallError> {
    let io = |error| InstallError::Io { path: path.to_owned(), error };
    let mode = fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
    if read_json(path)? != *seen {
        return Err(io(io::Error::other("it was changed by somebody else in between")));
    }
    Ok(if replace(path, &text(edited), mode)? { vec![Written { path: path.to_owned(), what }] } else { Vec::new() })
}

fn before(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsString::from).unwrap_or_default();
    name.push(BEFORE);
    path.with_file_name(name)
}

fn text(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn invalid(path: &Path) -> impl Fn(CniError) -> InstallError {
    move |error| InstallError::Invalid { path: path.to_owned(), error }
}
