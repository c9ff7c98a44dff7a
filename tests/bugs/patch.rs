//! A planted bug: its header, and a unified diff that is applied by its lines, wherever these have moved to.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

/// A planted bug.
pub struct Patch {
    /// Name of its file without `.patch`.
    pub name: String,
    /// All of these must fail.
    pub caught_by: Vec<Test>,
    /// By file, in order.
    pub files: BTreeMap<String, Vec<Hunk>>,
}

/// A test, as `Caught-by: <target>::<path of the test>` names it. The target is `lib` or a test target of
/// kube-ipam, or of calico with `calico/` before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Test {
    pub target: String,
    pub name: String,
}

/// Lines to be replaced by others.
#[derive(Default)]
pub struct Hunk {
    before: Vec<String>,
    after: Vec<String>,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.target, self.name)
    }
}

impl Test {
    fn parse(text: &str) -> Result<Self, String> {
        let (target, name) = text.split_once("::").ok_or(format!("{text:?} is not <target>::<test>"))?;
        Ok(Self { target: target.to_owned(), name: name.to_owned() })
    }

    /// Where the test is defined.
    pub fn sources(&self) -> String {
        let (root, target) = match self.target.strip_prefix("calico/") {
            Some(target) => ("calico/", target),
            None => ("", self.target.as_str()),
        };
        if target == "lib" {
            return format!("{root}src");
        }
        let file = format!("{root}tests/{target}.rs");
        if Path::new(env!("CARGO_MANIFEST_DIR")).join(&file).exists() { file } else { format!("{root}tests/{target}") }
    }
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// What its header lacks, or what is wrong with the diff.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let (header, diff) = text.split_once("\n--- a/").ok_or("no diff")?;
        let field = |key: &str| header.lines().filter_map(|line| line.strip_prefix(key)).map(str::trim).collect();
        for key in ["Bug:", "Seen-in:"] {
            let told: Vec<&str> = field(key);
            if told.iter().all(|value| value.is_empty()) {
                return Err(format!("the header has no {key}"));
            }
        }
        let named: Vec<&str> = field("Caught-by:");
        let caught_by = named.into_iter().map(Test::parse).collect::<Result<Vec<_>, _>>()?;
        if caught_by.is_empty() {
            return Err("the header has no Caught-by:".into());
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, caught_by, files: files(&format!("--- a/{diff}"))? })
    }
}

fn files(diff: &str) -> Result<BTreeMap<String, Vec<Hunk>>, String> {
    let mut files: BTreeMap<String, Vec<Hunk>> = BTreeMap::new();
    let mut file = None;
    for line in diff.lines() {
        if let Some(path) = line.strip_prefix("--- a/") {
            if !path.starts_with("src/") && !path.starts_with("calico/src/") {
                return Err(format!("{path} is no part of the program"));
            }
            file = Some(path.to_owned());
        } else if line.starts_with("@@") {
            let path = file.clone().ok_or("lines before the first file")?;
            files.entry(path).or_default().push(Hunk::default());
        } else if let Some(hunk) = file.as_ref().and_then(|path| files.get_mut(path)?.last_mut()) {
            let (sign, rest) = line.split_at_checked(1).unwrap_or((" ", ""));
            if sign != "+" && sign != "d" && sign != "i" {
                hunk.before.extend((sign != "\\").then(|| rest.to_owned()));
            }
            if sign == "+" || sign == " " {
                hunk.after.push(rest.to_owned());
            }
        }
    }
    if files.is_empty() { Err("no lines are changed".into()) } else { Ok(files) }
}

/// The text with every hunk applied.
///
/// # Errors
/// The first line of a hunk whose lines are not there, or not only there.
pub fn apply(text: &str, hunks: &[Hunk]) -> Result<String, String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for hunk in hunks {
        let first = hunk.before.iter().find(|line| !line.trim().is_empty()).cloned().unwrap_or_default();
        let places: Vec<usize> = (0..lines.len()).filter(|at| lines[*at..].starts_with(&hunk.before)).collect();
        let [place] = places[..] else {
            return Err(format!("the lines from {first:?} on are found {} times: write the patch anew", places.len()));
        };
        lines.splice(place..place + hunk.before.len(), hunk.after.iter().cloned());
    }
    Ok(lines.join("\n") + "\n")
}
