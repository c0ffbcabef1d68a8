//! What the trail costs on this machine's disk. Floor: the same bytes in the same batches, appended to a plain file
//! that is synced after each.

use std::fs::{self, File};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::store::{Chain, Limits, Store};
use xpando_node::internals::io::usage::usage;
use xpando_node::internals::proto::chain::{ChainLink, Tip};
use xpando_node::internals::proto::event::{Event, Recorded};
use xpando_node::internals::proto::hlc::Stamp;
use xpando_node::internals::proto::node::{Incarnation, NodeName};

use super::mesh::Scratch;

const MIB: f64 = (1 << 20) as f64;

/// Events of one batch, as a busy node makes them: about 200 bytes each.
fn batch(from: u64, count: u64) -> anyhow::Result<Vec<Recorded>> {
    let at = clock::millis();
    let record = |n: u64| {
        let peer: NodeName = format!("node{}@10.0.0.7", n % 100).parse()?;
        let event = Event::PeerSuspected { peer, phi: 8.25, missed: n % 7 };
        let stamp = Stamp { millis: at, count: u32::try_from(n % 1000)? };
        let incarnation = Incarnation(1);
        let (seq, noted_by, hash) = (0, None, None);
        Ok(Recorded { seq, noted_by, at, since_start: n, incarnation, stamp, hash, event })
    };
    (from..from + count).map(record).collect()
}

/// Appends so many events; the time that the appending took.
fn appended(
    events: u64,
    size: u64,
    mut append: impl FnMut(&[Recorded]) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let mut took = Duration::ZERO;
    let mut from = 0;
    while from < events {
        let records = batch(from, size.min(events - from))?;
        let begin = now();
        append(&records)?;
        took += now() - begin;
        from += records.len() as u64;
    }
    Ok(took)
}

fn floor(path: &std::path::Path, events: u64, size: u64) -> anyhow::Result<Duration> {
    let mut file = File::create(path)?;
    let mut tip = Tip::genesis(&"bench@127.0.0.1".parse()?);
    let took = appended(events, size, |records| {
        let mut bytes = Vec::new();
        for record in records {
            let record = record.to_bytes()?;
            tip = tip.then(&record);
            bytes.extend_from_slice(&ChainLink { tip, record: &record }.to_bytes());
        }
        file.write_all(&bytes)?;
        Ok(file.sync_data()?)
    })?;
    fs::remove_file(path)?;
    Ok(took)
}

fn open(directory: &std::path::Path) -> anyhow::Result<Chain> {
    let (store, _) = Store::open(directory, clock::wall())?;
    Ok(Chain::new(Arc::new(store), "bench@127.0.0.1".parse()?)?)
}

/// `bench store`.
pub(super) fn run(events: u64, size: u64, out: &mut dyn Write) -> anyhow::Result<()> {
    let dir = Scratch::new()?;
    let data = dir.0.join("data");
    let rate = |took: Duration| events as f64 / took.as_secs_f64();
    let ms = |took: Duration| took.as_secs_f64() * 1e3;
    let bare = floor(&dir.0.join("bare"), events, size)?;
    let before = usage(None)?.peak_memory;
    let chain = open(&data)?;
    let took = appended(events, size, |records| {
        chain.append(records)?;
        Ok(())
    })?;
    let grown = usage(None)?.peak_memory.saturating_sub(before) as f64 / MIB;
    writeln!(
        out,
        "append {events} in batches of {size}  {:10.0} /s durable   {:.2} x floor ({:.0} /s)   {grown:.1} MiB more memory",
        rate(took),
        bare.as_secs_f64() / took.as_secs_f64(),
        rate(bare)
    )?;
    drop(chain);
    let length = fs::metadata(data.join("node.redb"))?.len();
    writeln!(out, "on disk            {:10.0} B an event", length as f64 / events as f64)?;

    let begin = now();
    let chain = open(&data)?;
    writeln!(out, "open               {:10.2} ms", ms(now() - begin))?;
    let begin = now();
    let newest = chain.newest(u64::MAX, 100, |_| true)?.len();
    writeln!(out, "newest {newest}         {:10.2} ms", ms(now() - begin))?;
    let begin = now();
    let verified = chain.verify(|_, _| true)?;
    let walked = now() - begin;
    writeln!(out, "verify {}     {:10.2} ms   {:.0} /s", verified.last, ms(walked), rate(walked))?;
    half(&chain, out)
}

/// Forgets the older half.
fn half(chain: &Chain, out: &mut dyn Write) -> anyhow::Result<()> {
    let (first, last) = (chain.first()?, chain.last()?);
    let middle = chain.after(first + (last.seq - first) / 2, 1, |_| true)?;
    let event = middle.first().context("some events")?;
    let size = ChainLink { tip: last, record: &event.to_bytes()? }.to_bytes().len() as u64;
    let limits = Limits { age: Duration::MAX, bytes: size * (last.seq - event.seq) };
    let begin = now();
    let signature = |_: &[u8]| Ok::<_, std::convert::Infallible>(vec![0; 72]);
    let forgotten = chain.retain(&limits, clock::wall(), signature, |_, _| true)?;
    writeln!(out, "forget {forgotten}     {:10.2} ms", (now() - begin).as_secs_f64() * 1e3)?;
    Ok(())
}
