//! The programs a real cluster is made of: found on the system, or built once for a user from `e2e/tools/go.mod` into
//! `kube-ipam/e2e-tools/<hash>` of the cache directory (`XDG_CACHE_HOME`, else `~/.cache`). Keeps: a directory named by
//! the hash of the pinned versions either holds every program, finished, or does not exist, however many test processes
//! and clones build at the same time.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

const KUBERNETES: &str = "v1.35.4";
const PROGRAMS: [&str; 5] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"];
const FROM_THE_SYSTEM: [&str; 12] = [
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "ip",
    "iptables",
    "ping",
    "pkill",
    "hostname",
    "nsenter",
    "unshare",
    "mount",
];
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Why no real cluster can run here. With `CI=true` in the environment it is a failure, else a loud skip.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Network namespaces, mounts and cgroups need root.
    #[error("a real cluster needs root (user id {0})")]
    NotRoot(u32),
    /// A program that a distribution's package brings is not in `PATH`.
    #[error("{program} is not in PATH (Debian package {package})")]
    NoProgram {
        /// The missing program.
        program: &'static str,
        /// The package that holds it.
        package: &'static str,
    },
    /// The reference CNI plugins are not installed.
    #[error("{CNI_PLUGINS}/ptp is missing (Debian package containernetworking-plugins)")]
    NoCniPlugins,
    /// Kubernetes' programs have to be built, and there is no Go.
    #[error("go is not in PATH, and the programs of Kubernetes {KUBERNETES} are not built yet")]
    NoGo,
    /// The nodes make their cgroups under the hierarchies of version 1.
    #[error("{0} is missing: the nodes need cgroup v1 hierarchies (v2 has not been tried)")]
    NoCgroupV1(&'static str),
}

impl Unavailable {
    /// Says on stderr, past the test harness' capture, that the real tier is skipped and why.
    ///
    /// Panics with `CI=true` in the environment: there, a skipped test is a failed one.
    pub fn skip(&self) {
        if std::env::var("CI").is_ok_and(|ci| ci == "true") {
            panic!("real tier: {self}");
        }
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("?");
        let _ = writeln!(std::io::stderr().lock(), "\nSKIPPED {test}: real tier: {self}\n");
    }
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    directory: PathBuf,
}

impl Tools {
    /// Looks for everything a real cluster needs, without building anything.
    pub fn check() -> Result<(), Unavailable> {
        let user = fs::metadata("/proc/self").map_or(u32::MAX, |process| process.uid());
        if user != 0 {
            return Err(Unavailable::NotRoot(user));
        }
        for program in FROM_THE_SYSTEM {
            if !in_path(program) {
                return Err(Unavailable::NoProgram { program, package: package_of(program) });
            }
        }
        if !Path::new(CNI_PLUGINS).join("ptp").exists() {
            return Err(Unavailable::NoCniPlugins);
        }
        for hierarchy in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu"] {
            if !Path::new(hierarchy).is_dir() {
                return Err(Unavailable::NoCgroupV1(hierarchy));
            }
        }
        if !finished_directory().is_ok_and(|directory| directory.exists()) && !in_path("go") {
            return Err(Unavailable::NoGo);
        }
        Ok(())
    }

    /// The programs, built now if these versions never were (about five minutes on two cores, then cached).
    /// `None` if a real cluster cannot run here, which has then been said on stderr.
    pub fn or_skip() -> Result<Option<Tools>> {
        if let Err(reason) = Tools::check() {
            reason.skip();
            return Ok(None);
        }
        Tools::build().map(Some)
    }

    /// The programs, built now if these versions never were.
    pub fn build() -> Result<Tools> {
        let directory = finished_directory()?;
        let parent = directory.parent().context("the tools' directory has a parent")?;
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        let lock = File::create(parent.join("lock"))?;
        lock.lock().context("locking the tools directory")?;
        if !directory.exists() {
            build_into(&directory)?;
        }
        Ok(Tools { directory })
    }

    /// The path of one of Kubernetes' programs, such as `kubelet`.
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// etcd, which comes as a crate.
    pub fn etcd(&self) -> Result<PathBuf> {
        etcd_bin_vendored::etcd_bin_path().map(Path::to_path_buf).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// The program that runs in every container: cargo builds it beside the tests.
    pub fn hold(&self) -> Result<PathBuf> {
        beside_the_tests("hold")
    }
}

