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

/// Every document that people read, the ones in the root included.
fn documents() -> Vec<PathBuf> {
    let entries =
        ["", "docs", "tests/fuzz", "calico/tests/fixtures"].map(|directory| root().join(directory).read_dir());
    let files = entries.into_iter().flat_map(Result::unwrap).map(|entry| entry.unwrap().path());
    let documents: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|x| x == "md")).collect();
    assert!(documents.len() > 14, "{documents:?}");
    documents
}

/// The text outside of fenced code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The words that begin like a path of this repository, in commands and pictures too.
fn paths(text: &str) -> BTreeSet<String> {
    let tops = ["src/", "calico/", "tests/", "e2e/", "docs/", "yaml/", ".github/", ".ci/"];
    let words = text.split(|c: char| c.is_whitespace() || "`|()[],;:'\"#".contains(c));
    let words = words.map(|word| word.trim_end_matches('.'));
    words.filter(|word| tops.iter().any(|top| word.starts_with(top))).map(str::to_owned).collect()
}

/// Targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to.to_owned()).collect()
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
fn every_field_of_the_configuration_and_every_annotation_is_explained() {
    let reference = read("docs/reference.md");
    let of_list = |file: &str| {
        let source = read(file);
        let (_, fields) = source.split_once("const FIELDS").unwrap();
        let (fields, _) = fields.split_once("];").unwrap();
        fields.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let ours = of_list("src/netconf/ipam.rs").into_iter().filter(|field| !field.contains('_') && *field != "dataDir");
    let ours: Vec<String> = ours.chain(of_list("src/netconf/etcd.rs")).collect();
    assert!(ours.len() > 20, "{ours:?}");
    for field in ours.iter().filter(|field| *field != "etcdTrustedCAFileFile") {
        assert!(reference.contains(&format!("`{field}")), "docs/reference.md does not tell of {field}");
    }
    let readme = read("README.md");
    for annotation in read("src/pod/mod.rs").split('"').filter(|text| text.starts_with("kube-ipam.")) {
        assert!(readme.contains(annotation), "README.md does not tell of {annotation}");
    }
}

#[test]
fn every_command_and_every_flag_is_in_the_reference() {
    let reference = read("docs/reference.md");
    let source = read("src/cli/mod.rs");
    let (_, commands) = source.split_once("enum Command {").unwrap();
    let (commands, _) = commands.split_once("\n}").unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .filter_map(|line| line.split(['(', ' ', ',']).next())
        .collect();
    assert!(commands.len() > 11, "{commands:?}");
    for command in commands {
        let row = format!("| `kube-ipam {}", command.to_lowercase());
        assert!(reference.contains(&row), "docs/reference.md has no row {row}");
    }
    let mut flags = BTreeSet::new();
    for file in sources(&root().join("src/cli")) {
        flags.extend(flags_of(&std::fs::read_to_string(file).unwrap()));
    }
    assert!(flags.len() > 45, "{flags:?}");
    for flag in flags {
        let flag = format!("`--{}`", flag.replace('_', "-"));
        assert!(reference.contains(&flag), "docs/reference.md does not tell of {flag}");
    }
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let inside = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
    inside.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// The fields that clap makes long flags of and shows.
fn flags_of(source: &str) -> Vec<String> {
    let mut flags = Vec::new();
    for rest in source.split("#[arg(").skip(1) {
        let (attribute, rest) = rest.split_once(")]").unwrap();
        let mut words = attribute.split([',', '\n']).map(str::trim);
        if attribute.contains("hide = true") || !words.any(|word| word == "long") {
            continue;
        }
        let field = rest.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with("//"));
        let (field, _) =
            field.unwrap().trim_start_matches("pub(super) ").trim_start_matches("pub ").split_once(':').unwrap();
        flags.push(field.to_owned());
    }
    flags
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 120, "README.md has {lines} lines: what has no room within 120 goes to docs/reference.md");
}

#[test]
fn every_path_that_a_document_names_exists() {
    let mut count = 0;
    for document in documents() {
        for path in paths(&std::fs::read_to_string(&document).unwrap()) {
            count += 1;
            let (fixed, _) = path.split_once('*').unwrap_or((&path, ""));
            let directory = root().join(fixed.rsplit_once('/').unwrap().0);
            let mut named = directory.read_dir().into_iter().flatten().map(|entry| entry.unwrap().path());
            let found = if path.contains('*') {
                named.any(|entry| entry.starts_with(&directory) && entry.to_string_lossy().contains(fixed))
            } else {
                root().join(&path).exists() || root().join(format!("{path}.rs")).exists()
            };
            assert!(found, "{}: there is no {path}", document.display());
        }
    }
    assert!(count > 60, "{count} paths");
    for document in ["CONTRIBUTING.md", "docs/architecture.md"] {
        let named = paths(&read(document)).len();
        assert!(named > 10, "{document} names {named} files");
    }
}

/// A newcomer's question has its answer in two files at most.
#[test]
fn every_answer_to_a_newcomer_names_two_files_at_most() {
    let text = read("CONTRIBUTING.md");
    let (_, answers) = text.split_once("## Where do I look?").unwrap();
    let (answers, _) = answers.split_once("\n## ").unwrap();
    let rows: Vec<&str> = answers.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert_eq!(rows.len(), 5, "{rows:#?}");
    for row in rows {
        assert!((1..=2).contains(&paths(row).len()), "{row}");
    }
}

#[test]
fn the_changelog_has_the_current_version() {
    let version = concat!("\n## [", env!("CARGO_PKG_VERSION"), "]");
    assert!(read("CHANGELOG.md").contains(version), "CHANGELOG.md has no section{version}");
}

/// Words that tell a reader nothing he would search for: say record, again, pause, retry.
#[test]
fn documents_use_plain_words() {
    const NOT: [&str; 7] = ["whoever", "on record", "stands still", "stood still", "stand still", "anew", "is at it"];
    for document in documents() {
        // What is in backticks are the program's own words.
        let prose = prose(&std::fs::read_to_string(&document).unwrap()).to_lowercase();
        let words: Vec<&str> = prose.split('`').step_by(2).flat_map(str::split_whitespace).collect();
        let text = format!(" {} ", words.join(" "));
        for word in NOT {
            let alone = text.match_indices(word).any(|(at, _)| {
                let edges = [text[..at].chars().next_back(), text[at + word.len()..].chars().next()];
                edges.iter().all(|edge| edge.is_none_or(|c| !c.is_alphanumeric()))
            });
            assert!(!alone, "{}: \"{word}\"", document.display());
        }
    }
}
