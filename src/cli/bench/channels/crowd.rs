//! N clients of one node, from as many addresses of this machine as they need: what each costs the node, and how long a message takes to
//! all of them. Nobody is shown who is there. Floor of the joins: connections that ask and are answered twice, one after
//! another; of the messages: a bare loop in a process of its own that writes the same bytes to as many sockets, read by the same
//! clients. So each of the processes has one open file a client.

use std::cell::{Cell, RefCell};
use std::future::{Future, ready};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::task::{JoinSet, LocalSet};
use xpando_node::internals::actors::exchange::HandlerError;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::gateway::channels::handler::{Channel, Client, Joined, Push, Reaction};
use xpando_node::internals::io::limits::{allow_descriptors, raise_descriptors};
use xpando_node::internals::io::usage::{Usage, usage};
use xpando_node::internals::proto::admission::{Descriptors, Limits};

use super::super::super::ask::status_of;
use super::super::mesh::Mesh;
use super::load::{Reader, Writer, at, connect_from, contains, dial, masked, since};
use super::{AT_ONCE, JOINS, MIB, SETTLE, bare, message, quantiles};

/// Clients of one address: fewer than may have joined nothing yet.
const PER_ADDRESS: usize = 500;
/// Clients that are connected before anybody joins, or half of all.
const FIRST: usize = 1000;
/// Clients that join more topics, and how many of each kind: the first ones may fit into memory that the node has already.
const MORE: usize = 5000;
const TOPICS: usize = 4;
/// How often a client says that it is there, as the official ones do, and how long that is watched.
const HEARTBEAT: Duration = Duration::from_secs(30);
const WATCHED: Duration = Duration::from_secs(10);
/// Messages to all, one after another.
const MESSAGES: usize = 20;
const TOPIC: &str = "room:crowd";
/// Topics of a service whose joins have a task each.
pub(in super::super) const SERVICE: &str = "bench:*";
/// More descriptors than a node needs besides those of its clients.
const MOST_BESIDES: usize = 10_000;
/// The longest that anything is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// A service that keeps nothing of a join.
pub(in super::super) struct Nothing;

impl Channel for Nothing {
    type State = ();

    async fn join(&self, _client: &Client, _params: Value) -> Result<Joined<()>, HandlerError> {
        Ok(Joined::new(()))
    }

    fn handle_in(
        &self,
        _state: &mut (),
        _client: &Client,
        _push: &Push,
    ) -> impl Future<Output = Result<Reaction, HandlerError>> + Send {
        ready(Ok(Reaction::Silent))
    }
}

/// `bench crowd`.
pub(in super::super) fn run(clients: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    // Half of a node's places are for one address's clients that have joined nothing yet.
    let (need, descriptors) = needed(clients.max(2 * PER_ADDRESS))?;
    allow_descriptors(descriptors as u64).with_context(|| unfit(clients, descriptors))?;
    let most = format!("clients={need}");
    let rules = ["--presence", "room:*=off", "--limit", &most, "--allow-anonymous", SERVICE];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let floor = broadcasts(clients).await?;
        let mesh = Mesh::with(1, rules.map(str::to_owned).to_vec())?;
        mesh.full()?;
        let [node] = &mesh.nodes[..] else { bail!("one node") };
        let to = status_of(&mesh.data_dir(node))?.http.context("the node serves no clients")?;
        let used = || usage(Some(node.pid()));
        let mut crowd = Crowd::new(to, &used)?;
        crowd.comes(clients, out).await?;
        crowd.rests(out).await?;
        crowd.hears(floor, out).await?;
        crowd.joins_more(out).await
    })
}

/// With which limit of clients, and how many open files, a node has places for so many.
fn needed(clients: usize) -> anyhow::Result<(usize, usize)> {
    // Those who are about to leave have less than as many as have places.
    let limit = (clients..2 * clients).find(|limit| Limits::among(*limit).places >= clients);
    let limit = limit.context("no limit is enough")?;
    let enough = |open: &usize| Descriptors::shares(Some(*open)).clients >= limit;
    let open =
        (limit..limit + MOST_BESIDES).find(enough).context("no number of files is enough")?;
    Ok((limit, open))
}

