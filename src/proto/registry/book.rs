//! All known nodes: the registry's machine beside what this node sees of its peers, and what of it is to be written.
//!
//! The decisions of the actor Registry, which the simulator runs as well. The view ([`Nodes`]) and the disk outlive a
//! book: they are its caller's.
//!
//! # Invariants
//! 1. The view changes first; what follows from it comes out afterwards.
//! 2. One batch is written at a time; what a failed one held is in the next, [`RETRY`] later.
//! 3. What the view holds of other nodes is written within [`BURST`] of its change, but for steps on the way to a link
//!    and signs of life, which are written every `TOUCH`.
//! 4. A node is in the view when it states something, or when it was linked here; a forgotten one with its tombstone,
//!    and with what comes back where that is taken back.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;

use super::{Entry, MAX_ROWS, Output as News, Profile, Registry, State, Word};
use crate::proto::event::{Event, Operator, Reason, Source, Status};
use crate::proto::heartbeat::Vital;
use crate::proto::membership::PeerView;
use crate::proto::node::{Incarnation, NodeId, NodeName};
use crate::proto::registry::{self, Known};
use crate::proto::rows::{BURST, first_version};
use crate::proto::seal::Seals;
use crate::proto::wiring::{Ask, Notice};

/// How often it is noted that linked nodes are still seen.
const TOUCH: Duration = Duration::from_secs(300);
/// Wait before a failed write is tried again.
pub const RETRY: Duration = Duration::from_secs(5);

/// All nodes by name, this one and those that are forgotten among them. A clone shares them.
pub type Nodes = Arc<BTreeMap<NodeName, Arc<Known>>>;

/// The view that a node begins with.
pub fn recalled(remembered: impl IntoIterator<Item = Known>) -> Nodes {
    let recalled = |mut known: Known| {
        // Whatever it was, it is not linked now.
        known.status = known.status.map(|_| Status::Offline);
        (known.name.clone(), Arc::new(known))
    };
    Arc::new(remembered.into_iter().map(recalled).collect())
}

/// The nodes that are forgotten, with the life that is.
pub fn forgotten(nodes: &Nodes) -> Vec<(NodeName, Incarnation)> {
    let forgotten = nodes.values().filter(|known| has_tombstone(known));
    forgotten.map(|known| (known.name.clone(), known.incarnation)).collect()
}

/// Whether what is known of a node is that it is forgotten.
pub fn has_tombstone(known: &Known) -> bool {
    known.entry.as_ref().is_some_and(|entry| entry.gone_at().is_some())
}

/// Notes what is thought of a node; false when it is not known.
pub fn rate(nodes: &mut Nodes, node: &NodeName, reputation: f64) -> bool {
    let known = nodes.get(node).filter(|known| !known.is_forgotten());
    let Some(known) = known.map(|known| Known { reputation, ..Known::clone(known) }) else {
        return false;
    };
    Arc::make_mut(nodes).insert(node.clone(), Arc::new(known));
    true
}

/// What this node is.
#[derive(Clone, Debug)]
pub struct Own {
    /// Its name.
    pub name: NodeName,
    /// The id of its key.
    pub id: NodeId,
    /// Where others reach it.
    pub address: SocketAddr,
    /// What it states of itself.
    pub profile: Profile,
}

/// What this node sees of one peer.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name.
    pub name: NodeName,
    /// The id of its key, once it has shown its certificate.
    pub id: Option<NodeId>,
    /// Its latest known life.
    pub incarnation: Incarnation,
    /// Where it stands.
    pub status: Status,
    /// Why it is offline.
    pub reason: Option<Reason>,
    /// Where it was reached, or is looked for.
    pub address: Option<SocketAddr>,
    /// When its last byte arrived.
    pub heard: Option<Instant>,
}

impl Seen {
    /// What the view of the peers and the vital signs show of a peer.
    pub fn new(peer: &PeerView, id: Option<NodeId>, vital: Option<&Vital>) -> Self {
        let PeerView { name, address, status, reason, incarnation, .. } = peer.clone();
        Self {
            name,
            id,
            incarnation,
            status,
            reason,
            address,
            heard: vital.and_then(|it| it.heard),
        }
    }
}

/// Nodes to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub(crate) BTreeSet<NodeName>);

