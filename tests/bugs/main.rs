//! Bugs that this field really had, planted one by one: each must be caught by the tests that its patch names.
//!
//! A patch is a small unified diff against `src/` or `calico/` with a header that says which bug of which project
//! it is, and which tests must fail. The cheap test here sees that every patch can still be applied. The other one
//! builds the project once for each bug, in a copy under `target/bugs`:
//! `cargo test -p kube-ipam --test bugs -- --ignored --nocapture`, for some of them with `BUGS=<parts of their names>`.
//! With `BUGS_OF_COMMIT=<hash>` it takes a few that the hash chooses; without a hash these are always the same.
#![allow(clippy::unwrap_used)]

mod patch;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Instant;

use patch::{Patch, Test};
use sha2::{Digest, Sha256};
use tree::{Outcome, Tree};

fn patches() -> Vec<Patch> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bugs");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "patch")).collect();
    paths.sort();
    paths.iter().map(|path| Patch::read(path).unwrap_or_else(|wrong| panic!("{}: {wrong}", path.display()))).collect()
}

/// Whether a file of the tests has a test of that name: the last part of the path by which it is run.
fn is_defined(test: &Test) -> bool {
    let name = test.name.rsplit("::").next().unwrap_or_default();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(test.sources());
    let mut places = vec![root];
    while let Some(place) = places.pop() {
        if place.is_dir() {
            places.extend(fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()));
        } else if fs::read_to_string(&place).is_ok_and(|text| text.contains(&format!("fn {name}("))) {
            return true;
        }
    }
    false
}

#[test]
fn every_patch_says_what_it_is_and_can_still_be_applied() {
    let patches = patches();
    assert!(patches.len() >= 20, "only {} planted bugs", patches.len());
    let mut wrong = Vec::new();
    for patch in &patches {
        for (path, hunks) in &patch.files {
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default();
            if let Err(why) = patch::apply(&text, hunks) {
                wrong.push(format!("{}: {path}: {why}", patch.name));
            }
        }
        let unknown = patch.caught_by.iter().filter(|test| !is_defined(test));
        wrong.extend(unknown.map(|test| format!("{}: there is no test {test}", patch.name)));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
#[ignore = "builds the project once for each bug, for minutes: make bugs"]
fn every_planted_bug_is_caught() {
    let wanted = std::env::var("BUGS").unwrap_or_default();
    let is_wanted = |patch: &Patch| wanted.split(',').any(|part| patch.name.contains(part));
    let mut patches: Vec<Patch> = patches().into_iter().filter(is_wanted).collect();
    if let Ok(commit) = std::env::var("BUGS_OF_COMMIT") {
        patches = few(patches, &commit);
    }
    assert!(!patches.is_empty(), "BUGS={wanted:?} names no planted bug");
    let tree = Tree::lay();
    let started = Instant::now();
    let all: BTreeSet<&Test> = patches.iter().flat_map(|patch| &patch.caught_by).collect();
    for (target, tests) in by_target(all) {
        let outcome = tree.run(&target, &tests);
        assert!(matches!(outcome, Outcome::Passed), "without any bug, {target}: {outcome}");
    }
    println!("{:<58} {:>6.0} s", "without any bug all of these tests pass", started.elapsed().as_secs_f64());
    let mut missed = Vec::new();
    for patch in &patches {
        let begun = Instant::now();
        let verdict = catch(&tree, patch);
        let seconds = begun.elapsed().as_secs_f64();
        match verdict {
            Ok(by) => println!("{:<58} {seconds:>6.0} s  caught by {by}", patch.name),
            Err(why) => {
                println!("{:<58} {seconds:>6.0} s  MISSED: {why}", patch.name);
                missed.push(format!("{}: {why}", patch.name));
            }
        }
    }
    println!("{} planted bugs, {} missed, {:.0} s", patches.len(), missed.len(), started.elapsed().as_secs_f64());
    assert!(missed.is_empty(), "\n{}", missed.join("\n"));
}

/// How many bugs one commit is tried with.
const FEW: usize = 6;

/// Those that a commit's hash chooses: each is as likely as any other.
fn few(mut patches: Vec<Patch>, commit: &str) -> Vec<Patch> {
    patches.sort_by_cached_key(|patch| Sha256::digest(format!("{commit} {}", patch.name)).to_vec());
    patches.truncate(FEW);
    patches
}

#[test]
fn every_bug_comes_round_as_commits_do() {
    let all: BTreeSet<String> = patches().into_iter().map(|patch| patch.name).collect();
    let of = |commit: &str| few(patches(), commit).into_iter().map(|patch| patch.name).collect::<BTreeSet<_>>();
    assert_eq!((of("").len(), of("")), (FEW, of("")));
    let seen: BTreeSet<String> = (0..100).flat_map(|n| of(&n.to_string())).collect();
    assert_eq!(seen, all);
}

/// Plants a bug, runs the tests that must see it, and takes it out again. All of them must fail.
fn catch(tree: &Tree, patch: &Patch) -> Result<String, String> {
    let before = tree.plant(patch)?;
    let mut verdict = Ok(Vec::new());
    for (target, tests) in by_target(patch.caught_by.iter().collect()) {
        verdict = verdict.and_then(|mut by| match tree.run(&target, &tests) {
            Outcome::Failed(failed) if tests.iter().all(|test| failed.contains(&test.name)) => {
                by.extend(tests.iter().map(ToString::to_string));
                Ok(by)
            }
            Outcome::Passed => Err(format!("{target} did not notice")),
            Outcome::Failed(failed) => Err(format!("only {failed:?} noticed")),
            broken => Err(broken.to_string()),
        });
    }
    tree.restore(before);
    Ok(verdict?.join(", "))
}

fn by_target(tests: BTreeSet<&Test>) -> BTreeMap<String, Vec<&Test>> {
    let mut targets: BTreeMap<String, Vec<&Test>> = BTreeMap::new();
    for test in tests {
        targets.entry(test.target.clone()).or_default().push(test);
    }
    targets
}