/// Why so many clients are not possible.
fn unfit(clients: usize, descriptors: usize) -> String {
    let hard = raise_descriptors().ok().and_then(|(_, hard)| usize::try_from(hard?).ok());
    let places = Limits::among(Descriptors::shares(hard).clients).places;
    format!(
        "{clients} clients need {descriptors} open files of the node, which is more than the hard limit (ulimit -Hn), with which \
         {places} are possible: raise that, or let root run this, or take fewer clients"
    )
}

/// An address of this machine for the client of this number.
fn source(number: usize) -> IpAddr {
    let nth = u32::try_from(number / PER_ADDRESS).unwrap_or(0);
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + nth).into()
}

/// What all of them have got.
#[derive(Default)]
struct Got {
    delivered: Cell<usize>,
    joined: Cell<usize>,
    gone: Cell<usize>,
    /// How long each delivery took, in nanoseconds.
    times: RefCell<Vec<u64>>,
}

impl Got {
    /// Waits until so many have the message.
    async fn all(&self, clients: usize) -> anyhow::Result<()> {
        self.reaches(&self.delivered, clients).await
    }

    async fn reaches(&self, what: &Cell<usize>, wanted: usize) -> anyhow::Result<()> {
        let start = now();
        while what.get() < wanted {
            if start.elapsed() > LIMIT {
                bail!("{} of {wanted} clients were told, {} are gone", what.get(), self.gone.get());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Median, 99th percentile and the last of the deliveries, in milliseconds; the median of all messages' last.
    fn figures(&self, lasts: &mut [u64]) -> [f64; 3] {
        let [p50, p99] = quantiles(&mut self.times.borrow_mut());
        let [last, _] = quantiles(lasts);
        [p50, p99, last]
    }

    /// How long the last message took to the last client; the next one begins.
    fn next(&self, begun: usize) -> u64 {
        self.delivered.set(0);
        self.times.borrow().get(begun..).into_iter().flatten().copied().max().unwrap_or(0)
    }

    fn deliveries(&self) -> usize {
        self.times.borrow().len()
    }
}

/// Reads what a client is sent.
async fn follow(mut reader: Reader, got: Rc<Got>, start: Instant) {
    let mut show = |frame: &[u8]| {
        if frame.starts_with(br#"["1","1","#) {
            got.joined.set(got.joined.get() + usize::from(contains(frame, br#""status":"ok""#)));
        } else if frame.starts_with(b"[null,null,")
            && let Some(begin) = at(frame)
        {
            got.delivered.set(got.delivered.get() + 1);
            got.times.borrow_mut().push(since(start).saturating_sub(begin));
        }
    };
    while reader.frames(&mut show).await.is_ok() {}
    got.gone.set(got.gone.get() + 1);
}

/// What messages of a bare loop came to.
struct Broadcasts {
    /// Bytes to each.
    length: usize,
    /// Median, 99th percentile and the last, in milliseconds.
    figures: [f64; 3],
}

/// Messages of a bare loop to so many sockets.
async fn broadcasts(sockets: usize) -> anyhow::Result<Broadcasts> {
    let (mut server, start) = (bare::Broadcaster::start(sockets)?, now());
    let (got, mut kept, mut reading) = (Rc::new(Got::default()), Vec::new(), Vec::new());
    for number in 0..sockets {
        let stream = dial(Some(source(number)), server.address).await?;
        let (reader, writer) = stream.into_split();
        let following = follow(Reader::new(reader), got.clone(), start);
        reading.push(tokio::task::spawn_local(following));
        kept.push(writer);
    }
    let (mut length, mut lasts) = (0, Vec::new());
    for _ in 0..MESSAGES {
        let begun = got.deliveries();
        let text = message(TOPIC, since(start)).replacen("\"1\",\"2\"", "null,null", 1);
        // As the server sends it: without a mask.
        length = masked(&text).len() - 4;
        server.send(&text)?;
        got.all(sockets).await?;
        lasts.push(got.next(begun));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(server);
    for client in reading {
        client.await?;
    }
    Ok(Broadcasts { length, figures: got.figures(&mut lasts) })
}

/// The clients of a node.
struct Crowd<'a> {
    to: SocketAddr,
    used: &'a dyn Fn() -> std::io::Result<Usage>,
    empty: Usage,
    writers: Vec<Writer>,
    got: Rc<Got>,
    start: Instant,
    /// How many heartbeats were sent by when.
    beats: (usize, Instant),
}

impl<'a> Crowd<'a> {
    fn new(to: SocketAddr, used: &'a dyn Fn() -> std::io::Result<Usage>) -> anyhow::Result<Self> {
        let (empty, got, start) = (used()?, Rc::new(Got::default()), now());
        Ok(Self { to, used, empty, writers: Vec::new(), got, start, beats: (0, start) })
    }

    /// Memory of the node for each of so many, since then, in KiB.
    fn each(&self, since: Usage, many: usize) -> anyhow::Result<f64> {
        let memory = (self.used)()?.memory.saturating_sub(since.memory);
        Ok(memory as f64 / 1024.0 / many as f64)
    }

    /// They connect, and then join; the first of them stop in between.
    async fn comes(&mut self, clients: usize, out: &mut dyn Write) -> anyhow::Result<()> {
        let floor = bare::joins(JOINS)?;
        let first = FIRST.min(clients / 2);
        self.connect(first, false).await?;
        tokio::time::sleep(SETTLE).await;
        let connected = self.each(self.empty, first)?;
        self.join(TOPIC, first).await?;
        let (before, start) = ((self.used)()?, now());
        self.connect(clients - first, true).await?;
        self.got.reaches(&self.got.joined, clients).await?;
        let (took, after) = (start.elapsed().as_secs_f64(), (self.used)()?);
        tokio::time::sleep(SETTLE).await;
        let rate = (clients - first) as f64 / took;
        let processor = (after.processor - before.processor).as_secs_f64();
        writeln!(
            out,
            "{clients} clients       connect and join {rate:.0} /s, {AT_ONCE} at once   {:.2} x floor ({floor:.0} /s)   {:.0} µs of CPU of the node each",
            rate / floor,
            processor / (clients - first) as f64 * 1e6
        )?;
        let (empty, joined) = (self.empty.memory as f64 / MIB, self.each(self.empty, clients)?);
        Ok(writeln!(
            out,
            "memory              {joined:.1} KiB each in one room, {connected:.1} KiB of which joined nothing; the node without them {empty:.1} MiB"
        )?)
    }

    /// So many more connect, and join where they are wanted to.
    async fn connect(&mut self, many: usize, join: bool) -> anyhow::Result<()> {
        let (mut connecting, before) = (JoinSet::new(), self.writers.len());
        for number in before..before + many {
            let (to, got, start) = (self.to, self.got.clone(), self.start);
            connecting.spawn_local(async move {
                let (reader, mut writer) = connect_from(Some(source(number)), to).await?;
                if join {
                    writer.send(&format!(r#"["1","1","{TOPIC}","phx_join",{{}}]"#)).await?;
                }
                tokio::task::spawn_local(follow(reader, got, start));
                anyhow::Ok(writer)
            });
            while connecting.len() >= AT_ONCE || number + 1 == before + many {
                let Some(connected) = connecting.join_next().await else { break };
                self.writers.push(connected??);
                self.beat().await?;
            }
        }
        Ok(())
    }

    /// The first of them join a topic.
    async fn join(&mut self, topic: &str, many: usize) -> anyhow::Result<()> {
        let before = self.got.joined.get();
        for (number, writer) in self.writers.iter_mut().take(many).enumerate() {
            writer.send(&format!(r#"["1","1","{topic}","phx_join",{{}}]"#)).await?;
            if number.is_multiple_of(AT_ONCE) {
                self.got.reaches(&self.got.joined, before + number).await?;
            }
        }
        self.got.reaches(&self.got.joined, before + many).await
    }

    /// Sends the heartbeats that are due.
    async fn beat(&mut self) -> anyhow::Result<()> {
        let clients = self.writers.len();
        let (sent, last) = self.beats;
        let due = last.elapsed().as_secs_f64() / HEARTBEAT.as_secs_f64() * clients as f64;
        if due < 1.0 {
            return Ok(());
        }
        for number in sent..sent + due as usize {
            let writer = self.writers.get_mut(number % clients).context("a client")?;
            writer.send(r#"[null,"h","phoenix","heartbeat",{}]"#).await?;
        }
        self.beats = (sent + due as usize, now());
        Ok(())
    }

    async fn beats_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let start = now();
        while start.elapsed() < time {
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.beat().await?;
        }
        Ok(())
    }

    /// Nothing but heartbeats.
    async fn rests(&mut self, out: &mut dyn Write) -> anyhow::Result<()> {
        let (before, sent) = ((self.used)()?, self.beats.0);
        self.beats_for(WATCHED).await?;
        let processor = ((self.used)()?.processor - before.processor).as_secs_f64();
        let beats = self.beats.0 - sent;
        Ok(writeln!(
            out,
            "heartbeats          {:.0} /s   {:.1} % of a core, {:.0} µs of CPU of the node each",
            beats as f64 / WATCHED.as_secs_f64(),
            processor / WATCHED.as_secs_f64() * 100.0,
            processor / beats as f64 * 1e6
        )?)
    }

    /// Messages of one of them to all of them.
    async fn hears(&mut self, floor: Broadcasts, out: &mut dyn Write) -> anyhow::Result<()> {
        let (clients, got, mut lasts) = (self.writers.len(), self.got.clone(), Vec::new());
        let before = (self.used)()?;
        for _ in 0..MESSAGES {
            let begun = got.deliveries();
            let text = message(TOPIC, since(self.start));
            self.writers.last_mut().context("a client")?.send(&text).await?;
            got.all(clients).await?;
            lasts.push(got.next(begun));
            self.beats_for(Duration::from_millis(300)).await?;
        }
        let processor = ((self.used)()?.processor - before.processor).as_secs_f64();
        let [p50, p99, last] = got.figures(&mut lasts);
        let [f50, f99, flast] = floor.figures;
        writeln!(
            out,
            "a message to all    p50 {p50:.1} ms, p99 {p99:.1} ms, the last after {last:.1} ms (median)   {:.2}, {:.2} and {:.2} x floor ({f50:.1}, {f99:.1}, {flast:.1} ms)",
            p50 / f50,
            p99 / f99,
            last / flast
        )?;
        let bytes = floor.length * clients;
        Ok(writeln!(
            out,
            "                    {:.2} MiB, {:.0} deliveries/s, {:.2} µs of CPU of the node each; memory {:.1} KiB each afterwards",
            bytes as f64 / MIB,
            clients as f64 / last * 1e3,
            processor / (clients * MESSAGES) as f64 * 1e6,
            self.each(self.empty, clients)?
        )?)
    }

    /// Joins of more topics, of rooms and of a service whose joins have tasks.
    async fn joins_more(&mut self, out: &mut dyn Write) -> anyhow::Result<()> {
        let many = MORE.min(self.writers.len());
        let mut costs = Vec::new();
        for prefix in ["room:more", "bench:more"] {
            let before = (self.used)()?;
            for topic in 0..TOPICS {
                self.join(&format!("{prefix}:{topic}"), many).await?;
                self.beats_for(SETTLE).await?;
            }
            costs.push(self.each(before, many * TOPICS)?);
        }
        let [room, service] = costs[..] else { bail!("two kinds of topics") };
        Ok(writeln!(
            out,
            "a join more         {room:.1} KiB in a room; {service:.1} KiB of a service, with a task   {:+.1} KiB beside the room's",
            service - room
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_places_for_so_many_clients_and_one_file_less_is_too_few() {
        for clients in [100, 1000, 16_268, 20_000, 100_000] {
            let (limit, open) = needed(clients).expect("some limit is enough");
            let places = |open| {
                let most = Descriptors::shares(Some(open)).clients.min(limit);
                Limits::among(most).places
            };
            assert!(places(open) >= clients && places(open - 1) < clients, "{clients}: {open}");
        }
    }
}