/// What the book receives.
#[derive(Debug)]
pub enum Input {
    /// News of a link or of the peers.
    Notice(Notice<Word>),
    /// An operator has that life of a node forgotten, unless it is linked.
    Forget(NodeName, Incarnation, Operator),
    /// An operator has a node forgotten no more.
    Restore(NodeName, Operator),
    /// A node was rated in the view.
    Rated(NodeName),
    /// A batch was written, or could not be.
    Written(Batch, bool),
    /// The node ends: who is seen now is noted, and all of it written.
    Close,
    /// The deadline passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// Send this to the registry of a linked peer.
    Send(NodeName, Word),
    /// Ask NodeManager.
    Ask(Ask),
    /// Announce this.
    Announce(Event),
    /// A peer broke this rule.
    Charge(NodeName, &'static str),
    /// Write these nodes, and remove those.
    Write {
        /// What comes back with [`Input::Written`].
        batch: Batch,
        /// To be written.
        known: Vec<Known>,
        /// To be removed.
        gone: Vec<NodeName>,
    },
    /// After [`Input::Close`]: all is written.
    Closed,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    machine: Registry,
    /// This node, before it states anything.
    own: Known,
    /// Nodes whose entries changed since they were shown.
    changed: BTreeSet<NodeName>,
    /// What comes out once it is shown.
    forgotten: Vec<Output>,
    /// Nodes that are forgotten no more since the last look.
    restored: BTreeSet<NodeName>,
    look_at: Option<Instant>,
    touch_at: Instant,
    pending: Batch,
    writing: bool,
    retry_at: Option<Instant>,
    closing: bool,
}

/// What a call works with.
struct Call<'a> {
    seen: &'a dyn Fn() -> Vec<Seen>,
    nodes: &'a mut Nodes,
    now: Instant,
    wall: u64,
    out: &'a mut Vec<Output>,
}

impl Book {
    /// A book that goes on from this view, and has all of it written once more: what an earlier one was about to write
    /// is not known. `wall` is in milliseconds since 1970. It looks at its first tick, which is due at once.
    pub fn new(
        own: Own,
        incarnation: Incarnation,
        nodes: &Nodes,
        now: Instant,
        wall: u64,
        mut rng: StdRng,
        seals: Box<dyn Seals>,
    ) -> Self {
        let Own { name: me, id, address, profile } = own;
        let (id, status, addresses) = (Some(id), Some(Status::Online), vec![address]);
        let new = Known::new(me.clone(), profile.started());
        let (version, state) = (first_version(&mut rng), State::Live(profile));
        let entry = Entry { origin: me.clone(), incarnation, version, state, seal: None };
        let remembered: Vec<_> = nodes.values().filter_map(|known| known.entry.clone()).collect();
        let machine = Registry::new(entry, remembered, now, wall, rng, seals);
        let pending = Batch(nodes.keys().filter(|name| **name != me).cloned().collect());
        Self {
            machine,
            changed: BTreeSet::from([me]),
            own: Known { id, status, addresses, ..new },
            forgotten: Vec::new(),
            restored: BTreeSet::new(),
            look_at: Some(now),
            touch_at: now + TOUCH,
            pending,
            writing: false,
            retry_at: None,
            closing: false,
        }
    }

    /// The machine: who states what.
    pub fn machine(&self) -> &Registry {
        &self.machine
    }

