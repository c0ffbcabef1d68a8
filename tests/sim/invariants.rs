//! What must hold: after every event what that event could have changed, now and then what takes
//! time, and after quiet what concerns everybody. Each invariant is one function.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xpando_node::internals::io::tcp::{PROBE, SILENCE};
use xpando_node::internals::proto::codec;
use xpando_node::internals::proto::event::{Event, Source, Status};
use xpando_node::internals::proto::heartbeat::{self, monitor};
use xpando_node::internals::proto::membership::{AttemptId, Input, Output};
use xpando_node::internals::proto::node::{Incarnation, NodeName};
use xpando_node::internals::proto::presence::Entry;
use xpando_node::internals::proto::registry::Mark;
use xpando_node::internals::proto::topology::{self, Side, Sides, tracker};
use xpando_node::internals::proto::wiring::Notice;

use crate::world::{At, Message, Micros, Word, World, micros, ms, secs};

mod dials;
mod liars;
mod records;
mod whole;
use dials::dials_are_bounded;
pub(crate) use liars::nobody_is_invented;
use liars::{
    healthy_pair_is_never_doubted, innocent_nodes_are_never_charged, rows_are_their_origins,
};
pub(crate) use records::{
    after_book, after_presence, disks_hold_what_is_shown, is_forgotten, no_ghost_is_shown,
    presences_agree, registries_agree, stated,
};
pub(crate) use whole::{
    all_is_well, everybody_sees, innocents_are_well, innocents_see, mesh_is_whole, nodes_agree,
    the_dead_are_offline,
};

/// The shortest silence that can end in a verdict: a beat and the acceptable pause, then the whole
/// suspicion. A pair that was well for so long has heard each other in between.
const SHORTEST_SILENCE: Micros = secs(1 + 3 + 4);
/// Links settle within this after the last trouble: the longest backoff, a dial, and then what the
/// other side still held for the link.
const SETTLED: Micros = secs(30 + 5 + 10);
/// Two nodes that reach each other are linked within this: the longest backoff, a turn among dials
/// that hang (eight of 5 s on three of the four places), and a second round with the other address.
const CONNECTED_WITHIN: Micros = secs(30 + 15 + 30);
/// A peer without power: a beat and the pause (4 s), phi 8 at 5.3 deviations of 300 ms, suspicion (4 s),
/// and the ticks in between.
pub(crate) const SILENT_DEATH: Micros = secs(10);
/// Above 12 peers most are told of the doubt, and give the peer a second before they share it.
pub(crate) const HEARSAY: Micros = secs(1);
/// Where liars are about, a beat more.
pub(crate) const ROUND: Micros = secs(1);
/// What the kernel needs without any help: `TCP_USER_TIMEOUT`, counted from a probe.
const BACKSTOP: Micros = micros(SILENCE) + micros(PROBE) + secs(1);
/// Words encode below this.
const LONGEST_WORD: usize = 48 * 1024;

/// What one life of a node was seen to do, kept apart from what its machines remember.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Links agreed to and not ended.
    links: BTreeMap<AttemptId, NodeName>,
    dials: BTreeSet<AttemptId>,
    /// Where others said that lives of nodes are.
    told: BTreeSet<(SocketAddr, Incarnation)>,
    lives: BTreeMap<NodeName, Incarnation>,
    shown: BTreeMap<NodeName, Status>,
    rows: BTreeMap<NodeName, (Incarnation, u64)>,
    entries: BTreeMap<NodeName, Mark>,
    /// Presences that came and did not leave.
    present: BTreeSet<Arc<Entry>>,
    /// Peers the failure detector was told of.
    linked: BTreeSet<NodeName>,
    doubts: BTreeMap<NodeName, Instant>,
    /// The silence that the last doubt of each peer rested on.
    doubted_after: BTreeMap<NodeName, Duration>,
    second: Micros,
    in_second: u64,
    pub(crate) words: u64,
    pub(crate) bytes: u64,
    pub(crate) busiest: u64,
}

impl Watched {
    /// How long a peer had been silent when it was doubted last.
    pub(crate) fn doubted_after(&self, peer: &NodeName) -> Option<Duration> {
        self.doubted_after.get(peer).copied()
    }
}

