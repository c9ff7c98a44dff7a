//! What API server, etcd and this process say of themselves: requests that met another writer, processor, memory.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::ground::Ground;

/// A clock tick of `/proc/<pid>/stat`.
const TICKS_A_SECOND: f64 = 100.0;

/// What was counted since the servers started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Servers {
    /// Requests that the API server answered with 409.
    pub conflicts: f64,
    /// Requests that it put off by 429.
    pub put_off: f64,
    pub api_server: Usage,
    pub etcd: Usage,
    /// Of its database, in MB.
    pub etcd_size: f64,
    pub load: Usage,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usage {
    /// Processor time in seconds.
    pub processor: f64,
    /// Resident memory in MB, at the time of looking.
    pub resident: f64,
}

// === impl Servers ===

impl Servers {
    pub(super) async fn look(ground: &Ground) -> Result<Servers> {
        let request = http::Request::get("/metrics").body(Vec::new())?;
        let api_server = ground.admin.request_text(request).await.context("the API server's metrics")?;
        let etcd = ground.control_plane.site().etcd_url();
        let etcd = tokio::task::spawn_blocking(move || page(&etcd)).await?.context("etcd's metrics")?;
        Ok(Servers {
            conflicts: sum(&api_server, "apiserver_request_total", "code=\"409\""),
            put_off: sum(&api_server, "apiserver_request_total", "code=\"429\""),
            api_server: Usage::of(&api_server),
            etcd: Usage::of(&etcd),
            etcd_size: sum(&etcd, "etcd_mvcc_db_total_size_in_bytes", "") / 1e6,
            load: Usage::own()?,
        })
    }
}

fn page(url: &str) -> Result<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://"))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// The sum of a metric's lines that have this among their labels; 0 before the first.
fn sum(page: &str, metric: &str, label: &str) -> f64 {
    let of_metric = |line: &&str| line.split(['{', ' ']).next() == Some(metric) && line.contains(label);
    page.lines().filter(of_metric).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

// === impl Usage ===

impl Usage {
    fn of(page: &str) -> Usage {
        let processor = sum(page, "process_cpu_seconds_total", "");
        Usage { processor, resident: sum(page, "process_resident_memory_bytes", "") / 1e6 }
    }

    fn own() -> Result<Usage> {
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        // The second field is the program's name in brackets, and may hold anything.
        let after = stat.rsplit_once(')').context("no bracket in /proc/self/stat")?.1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
        let status = std::fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let resident: f64 = resident.and_then(|text| text.trim().parse().ok()).context("no VmRSS")?;
        Ok(Usage { processor: (ticks(11) + ticks(12)) / TICKS_A_SECOND, resident: resident / 1e3 })
    }

    /// The time since `earlier`.
    pub(super) fn since(self, earlier: Usage) -> Usage {
        Usage { processor: self.processor - earlier.processor, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_the_lines_with_the_label() {
        let page = "n_total{code=\"409\",v=\"a\"} 3\nn_total{code=\"409\"} 1.5e+01\nn_total{code=\"200\"} 9\nn 7\n";
        assert_eq!(sum(page, "n_total", "code=\"409\""), 18.0);
        assert_eq!((sum(page, "n", ""), sum(page, "m", "")), (7.0, 0.0));
    }

    #[test]
    fn this_process_uses_something() {
        let own = Usage::own().unwrap();
        assert!(own.resident > 1.0 && own.processor >= 0.0, "{own:?}");
    }
}