/// The directory of the reference CNI plugins (`ptp`, `host-local`, `loopback`, `portmap`, `bandwidth`, ...).
pub fn cni_plugins() -> &'static Path {
    Path::new(CNI_PLUGINS)
}

/// Cargo's target directory, found from the running program.
pub fn target_directory() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let found = program.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists());
    found.map(Path::to_path_buf).with_context(|| format!("no cargo target directory above {}", program.display()))
}

/// A binary of this workspace: cargo has built it with the integration tests, but not with an example or a unit test.
fn beside_the_tests(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let mut profile = program.parent().context("a program lies in a directory")?;
    if profile.ends_with("deps") || profile.ends_with("examples") {
        profile = profile.parent().context("deps lies in a profile's directory")?;
    }
    let binary = profile.join(name);
    if !binary.exists() {
        let mut cargo = Command::new("cargo");
        let package = if name == "kube-ipam" { name } else { "e2e" };
        cargo.args(["build", "--quiet", "--package", package, "--bin", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        ensure!(cargo.status().context("running cargo")?.success(), "cargo could not build {name}");
    }
    Ok(binary)
}

fn finished_directory() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for pinned in ["go.mod", "go.sum"] {
        let path = sources().join(pinned);
        hash.update(fs::read(&path).with_context(|| path.display().to_string())?);
    }
    hash.update(build_flags().join(" "));
    let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(cache_directory()?.join("kube-ipam/e2e-tools").join(name))
}

/// The user's cache directory, by the XDG base directory specification: a relative `XDG_CACHE_HOME` counts as unset.
fn cache_directory() -> Result<PathBuf> {
    let named = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().filter(|path| path.is_absolute()).map(|home| home.join(".cache"));
    named.or_else(home).context("neither XDG_CACHE_HOME nor HOME names a directory for the programs of Kubernetes")
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools")
}

fn build_flags() -> [String; 5] {
    [
        "-trimpath".into(),
        "-buildvcs=false".into(),
        "-mod=readonly".into(),
        "-ldflags".into(),
        // Without its version kubectl refuses the server's.
        format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}"),
    ]
}

fn build_into(directory: &Path) -> Result<()> {
    let started = Instant::now();
    let mut said = std::io::stderr();
    writeln!(said, "building Kubernetes {KUBERNETES}: five minutes on two cores the first time ...")?;
    let unfinished = directory.with_extension("unfinished");
    fs::create_dir_all(&unfinished)?;
    // In one call: one program is compiled while another one is linked.
    let status = Command::new("go")
        .arg("build")
        .args(build_flags())
        .arg("-o")
        .arg(&unfinished)
        .args(PROGRAMS.map(|program| format!("k8s.io/kubernetes/cmd/{program}")))
        .env("CGO_ENABLED", "0")
        .current_dir(sources())
        .stdin(Stdio::null())
        .status()
        .context("running go")?;
    if !status.success() {
        bail!("go could not build the programs of Kubernetes: {status}");
    }
    writeln!(said, "built after {:.0} s", started.elapsed().as_secs_f32())?;
    fs::rename(&unfinished, directory).with_context(|| directory.display().to_string())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn package_of(program: &'static str) -> &'static str {
    match program {
        "containerd" | "containerd-shim-runc-v2" | "ctr" => "containerd",
        "runc" | "iptables" | "hostname" | "mount" => program,
        "ip" => "iproute2",
        "ping" => "iputils-ping",
        "pkill" => "procps",
        _ => "util-linux",
    }
}

/// The kube-ipam binary under test: `KUBE_IPAM_BIN`, else the one that cargo built beside the tests.
pub fn kube_ipam() -> Result<PathBuf> {
    match std::env::var_os("KUBE_IPAM_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => beside_the_tests("kube-ipam"),
    }
}