/// Runs `check` with what was seen of a node so far. What liars do is their affair.
fn with(world: &mut World, node: usize, check: impl FnOnce(&mut World, &mut Watched)) {
    if world.is_liar(node) {
        return;
    }
    let Some(life) = world.nodes[node].life.as_mut() else { return };
    let mut watched = std::mem::take(&mut life.watched);
    check(world, &mut watched);
    if let Some(life) = world.nodes[node].life.as_mut() {
        life.watched = watched;
    }
}

pub(crate) fn after_membership(world: &mut World, node: usize, input: &Input, out: &[Output]) {
    with(world, node, |world, watched| {
        one_link_per_pair(world, watched, input, out);
        dials_are_bounded(world, node, watched, input, out);
        hints_end_no_link(world, watched, input, out);
    });
}

/// At most one link per pair; a second one closes the first before it takes its place.
fn one_link_per_pair(world: &World, watched: &mut Watched, input: &Input, out: &[Output]) {
    if let Input::Failed(attempt, _) | Input::Ended(attempt, _) = input {
        watched.links.remove(attempt);
    }
    if let Input::Existing(attempt, hello, _) = input {
        watched.links.insert(*attempt, hello.name.clone());
    }
    let mut agreed = None;
    for output in out {
        match output {
            Output::Close(attempt, _) if watched.links.remove(attempt).is_none() => {
                world.fail("one_link_per_pair", &format!("{attempt:?} is no link: {out:?}"))
            }
            Output::Announce(Event::PeerSyncing { peer, .. }) => agreed = Some(peer.clone()),
            Output::Proceed(attempt)
                if matches!(input, Input::Welcomed(..) | Input::Confirmed(_)) =>
            {
                let Some(peer) = agreed.take() else {
                    world.fail("one_link_per_pair", &format!("a link with nobody: {out:?}"))
                };
                if watched.links.values().any(|linked| *linked == peer) {
                    world.fail("one_link_per_pair", &format!("a second one with {peer}: {out:?}"));
                }
                watched.links.insert(*attempt, peer);
            }
            _ => {}
        }
    }
}

/// A hint never ends a live link, except the peer's own signed word that it lives a later life.
fn hints_end_no_link(world: &World, watched: &Watched, input: &Input, out: &[Output]) {
    let later = match input {
        Input::Hint(contact, Source::Beacon) => {
            let known = watched.lives.get(&contact.name);
            known.is_some_and(|known| contact.incarnation > *known)
                || !world.is_innocent(&contact.name)
        }
        Input::Hint(..) | Input::Told(..) | Input::Seed(_) | Input::Tick => false,
        _ => return,
    };
    if !later && out.iter().any(|output| matches!(output, Output::Close(..))) {
        world.fail("hints_end_no_link", &format!("{input:?} gave {out:?}"));
    }
}

pub(crate) fn after_event(world: &mut World, node: usize, event: &Event) {
    with(world, node, |world, watched| {
        let (peer, status) = match event {
            Event::PeerConnecting { peer } => (peer, Some(Status::Connecting)),
            Event::PeerSyncing { peer, incarnation, .. } => {
                incarnation_never_falls(world, watched, peer, *incarnation);
                (peer, Some(Status::Syncing))
            }
            Event::PeerOnline { peer, incarnation, .. } => {
                incarnation_never_falls(world, watched, peer, *incarnation);
                (peer, Some(Status::Online))
            }
            Event::LinkReplaced { peer, incarnation } => {
                incarnation_never_falls(world, watched, peer, *incarnation);
                (peer, None)
            }
            Event::Equivocation { peer, .. } if world.is_innocent(peer) => {
                world.fail("honest_nodes_never_equivocate", &format!("{event}"))
            }
            Event::Equivocation { .. } => return,
            Event::PeerOffline { peer, .. } => (peer, Some(Status::Offline)),
            Event::LinkLost { peer, .. } => (peer, None),
            Event::PeerDiscovered { peer, .. } => {
                watched.shown.remove(peer); // one that was shown before was forgotten, or had left
                return;
            }
            Event::PeerSuspected { peer, .. } => {
                let silence = doubt_is_shown(world, node, peer);
                healthy_pair_is_never_doubted(world, node, peer);
                watched.doubted_after.insert(peer.clone(), silence);
                return;
            }
            Event::PeerForgotten { peer, .. } => {
                watched.shown.remove(peer);
                return;
            }
            _ => return,
        };
        let worse = matches!(
            event,
            Event::PeerOffline { .. } | Event::LinkLost { .. } | Event::LinkReplaced { .. }
        );
        if worse {
            healthy_pair_is_never_declared_offline(world, node, peer, SETTLED);
        }
        if let Some(status) = status {
            watched.shown.insert(peer.clone(), status);
        }
    });
}

