//! Whatever comes in, the parsers and the pure edits keep their promises, in time: a short run of the fuzz targets that
//! needs no coverage and no particular compiler. `FUZZ_INPUTS=1000000 FUZZ_SEED=7` makes it another and longer one;
//! tests/fuzz/run.sh is the real thing.
#![allow(clippy::unwrap_used, missing_docs)]

mod mutate;
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fastrand::Rng;
use mutate::Material;
use targets::Target;

/// Inputs that are made for a target, if the time suffices.
const INPUTS: usize = 20_000;
/// Time for a target's inputs.
const TIME: Duration = Duration::from_secs(20);
/// Longest time for one input, three times that without optimisation.
const LONGEST: Duration = if cfg!(debug_assertions) { Duration::from_millis(300) } else { Duration::from_millis(100) };
/// Most memory that this process may ever have had, in KiB.
const MEMORY: u64 = 512 << 10;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder().join("corpus").join(name)).unwrap();
    let mut found: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).map(|p| (p.clone(), fs::read(p).unwrap())).collect();
    found.sort();
    assert!(!found.is_empty(), "{name} has no corpus");
    found
}

/// The words of libFuzzer's dictionary, one a line in quotes.
fn words() -> Vec<Vec<u8>> {
    let text = fs::read_to_string(folder().join("words.dict")).unwrap();
    let quoted = text.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    quoted.map(|word| word.replace(r"\\", r"\").replace(r#"\""#, "\"").into_bytes()).collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Runs one input; says which it was if it breaks a promise or takes too long, and keeps it.
fn run(name: &str, target: Target, input: &[u8], origin: &str) {
    let kept = || {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
        fs::write(&path, input).unwrap();
        format!("target {name}, {origin}; the input is {}", path.display())
    };
    let once = || {
        let started = Instant::now();
        let outcome = catch_unwind(|| target(input));
        outcome.unwrap_or_else(|_| panic!("a promise is broken: {}", kept()));
        started.elapsed()
    };
    // A machine that is busy with something else is not slow five times.
    assert!(!(0..5).all(|_| once() > LONGEST), "slower than {LONGEST:?}: {}", kept());
}

fn short_run(name: &str) {
    let (_, target) = targets::ALL.into_iter().find(|(known, _)| *known == name).unwrap();
    let corpus = corpus(name);
    for (path, input) in &corpus {
        run(name, target, input, &path.display().to_string());
    }
    let material = Material { corpus: corpus.into_iter().map(|(_, input)| input).collect(), words: words() };
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let asked = number("FUZZ_INPUTS").map(|n| usize::try_from(n).unwrap());
    let (mut rng, started, mut made) = (Rng::with_seed(seed), Instant::now(), 0);
    while made < asked.unwrap_or(INPUTS) && (asked.is_some() || started.elapsed() < TIME) {
        run(name, target, &material.input(&mut rng), &format!("input {made} of FUZZ_SEED={seed}"));
        made += 1;
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches("kB").trim().parse().unwrap();
    assert!(peak < MEMORY, "{name} had {peak} KiB");
    println!("{name}: {made} inputs in {:.1?}", started.elapsed());
}

#[test]
fn what_a_runtime_says() {
    short_run("cni");
}

#[test]
fn what_people_annotate() {
    short_run("annotations");
}

#[test]
fn what_writers_leave_in_a_block() {
    short_run("block");
}

#[test]
fn what_a_ledger_holds() {
    short_run("claim");
}

#[test]
fn what_comes_over_the_socket() {
    short_run("protocol");
}

#[test]
fn what_stands_in_a_conflist() {
    short_run("conflist");
}

#[test]
fn every_target_has_a_test_and_a_binary() {
    let tests = fs::read_to_string(folder().join("main.rs")).unwrap();
    let manifest = fs::read_to_string(folder().join("libfuzzer/Cargo.toml")).unwrap();
    for (name, _) in targets::ALL {
        assert!(tests.contains(&format!("short_run(\"{name}\")")), "{name} has no test");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} has no binary");
        assert!(folder().join(format!("libfuzzer/fuzz_targets/{name}.rs")).exists(), "{name} has no binary");
    }
}
