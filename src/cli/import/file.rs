//! The list: CSV with a header, or YAML. Every line becomes an owner and an address, or a problem that names it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::cni::names::{is_dns_label, is_dns_subdomain};
use crate::pod::Owner;

/// One line of the list, as it is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    #[serde(default)]
    address: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    ordinal: Option<Ordinal>,
}

/// A number, or what was written in its place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Ordinal {
    Number(u32),
    Text(String),
}

/// A line that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// Where it stands in the list: the line of a CSV file, the number of an entry in YAML.
    pub place: usize,
    pub address: IpAddr,
    pub owner: Owner,
}

/// A line that does not, or whose address cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Problem {
    /// As in [`Wish::place`].
    pub place: usize,
    pub why: String,
}

/// Kinds that may be named without their group.
const KINDS: [(&str, &str); 10] = [
    ("Deployment", "apps"),
    ("StatefulSet", "apps"),
    ("DaemonSet", "apps"),
    ("ReplicaSet", "apps"),
    ("Job", "batch"),
    ("CronJob", "batch"),
    ("Rollout", "argoproj.io"),
    ("Pod", ""),
    ("ReplicationController", ""),
    ("Owner", "kube-ipam.io"),
];

/// The lines of a file, by its form; each with its place.
pub(super) fn lines(text: &str, is_yaml: bool) -> Result<Vec<(usize, Line)>> {
    if is_yaml {
        let listed: Vec<Line> = serde_yaml_ng::from_str(text)?;
        return Ok((1..).zip(listed).collect());
    }
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).comment(Some(b'#')).from_reader(text.as_bytes());
    let header = reader.headers()?.clone();
    for wanted in ["address", "namespace", "kind", "name"] {
        if !header.iter().any(|column| column == wanted) {
            bail!("the first line has no column {wanted:?}; it must be: address,namespace,kind,name[,ordinal]");
        }
    }
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record?;
        let start = record.position().map_or(0, |position| usize::try_from(position.byte()).unwrap_or_default());
        lines.push((line_at(text, start), record.deserialize(Some(&header))?));
    }
    Ok(lines)
}

/// The number of the line that a record which was read from `start` on stands in: after what is left out.
fn line_at(text: &str, start: usize) -> usize {
    let (before, rest) = text.split_at_checked(start).unwrap_or((text, ""));
    let left_out = rest.lines().take_while(|line| line.trim().is_empty() || line.starts_with('#')).count();
    before.matches('\n').count() + left_out + 1
}

/// The wishes, and every line that is none.
pub(super) fn wishes(lines: &[(usize, Line)]) -> (Vec<Wish>, Vec<Problem>) {
    let (mut wishes, mut problems) = (Vec::new(), Vec::new());
    let mut first: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for (place, line) in lines {
        let place = *place;
        match wish(place, line) {
            Err(why) => problems.push(Problem { place, why }),
            Ok(wish) => match first.get(&wish.address) {
                Some(earlier) => {
                    let why = format!("{} is asked for already, at {earlier}; list each address once", wish.address);
                    problems.push(Problem { place, why });
                }
                None => {
                    first.insert(wish.address, place);
                    wishes.push(wish);
                }
            },
        }
    }
    (wishes, problems)
}

fn wish(place: usize, line: &Line) -> Result<Wish, String> {
    let Line { address, namespace, kind, name, ordinal } = line;
    let address: IpAddr =
        address.parse().map_err(|_| format!("address {address:?} is none; write it like 10.244.0.216 or fd00::216"))?;
    if !is_dns_label(namespace) {
        return Err(format!("namespace {namespace:?} is no name of a namespace"));
    }
    if !is_dns_subdomain(name) {
        return Err(format!("name {name:?} is no name of an object"));
    }
    let (kind, group) = kind_and_group(kind)?;
    let ordinal = match ordinal {
        None => None,
        Some(Ordinal::Number(number)) => Some(*number),
        Some(Ordinal::Text(text)) if text.is_empty() => None,
        Some(Ordinal::Text(text)) => return Err(format!("ordinal {text:?} is no number; the first pod's is 0")),
    };
    match (kind.as_str(), ordinal) {
        ("StatefulSet", None) => {
            return Err("a StatefulSet's address is that of one of its pods; give the pod's number as ordinal".into());
        }
        ("StatefulSet", Some(_)) | (_, None) => {}
        (kind, Some(_)) => return Err(format!("a {kind} has no ordinals; leave it empty")),
    }
    let (namespace, name) = (namespace.clone(), name.clone());
    Ok(Wish { place, address, owner: Owner { namespace, group, version: None, kind, name, ordinal } })
}