/// A doubt that is announced is in the vital signs before. Returns the silence that it rests on.
fn doubt_is_shown(world: &World, node: usize, peer: &NodeName) -> Duration {
    let shown = world.life(node).signs.peers.get(peer).filter(|vital| vital.suspect);
    let evidence = shown.and_then(|vital| vital.evidence.as_ref());
    let missing = || world.fail("doubt_is_shown", &format!("n{node:03} of {peer}: {shown:?}"));
    evidence.map_or_else(missing, |evidence| evidence.silence)
}

/// No node believes an older incarnation after a newer, unless it is the one that runs, or one that never lived.
fn incarnation_never_falls(
    world: &World,
    watched: &mut Watched,
    peer: &NodeName,
    life: Incarnation,
) {
    if !world.is_innocent(peer) {
        return;
    }
    let known = watched.lives.entry(peer.clone()).or_insert(life);
    if life < *known && !runs(world, peer, life) {
        world.fail("incarnation_never_falls", &format!("{peer}: {life} after {known}"));
    }
    *known = life;
    let (highest, _) = world.nodes[world.index(peer)].truth;
    if life > highest {
        world.fail("incarnation_never_falls", &format!("{peer}: {life}, never above {highest}"));
    }
}

/// That life of a node runs now: a disk that was restored may bring back one that was over.
fn runs(world: &World, node: &NodeName, life: Incarnation) -> bool {
    let node = &world.nodes[world.index(node)];
    node.life.as_ref().is_some_and(|it| it.incarnation == life)
}

/// Two nodes that run undisturbed and reach each other in bearable time keep their link.
fn healthy_pair_is_never_declared_offline(
    world: &World,
    node: usize,
    peer: &NodeName,
    time: Micros,
) {
    if world.well_for(node, world.index(peer), time) {
        let seconds = time / secs(1);
        let what = format!("n{node:03} of {peer}, well for more than {seconds} s");
        world.fail("healthy_pair_is_never_declared_offline", &what);
    }
}

/// Of a notice for the monitor, or its tick.
pub(crate) fn after_heartbeat(
    world: &mut World,
    node: usize,
    notice: Option<&Notice<Option<monitor::Word>>>,
    out: &[monitor::Output],
) {
    with(world, node, |world, watched| {
        if let Some(Notice::Up(peer, _) | Notice::Down(peer, _)) = notice {
            watched.doubts.remove(peer);
            watched.linked.remove(peer);
        }
        if let Some(Notice::Up(peer, _)) = notice {
            watched.linked.insert(peer.clone());
        }
        // A question about a peer that is not linked is answered like any other.
        let asked = matches!(notice, Some(Notice::Message(..)));
        let now = world.local(node);
        for output in out {
            match output {
                monitor::Output::Beat(peer) if !asked => {
                    only_linked_peers_are_watched(world, watched, peer);
                }
                monitor::Output::Announce(event) => {
                    silent_only_after_whole_suspicion(world, watched, now, event);
                    if let Event::PeerSuspected { peer, .. } = event {
                        only_linked_peers_are_watched(world, watched, peer);
                        paused_node_accuses_nobody(world, node, peer);
                    } else if let Event::PeerSilent { peer, .. } = event {
                        only_linked_peers_are_watched(world, watched, peer);
                        let time = SHORTEST_SILENCE;
                        healthy_pair_is_never_declared_offline(world, node, peer, time);
                        watched.linked.remove(peer);
                    }
                }
                _ => {}
            }
        }
    });
}

/// Only a linked peer is watched, suspect, or declared silent.
fn only_linked_peers_are_watched(world: &World, watched: &Watched, peer: &NodeName) {
    if !watched.linked.contains(peer) {
        world.fail("only_linked_peers_are_watched", &format!("{peer}"));
    }
}