    /// When the book wants its next [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        let own = [self.look_at, self.retry_at, Some(self.touch_at), self.machine.deadline()];
        own.into_iter().flatten().min()
    }

    /// Takes one input, changes the view, appends what follows, and returns whether the view changed. `seen`, all
    /// peers, is asked when it is needed.
    pub fn handle(
        &mut self,
        input: Input,
        seen: &dyn Fn() -> Vec<Seen>,
        nodes: &mut Nodes,
        (now, wall): (Instant, u64),
        out: &mut Vec<Output>,
    ) -> bool {
        let call = &mut Call { seen, nodes, now, wall, out };
        match input {
            Input::Notice(notice) => self.notice(notice, call),
            Input::Forget(node, life, operator) => {
                // Nothing while it is linked.
                self.input(registry::Input::Forget(node, life, operator), call);
                return self.look(call);
            }
            Input::Restore(node, operator) => {
                self.input(registry::Input::Restore(node, operator), call);
                return self.look(call);
            }
            Input::Rated(node) => {
                self.pending.0.insert(node);
                self.soon(now);
            }
            Input::Written(batch, done) => self.written(batch, done, call),
            Input::Close => {
                self.closing = true;
                return self.look(call);
            }
            Input::Tick => return self.tick(call),
        }
        false
    }

    fn notice(&mut self, notice: Notice<Word>, call: &mut Call<'_>) {
        match notice {
            Notice::Up(peer, life) => self.input(registry::Input::Linked(peer, life), call),
            Notice::Message(peer, word) => self.input(registry::Input::Received(peer, word), call),
            Notice::Down(peer, _) => self.input(registry::Input::Unlinked(peer), call),
            Notice::Renewed(life) => self.input(registry::Input::Renewed(life), call),
            Notice::Revoked => self.input(registry::Input::Revoked, call),
            Notice::Equivocation(it) => self.input(registry::Input::Equivocation(it), call),
            Notice::Changed => self.soon(call.now),
            Notice::Forgotten(_) | Notice::Offline(_) => {}
        }
    }

    fn tick(&mut self, call: &mut Call<'_>) -> bool {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= call.now);
        let (retry, touch) = (due(self.retry_at), due(Some(self.touch_at)));
        if due(self.machine.deadline()) {
            self.input(registry::Input::Tick { wall: call.wall }, call);
        }
        if retry {
            self.retry_at = None;
            self.soon(call.now);
        }
        let look = self.look_at.is_some_and(|at| at <= call.now);
        (look || touch) && self.look(call)
    }

    fn soon(&mut self, now: Instant) {
        self.look_at.get_or_insert(now + BURST);
    }

    fn input(&mut self, input: registry::Input, call: &mut Call<'_>) {
        let asked = matches!(input, registry::Input::Forget(..));
        let mut news = Vec::new();
        self.machine.handle(input, call.now, &mut news);
        for news in news {
            match news {
                News::Send(peer, word) => call.out.push(Output::Send(peer, word)),
                News::Changed(node) => {
                    if self.machine.row(&node).is_none() {
                        call.out.push(Output::Ask(Ask::Revive(node.clone())));
                    }
                    self.changed.insert(node);
                    self.soon(call.now);
                }
                News::Gone { origin, incarnation, known } => {
                    // Of one that was never linked here, nothing happens; but what an operator does.
                    let met =
                        call.nodes.get(&origin).is_some_and(|known| known.last_seen.is_some());
                    let known = known && (met || asked);
                    let entry = self.machine.row(&origin);
                    let author = entry.and_then(Entry::ruling).map(|it| it.author.clone());
                    let forget = Ask::Forget { name: origin, life: incarnation, known, author };
                    self.forgotten.push(Output::Ask(forget));
                }
                News::Revived(node) => {
                    let known = call.nodes.get(&node).map(Arc::as_ref);
                    if self.machine.row(&node).is_some_and(|entry| comes_back(known, entry)) {
                        self.restored.insert(node.clone());
                    }
                    call.out.push(Output::Ask(Ask::Revive(node)));
                }
                News::Equivocation(key, proof) => {
                    call.out.extend(proof.event(key).map(Output::Announce));
                }
                News::Charge(peer, rule) => call.out.push(Output::Charge(peer, rule)),
                News::Cut(peer) => call.out.push(Output::Ask(Ask::Cut(peer))),
            }
        }
    }

    /// Brings the machine and the view up to what is seen now, and has written what changed.
    fn look(&mut self, call: &mut Call<'_>) -> bool {
        self.look_at = None;
        let news = self.show(&(call.seen)(), call);
        call.out.append(&mut self.forgotten);
        for node in mem::take(&mut self.restored) {
            self.look_for(node, call);
        }
        self.write(call);
        news
    }

    /// A node is forgotten no more: it is looked for where it was linked, and announced where it is shown.
    fn look_for(&self, node: NodeName, call: &mut Call<'_>) {
        let Some(known) = call.nodes.get(&node).filter(|known| !known.is_forgotten()) else {
            return;
        };
        let hint = |contact| Output::Ask(Ask::Hint(contact, Source::Remembered));
        call.out.extend(known.contacts().map(hint));
        let ruling = known.entry.as_ref().and_then(Entry::ruling);
        let author = ruling.map(|ruling| ruling.author.clone());
        call.out.push(Output::Announce(Event::PeerRestored { peer: node, author }));
    }

    /// Shows what changed. Nothing else than this changes the view, but ratings.
    fn show(&mut self, seen: &[Seen], call: &mut Call<'_>) -> bool {
        let (now, nodes) = (call.wall, &mut *call.nodes);
        let touch = self.closing || self.touch_at <= call.now;
        if touch {
            self.touch_at = call.now + TOUCH;
        }
        let changed = mem::take(&mut self.changed);
        let mut news = !changed.is_empty();
        for name in changed {
            let own = (name == self.own.name).then_some(&self.own);
            let known = nodes.get(&name).map(Arc::as_ref).or(own);
            let known = self.machine.row(&name).map(|entry| with_entry(known, entry, now));
            let nodes = Arc::make_mut(nodes);
            match known {
                Some(known) => drop(nodes.insert(name.clone(), Arc::new(known))),
                None => drop(nodes.remove(&name)),
            }
            if name != self.own.name {
                self.pending.0.insert(name);
            }
        }
        for peer in seen {
            let known = nodes.get(&peer.name).map(Arc::as_ref);
            let heard = peer.heard.map(|heard| ago(now, call.now, heard));
            let room = nodes.len() < 2 * MAX_ROWS;
            let Some((known, matters)) = with_sight(known, peer, heard, (now, touch), room) else {
                continue;
            };
            news = true;
            if matters {
                self.pending.0.insert(peer.name.clone());
            }
            Arc::make_mut(nodes).insert(peer.name.clone(), Arc::new(known));
        }
        news
    }

    fn write(&mut self, call: &mut Call<'_>) {
        if self.writing || self.retry_at.is_some() {
            return;
        }
        if self.pending.0.is_empty() {
            if mem::take(&mut self.closing) {
                call.out.push(Output::Closed);
            }
            return;
        }
        self.writing = true;
        let batch = mem::take(&mut self.pending);
        let (mut known, mut gone) = (Vec::new(), Vec::new());
        for name in &batch.0 {
            match call.nodes.get(name) {
                Some(node) => known.push(Known::clone(node)),
                None => gone.push(name.clone()),
            }
        }
        call.out.push(Output::Write { batch, known, gone });
    }

    fn written(&mut self, batch: Batch, done: bool, call: &mut Call<'_>) {
        self.writing = false;
        if !done {
            self.pending.0.extend(batch.0);
            self.retry_at = Some(call.now + RETRY);
        }
        self.write(call);
    }
}

