//! Many clients on a node that dies.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;
use tokio::runtime::Runtime;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::Authority;
use xpando_node::internals::proto::token::Role;

use crate::kit::client::{Caller, Client, Seen, runtime};
use crate::kit::{Cluster, Node, during, now, three, within};

const CLIENTS: usize = 1000;
const ROOM: &str = "room:crowd";
/// How long all of them may take. Mostly it is a matter of one or two seconds; this is said, not asserted.
const LIMIT: Duration = Duration::from_secs(60);
/// How long what is true in the end is watched.
const CALM: Duration = Duration::from_secs(2);

/// Who is in the room.
struct Crowd<'a> {
    authority: Authority,
    runtime: &'a Runtime,
    /// The node of everybody who shall be present, by key.
    wanted: BTreeMap<String, String>,
}

impl Crowd<'_> {
    /// A client of the first of these nodes, with a token of its own.
    fn client(&mut self, sub: &str, nodes: &[&Node], watches: bool) -> Client {
        let day = Duration::from_secs(24 * 60 * 60);
        let token = self.authority.token(sub, Role::User, vec![], day, clock::wall()).unwrap();
        self.wanted.insert(sub.to_owned(), nodes[0].name.clone());
        let nodes = nodes.iter().map(|node| node.http()).collect();
        let topic = ROOM.to_owned();
        Client::start(self.runtime, Caller { token, topic, nodes, watches })
    }

    /// Waits until this client's view of the room is the truth; when that was seen.
    #[track_caller]
    fn is_seen_by(&self, watcher: &Client) -> Instant {
        within(LIMIT, "exact presence", || seen(watcher).presence.is_exactly(&self.wanted));
        now()
    }
}

fn seen(client: &Client) -> MutexGuard<'_, Seen> {
    client.seen.lock()
}

/// Waits until `found` has something of each client; all of it, from the least.
#[track_caller]
fn each<T: Ord>(what: &str, clients: &[Client], found: impl Fn(&Seen) -> Option<T>) -> Vec<T> {
    within(LIMIT, what, || {
        let mut all: Vec<_> = clients.iter().filter_map(|one| found(&seen(one))).collect();
        all.sort_unstable();
        let without = clients.iter().find(|one| found(&seen(one)).is_none());
        without.map_or(Ok(all), |one| Err(format!("{:?}", seen(one).trouble)))
    })
}

/// When each was joined at a node.
#[track_caller]
fn joined(clients: &[Client], node: &Node) -> Vec<Instant> {
    let http = node.http();
    let there = |seen: &Seen| seen.joined.filter(|(at, _)| *at == http).map(|(_, when)| when);
    each(&format!("joins at {}", node.name), clients, there)
}

/// When each had heard a number.
#[track_caller]
fn heard(clients: &[Client], number: u64) -> Vec<Instant> {
    let when = |seen: &Seen| seen.numbers.iter().find(|(it, _)| *it == number).map(|(_, at)| *at);
    each(&format!("number {number}"), clients, when)
}

fn report(what: &str, start: Instant, times: &[Instant]) {
    let [first, half, last] =
        [0, times.len() / 2, times.len() - 1].map(|at| times[at].saturating_duration_since(start));
    eprintln!("{what}: first {first:.2?}, half {half:.2?}, last {last:.2?}");
}

#[test]
fn a_thousand_clients_of_a_node_that_dies_go_on_at_another() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let runtime = runtime();
    let authority = Authority::open(&cluster.certs()).unwrap();
    let mut crowd = Crowd { authority, runtime: &runtime, wanted: BTreeMap::new() };
    let watcher = crowd.client("watcher", &[&c], true);
    joined(std::slice::from_ref(&watcher), &c);

    let start = now();
    let clients: Vec<_> =
        (0..CLIENTS).map(|n| crowd.client(&format!("client-{n}"), &[&a, &b], false)).collect();
    report("joined", start, &joined(&clients, &a));
    report("present", start, &[crowd.is_seen_by(&watcher)]);
    let start = now();
    watcher.send(1);
    report("told", start, &heard(&clients, 1));

    let start = now();
    for node in crowd.wanted.values_mut().filter(|node| **node == a.name) {
        node.clone_from(&b.name);
    }
    a.kill();
    report("after the kill, joined again", start, &joined(&clients, &b));
    report("after the kill, present", start, &[crowd.is_seen_by(&watcher)]);
    let told = now();
    watcher.send(2);
    report("told again", told, &heard(&clients, 2));

    // Nobody flickers, nobody gets anything twice, and who comes now is told the same.
    during(CALM, || {
        let exact = seen(&watcher).presence.is_exactly(&crowd.wanted);
        assert_eq!(exact, Ok(()), "it stays as it is");
    });
    let late = crowd.client("late", &[&b], true);
    crowd.is_seen_by(&late);
    crowd.is_seen_by(&watcher);
    for client in &clients {
        let numbers: Vec<_> = seen(client).numbers.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2]);
    }
}