/// Silent only after the whole suspicion time, on a clock that there was no reason to doubt.
fn silent_only_after_whole_suspicion(
    world: &World,
    watched: &mut Watched,
    now: Instant,
    event: &Event,
) {
    match event {
        Event::PeerSuspected { peer, .. } => drop(watched.doubts.insert(peer.clone(), now)),
        Event::PeerCleared { peer } => drop(watched.doubts.remove(peer)),
        Event::Paused { millis } => {
            let late = Duration::from_millis(*millis);
            watched.doubts.values_mut().for_each(|since| *since = (*since + late).min(now));
        }
        Event::PeerSilent { peer, .. } => {
            let suspicion = heartbeat::Config::default().suspicion;
            let since = watched.doubts.remove(peer);
            if since.is_none_or(|since| now < since + suspicion) {
                let doubt = since.map(|since| now - since);
                let what = format!("{peer} after {doubt:?} of doubt");
                world.fail("silent_only_after_whole_suspicion", &what);
            }
        }
        _ => {}
    }
}

/// After a pause of this node no peer is worse off than before: it is heard before it is doubted.
fn paused_node_accuses_nobody(world: &World, node: usize, peer: &NodeName) {
    let (from, until) = world.life(node).pause;
    let late =
        Micros::try_from(heartbeat::Config::default().stall_threshold.as_micros()).unwrap_or(0);
    let peer = world.index(peer);
    let well = world.path(node, peer).max(world.nodes[peer].well);
    let before = well.checked_add(secs(5)).is_some_and(|at| at < from);
    if before && until - from > late + ms(100) && world.now < until + secs(1) {
        world.fail("paused_node_accuses_nobody", &format!("n{node:03} doubts n{peer:03}"));
    }
}

/// Whose rows a notice can change.
pub(crate) fn concerned(notice: &Notice<topology::Word>) -> Vec<NodeName> {
    match notice {
        Notice::Up(peer, _) | Notice::Forgotten(peer) => vec![peer.clone()],
        Notice::Message(_, topology::Word::Delta { origin, .. }) => vec![origin.clone()],
        Notice::Message(_, topology::Word::Rows(rows)) => {
            rows.iter().map(|row| row.origin.clone()).collect()
        }
        _ => Vec::new(),
    }
}

pub(crate) fn after_topology(
    world: &mut World,
    node: usize,
    concerned: &[NodeName],
    out: &[tracker::Output],
) {
    let me = world.nodes[node].name.clone();
    let own = world.life(node).topology().row_of(&me).map(|row| (row.incarnation, row.version));
    let truth = &mut world.nodes[node].truth;
    *truth = (*truth).max(own.unwrap_or_default());
    with(world, node, |world, watched| {
        for origin in concerned.iter().chain([&me]) {
            row_never_falls(world, node, watched, origin);
        }
        innocent_nodes_are_never_charged(world, out);
    });
}

/// What is known of an origin only rises, until a link shows that it begins anew in a life that was over, or so far below
/// what a liar drove its row up to that it does not believe that; and never above what the origin has said itself.
fn row_never_falls(world: &World, node: usize, watched: &mut Watched, origin: &NodeName) {
    if world.find(origin).is_some_and(|origin| world.is_liar(origin)) {
        return;
    }
    let Some(row) = world.life(node).topology().row_of(origin) else {
        // Buried: its life is not forgotten, its version is.
        watched.rows.entry(origin.clone()).and_modify(|known| known.1 = 0);
        return;
    };
    let mark = (row.incarnation, row.version);
    let known = watched.rows.entry(origin.clone()).or_insert(mark);
    let anew = row.version == 0 || known.1.saturating_sub(row.version) > 1 << 32;
    if mark < *known && !(anew && runs(world, origin, row.incarnation)) {
        world.fail("row_never_falls", &format!("{origin}: {mark:?} after {known:?}"));
    }
    *known = mark;
    let at = world.index(origin);
    let truth = world.nodes[at].truth;
    if mark > truth {
        world.fail("row_never_falls", &format!("{origin}: {mark:?}, never above {truth:?}"));
    }
    rows_are_their_origins(world, node, at, row);
}

