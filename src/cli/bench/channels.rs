//! What clients of channels get of a node, and what they cost it.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::{JoinSet, LocalSet};
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::usage::{Usage, usage};

use self::load::{Reader, Writer, at, contains, join, since};
use super::super::ask::status_of;
use super::mesh::{Mesh, Running};

pub(super) mod bare;
pub(super) mod crowd;
pub(super) mod load;
pub(super) mod presence;

/// Deliveries that a publisher has under way, so many messages to so many sockets.
const AHEAD: usize = 6400;
/// Joins one after another.
const JOINS: usize = 2000;
/// Joins at once.
const AT_ONCE: usize = 64;
/// Of so many messages the time of one is taken, by each client.
const TIMED: u64 = 16;
/// After joins: presences are told.
const SETTLE: Duration = Duration::from_secs(2);

const MIB: f64 = (1 << 20) as f64;

/// `bench channels`.
pub(super) fn run(seconds: f64, idle: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let mesh = Mesh::start(2)?;
    mesh.full()?;
    let [here, there] = &mesh.nodes[..] else { bail!("two nodes") };
    let at = |node: &Running| -> anyhow::Result<SocketAddr> {
        status_of(&mesh.data_dir(node))?.http.context("the node serves no clients")
    };
    let (a, b, time) = (at(here)?, at(there)?, Duration::try_from_secs_f64(seconds)?);
    let used = || usage(Some(here.pid()));
    let before = used()?;
    writeln!(out, "idle node           {:.1} MiB", before.memory as f64 / MIB)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut steps = Steps { out, used: &used };
    LocalSet::new().block_on(&runtime, async {
        steps.crossing(a, b, time).await?;
        steps.joins(a).await?;
        for sockets in [100, 1000] {
            let floor = bare::run(sockets, time)?;
            steps.fanout(a, sockets, time, floor).await?;
        }
        writeln!(steps.out, "after 1000 sockets  {:.1} MiB", used()?.memory as f64 / MIB)?;
        steps.crowd(a, idle).await
    })
}

/// What one measurement after another needs.
struct Steps<'a> {
    out: &'a mut dyn Write,
    used: &'a dyn Fn() -> std::io::Result<Usage>,
}

impl Steps<'_> {
    /// One message after another, from a client of one node to a client of another.
    async fn crossing(
        &mut self,
        a: SocketAddr,
        b: SocketAddr,
        time: Duration,
    ) -> anyhow::Result<()> {
        let (mut here, mut publisher) = join(a, "room:crossing").await?;
        let (mut there, _writer) = join(b, "room:crossing").await?;
        // Until each node knows of the other's member, and for the presences to have been told.
        tokio::time::sleep(SETTLE).await;
        let (start, mut times) = (now(), Vec::new());
        while now() < start + time {
            let begin = since(start);
            publisher.send(&message("room:crossing", begin)).await?;
            let mut arrived = None;
            while arrived.is_none() {
                there.frames(|frame| arrived = arrived.or(at(frame).map(|_| since(start)))).await?;
            }
            times.push(arrived.unwrap_or(begin) - begin);
            let mut replied = false;
            while !replied {
                here.frames(|frame| replied |= contains(frame, b"phx_reply")).await?;
            }
        }
        let [p50, p99] = quantiles(&mut times);
        Ok(writeln!(
            self.out,
            "node to node        message to delivery p50 {p50:.2} ms, p99 {p99:.2} ms"
        )?)
    }

    async fn joins(&mut self, to: SocketAddr) -> anyhow::Result<()> {
        let floor = bare::joins(JOINS)?;
        self.join_all(to, floor, "own", "each a topic of its own", JOINS).await?;
        self.join_all(to, floor, "shared", "100 topics", 100).await
    }

    /// Joins one after another, so many topics.
    async fn join_all(
        &mut self,
        to: SocketAddr,
        floor: f64,
        prefix: &str,
        what: &str,
        topics: usize,
    ) -> anyhow::Result<()> {
        let (before, start) = ((self.used)()?, now());
        let (mut kept, mut times) = (Vec::new(), Vec::new());
        for number in 0..JOINS {
            let begin = now();
            kept.push(join(to, &format!("room:{prefix}:{}", number % topics)).await?);
            times.push(u64::try_from((now() - begin).as_nanos())?);
        }
        let (took, after) = (start.elapsed(), (self.used)()?);
        let [p50, p99] = quantiles(&mut times);
        let rate = JOINS as f64 / took.as_secs_f64();
        let each = (after.processor - before.processor).as_secs_f64() / JOINS as f64 * 1e6;
        writeln!(
            self.out,
            "connect and join    {rate:.0} /s one after another, {what}   {:.2} x floor ({floor:.0} /s)\n  p50 {p50:.2} ms, p99 {p99:.2} ms; {each:.0} µs of CPU of the node each",
            rate / floor
        )?;
        Ok(())
    }

    /// One publisher, so many clients of one topic.
    async fn fanout(
        &mut self,
        to: SocketAddr,
        sockets: usize,
        time: Duration,
        floor: f64,
    ) -> anyhow::Result<()> {
        let topic = format!("room:fanout:{sockets}");
        let ahead = (AHEAD / sockets) as u64;
        let clients = many(to, sockets, |_| topic.clone()).await?;
        tokio::time::sleep(SETTLE).await;
        let counts = Rc::new(Counts::default());
        let start = now();
        let (mut readers, mut writers) = (Vec::new(), Vec::new());
        for (reader, writer) in clients {
            let window = readers.is_empty().then(|| counts.clone());
            readers.push(tokio::task::spawn_local(count(reader, counts.clone(), window, start)));
            writers.push(writer);
        }
        let publisher = writers.first_mut().context("no client")?;
        let (before, mine) = ((self.used)()?, usage(None)?);
        while now() < start + time {
            counts.room(ahead).await;
            let room = ahead - (counts.sent.get() - counts.back.get());
            for _ in 0..room {
                publisher.send(&message(&topic, since(start))).await?;
            }
            counts.sent.set(counts.sent.get() + room);
        }
        let wanted = counts.sent.get() * sockets as u64;
        while counts.delivered.get() < wanted && now() < start + 2 * time {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (took, delivered) = (start.elapsed().as_secs_f64(), counts.delivered.get());
        let spent = |after: Usage, before: Usage| {
            (after.processor - before.processor).as_secs_f64() / delivered as f64 * 1e6
        };
        let (node, loader) = (spent((self.used)()?, before), spent(usage(None)?, mine));
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        let [p50, p99] = quantiles(&mut counts.times.borrow_mut());
        let rate = delivered as f64 / took;
        writeln!(
            self.out,
            "{sockets:5} sockets       {rate:.0} deliveries/s   {:.2} x floor ({floor:.0} /s)   lost {}\n  p50 {p50:.2} ms, p99 {p99:.2} ms; CPU a delivery {node:.2} µs of the node, {loader:.2} µs of the clients",
            rate / floor,
            wanted - delivered
        )?;
        Ok(())
    }

    /// Clients that are just there.
    async fn crowd(&mut self, to: SocketAddr, sockets: usize) -> anyhow::Result<()> {
        let (before, start) = ((self.used)()?, now());
        let kept = many(to, sockets, |number| format!("room:crowd:{}", number % 100)).await?;
        let took = start.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLE).await;
        let each = (self.used)()?.memory.saturating_sub(before.memory) as f64 / sockets as f64;
        writeln!(
            self.out,
            "{sockets:5} idle sockets  joined in {took:.2} s, 100 topics   {:.1} KiB each",
            each / 1024.0
        )?;
        drop(kept);
        Ok(())
    }
}

