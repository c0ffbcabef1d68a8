//! The service behind `xpando-node bench`: loads and sinks inside running nodes.
//!
//! A node serves [`Name::bench`] when it was started with `--bench`, and only then. It counts messages for any node of
//! its cluster, one run at a time, and ends a run that was not asked about for half a minute; it makes load only for
//! itself, which means for those who may use its admin socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::actors::exchange::{
    Exchange, HandlerError, Received, Reply, Request, ServeError, Serving,
};
use crate::actors::news::Bus;
use crate::actors::timer;
use crate::io::usage::{Usage, usage};
use crate::proto::node::NodeName;
use crate::proto::topic::{Address, Name, Pattern, Topic};

mod flood;
mod numbered;
mod probe;
mod topics;

pub use flood::Flooded;
pub use numbered::{Gap, Ledger, Numbers, Sent, Stream};
pub use probe::{Probe, Probed};
pub use topics::Changed;

/// A run that nobody asks about ends after this time.
const IDLE: Duration = Duration::from_secs(30);
/// Subscribers of one run.
const MAX_SUBSCRIBERS: usize = 10_000;
/// Round-trip times that are kept of one run.
const TIMES: usize = 2_000_000;
/// Between two calls beside the load.
const PROBE: Duration = Duration::from_millis(5);
/// Nothing more comes when nothing came for so long.
const STALLED: Duration = Duration::from_secs(2);
/// Time for one question to a sink.
const ANSWER: Duration = Duration::from_secs(10);

/// What can be ordered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// Count messages on this topic, with so many subscribers. Ends the run before it.
    Sink(String, usize),
    /// What was counted: [`Seen`].
    Seen,
    /// Make load: [`Made`]. Only from this node.
    Load(Load),
    /// Keep a [`Ledger`] of the numbered messages on this topic, or on all below it. Ends the run before it.
    Check(String),
    /// The [`Ledger`].
    Checked,
    /// Publish numbered messages: [`Sent`]. Only from this node.
    Numbers(Numbers),
    /// Make calls at a pace: [`Probed`]. Only from this node.
    Probe(Probe),
    /// Subscribe to so many topics that begin with this text, instead of those before: [`Changed`]. Only
    /// from this node.
    Topics(String, u64),
    /// Note events as fast as they are stored, for so long: [`Flooded`]. Only from this node.
    Flood(Duration),
    /// Subscribe to ever other topics that begin with this text, for so long: [`Changed`]. Only from this
    /// node.
    Churn(String, Duration),
}

impl Order {
    /// Whether any node of the cluster may order it.
    fn is_for_all(&self) -> bool {
        matches!(self, Self::Sink(..) | Self::Seen | Self::Check(_) | Self::Checked)
    }
}

/// A load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// What to do.
    pub kind: Kind,
    /// To which nodes.
    pub to: Vec<NodeName>,
    /// The topic of the sinks there.
    pub topic: String,
    /// Bytes of a payload.
    pub size: usize,
    /// For how long.
    pub time: Duration,
    /// At most so many in all.
    pub count: u64,
    /// By so many tasks.
    pub concurrency: usize,
    /// Subscribers on each node.
    pub subscribers: u64,
}

/// What a load consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Broadcasts to one node.
    Cast,
    /// Requests to one node.
    Call,
    /// Broadcasts to all nodes that want them.
    Fanout,
}

/// What a sink counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Deliveries to its subscribers.
    pub messages: u64,
    /// What its subscribers missed.
    pub missed: u64,
    /// Of the node.
    pub usage: Usage,
}

/// What a load came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Made {
    /// Messages accepted, or calls answered.
    pub done: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Deliveries counted by the sinks.
    pub delivered: u64,
    /// What subscribers missed.
    pub missed: u64,
    /// From the first until the last was delivered or answered.
    pub took: Duration,
    /// Round-trip times of the calls, or of a few calls beside the load: p50, p99, p99.9, in nanoseconds.
    pub round_trips: [u64; 3],
    /// Used by this node.
    pub here: Usage,
    /// Used by each of the others.
    pub there: Vec<Usage>,
}

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    missed: AtomicU64,
}

