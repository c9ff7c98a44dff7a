//! A copy of what kube-ipam is built from, in which bugs are planted: built without debug information, and
//! incrementally from bug to bug.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::patch::{self, Patch, Test};

/// What the copy holds. The test clusters (`e2e`) are not needed.
const PARTS: [&str; 9] =
    ["Cargo.toml", "Cargo.lock", "build.rs", "README.md", "rust-toolchain.toml", ".cargo", "src", "calico", "tests"];

/// Seconds for a build and a run of tests: the first build is of all dependencies.
const LONGEST_RUN: &str = "900";

/// The copy.
pub struct Tree {
    root: PathBuf,
    target: PathBuf,
}

/// What came of a run of tests.
pub enum Outcome {
    /// All of them ran and passed.
    Passed,
    /// These failed.
    Failed(BTreeSet<String>),
    /// It did not come to the tests.
    Broken(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Failed(tests) => write!(f, "failed: {tests:?}"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

fn original() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Tree {
    /// Makes the copy, or brings an earlier one up to date: files that are right keep their times.
    pub fn lay() -> Self {
        let target = original().join("target");
        // The dependencies are those of the other tests, built already; what the copy has of its own goes by other names.
        let tree = Self { root: target.join("bugs/tree"), target };
        for part in PARTS.into_iter().chain(["yaml"]) {
            tree.copy(Path::new(part));
        }
        tree
    }

    fn copy(&self, part: &Path) {
        let (from, to) = (original().join(part), self.root.join(part));
        if !from.is_dir() {
            write_if_other(&to, &self.adapted(part, fs::read(&from).unwrap()));
            return fs::set_permissions(&to, fs::metadata(&from).unwrap().permissions()).unwrap();
        }
        fs::create_dir_all(&to).unwrap();
        let names = |directory: &Path| -> BTreeSet<_> {
            let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
            // What was built there is no source.
            names.filter(|name| name != "target").collect()
        };
        let wanted = names(&from);
        for gone in names(&to).difference(&wanted) {
            let path = to.join(gone);
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        }
        wanted.iter().for_each(|name| self.copy(&part.join(name)));
    }

    /// Neither the test clusters nor the program itself are built, and nothing for a debugger.
    fn adapted(&self, part: &Path, content: Vec<u8>) -> Vec<u8> {
        if part != Path::new("Cargo.toml") {
            return content;
        }
        let text = String::from_utf8(content).unwrap();
        let lines = text.lines().map(|line| match line {
            "[package]" => "[package]\nautobins = false",
            members if members.starts_with("members = ") => "members = [\"calico\"]",
            "debug = \"line-tables-only\"" => "debug = false",
            other => other,
        });
        lines.fold(String::new(), |text, line| text + line + "\n").into_bytes()
    }

    /// Plants a bug; gives the files as they were.
    ///
    /// # Errors
    /// Its patch does not fit the source any more.
    pub fn plant(&self, bug: &Patch) -> Result<Vec<(PathBuf, String)>, String> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (path, hunks) in &bug.files {
            let file = self.root.join(path);
            let text = fs::read_to_string(&file).map_err(|error| format!("{path}: {error}"))?;
            after.push(patch::apply(&text, hunks).map_err(|why| format!("{path}: {why}"))?);
            before.push((file, text));
        }
        before.iter().zip(after).for_each(|((file, _), text)| fs::write(file, text).unwrap());
        Ok(before)
    }

    /// Takes it out again.
    pub fn restore(&self, before: Vec<(PathBuf, String)>) {
        before.into_iter().for_each(|(file, text)| fs::write(file, text).unwrap());
    }

    /// Runs tests of one target.
    pub fn run(&self, target: &str, tests: &[&Test]) -> Outcome {
        let (package, target) = match target.strip_prefix("calico/") {
            Some(target) => ("calico", target),
            None => ("kube-ipam", target),
        };
        // Of a bug that makes a test hang no more is to be expected.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", LONGEST_RUN]).arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root).args(["test", "--quiet", "-p", package]);
        match target {
            "lib" => command.arg("--lib"),
            name => command.args(["--test", name]),
        };
        command.args(["--", "--exact", "--format", "pretty"]).args(tests.iter().map(|test| &test.name));
        // Whatever the outer build was told is not for this one, except where crates come from.
        command.env("CARGO_TARGET_DIR", &self.target).env("CARGO_INCREMENTAL", "1").env("RUST_BACKTRACE", "0");
        for outer in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "PROTOC"] {
            command.env_remove(outer);
        }
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let told = |ending: &str| -> BTreeSet<String> {
            let lines = out.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(ending));
            lines.map(|name| name.trim_end_matches(" - should panic").to_owned()).collect()
        };
        let (failed, passed) = (told(" ... FAILED"), told(" ... ok"));
        match (failed.is_empty(), output.status.success() && passed.len() == tests.len()) {
            (false, _) => Outcome::Failed(failed),
            (true, true) => Outcome::Passed,
            (true, false) => {
                let last: Vec<&str> = err.lines().chain(out.lines()).rev().take(40).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                Outcome::Broken(format!("it did not come to the tests:\n{}", last.join("\n")))
            }
        }
    }
}

/// Only if the content differs, as cargo judges by times.
fn write_if_other(path: &Path, content: &[u8]) {
    if fs::read(path).is_ok_and(|there| there == content) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}
