//! Thousands of clients that do everything wrong at once, on nodes that may open a thousand files.
//! `XPANDO_CROWD_SECONDS=60` has ten thousand for a minute.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use xpando_node::internals::io::limits;

use crate::kit::client::{Caller, Client, runtime};
use crate::kit::crowd::{Crowd, PLAIN, Wrong};
use crate::kit::{Cluster, Node, PATIENCE, http, linked, now, until, within};

/// How many there are, unless `XPANDO_CROWD_SECONDS` says how long it lasts: then all of them come.
const FEW: usize = 3_000;
const CLIENTS: usize = 10_000;
/// What each of them may have, hard limit and soft.
const DESCRIPTORS: u32 = 1024;
/// How long it lasts then.
const SECONDS: u64 = 10;
/// What the nodes may keep of it all, in KiB.
const KEPT: u64 = 10 * 1024;
const ROOM: &str = "room:good";

/// How long answers took, and how many questions had none.
#[derive(Default)]
struct Asked {
    times: Vec<Duration>,
    failed: usize,
}

impl Asked {
    fn note(&mut self, took: Option<Duration>) {
        match took {
            Some(took) => self.times.push(took),
            None => self.failed += 1,
        }
    }

    fn send(&mut self, what: &str) {
        self.times.sort_unstable();
        let at = |share: f64| self.times.get((self.times.len() as f64 * share) as usize).copied();
        let (half, most) =
            (at(0.5).unwrap_or_default(), self.times.last().copied().unwrap_or_default());
        eprintln!(
            "{what}: {} answered, {} not; half within {half:.2?}, the slowest {most:.2?}",
            self.times.len(),
            self.failed
        );
    }
}

