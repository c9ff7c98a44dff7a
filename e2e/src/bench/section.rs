//! One measurement: so many blocks in the cluster, so many pods on the node, every way in turn.

use std::time::Duration;

use anyhow::Result;

use super::Options;
use super::floor::Floor;
use super::ground::Ground;
use super::report::{CallRow, Row, Section};
use super::seat::Seat;
use super::spread::{Spread, milliseconds};
use super::way::Way;
use crate::calls::Counts;

/// Calls of each kind that are counted.
const COUNTED: usize = 5;

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
    if options.at_once > 0 {
        for seat in &seats {
            eprintln!("  {}: {} calls at once ...", seat.way.name, options.at_once);
            let all = seat.all_at_once(options.at_once).await?;
            for (verb, (times, all)) in ["ADD", "DEL"].into_iter().zip(all) {
                let operation = format!("{} {verb}s at once", options.at_once);
                sheet.0.push(Times { way: seat.way.name, operation, times, all: Some(all) });
            }
        }
    }
    Ok(Section { blocks, pods, rows: sheet.rows(), calls })
}

/// The floor's name in the table.
pub(super) const FLOOR: &str = "two writes";

async fn one_of_each(seat: &Seat<'_>, sheet: &mut Timesheet) -> Result<()> {
    let random = seat.sandbox()?;
    sheet.note(seat.way.name, "ADD random", seat.call("ADD", &random).await?);
    sheet.note(seat.way.name, "DEL random", seat.call("DEL", &random).await?);
    if let Some(fixed) = seat.fixed_sandbox() {
        sheet.note(seat.way.name, "ADD fixed", seat.call("ADD", &fixed).await?);
        sheet.note(seat.way.name, "DEL fixed", seat.call("DEL", &fixed).await?);
    }
    Ok(())
}

/// What each kind of call asks of the API server and of etcd.
async fn count(ground: &Ground, seat: &Seat<'_>) -> Result<Vec<CallRow>> {
    let kinds = [("random", Some(seat.sandbox()?)), ("fixed", seat.fixed_sandbox())];
    let mut rows = Vec::new();
    for (kind, attachment) in kinds {
        let Some(attachment) = attachment else { continue };
        let mut counts = [Counts::default(), Counts::default()];
        let mut transactions = [0, 0];
        for _ in 0..COUNTED {
            for (index, verb) in ["ADD", "DEL"].into_iter().enumerate() {
                let before = ground.transactions()?;
                let (_, new) = ground.counted(seat.way.user, seat.call(verb, &attachment)).await?;
                counts[index].add(new);
                transactions[index] += ground.transactions()? - before;
            }
        }
        for (index, verb) in ["ADD", "DEL"].into_iter().enumerate() {
            let operation = format!("{verb} {kind}");
            rows.extend(CallRow::of(seat.way.name, &operation, &counts[index], COUNTED));
            rows.extend(CallRow::of_etcd(seat.way.name, &operation, transactions[index], COUNTED));
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