/// `Deployment`, or with its group `CloneSet.apps.kruise.io`.
fn kind_and_group(text: &str) -> Result<(String, String), String> {
    if let Some((kind, group)) = KINDS.iter().find(|(kind, _)| *kind == text) {
        return Ok(((*kind).to_owned(), (*group).to_owned()));
    }
    match text.split_once('.') {
        Some((kind, group)) if kind.starts_with(|c: char| c.is_ascii_uppercase()) && is_dns_subdomain(group) => {
            Ok((kind.to_owned(), group.to_owned()))
        }
        _ => {
            let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
            let known = known.join(", ");
            Err(format!(
                "kind {text:?} is not known; write {known}, or another with its group like CloneSet.apps.kruise.io"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "address,namespace,kind,name,ordinal\n";

    fn read(text: &str, is_yaml: bool) -> (Vec<Wish>, Vec<Problem>) {
        wishes(&lines(text, is_yaml).unwrap())
    }

    #[test]
    fn csv_and_yaml_say_the_same() {
        let csv = "# ours\naddress, namespace, kind, name, ordinal\n\n10.0.0.8, default, Deployment, web,\n\
                   fd00::8,default,StatefulSet,db,2\n10.0.0.9,x,CloneSet.apps.kruise.io,c,\n";
        let yaml = "- {address: 10.0.0.8, namespace: default, kind: Deployment, name: web}\n\
                    - {address: 'fd00::8', namespace: default, kind: StatefulSet, name: db, ordinal: 2}\n\
                    - {address: 10.0.0.9, namespace: x, kind: CloneSet.apps.kruise.io, name: c}\n";
        let (from_csv, problems) = read(csv, false);
        assert_eq!(problems, []);
        assert_eq!(from_csv.iter().map(|wish| wish.place).collect::<Vec<_>>(), [4, 5, 6]);
        let owners: Vec<String> = from_csv.iter().map(|wish| wish.owner.to_string()).collect();
        assert_eq!(owners, ["Deployment default/web", "StatefulSet default/db #2", "CloneSet x/c"]);
        assert_eq!(from_csv[2].owner.group, "apps.kruise.io");
        let (from_yaml, problems) = read(yaml, true);
        assert_eq!(problems, []);
        let same = |wishes: &[Wish]| wishes.iter().map(|w| (w.address, w.owner.clone())).collect::<Vec<_>>();
        assert_eq!(same(&from_csv), same(&from_yaml));
    }

    #[test]
    fn every_line_that_makes_no_sense_is_named_with_what_is_right() {
        let text = format!(
            "{HEADER}10.0.0.300,default,Deployment,web,\n10.0.0.8,Default,Deployment,web,\n10.0.0.8,default,Deploy,web,\n\
             10.0.0.8,default,Deployment,we b,\n10.0.0.8,default,StatefulSet,db,\n10.0.0.8,default,Deployment,web,1\n\
             10.0.0.8,default,Deployment,web,\n10.0.0.8,default,Deployment,shop,\n10.0.0.9,default,StatefulSet,db,first\n"
        );
        let (wishes, problems) = read(&text, false);
        assert_eq!(wishes.len(), 1);
        let said: Vec<(usize, &str)> = problems.iter().map(|problem| (problem.place, problem.why.as_str())).collect();
        let expected = [
            (2, "address \"10.0.0.300\""),
            (3, "namespace \"Default\""),
            (4, "kind \"Deploy\" is not known; write Deployment,"),
            (5, "name \"we b\""),
            (6, "give the pod's number as ordinal"),
            (7, "a Deployment has no ordinals"),
            (9, "asked for already, at 8"),
            (10, "ordinal \"first\" is no number"),
        ];
        assert_eq!(said.len(), expected.len(), "{said:?}");
        for ((place, why), (at, part)) in said.iter().zip(expected) {
            assert!(*place == at && why.contains(part), "{place}: {why}");
        }
    }

    #[test]
    fn a_list_of_another_form_is_refused_as_a_whole() {
        let refused = |text: &str, is_yaml| lines(text, is_yaml).unwrap_err().to_string();
        assert!(refused("ip,namespace,kind,name\n", false).contains("no column \"address\""));
        assert!(refused(&format!("{HEADER}10.0.0.8,default\n"), false).contains("line: 2"));
        assert!(refused("- {address: 10.0.0.8, host: x}\n", true).contains("unknown field `host`"));
    }
}
