//! The documents: what they link to is there, and what can be counted or refused is in them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents() -> Vec<PathBuf> {
    let inside = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let documents: Vec<PathBuf> =
        inside.filter(|path| path.extension().is_some_and(|x| x == "md")).chain([root().join("README.md")]).collect();
    assert!(documents.len() > 7, "{documents:?}");
    documents
}

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<String> {
    let mut code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            found.extend(line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to.to_owned()));
        }
    }
    found
}

/// A heading as its anchor is named.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.starts_with("http")) {
            count += 1;
            let (file, section) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: there is no {link}", document.display());
            if !section.is_empty() {
                let text = std::fs::read_to_string(&target).unwrap();
                let anchors: Vec<String> = text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| anchor(line.trim_start_matches('#')))
                    .collect();
                assert!(anchors.iter().any(|a| a == section), "{}: {link} is none of {anchors:?}", document.display());
            }
        }
    }
    assert!(count > 20, "{count} links");
}

#[test]
fn every_metric_event_and_code_is_explained() {
    let operations = read("docs/operations.md");
    let source = read("src/agent/metrics.rs");
    let names: BTreeSet<&str> =
        source.split('"').filter(|text| text.starts_with("kube_ipam_") && !text.contains(['{', ' '])).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(operations.contains(name), "docs/operations.md does not tell of {name}");
    }
    for event in read("src/agent/events.rs").split('"').filter(|text| {
        text.len() > 8
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.chars().all(|c| c.is_ascii_alphabetic())
    }) {
        assert!(operations.contains(event), "docs/operations.md does not tell of {event}");
    }
    let codes = read("src/cni/error.rs");
    let codes = codes.split("pub const ").skip(1).filter_map(|rest| rest.split_once(": u32 = ")?.1.split_once(';'));
    let mut seen = 0;
    for (code, _) in codes {
        seen += 1;
        // 3 and 51 are the specification's, and kube-ipam never gives them.
        assert!(["3", "51"].contains(&code) || operations.contains(&format!("\n| {code} | ")), "code {code}");
    }
    assert!(seen > 15, "{seen} codes");
}

#[test]
fn every_field_of_the_configuration_and_every_annotation_is_in_the_readme() {
    let readme = read("README.md");
    let source = read("src/netconf/ipam.rs");
    let (_, fields) = source.split_once("const FIELDS").unwrap();
    let (fields, _) = fields.split_once("];").unwrap();
    let ours = fields.split('"').skip(1).step_by(2).filter(|field| !field.contains('_') && *field != "dataDir");
    let mut count = 0;
    for field in ours {
        count += 1;
        assert!(readme.contains(&format!("`{field}")), "README.md does not tell of {field}");
    }
    assert!(count > 12, "{count} fields");
    for annotation in read("src/pod/mod.rs").split('"').filter(|text| text.starts_with("kube-ipam.")) {
        assert!(readme.contains(annotation), "README.md does not tell of {annotation}");
    }
}
