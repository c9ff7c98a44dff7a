//! One measurement: so many blocks in the cluster, so many pods on the node, every way in turn.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kube_ipam::collector::Election;
use serde_json::json;

use super::Options;
use super::agent::Agent;
use super::floor::Floor;
use super::ground::Ground;
use super::handoff;
use super::report::{AgentRow, CallRow, Row, Section};
use super::seat::{Seat, attachment};
use super::spread::{Spread, milliseconds};
use super::way::{Way, When};
use crate::calls::Counts;
use crate::standin::Attachment;

/// Calls of each kind that are counted.
const COUNTED: usize = 5;

/// Most handoffs of an address: each takes longer than it shows.
const HANDOFFS: usize = 30;

/// Numbers of the pods that are bound for counted calls.
const FIRST_COUNTED: usize = 1_000_000;
/// Time for what an agent does after its answer.
const AFTERWARDS: Duration = Duration::from_millis(200);
/// For so long nobody asks anything of the agents.
const IDLE: Duration = Duration::from_secs(10);

/// Times of one operation by one way.
struct Times {
    way: &'static str,
    operation: String,
    times: Vec<Duration>,
    /// From the first start to the last end, of calls at once.
    all: Option<Duration>,
}

/// The times of a section, in the order in which ways and operations first came up.
#[derive(Default)]
struct Timesheet(Vec<Times>);

pub(super) async fn measure(
    ground: &Ground,
    ways: &[Way],
    options: &Options,
    number: usize,
    blocks: usize,
    pods: usize,
) -> Result<Section> {
    let mut floor = Floor::prepare(ground, number, pods).await?;
    let mut seats = Vec::new();
    for way in ways {
        eprintln!("  {}: {pods} pods get addresses ...", way.name);
        seats.push(Seat::prepare(ground, way, number, pods, options.at_once).await?);
    }
    let mut sheet = Timesheet::default();
    eprintln!("  {} calls of each kind, one at a time ...", options.operations);
    for turn in 0..options.operations {
        // Whoever comes first meets the machine as the others left it: the order goes round.
        for place in 0..=seats.len() {
            match seats.get((place + turn) % (seats.len() + 1)) {
                Some(seat) if seat.way.agent == Some(When::Ahead) => {
                    one_of_each_ahead(ground, seat, turn, &mut sheet).await?
                }
                Some(seat) => one_of_each(seat, &mut sheet).await?,
                None => {
                    let (recorded, time) = floor.add().await?;
                    sheet.note(FLOOR, "ADD random", time);
                    sheet.note(FLOOR, "DEL random", floor.del(recorded).await?);
                }
            }
        }
    }
    // Before calls at once bring the node more blocks.
    let mut calls = Vec::new();
    for seat in &seats {
        calls.extend(count(ground, seat).await?);
    }
    for seat in seats.iter().filter(|seat| seat.way.agent != Some(When::Ahead)) {
        for time in handoff::measure(ground, seat, options.operations.min(HANDOFFS)).await? {
            sheet.note(seat.way.name, "handoff", time);
        }
    }
    if options.at_once > 0 {
        for seat in &seats {
            eprintln!("  {}: {} calls at once ...", seat.way.name, options.at_once);
            let (all, on_record) = seat.all_at_once(options.at_once).await?;
            for (verb, (times, all)) in ["ADD", "DEL"].into_iter().zip(all) {
                let operation = format!("{} {verb}s at once", options.at_once);
                sheet.0.push(Times { way: seat.way.name, operation, times, all: Some(all) });
            }
            if let Some(all) = on_record {
                let operation = format!("{} DELs at once, recorded", options.at_once);
                sheet.0.push(Times { way: seat.way.name, operation, times: vec![all], all: Some(all) });
            }
        }
    }
    let mut agents = agents(&seats).await?;
    agents.extend(leader(ground, seats.iter_mut().find(|seat| seat.way.agent == Some(When::Ahead))).await?);
    Ok(Section { blocks, pods, rows: sheet.rows(), calls, agents })
}

