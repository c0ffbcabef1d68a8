//! Presence of one large room on two nodes, beside a load of messages: joins while it fills and when it is full, with states and with
//! counts; and an update in place, until all have it. Floor of the joins: those of small rooms, under the same load.

use std::cell::Cell;
use std::io::Write;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet, LocalSet};
use xpando_node::internals::actors::timer::now;

use super::super::super::ask::status_of;
use super::super::mesh::Mesh;
use super::load::{Reader, Writer, contains, join_as};
use super::{AT_ONCE, SETTLE, message, quantiles};

/// Joins one after another whose time is taken.
const TIMED: usize = 500;
/// Between two messages of the load, and who gets each.
const PAUSE: Duration = Duration::from_millis(2);
const HEARERS: usize = 20;
/// Nothing more is told when nothing came for so long: changes are told to thousands in larger steps, with pauses of seconds.
const SILENCE: Duration = Duration::from_secs(5);
/// Updates one after another; their numbers have one digit.
const UPDATES: u32 = 10;
/// How often each client says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// The longest that anything is waited for.
const LIMIT: Duration = Duration::from_secs(120);

/// `bench presence`.
pub(in super::super) fn run(members: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let mesh = Mesh::start(2)?;
    mesh.full()?;
    let http = |node| status_of(&mesh.data_dir(node))?.http.context("the node serves no clients");
    let nodes = mesh.nodes.iter().map(http).collect::<anyhow::Result<Vec<_>>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let hearers = load(&nodes).await?;
        let (mut small, mut times) = (Members::default(), Vec::new());
        for number in 0..TIMED {
            let topic = format!("room:small:{}", number / 10);
            let (reader, writer) = timed(&nodes, number, &topic, "{}", &mut times).await?;
            small.add(tokio::task::spawn_local(follow(reader, Rc::default())), writer);
        }
        let floor = quantiles(&mut times);
        writeln!(
            out,
            "small rooms         join p50 {:.2} ms, p99 {:.2} ms, under load",
            floor[0], floor[1]
        )?;
        for (name, params) in [("count", r#"{"presence":"count"}"#), ("state", "{}")] {
            large(&nodes, members, (name, params), floor, out).await?;
        }
        drop((hearers, small));
        Ok(())
    })
}

/// Joins, and notes how long that took.
async fn timed(
    nodes: &[SocketAddr],
    number: usize,
    topic: &str,
    params: &str,
    times: &mut Vec<u64>,
) -> anyhow::Result<(Reader, Writer)> {
    let to = nodes.get(number % nodes.len()).context("no node")?;
    let begin = now();
    let joined = join_as(*to, topic, params).await?;
    times.push(u64::try_from((now() - begin).as_nanos())?);
    Ok(joined)
}

/// Messages at a steady pace to clients of both nodes, as long as the value is kept.
async fn load(nodes: &[SocketAddr]) -> anyhow::Result<Members> {
    let (topic, mut hearers) = ("room:load", Members::default());
    for number in 0..HEARERS {
        let (reader, writer) = timed(nodes, number, topic, "{}", &mut Vec::new()).await?;
        hearers.add(tokio::task::spawn_local(follow(reader, Rc::default())), writer);
    }
    let publisher = Rc::downgrade(hearers.writers.first().context("no client")?);
    tokio::task::spawn_local(async move {
        let mut pace = tokio::time::interval(PAUSE);
        while let Some(publisher) = publisher.upgrade() {
            if publisher.lock().await.send(&message(topic, 0)).await.is_err() {
                return;
            }
            pace.tick().await;
        }
    });
    Ok(hearers)
}

/// What the members of the large room have got.
#[derive(Default)]
struct Got {
    /// The update that is being told, and how many have it.
    update: Cell<Option<u32>>,
    updated: Cell<usize>,
    bytes: Cell<usize>,
}

impl Got {
    /// Waits until nothing comes any more; how many bytes have come.
    async fn quiet(&self, limit: Duration) -> usize {
        let (start, mut before) = (now(), 0);
        while before != self.bytes.get() && start.elapsed() < limit {
            before = self.bytes.get();
            tokio::time::sleep(SILENCE).await;
        }
        before
    }
}

async fn follow(mut reader: Reader, got: Rc<Got>) {
    loop {
        let (mut bytes, mut updated) = (0, 0);
        let show = |frame: &[u8]| {
            if frame.starts_with(br#"[null,"h","#) {
                return;
            }
            bytes += frame.len();
            let update = got.update.get().map(|number| format!("\"update\":{number}"));
            updated += usize::from(update.is_some_and(|it| contains(frame, it.as_bytes())));
        };
        if reader.frames(show).await.is_err() {
            return;
        }
        got.bytes.set(got.bytes.get() + bytes);
        got.updated.set(got.updated.get() + updated);
    }
}