/// A node of which this word is known now. One that was forgotten and comes back by itself is a new one.
fn with_entry(known: Option<&Known>, entry: &Entry, now: u64) -> Known {
    let back = entry.gone_at().is_some() || comes_back(known, entry);
    let kept = known.filter(|known| back || !known.is_forgotten());
    let mut known = kept.cloned().unwrap_or_else(|| Known::new(entry.origin.clone(), now));
    known.incarnation = entry.incarnation; // of a peer that has shown its life here, the look says which
    known.entry = Some(entry.clone());
    known
}

/// Whether this word about a node is not its own later one, but takes back that it is forgotten.
fn comes_back(known: Option<&Known>, entry: &Entry) -> bool {
    let ruling = known.and_then(|known| known.entry.as_ref()).and_then(Entry::ruling);
    let last = ruling.and_then(|ruling| ruling.last.as_ref());
    let same =
        last.map(|it| (it.incarnation, it.version)) == Some((entry.incarnation, entry.version));
    entry.ruling().is_some_and(|ruling| !ruling.forgotten) || same
}

/// A node as it is seen now, and whether that is worth a write; `None` when nothing is new. One that was never linked
/// is not remembered, and one that is forgotten is not seen until it speaks up.
fn with_sight(
    known: Option<&Known>,
    peer: &Seen,
    heard: Option<u64>,
    (now, touch): (u64, bool),
    room: bool,
) -> Option<(Known, bool)> {
    let online = peer.status == Status::Online;
    let before = match known {
        Some(known) if known.is_forgotten() => return None,
        Some(known) if shows(known, peer) && !(online && touch) => return None,
        Some(known) => known.clone(),
        None if online && room => Known::new(peer.name.clone(), now),
        None => return None,
    };
    let was = before.status == Some(Status::Online);
    let mut after = before.clone();
    (after.status, after.reason) = (Some(peer.status), peer.reason);
    if peer.incarnation != Incarnation(0) {
        after.incarnation = peer.incarnation;
    }
    after.id = peer.id.or(after.id);
    if let Some(address) = peer.address.filter(|_| online)
        && after.addresses.first() != Some(&address)
    {
        after.reached(address);
    }
    if online != was || online && touch {
        after.last_seen = Some(now);
        after.last_heartbeat = heard.or(after.last_heartbeat);
    }
    let moves = !matches!(peer.status, Status::Online | Status::Offline);
    let on_its_way = Known { status: before.status, reason: before.reason, ..after.clone() };
    let matters = if moves && !was { on_its_way != before } else { after != before };
    (after != before).then_some((after, matters))
}