/// What the agents take while they are asked nothing.
async fn agents(seats: &[Seat<'_>]) -> Result<Vec<AgentRow>> {
    let with = || seats.iter().filter_map(|seat| Some((seat.way.name, seat.agent.as_ref()?)));
    if with().next().is_none() {
        return Ok(Vec::new());
    }
    eprintln!("  the agents rest ...");
    let before = with().map(|(_, agent)| agent.processor()).collect::<Result<Vec<_>>>()?;
    tokio::time::sleep(IDLE).await;
    let row = |((way, agent), before): ((&'static str, &Agent), f64)| {
        let idle_processor = (agent.processor()? - before) / IDLE.as_secs_f64();
        Ok(AgentRow { way, resident: agent.resident()?, idle_processor })
    };
    with().zip(before).map(row).collect()
}

/// What an agent takes that also looks after the whole cluster, over two of its rounds.
async fn leader(ground: &Ground, seat: Option<&mut Seat<'_>>) -> Result<Option<AgentRow>> {
    let Some(seat) = seat else { return Ok(None) };
    eprintln!("  an agent leads ...");
    // The pods stay; the socket is the new one's.
    seat.agent = None;
    seat.agent = ground.start_agent(seat.way, &seat.node, true).await?;
    let agent = seat.agent.as_ref().context("an agent")?;
    let rounds = Election::default().interval;
    tokio::time::sleep(rounds + rounds / 2).await;
    let before = agent.processor()?;
    tokio::time::sleep(2 * rounds).await;
    let idle_processor = (agent.processor()? - before) / (2 * rounds).as_secs_f64();
    Ok(Some(AgentRow { way: "leader", resident: agent.resident()?, idle_processor }))
}

/// The floor's name in the table.
pub(super) const FLOOR: &str = "two writes";

async fn one_of_each(seat: &Seat<'_>, sheet: &mut Timesheet) -> Result<()> {
    let random = seat.sandbox()?;
    add_and_del(seat, "random", &random, sheet).await?;
    if let Some(fixed) = seat.fixed_sandbox() {
        add_and_del(seat, "fixed", &fixed, sheet).await?;
    }
    Ok(())
}

async fn add_and_del(seat: &Seat<'_>, kind: &str, sandbox: &Attachment, sheet: &mut Timesheet) -> Result<()> {
    sheet.note(seat.way.name, &format!("ADD {kind}"), seat.call("ADD", sandbox).await?);
    let started = Instant::now();
    sheet.note(seat.way.name, &format!("DEL {kind}"), seat.call("DEL", sandbox).await?);
    if let Some(time) = seat.on_record(started).await? {
        sheet.note(seat.way.name, &format!("DEL {kind}, recorded"), time);
    }
    Ok(())
}

/// The same for pods whose addresses are on record before the calls.
async fn one_of_each_ahead(ground: &Ground, seat: &Seat<'_>, turn: usize, sheet: &mut Timesheet) -> Result<()> {
    for (kind, annotations) in [("random", Some(json!({}))), ("fixed", seat.fixed_annotations())] {
        let Some(annotations) = annotations else { continue };
        let pod = seat.bound(ground, turn, annotations).await?;
        add_and_del(seat, kind, &attachment(&pod), sheet).await?;
        ground.remove_pod(&pod).await?;
    }
    Ok(())
}

/// What each kind of call asks of the API server and of etcd.
async fn count(ground: &Ground, seat: &Seat<'_>) -> Result<Vec<CallRow>> {
    let kinds = [("random", Some(json!({}))), ("fixed", seat.fixed_annotations())];
    let mut rows = Vec::new();
    for (kind, annotations) in kinds {
        let Some(annotations) = annotations else { continue };
        let mut counts = [Counts::default(), Counts::default()];
        let mut of_etcd = [0, 0];
        for turn in 0..COUNTED {
            let pod = match seat.way.agent {
                Some(When::Ahead) => Some(seat.bound(ground, FIRST_COUNTED + turn, annotations.clone()).await?),
                _ => None,
            };
            // A container of its own: that of an earlier turn would have to be told from its late DEL.
            let sandbox = match (&pod, kind) {
                (Some(bound), _) => attachment(bound),
                (None, "random") => seat.sandbox()?,
                (None, _) => seat.fixed_sandbox().context("a pod with a fixed address")?,
            };
            for (index, verb) in ["ADD", "DEL"].into_iter().enumerate() {
                let before = ground.etcd_requests()?;
                // What an agent does after its answer counts as well.
                let call = async {
                    seat.call(verb, &sandbox).await?;
                    tokio::time::sleep(if seat.agent.is_some() { AFTERWARDS } else { Duration::ZERO }).await;
                    Ok(())
                };
                let ((), new) = ground.counted(seat.way.user, call).await?;
                counts[index].add(new);
                of_etcd[index] += ground.etcd_requests()? - before;
            }
            if let Some(pod) = pod {
                ground.remove_pod(&pod).await?;
            }
        }
        for (index, verb) in ["ADD", "DEL"].into_iter().enumerate() {
            let operation = format!("{verb} {kind}");
            rows.extend(CallRow::of(seat.way.name, &operation, &counts[index], COUNTED));
            rows.extend(CallRow::of_etcd(seat.way.name, &operation, of_etcd[index], COUNTED));
        }
    }
    Ok(rows)
}

// === impl Timesheet ===

impl Timesheet {
    fn note(&mut self, way: &'static str, operation: &str, time: Duration) {
        match self.0.iter_mut().find(|known| known.way == way && known.operation == operation) {
            Some(known) => known.times.push(time),
            None => self.0.push(Times { way, operation: operation.to_owned(), times: vec![time], all: None }),
        }
    }

    fn rows(self) -> Vec<Row> {
        let row = |times: Times| {
            let spread = Spread::of(&times.times)?;
            Some(Row { way: times.way, operation: times.operation, spread, all: times.all.map(milliseconds) })
        };
        self.0.into_iter().filter_map(row).collect()
    }
}
