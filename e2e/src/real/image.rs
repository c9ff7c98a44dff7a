//! Container images without Docker: a binary of ours with the libraries it loads, packed as a docker-archive.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What goes into an image of one layer.
#[derive(Debug, Clone)]
pub struct Image {
    /// Names with tags, such as `nginx:latest`.
    pub tags: Vec<String>,
    /// The binary on this machine. It becomes `/<file name>` in the image.
    pub binary: PathBuf,
    /// Arguments that a pod without `args` gives it.
    pub arguments: Vec<String>,
}

impl Image {
    /// Writes the image to `path` in the form that `ctr images import` reads.
    pub fn write(&self, path: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = sha256(&layer);
        let name = self.binary.file_name().context("the binary has a name")?.to_string_lossy();
        let config = serde_json::to_vec(&json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Entrypoint": [format!("/{name}")], "Cmd": self.arguments, "Env": ["PATH=/"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
        }))?;
        let config_name = format!("{}.json", sha256(&config));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest = json!([{ "Config": config_name, "RepoTags": self.tags, "Layers": [layer_name] }]);
        let mut archive = Builder::new(fs::File::create(path).with_context(|| path.display().to_string())?);
        append(&mut archive, &config_name, 0o644, &config)?;
        append(&mut archive, &layer_name, 0o644, &layer)?;
        append(&mut archive, "manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
        Ok(archive.into_inner()?.flush()?)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Builder::new(Vec::new());
        for directory in ["etc/", "tmp/", "proc/", "sys/", "dev/"] {
            let mut header = header(0o755, 0);
            header.set_entry_type(EntryType::Directory);
            layer.append_data(&mut header, directory, &[][..])?;
        }
        let name = self.binary.file_name().context("the binary has a name")?.to_string_lossy();
        append(&mut layer, &name, 0o755, &read(&self.binary)?)?;
        for library in libraries(&self.binary)? {
            let inside = library.strip_prefix("/")?.to_string_lossy().into_owned();
            append(&mut layer, &inside, 0o755, &read(&library)?)?;
        }
        Ok(layer.into_inner()?)
    }
}

/// The shared libraries the binary loads, the loader included; none for a static one.
fn libraries(binary: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(binary).output().context("running ldd")?;
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = listed.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    Ok(words.map(PathBuf::from).collect())
}

fn append(archive: &mut Builder<impl Write>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    Ok(archive.append_data(&mut header(mode, content.len()), name, content)?)
}

fn header(mode: u32, length: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(length as u64);
    header
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}