/// Whether a node is known as it is seen.
fn shows(known: &Known, peer: &Seen) -> bool {
    let linked_there = peer.address.filter(|_| peer.status == Status::Online);
    (known.status, known.reason) == (Some(peer.status), peer.reason)
        && (peer.incarnation == Incarnation(0) || known.incarnation == peer.incarnation)
        && (peer.id.is_none() || known.id == peer.id)
        && (linked_there.is_none() || known.addresses.first() == linked_there.as_ref())
}

/// An instant by the wall clock, in milliseconds since 1970.
fn ago(wall: u64, now: Instant, at: Instant) -> u64 {
    let ago = now.saturating_duration_since(at).as_millis();
    wall.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::proto::node::KeyId;
    use crate::proto::tests::network::{WALL, name};
    use crate::proto::tests::seals::Toy;
    use crate::proto::tests::start;

    /// The book of `a@h`, which goes on from this view.
    fn book(nodes: &Nodes, now: Instant) -> Book {
        let address = ([127, 0, 0, 1], 4697).into();
        let (id, profile) = (KeyId([1; 16]), Profile::default());
        let own = Own { name: name("a@h"), id, address, profile };
        let (rng, seals) = (StdRng::seed_from_u64(1), Box::new(Toy(name("a@h"))));
        Book::new(own, Incarnation(1), nodes, now, WALL, rng, seals)
    }

    /// What it has written then, with the batch.
    fn written(
        book: &mut Book,
        input: Input,
        nodes: &mut Nodes,
        now: Instant,
    ) -> Vec<(Batch, Vec<NodeName>, Vec<NodeName>)> {
        let mut out = Vec::new();
        book.handle(input, &Vec::new, nodes, (now, WALL), &mut out);
        let write = |output| match output {
            Output::Write { batch, known, gone } => {
                Some((batch, known.into_iter().map(|it| it.name).collect(), gone))
            }
            Output::Send(..)
            | Output::Ask(_)
            | Output::Announce(_)
            | Output::Charge(..)
            | Output::Closed => None,
        };
        out.into_iter().filter_map(write).collect()
    }

    #[test]
    fn a_book_that_goes_on_has_its_view_written_once_more() {
        let (now, b, c) = (start(), name("b@h"), name("c@h"));
        let mut nodes = recalled([Known::new(b.clone(), WALL), Known::new(c.clone(), WALL)]);
        let mut book = book(&nodes, now);
        let all = written(&mut book, Input::Tick, &mut nodes, now);
        let [(batch, known, gone)] = all.try_into().expect("one batch");
        assert_eq!((known, gone), (vec![b, c], vec![]));
        assert_eq!(written(&mut book, Input::Written(batch, true), &mut nodes, now), []);
        let later = now + BURST;
        assert_eq!(written(&mut book, Input::Tick, &mut nodes, later), [], "and only once");
    }

    #[test]
    fn what_a_failed_write_held_is_in_the_next_one() {
        let (now, b, c) = (start(), name("b@h"), name("c@h"));
        let mut nodes = recalled([Known::new(b.clone(), WALL), Known::new(c.clone(), WALL)]);
        let mut book = book(&nodes, now);
        let first = written(&mut book, Input::Tick, &mut nodes, now);
        let [(batch, ..)] = first.try_into().expect("one batch");
        assert_eq!(written(&mut book, Input::Written(batch, false), &mut nodes, now), []);
        Arc::make_mut(&mut nodes).remove(&c);
        assert_eq!(written(&mut book, Input::Rated(b.clone()), &mut nodes, now), []);
        let mut at = now;
        let again = loop {
            at = book.deadline().expect("it is tried again").max(at);
            assert!(at <= now + RETRY + BURST, "nothing is written");
            let all = written(&mut book, Input::Tick, &mut nodes, at);
            if let Some((_, known, gone)) = all.into_iter().next() {
                break (known, gone);
            }
        };
        assert!(at >= now + RETRY, "{:?}", at - now);
        assert_eq!(again, (vec![b], vec![c]));
    }
}