struct Run {
    counts: Arc<Counts>,
    ledger: Arc<Mutex<Ledger>>,
    asked: Instant,
    _subscribers: JoinSet<()>,
}

struct Bench {
    bus: Bus,
    exchange: Exchange,
    run: Mutex<Option<Run>>,
    /// Reads the subscriptions of [`Order::Topics`].
    held: Mutex<JoinSet<()>>,
}

type Fallible<T> = Result<T, HandlerError>;

/// Serves benchmarks until the result is dropped.
///
/// # Errors
/// [`ServeError`].
pub(super) fn serve(me: &NodeName, bus: &Bus) -> Result<Serving, ServeError> {
    let exchange = bus.exchange();
    let bench = Arc::new(Bench {
        bus: bus.clone(),
        exchange: exchange.clone(),
        run: Mutex::default(),
        held: Mutex::default(),
    });
    let me = me.clone();
    exchange.serve(Name::bench(), move |request| {
        let (bench, own) = (bench.clone(), request.from == me);
        async move { bench.obey(&request, own).await }
    })
}

fn json(value: &impl Serialize) -> Reply {
    Ok(serde_json::to_vec(value)?.into())
}

fn used() -> Usage {
    usage(None).unwrap_or_default()
}

impl Bench {
    async fn obey(self: Arc<Self>, request: &Request, own: bool) -> Reply {
        let order = serde_json::from_slice::<Order>(&request.payload)?;
        if !own && !order.is_for_all() {
            return Err("only a node itself orders its load".into());
        }
        match order {
            Order::Sink(topic, subscribers) => json(&self.sink(&topic, subscribers)?),
            Order::Seen => json(&self.seen()),
            Order::Load(load) => json(&self.load(load).await?),
            Order::Check(pattern) => json(&self.check(&pattern)?),
            Order::Checked => self.checked(),
            Order::Numbers(numbers) => json(&numbered::publish(&self.exchange, &numbers).await?),
            Order::Probe(probe) => json(&probe::probe(&self.exchange, &probe).await?),
            Order::Topics(below, count) => json(&self.hold(&below, count)?),
            Order::Flood(time) => json(&flood::flood(&self.bus, time).await),
            Order::Churn(below, time) => json(&topics::churn(&self.exchange, &below, time).await?),
        }
    }

    fn hold(&self, below: &str, count: u64) -> Fallible<Changed> {
        let mut held = self.held.lock();
        *held = JoinSet::new();
        if count == 0 {
            return Ok(Changed::default());
        }
        topics::hold(&self.exchange, below, count, &mut held)
    }

    fn sink(self: &Arc<Self>, topic: &str, subscribers: usize) -> Fallible<()> {
        let topic = topic.parse::<Topic>()?;
        if subscribers > MAX_SUBSCRIBERS {
            return Err(format!("at most {MAX_SUBSCRIBERS} subscribers").into());
        }
        let (counts, mut tasks) = (Arc::<Counts>::default(), JoinSet::new());
        for _ in 0..subscribers {
            let mut subscription = self.exchange.subscribe(topic.clone())?;
            let counts = counts.clone();
            tasks.spawn(async move {
                while let Some(received) = subscription.recv().await {
                    match received {
                        Received::Message(_) => counts.messages.fetch_add(1, Ordering::Relaxed),
                        Received::Missed(many) => counts.missed.fetch_add(many, Ordering::Relaxed),
                    };
                }
            });
        }
        self.begin(counts, Arc::default(), tasks);
        Ok(())
    }

    fn check(self: &Arc<Self>, pattern: &str) -> Fallible<()> {
        let subscription = self.exchange.subscribe(pattern.parse::<Pattern>()?)?;
        let (ledger, mut tasks) = (Arc::new(Mutex::new(Ledger::new())), JoinSet::new());
        tasks.spawn(numbered::keep(subscription, ledger.clone()));
        self.begin(Arc::default(), ledger, tasks);
        Ok(())
    }

    fn checked(&self) -> Reply {
        let mut run = self.run.lock();
        let run = run.as_mut().ok_or("no ledger is kept")?;
        run.asked = timer::now();
        json(&*run.ledger.lock())
    }

