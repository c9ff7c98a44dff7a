//! One etcd member on loopback, in a directory of its own.
//!
//! Invariant: `kill` and `restart` keep the ports and the data, so that clients meet the same etcd again.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

/// Files for an etcd that speaks TLS and asks clients for a certificate.
#[derive(Debug, Clone)]
pub struct Tls {
    /// The server's certificate, PEM; must be valid for 127.0.0.1.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authority of clients' certificates, PEM.
    pub client_ca: PathBuf,
}

/// A running (or killed) etcd. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Etcd {
    process: Mutex<Option<Child>>,
    ports: Ports,
    tls: Option<Tls>,
    directory: TempDir,
    said: Arc<Mutex<VecDeque<String>>>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
    metrics: u16,
}

/// Lines of etcd's log kept for error messages.
const LINES: usize = 40;

/// What etcd logs once clients are served.
const READY: &str = "ready to serve client requests";

const START_TIMEOUT: Duration = Duration::from_secs(20);

impl Etcd {
    /// Starts etcd and waits until it serves. Blocks for some 100 ms.
    pub fn start(tls: Option<Tls>) -> Result<Self> {
        let mut last = None;
        // Another process may take a port between our looking and etcd's binding.
        for _ in 0..5 {
            let etcd = Self {
                process: Mutex::new(None),
                ports: free_ports()?,
                tls: tls.clone(),
                directory: TempDir::with_prefix("etcd-")?,
                said: Arc::default(),
            };
            match etcd.restart() {
                Ok(()) => return Ok(etcd),
                Err(error) if format!("{error:#}").contains("address already in use") => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("etcd found no free port")))
    }

    /// `http://127.0.0.1:<port>`, or https.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.ports.client)
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// A client, without TLS.
    pub async fn client(&self) -> Result<etcd_client::Client> {
        Ok(etcd_client::Client::connect([self.url()], None).await?)
    }

    /// How many ranges and transactions clients have asked for since it started, whatever came of them. One is counted
    /// before it is answered.
    pub fn requests(&self) -> Result<u64> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.metrics)).context("etcd's metrics")?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let of = |method: &str| {
            let label = format!("grpc_method=\"{method}\"");
            sum(&page, "grpc_server_handled_total", &label).with_context(|| format!("etcd does not count {method}"))
        };
        Ok(of("Range")? + of("Txn")?)
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it abruptly.
    pub fn kill(&self) {
        if let Some(mut child) = self.process().take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again after `kill`, with the data it had, and waits until it serves.
    pub fn restart(&self) -> Result<()> {
        self.kill();
        let mut child = self.command()?.spawn().context("etcd does not start")?;
        let (ready, is_ready) = mpsc::channel();
        if let Some(log) = child.stderr.take() {
            let said = self.said.clone();
            thread::Builder::new().name("etcd-log".to_owned()).spawn(move || follow(log, &said, &ready))?;
        }
        *self.process() = Some(child);
        match is_ready.recv_timeout(START_TIMEOUT) {
            Ok(()) => Ok(()),
            Err(why) => {
                self.kill();
                let lines = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                let said = lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
                match why {
                    RecvTimeoutError::Timeout => {
                        bail!("etcd does not serve after {START_TIMEOUT:?}:\n{said}")
                    }
                    RecvTimeoutError::Disconnected => bail!("etcd ended:\n{said}"),
                }
            }
        }
    }

    /// Stops it in its tracks: connections stay open and nothing is answered.
    pub fn pause(&self) -> Result<()> {
        let pid = self.signal(Signal::STOP)?;
        // A signal takes effect some time after it is sent: return once every thread stands still.
        waitpid(Some(pid), WaitOptions::UNTRACED).context("etcd does not stop")?;
        Ok(())
    }

    /// Lets it go on after `pause`.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT).map(drop)
    }

    fn signal(&self, signal: Signal) -> Result<Pid> {
        let process = self.process();
        let child = process.as_ref().context("etcd does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("etcd has no process id")?;
        kill_process(pid, signal).context("etcd cannot be signalled")?;
        Ok(pid)
    }

    fn command(&self) -> Result<Command> {
        let binary = etcd_bin_vendored::etcd_bin_path().map_err(|e| anyhow::anyhow!("{e}"))?;
        let client = self.url();
        let peer = format!("http://127.0.0.1:{}", self.ports.peer);
        let metrics = format!("http://127.0.0.1:{}", self.ports.metrics);
        let mut command = Command::new(binary);
        command
            .arg("--name=embedded")
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-metrics-urls={metrics}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=embedded={peer}"))
            // A single member needs no patience: it only ever waits for itself.
            .args(["--heartbeat-interval=10", "--election-timeout=50"])
            .args(["--unsafe-no-fsync", "--log-level=info", "--logger=zap", "--log-outputs=stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
            command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(&tls.client_ca);
        }
        Ok(command)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that were free a moment ago.
fn free_ports() -> Result<Ports> {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (client, peer, metrics) = (bind()?, bind()?, bind()?);
    Ok(Ports {
        client: client.local_addr()?.port(),
        peer: peer.local_addr()?.port(),
        metrics: metrics.local_addr()?.port(),
    })
}

/// The sum of a counter's lines that bear a label; `None` if there is no such line.
fn sum(page: &str, counter: &str, label: &str) -> Option<u64> {
    let of_counter = |line: &&str| line.split('{').next() == Some(counter) && line.contains(label);
    let values = page.lines().filter(of_counter).map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    // etcd prints whole numbers, large ones with an exponent.
    values.reduce(|a, b| Some(a? + b?))?.map(|total| total as u64)
}

/// Reads the log to its end, keeps the newest lines, and says once when clients are served.
fn follow(log: ChildStderr, said: &Mutex<VecDeque<String>>, ready: &Sender<()>) {
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        if line.contains(READY) {
            let _ = ready.send(());
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == LINES {
            said.pop_front();
        }
        said.push_back(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_summed_over_the_lines_with_the_label() {
        let page = "# TYPE n counter\nn{m=\"Txn\",code=\"OK\"} 41\nn{m=\"Txn\",code=\"Aborted\"} 1\nn{m=\"Put\"} 7\nnn{m=\"Txn\"} 9\n";
        assert_eq!(sum(page, "n", "m=\"Txn\""), Some(42));
        assert_eq!(sum(page, "n", "m=\"Range\""), None);
        assert_eq!(sum("n{m=\"Txn\"} 1.2e+06\n", "n", "Txn"), Some(1_200_000));
    }
}