/// One request on a connection of its own.
fn question(node: SocketAddr, path: &str, wanted: &str) -> Option<Duration> {
    let start = now();
    let mut stream = TcpStream::connect_timeout(&node, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.contains(wanted).then(|| start.elapsed())
}

/// How long a number takes from a client to itself.
fn round_trip(client: &Client, number: u64) -> Option<Duration> {
    let start = now();
    client.send(number);
    let heard = || client.seen.lock().numbers.iter().any(|(it, _)| *it == number);
    while start.elapsed() < PATIENCE {
        if heard() {
            return Some(start.elapsed());
        }
        std::thread::yield_now();
    }
    None
}

fn joined(client: &Client) -> Option<Instant> {
    client.seen.lock().joined.map(|(_, since)| since)
}

#[track_caller]
fn joins(what: &str, client: &Client) -> Instant {
    until(what, || joined(client).ok_or_else(|| client.seen.lock().trouble.clone()))
}

fn certificate(cluster: &Cluster) -> [String; 2] {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let files = ["cert.pem", "key.pem"].map(|name| cluster.path(name));
    std::fs::write(&files[0], made.cert.pem()).unwrap();
    std::fs::write(&files[1], made.signing_key.serialize_pem()).unwrap();
    files.map(|file| file.to_str().unwrap().to_owned())
}

/// What was seen while the crowd was there.
#[derive(Default)]
struct Watched {
    health: Asked,
    trips: Asked,
    status: Asked,
    /// The most memory of each node, in KiB.
    peak: [u64; 2],
    /// Clients with a token that came in the midst of it.
    newcomers: Vec<Client>,
}

impl Watched {
    /// Asks all the time, for so long.
    fn watch(
        &mut self,
        span: Duration,
        nodes: [&Node; 2],
        good: &Client,
        newcomer: impl Fn() -> Client,
    ) {
        let (start, mut number) = (now(), 1);
        while start.elapsed() < span {
            number += 1;
            self.health.note(question(nodes[0].http(), "/health/live", "{\"live\":true}"));
            self.trips.note(round_trip(good, number));
            for (node, peak) in nodes.into_iter().zip(&mut self.peak) {
                let asked = now();
                until("status in the midst of it", || node.status());
                self.status.note(Some(asked.elapsed()));
                *peak = (*peak).max(node.memory());
            }
            if number % 4 == 0 {
                self.newcomers.push(newcomer());
            }
        }
    }

    fn send(&mut self, nodes: [&Node; 2]) {
        self.health.send("health");
        self.trips.send("round trips of the well-behaved client");
        self.status.send("status over the admin sockets");
        let early = self.newcomers.iter().filter(|one| joined(one).is_some()).count();
        eprintln!("of {} newcomers with a token {early} were in", self.newcomers.len());
        for cause in
            ["evicted", "unentitled", "too_many_clients", "too_many_of_address", "memory", "accept"]
        {
            let of = nodes.map(|node| node.counter("xpando_clients_refused_total", cause));
            eprintln!("refused, {cause}: {of:?}");
        }
    }
}

/// How many come, and for how long.
fn size() -> (usize, Duration) {
    let seconds = std::env::var("XPANDO_CROWD_SECONDS").ok();
    let (clients, seconds) =
        seconds.map_or((FEW, SECONDS), |seconds| (CLIENTS, seconds.parse().unwrap()));
    let (_, limit) = limits::raise_descriptors().unwrap();
    let room = limit.map_or(clients, |limit| usize::try_from(limit).unwrap().saturating_sub(500));
    (clients.min(room), Duration::from_secs(seconds))
}

#[test]
fn thousands_that_do_everything_wrong_disturb_neither_links_nor_those_who_behave() {
    let (clients, span) = size();
    let cluster = Cluster::new();
    let [cert, key] = certificate(&cluster);
    let a = cluster.node("a").descriptors(DESCRIPTORS).start();
    let tls = cluster.node("b").descriptors(DESCRIPTORS).join(a.listen());
    let tls = tls.arg("--http").arg("127.0.0.1:0").arg("--http-cert").arg(&cert);
    let b = tls.arg("--http-key").arg(&key).start();
    let c = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &c]);
    let (behaves, visits, token) = (runtime(), runtime(), http::token(&cluster, "user"));
    let client = |runtime: &Runtime| {
        let (token, topic) = (token.clone(), ROOM.to_owned());
        Client::start(runtime, Caller { token, topic, nodes: vec![a.http()], watches: false })
    };
    let good = client(&behaves);
    let since = joins("join before the crowd", &good);
    round_trip(&good, 1).expect("a round trip at rest");
    let rows = || [a.row("b"), a.row("c"), b.row("a"), b.row("c")];
    let (links, before) = (rows(), [a.memory(), b.memory()]);

    let (crowd, mut watched) = (Arc::<Crowd>::default(), Watched::default());
    let runs = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for number in 0..clients {
        let wrong = PLAIN.get(number % (PLAIN.len() + 1)).copied();
        let (node, wrong) = wrong.map_or((b.http(), Wrong::HalfHandshake), |it| (a.http(), it));
        runs.spawn(crowd.clone().client(node, wrong));
    }
    watched.watch(span, [&a, &b], &good, || client(&visits));
    let open = std::fs::read_dir(format!("/proc/{}/fd", a.pid())).unwrap().count();
    crowd.end();
    runs.shutdown_background();
    watched.send([&a, &b]);

    let connections = crowd.connected();
    eprintln!("{clients} clients for {span:?}: {connections} connections; {open} files open");
    assert_eq!(joined(&good), Some(since), "the well-behaved client was never away");
    assert_eq!(watched.trips.failed, 0, "and was always heard");
    assert!(!watched.health.times.is_empty(), "health was told in the midst of it");
    assert_eq!(rows(), links, "no link was disturbed");
    for one in &watched.newcomers {
        joins("join of a newcomer", one);
    }
    // How many they are depends on the machine: what they cost is not kept once they have left.
    visits.shutdown_background();
    let d = cluster.node("d").join(a.listen()).start();
    linked(&[&a, &b, &c, &d]);
    for (node, (before, peak)) in [&a, &b].into_iter().zip(before.into_iter().zip(watched.peak)) {
        let after = within(Duration::from_secs(60), "memory as before", || match node.memory() {
            after if after <= before + KEPT => Ok(after),
            after => Err(format!("{before} KiB before, {after} KiB after")),
        });
        eprintln!("{}: {before} KiB before, {peak} KiB at most, {after} KiB after", node.name);
        assert_eq!(node.total("xpando_actor_restarts_total"), 0);
    }
}