    fn begin(
        self: &Arc<Self>,
        counts: Arc<Counts>,
        ledger: Arc<Mutex<Ledger>>,
        subscribers: JoinSet<()>,
    ) {
        let run = Run { counts, ledger, asked: timer::now(), _subscribers: subscribers };
        *self.run.lock() = Some(run);
        let bench = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let Some(bench) = bench.upgrade() else { return };
                let mut run = bench.run.lock();
                if run.as_ref().is_none_or(|run| run.asked + IDLE < timer::now()) {
                    *run = None;
                    return;
                }
            }
        });
    }

    fn seen(&self) -> Seen {
        let mut run = self.run.lock();
        let Some(run) = run.as_mut() else { return Seen::default() };
        run.asked = timer::now();
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (messages, missed) = (of(&run.counts.messages), of(&run.counts.missed));
        Seen { messages, missed, usage: used() }
    }

    /// What the sinks of a load counted so far.
    async fn all(&self, load: &Load) -> Fallible<Vec<Seen>> {
        let mut all = Vec::new();
        for node in &load.to {
            let address = Address { name: Name::bench(), node: Some(node.clone()) };
            let seen = self.exchange.call(&address, json(&Order::Seen)?, ANSWER).await;
            all.push(serde_json::from_slice(&seen.map_err(|error| format!("{node}: {error}"))?)?);
        }
        Ok(all)
    }

    /// Makes a load. Beside broadcasts, calls tell how long others wait meanwhile.
    async fn load(self: Arc<Self>, load: Load) -> Fallible<Made> {
        let topic = load.topic.parse::<Topic>()?;
        let first = load.to.first().ok_or("to nobody")?.clone();
        if load.kind == Kind::Fanout {
            self.until_wanted(&topic, load.to.len()).await?;
        }
        let (before, here) = (self.all(&load).await?, used());
        let (exchange, left) = (self.exchange.clone(), AtomicU64::new(load.count));
        let echo = Address { name: Name::echo(), node: Some(first.clone()) };
        let maker = Arc::new(Maker { exchange, load: load.clone(), topic, first, echo, left });
        let (start, mut tasks) = (timer::now(), JoinSet::new());
        for _ in 0..load.concurrency.max(1) {
            tasks.spawn(maker.clone().run(start));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let probes = load.kind != Kind::Call;
        let probe = probes.then(|| tokio::spawn(maker.probe(stop.clone())));
        let (mut part, mut expected) = (Part::default(), 0);
        loop {
            match tokio::time::timeout(IDLE / 3, tasks.join_next()).await {
                // A long load keeps its sinks.
                Err(_elapsed) => drop(self.all(&load).await?),
                Ok(None) => break,
                Ok(Some(task)) => {
                    let more = task??;
                    (part.done, part.failed) = (part.done + more.done, part.failed + more.failed);
                    expected += more.reached * load.subscribers;
                    part.times.extend(more.times);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        if let Some(probe) = probe {
            part.times = probe.await?;
        }
        let (after, took) = self.drained(&load, &before, expected, start).await?;
        let sum = |of: fn(&Seen) -> u64| {
            after.iter().map(of).sum::<u64>() - before.iter().map(of).sum::<u64>()
        };
        Ok(Made {
            done: part.done,
            failed: part.failed,
            delivered: if probes { sum(|seen| seen.messages) } else { part.done },
            missed: sum(|seen| seen.missed),
            took,
            round_trips: percentiles(part.times),
            here: since(used(), here),
            there: after.iter().zip(&before).map(|(a, b)| since(a.usage, b.usage)).collect(),
        })
    }

    /// Waits until the sinks are known here.
    async fn until_wanted(&self, topic: &Topic, nodes: usize) -> Fallible<()> {
        let deadline = timer::now() + ANSWER;
        while timer::now() < deadline {
            let report = self.exchange.try_publish(topic, Bytes::new());
            if report.is_ok_and(|report| report.peers >= nodes) {
                return Ok(());
            }
            tokio::time::sleep(PROBE).await;
        }
        Err("the sinks are not known here".into())
    }

    /// Waits until everything was delivered, or nothing more comes; when the last came.
    async fn drained(
        &self,
        load: &Load,
        before: &[Seen],
        expected: u64,
        start: Instant,
    ) -> Fallible<(Vec<Seen>, Duration)> {
        let counted =
            |seen: &[Seen]| seen.iter().map(|seen| seen.messages + seen.missed).sum::<u64>();
        let (base, mut last, mut at) = (counted(before), 0, timer::now());
        loop {
            let seen = self.all(load).await?;
            let now = timer::now();
            let come = counted(&seen) - base;
            if come > last {
                (last, at) = (come, now);
            }
            if come >= expected || at + STALLED < now {
                return Ok((seen, at - start));
            }
            tokio::time::sleep(PROBE).await;
        }
    }
}

/// What the tasks of a load share.
struct Maker {
    exchange: Exchange,
    load: Load,
    topic: Topic,
    /// The first of the nodes, and what answers there.
    first: NodeName,
    echo: Address,
    left: AtomicU64,
}

/// What one task of a load came to.
#[derive(Default)]
struct Part {
    done: u64,
    failed: u64,
    /// Nodes that broadcasts reached, in all.
    reached: u64,
    /// Of calls, how long each took, in nanoseconds.
    times: Vec<u64>,
}

impl Maker {
    async fn run(self: Arc<Self>, start: Instant) -> Fallible<Part> {
        let (payload, end) = (Bytes::from(vec![7; self.load.size]), start + self.load.time);
        match self.load.kind {
            Kind::Call => Ok(self.call(payload, end).await),
            Kind::Cast | Kind::Fanout => self.publish(payload, end).await,
        }
    }

    async fn publish(&self, payload: Bytes, end: Instant) -> Fallible<Part> {
        // A look at the clock costs as much as a small message.
        let portion = if self.load.size > 4096 { 1 } else { 256 };
        let mut made = Part::default();
        while timer::now() < end {
            let part = take(&self.left, portion);
            if part == 0 {
                break;
            }
            for _ in 0..part {
                let payload = payload.clone();
                made.reached += if self.load.kind == Kind::Fanout {
                    self.exchange.publish(&self.topic, payload).await?.peers as u64
                } else {
                    self.exchange.publish_to(&self.first, &self.topic, payload).await?;
                    1
                };
                made.done += 1;
            }
        }
        Ok(made)
    }

    async fn call(&self, payload: Bytes, end: Instant) -> Part {
        let most = TIMES / self.load.concurrency.max(1);
        let (mut made, mut begin) = (Part::default(), timer::now());
        while begin < end && take(&self.left, 1) == 1 {
            match self.exchange.call(&self.echo, payload.clone(), ANSWER).await {
                Ok(_) => made.done += 1,
                Err(_) => made.failed += 1,
            }
            let now = timer::now();
            if made.times.len() < most {
                made.times.push(nanos(now - begin));
            }
            begin = now;
        }
        made
    }

    /// Calls every few milliseconds until told to stop; how long each took, in nanoseconds.
    async fn probe(self: Arc<Self>, stop: Arc<AtomicBool>) -> Vec<u64> {
        let mut times = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let start = timer::now();
            let payload = Bytes::from_static(b"probe");
            if self.exchange.call(&self.echo, payload, ANSWER).await.is_ok() {
                times.push(nanos(timer::now() - start));
            }
            tokio::time::sleep(PROBE).await;
        }
        times
    }
}

/// Takes up to so many of what is left.
fn take(left: &AtomicU64, most: u64) -> u64 {
    let less = |left: u64| Some(left.saturating_sub(most));
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0).min(most)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn since(after: Usage, before: Usage) -> Usage {
    Usage { processor: after.processor.saturating_sub(before.processor), ..after }
}

fn percentiles(mut times: Vec<u64>) -> [u64; 3] {
    times.sort_unstable();
    let at = |thousandths: usize| {
        let last = times.len().saturating_sub(1);
        times.get(last * thousandths / 1000).copied().unwrap_or(0)
    };
    [at(500), at(990), at(999)]
}