/// Clients that stay: each says that it is there, as the official ones do, for who is silent for a minute is closed.
#[derive(Default)]
struct Members {
    writers: Vec<Rc<Mutex<Writer>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Members {
    fn add(&mut self, reader: JoinHandle<()>, writer: Writer) {
        let writer = Rc::new(Mutex::new(writer));
        tokio::task::spawn_local(beats(Rc::downgrade(&writer)));
        self.writers.push(writer);
        self.readers.push(reader);
    }

    /// All of them go; returns when the nodes have closed their connections.
    async fn leave(self) -> anyhow::Result<()> {
        drop(self.writers);
        let closed = async {
            for reader in self.readers {
                reader.await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(LIMIT, closed).await.context("clients that left are not closed")?
    }
}

/// The heartbeats of a client until it goes.
async fn beats(writer: Weak<Mutex<Writer>>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let Some(writer) = writer.upgrade() else { return };
        if writer.lock().await.send(r#"[null,"h","phoenix","heartbeat",{}]"#).await.is_err() {
            return;
        }
    }
}

async fn large(
    nodes: &[SocketAddr],
    count: usize,
    (name, params): (&str, &str),
    floor: [f64; 2],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let (topic, got, start) = (format!("room:large:{name}"), Rc::new(Got::default()), now());
    let (mut members, mut joining, mut times) = (Members::default(), JoinSet::new(), Vec::new());
    for number in 0..count {
        let (nodes, topic, params, got) =
            (nodes.to_vec(), topic.clone(), params.to_owned(), got.clone());
        joining.spawn_local(async move {
            let mut times = Vec::new();
            let (reader, writer) = timed(&nodes, number, &topic, &params, &mut times).await?;
            anyhow::Ok((tokio::task::spawn_local(follow(reader, got)), writer, times))
        });
        while joining.len() >= AT_ONCE || number + 1 == count && !joining.is_empty() {
            let (reader, writer, took) = joining.join_next().await.context("a join")???;
            members.add(reader, writer);
            times.extend(took);
        }
    }
    let took = start.elapsed().as_secs_f64();
    let [p50, p99] = quantiles(&mut times);
    writeln!(
        out,
        "{count} members, {name}: joined in {took:.1} s, {AT_ONCE} at once   p50 {p50:.2} ms, p99 {p99:.2} ms"
    )?;
    let before = got.quiet(2 * LIMIT).await;
    let all = start.elapsed().saturating_sub(SILENCE).as_secs_f64();
    writeln!(out, "  told all after {all:.0} s, {:.0} MiB", before as f64 / super::MIB)?;
    let mut times = Vec::new();
    for number in 0..TIMED {
        let (reader, writer) = timed(nodes, number, &topic, params, &mut times).await?;
        members.add(tokio::task::spawn_local(follow(reader, got.clone())), writer);
    }
    let [p50, p99] = quantiles(&mut times);
    writeln!(
        out,
        "  join of the full room one after another p50 {p50:.2} ms, p99 {p99:.2} ms   {:.2} and {:.2} x small rooms",
        p50 / floor[0],
        p99 / floor[1]
    )?;
    if name == "state" {
        let writer = members.writers.first().context("no member")?;
        updates(writer, &topic, members.readers.len(), &got, out).await?;
    }
    members.leave().await
}

/// Updates of one member, each until all have it.
async fn updates(
    writer: &Mutex<Writer>,
    topic: &str,
    members: usize,
    got: &Got,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    got.quiet(LIMIT).await;
    let mut times = Vec::new();
    for number in 0..UPDATES {
        got.updated.set(0);
        got.update.set(Some(number));
        let begin = now();
        let push = format!(r#"["1","2","{topic}","presence_meta",{{"update":{number}}}]"#);
        writer.lock().await.send(&push).await?;
        while got.updated.get() < members {
            if begin.elapsed() > LIMIT {
                bail!("{} of {} have the update", got.updated.get(), members);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(u64::try_from(begin.elapsed().as_nanos())?);
        tokio::time::sleep(SETTLE).await;
    }
    let [p50, most] = quantiles(&mut times);
    Ok(writeln!(out, "  an update until all have it: p50 {p50:.0} ms, at most {most:.0} ms")?)
}