/// After a look: events, view and own row say the same of those whose side has changed.
pub(crate) fn after_look(world: &mut World, node: usize, before: &Sides, after: &Sides) {
    with(world, node, |world, watched| {
        let own = world.life(node).topology().row_of(&world.nodes[node].name);
        for (peer, Side { incarnation, cell }) in after {
            let same = |old: &Side| (old.incarnation, &old.cell) == (*incarnation, cell);
            if before.get(peer).is_some_and(same) {
                continue;
            }
            if *incarnation != Incarnation(0) {
                incarnation_never_falls(world, watched, peer, *incarnation); // it is known
            }
            changes_are_announced(world, watched, peer, cell.state);
            let told = own.and_then(|row| row.cells().get(peer));
            let same = |told: &topology::Cell| {
                (told.state, told.suspect, told.reason) == (cell.state, cell.suspect, cell.reason)
            };
            // One that leaves states nothing any more.
            if own.is_some() && !told.is_some_and(same) {
                let what = format!("n{node:03} of {peer}: row {told:?}, view {cell:?}");
                world.fail("own_row_is_own_view", &what);
            }
        }
    });
}

/// A status that differs from before was announced.
fn changes_are_announced(world: &World, watched: &Watched, peer: &NodeName, status: Status) {
    let shown = watched.shown.get(peer).copied().unwrap_or(Status::Connecting);
    if shown != status {
        world.fail("changes_are_announced", &format!("{peer} is {status:?}, told was {shown:?}"));
    }
}

/// Words of a node within a second: beats and echoes of those that watch each other; a word and a
/// question to each peer for every burst of changes (at most 50 a second, three in practice).
fn most_in_a_second(nodes: usize) -> u64 {
    100 + 60 * nodes as u64
}

/// Traffic per node and second is bounded, but for what liars cause, and every word is short.
pub(crate) fn before_send(world: &mut World, at: At, word: &Word) {
    let (node, to) = world.between_ends(at);
    if to.is_some_and(|to| world.is_liar(to)) {
        return;
    }
    let (second, most) = (world.now / secs(1), most_in_a_second(world.nodes.len()));
    let weigh = world.weigh;
    let (mut busy, mut long) = (0, 0);
    with(world, node, |_, watched| {
        if second != std::mem::replace(&mut watched.second, second) {
            watched.in_second = 0;
        }
        watched.in_second += 1;
        watched.words += 1;
        watched.busiest = watched.busiest.max(watched.in_second);
        busy = watched.in_second;
        if weigh {
            long = size(word);
            watched.bytes += long as u64;
        }
    });
    if busy > most {
        world.fail("traffic_is_bounded", &format!("n{node:03}: {busy} words within a second"));
    }
    if long > LONGEST_WORD {
        world.fail("traffic_is_bounded", &format!("n{node:03}: a word of {long} bytes"));
    }
}

/// Bytes of a word, with the header and topic that carry it.
fn size(word: &Word) -> usize {
    let framed = |payload: Result<Vec<u8>, _>| payload.map_or(0, |bytes: Vec<u8>| bytes.len() + 24);
    let encoded: Result<Vec<u8>, codec::CodecError> = match word {
        Word::System(Message::Monitor(word)) => codec::encode(word),
        Word::System(Message::Topology(word)) => codec::encode(&**word),
        Word::System(Message::Registry(word)) => codec::encode(&**word),
        Word::System(Message::Presence(word)) => codec::encode(&**word),
        Word::System(Message::Discovery(word)) => codec::encode(&**word),
        _ => return 12,
    };
    framed(encoded)
}

/// What a node shows to its clients is what its tracker knows of nodes that exist, without what is forgotten.
pub(crate) fn matrix_is_the_table(world: &World, node: usize) {
    let (life, hidden) = (world.life(node), world.life(node).hidden());
    let (shown, known) = (life.matrix.rows(), life.topology().rows());
    let all = hidden.is_empty() && life.matrix.forgotten().is_empty();
    if all && shown.map(Arc::as_ptr).eq(known.map(Arc::as_ptr)) {
        return; // it shares all rows, and shows all of them
    }
    let shown: BTreeSet<_> = life.matrix.edges().map(|edge| (edge.from, edge.to)).collect();
    let known = life.topology().matrix().map(|(from, to, _)| (from, to));
    let seen = |(from, to): &(&NodeName, &NodeName)| {
        !hidden.contains(*from) && !hidden.contains(*to) && life.knows(to)
    };
    let known: BTreeSet<_> = known.filter(seen).collect();
    if shown != known {
        world.fail("matrix_is_the_table", &format!("n{node:03} shows {shown:?}, not {known:?}"));
    }
}