fn message(topic: &str, at: u64) -> String {
    format!(r#"["1","2","{topic}","msg",{{"at":{at},"pad":"0123456789abcdef0123456789abcdef"}}]"#)
}

/// Clients of one topic each, several joining at once.
async fn many(
    to: SocketAddr,
    sockets: usize,
    topic: impl Fn(usize) -> String,
) -> anyhow::Result<Vec<(Reader, Writer)>> {
    let (mut joined, mut joining) = (Vec::with_capacity(sockets), JoinSet::new());
    for number in 0..sockets {
        let topic = topic(number);
        joining.spawn_local(async move { join(to, &topic).await });
        while joining.len() >= AT_ONCE {
            joined.extend(joining.join_next().await.transpose()?.transpose()?);
        }
    }
    while let Some(client) = joining.join_next().await {
        joined.push(client??);
    }
    Ok(joined)
}

/// What all clients of a measurement have got.
#[derive(Default)]
struct Counts {
    sent: Cell<u64>,
    delivered: Cell<u64>,
    /// Of what the publisher sent, what it got back.
    back: Cell<u64>,
    arrived: tokio::sync::Notify,
    times: RefCell<Vec<u64>>,
}

impl Counts {
    /// Waits until the publisher may send half of what it may ever have ahead.
    async fn room(&self, ahead: u64) {
        while self.sent.get() - self.back.get() > ahead / 2 {
            self.arrived.notified().await;
        }
    }
}

/// Counts the messages of one client; of the publisher's own for `window` too.
async fn count(
    mut reader: Reader,
    all: Rc<Counts>,
    window: Option<Rc<Counts>>,
    start: std::time::Instant,
) {
    let mut heard = 0_u64;
    loop {
        let mut messages = 0;
        let show = |frame: &[u8]| {
            // Not the replies to the publisher, nor presences.
            if window.is_some() && !frame.starts_with(b"[null,null,")
                || contains(frame.get(..80).unwrap_or(frame), b"\"presence_")
            {
                return;
            }
            messages += 1;
            heard += 1;
            if heard.is_multiple_of(TIMED) {
                let trip = at(frame).map(|begin| since(start).saturating_sub(begin));
                all.times.borrow_mut().extend(trip);
            }
        };
        if reader.frames(show).await.is_err() {
            return;
        }
        all.delivered.set(all.delivered.get() + messages);
        if let Some(window) = &window {
            window.back.set(window.back.get() + messages);
            window.arrived.notify_one();
        }
    }
}

/// Median and 99th percentile in milliseconds.
pub(super) fn quantiles(nanos: &mut [u64]) -> [f64; 2] {
    nanos.sort_unstable();
    let of = |share: f64| nanos.get((nanos.len() as f64 * share) as usize).copied().unwrap_or(0);
    [0.5, 0.99].map(|share| of(share) as f64 / 1e6)
}