/// By when an observer must know that a node is dead whose sockets closed, or whose host lost power.
pub(crate) fn death_noticed_within(
    world: &World,
    observer: usize,
    dead: usize,
    silent: bool,
) -> Micros {
    if !world.well_for(observer, dead, secs(9)) || world.weather.loss > 0.0 {
        BACKSTOP
    } else if !silent {
        world.weather.delay.end + ms(1)
    } else if world.nodes.len() <= 1 + heartbeat::Config::default().all_up_to {
        SILENT_DEATH
    } else {
        SILENT_DEATH + HEARSAY + if world.has_liars() { ROUND } else { 0 }
    }
}

/// A dead node is declared dead within its bound by everybody who was linked with it and could act.
pub(crate) fn dead_node_is_declared_offline(
    world: &World,
    (observer, life): (usize, u64),
    (dead, dead_life): (usize, u64),
    since: Micros,
) {
    let Some(it) = world.nodes[observer].life.as_ref().filter(|it| it.number == life) else {
        return;
    };
    if world.is_liar(observer) || world.is_liar(dead) {
        return;
    }
    let acted = world.nodes[observer].well <= since && world.path(observer, dead) <= since;
    if world.nodes[dead].lives != dead_life || it.paused || !acted {
        return;
    }
    let view = it.membership.peer(&world.nodes[dead].name);
    if view.is_some_and(|view| view.status == Status::Online) {
        let waited = (world.now - since) / 1000;
        let what = format!("n{observer:03} of n{dead:03}, dead for {waited} ms");
        world.fail("dead_node_is_declared_offline", &what);
    }
}

/// Nobody stays without a link to a peer that it knows and that it reaches.
pub(crate) fn nobody_stays_connecting(world: &World) {
    for a in world.running() {
        for b in world.running().filter(|b| *b != a) {
            if !world.well_for(a, b, CONNECTED_WITHIN) {
                continue;
            }
            let view = world.life(a).membership.peer(&world.nodes[b].name);
            if let Some(view) = view.filter(|view| view.status != Status::Online) {
                world.fail("nobody_stays_connecting", &format!("n{a:03} sees {view:?}"));
            }
        }
    }
}

// After quiet.

/// What idle nodes send: beats and echoes, a digest of the topology a second and one to each peer every 30 s, what they
/// know of each other to one peer every 5 s, a digest of the registry every 10 s, and where their presences are to each
/// peer every 5 s, a fifth more or less.
pub(crate) fn quiet_traffic_is_bounded(world: &mut World, time: Micros) {
    let count = world.nodes.len() as u64;
    let totals = |world: &World| -> (u64, u64) {
        let of = |at| (world.life(at).watched.words, world.life(at).watched.bytes);
        world.running().map(of).fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    };
    let before = totals(world);
    world.weigh = true;
    world.run(time);
    world.weigh = count <= 12;
    let (after, seconds) = (totals(world), time / secs(1));
    let words = (after.0 - before.0) / seconds / count;
    let bytes = (after.1 - before.1) / seconds / count;
    let watched = if count > 13 { 9 } else { count - 1 };
    // Round trips that change are told to all, at most every 10 s a watched peer.
    let measures = watched * (count - 1) / 10;
    let presences = (count - 1) / 4 + 1;
    let most = 2 * watched + 3 + count / 30 + count / 300 + measures + presences;
    // A mark takes some 20 bytes, a contact 20, a measure 50 with its head.
    let most_bytes = 24 * watched
        + 24 * count * (1 + count / 30)
        + 20 * count / 5
        + 70 * measures
        + 34 * presences;
    if words > most || bytes > most_bytes + 200 {
        let what = format!("{words} words (most {most}), {bytes} bytes (most {most_bytes})");
        world.fail("traffic_is_bounded", &format!("at quiet, each second: {what}"));
    }
}
