//! What must hold after every input: the numbered invariants of the machine, and their consequences.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::peer::INSISTS;
use super::super::{AttemptId, Config, Input, LinkEnd, Membership, Output, Peer, Target};
use super::desk::name;
use crate::proto::event::{Event, Source, Status};
use crate::proto::frame::CloseReason;
use crate::proto::hello::Refusal;
use crate::proto::node::{Incarnation, NodeName};

/// What a machine has done so far, kept apart from what it remembers itself.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The links it has agreed to and that have not ended.
    pub(super) links: BTreeMap<AttemptId, NodeName>,
    /// Its dials that have become neither a link nor nothing.
    open: BTreeSet<AttemptId>,
    /// Peers after the last event.
    peers: BTreeMap<NodeName, Seen>,
    /// Peers that said goodbye, until more is heard of them.
    left: BTreeMap<NodeName, Incarnation>,
    /// Older lives that ask, and since when; the one that was taken at the last step.
    asked: BTreeMap<NodeName, (Incarnation, Instant)>,
    older: Option<NodeName>,
    stopped: bool,
    ticks: Option<(Instant, u32)>,
}

#[derive(Clone, Debug)]
struct Seen {
    status: Status,
    incarnation: Incarnation,
    live: Option<AttemptId>,
}

/// A machine after an input.
struct Step<'a> {
    machine: &'a Membership,
    config: Config,
    now: Instant,
    input: &'a Input,
    out: &'a [Output],
}

impl Step<'_> {
    #[track_caller]
    fn check(&self, holds: bool, what: impl FnOnce() -> String) {
        assert!(holds, "{}; {:?} gave {:?}", what(), self.input, self.out);
    }
}

impl Watched {
    /// Checks everything that can be checked after the machine made `out` of `input`. `acts`: whether anything may
    /// follow from the input.
    pub(super) fn after(
        &mut self,
        machine: &Membership,
        (config, now): (Config, Instant),
        input: &Input,
        acts: bool,
        out: &[Output],
    ) {
        let step = Step { machine, config, now, input, out };
        self.heard(input);
        for output in out {
            self.put_out(&step, output);
        }
        self.machine_agrees(&step);
        self.older_lives_are_refused(&step);
        self.hints_end_no_link(&step);
        self.wanted_peers_have_a_time(&step);
        if acts {
            self.no_tight_loop(&step);
        }
        self.changes_are_announced(&step);
    }

    /// What the input itself says has ended or begun.
    fn heard(&mut self, input: &Input) {
        match input {
            Input::Failed(attempt, _) => {
                self.open.remove(attempt);
                self.links.remove(attempt);
            }
            Input::Ended(attempt, end) => {
                let ended = self.links.remove(attempt);
                if let Some(peer) = ended.filter(|_| *end == LinkEnd::Goodbye(CloseReason::Left)) {
                    let known = self.peers.get(&peer).map(|seen| seen.incarnation);
                    self.left.insert(peer, known.unwrap_or_default());
                }
            }
            Input::Hint(contact, _) => self.lives_on(&contact.name, contact.incarnation),
            Input::Greeted(_, hello) | Input::Welcomed(_, hello) => {
                self.lives_on(&hello.name, hello.incarnation);
            }
            Input::Existing(attempt, hello, _) => {
                self.links.insert(*attempt, hello.name.clone());
            }
            // One that is forgotten and comes back is a new peer.
            Input::Forget { name, .. } => drop(self.left.remove(name)),
            Input::Stop => self.stopped = true,
            _ => {}
        }
    }

    fn lives_on(&mut self, peer: &NodeName, incarnation: Incarnation) {
        if self.left.get(peer).is_some_and(|left| *left < incarnation) {
            self.left.remove(peer);
        }
    }

    /// Invariants 1 and 3, as the link layer sees them.
    fn put_out(&mut self, step: &Step<'_>, output: &Output) {
        match output {
            Output::Dial(attempt, _) => {
                self.open.insert(*attempt);
                let target = step.machine.dialing.get(attempt).map(|dial| &dial.target);
                if let Some(Target::Peer(peer)) = target {
                    let linked = self.links.values().any(|linked| linked == peer);
                    step.check(!linked, || format!("3: dials {peer}, which is linked"));
                    step.check(*peer != name(5), || "3: dials itself".to_owned());
                    let left = self.left.contains_key(peer);
                    step.check(!left, || format!("3: dials {peer}, which left"));
                }
                step.check(!self.stopped, || "dials after Stop".to_owned());
                let unready = step.machine.peers.values().filter(|it| it.is_dialed_unready());
                let (open, dials) = (self.open.len() + unready.count(), step.config.dials);
                step.check(open <= dials, || format!("3: {open} dials at once"));
            }
            Output::Proceed(attempt) => {
                step.check(!self.stopped, || "goes on after Stop".to_owned());
                if matches!(step.input, Input::Welcomed(..) | Input::Confirmed(_)) {
                    self.open.remove(attempt);
                    let live = |peer: &Peer| peer.live.as_ref().map(|live| live.attempt);
                    let mut peers = step.machine.peers.iter();
                    let owner = peers.find(|(_, peer)| live(peer) == Some(*attempt));
                    step.check(owner.is_some(), || "a link of nobody".to_owned());
                    let Some((peer, _)) = owner else { return };
                    let second = self.links.values().any(|linked| linked == peer);
                    step.check(!second, || format!("1: a second link with {peer}"));
                    self.links.insert(*attempt, peer.clone());
                    self.left.remove(peer);
                }
            }
            Output::Refuse(attempt, _) | Output::Abandon(attempt) => {
                self.open.remove(attempt);
                let linked = self.links.contains_key(attempt);
                step.check(!linked, || "drops a link without a goodbye".to_owned());
            }
            Output::Close(attempt, _) => {
                let linked = self.links.remove(attempt).is_some();
                step.check(linked, || "closes what is not a link".to_owned());
            }
            Output::Renew(_) | Output::Announce(_) => {}
        }
    }

    /// The machine's memory and what it has done are the same.
    fn machine_agrees(&self, step: &Step<'_>) {
        let machine = step.machine;
        let live = |(peer, it): (&NodeName, &Peer)| {
            it.live.as_ref().map(|live| (live.attempt, peer.clone()))
        };
        let links: BTreeMap<_, _> = machine.peers.iter().filter_map(live).collect();
        step.check(links == self.links, || format!("1: links {:?}, not {links:?}", self.links));
        let same = machine.dialing.keys().eq(self.open.iter());
        step.check(same, || format!("3: dials {:?}, not {:?}", self.open, machine.dialing));
        for (peer, it) in &machine.peers {
            let busy = [it.live.is_some(), it.dialing.is_some()].iter().filter(|b| **b).count();
            step.check(busy <= 1, || format!("3: dials {peer}, which is linked"));
            let both = it.dialing.is_some() && it.inbound.is_some();
            step.check(!both, || format!("two attempts with {peer}"));
            let dialed = it.dialing.is_none_or(|attempt| machine.dialing.contains_key(&attempt));
            step.check(dialed, || format!("{peer}: {:?} is no dial", it.dialing));
            if self.stopped {
                continue; // what it sees on its way out matters to nobody
            }
            let up = matches!(it.status, Status::Syncing | Status::Online);
            step.check(up == it.live.is_some(), || format!("{peer} is {:?}", it.status));
            let ready = it.live.as_ref().is_some_and(|live| live.ready);
            let online = it.status == Status::Online;
            step.check(online == ready, || format!("{peer} is {:?}", it.status));
        }
    }

    /// Invariant 2: an older life is refused and told why, unless it goes on asking; else what is known never falls.
    fn older_lives_are_refused(&mut self, step: &Step<'_>) {
        self.older = None;
        let (Input::Greeted(attempt, hello) | Input::Welcomed(attempt, hello)) = step.input else {
            return;
        };
        let stale =
            |it: &Output| matches!(it, Output::Refuse(of, Refusal::Stale { .. }) if of == attempt);
        if step.out.iter().any(stale) {
            let first = (hello.incarnation, step.now);
            let asked = self.asked.entry(hello.name.clone()).or_insert(first);
            if asked.0 != hello.incarnation {
                *asked = first;
            }
        }
        let Some(seen) = self.peers.get(&hello.name) else { return };
        if hello.incarnation < seen.incarnation {
            let (at, known, live) = (*attempt, seen.incarnation, seen.live.is_some());
            let refused = step.out.iter().any(|it| {
                matches!(it, Output::Refuse(of, Refusal::Stale { known: told, linked })
                    if *of == at && *told == known && linked.is_some() == live)
            });
            let (gone, leaving) = (Output::Abandon(at), Output::Refuse(at, Refusal::Leaving));
            let gone = step.out.iter().any(|it| *it == gone || *it == leaving);
            let asked = self.asked.get(&hello.name).filter(|asked| asked.0 == hello.incarnation);
            let insists = !live && asked.is_some_and(|asked| step.now >= asked.1 + INSISTS);
            step.check(refused || gone || insists, || "2: takes an older life".to_owned());
            self.older = (!refused && !gone).then(|| hello.name.clone());
        }
    }

    /// Invariant 5.
    fn hints_end_no_link(&self, step: &Step<'_>) {
        let hints =
            matches!(step.input, Input::Hint(..) | Input::Told(..) | Input::Seed(_) | Input::Tick);
        if !hints {
            return;
        }
        for (peer, seen) in &self.peers {
            let excused = matches!(step.input, Input::Hint(contact, Source::Beacon)
                if contact.name == *peer && contact.incarnation > seen.incarnation);
            let now = step.machine.peers.get(peer).and_then(|it| it.live.as_ref());
            let kept = now.map(|live| live.attempt) == seen.live;
            step.check(kept || excused, || format!("5: the link with {peer}"));
        }
    }

    /// Invariant 4, and that the machine asks to be woken in time for it.
    fn wanted_peers_have_a_time(&self, step: &Step<'_>) {
        for (peer, it) in &step.machine.peers {
            if self.stopped || it.left() || !it.idle() || it.first_address().is_none() {
                continue;
            }
            let next = it.next_dial;
            step.check(next.is_some(), || format!("4: no next dial of {peer}"));
            // One dial may be kept back for a peer that was lost just now.
            let unready = step.machine.peers.values().filter(|it| it.is_dialed_unready()).count();
            let full = self.open.len() + unready + 1 >= step.config.dials;
            let woken = full || step.machine.deadline().is_some_and(|at| Some(at) <= next);
            step.check(woken, || format!("4: no deadline for {peer}"));
        }
    }

    /// Whatever was due is done: the next deadline lies ahead.
    fn no_tight_loop(&mut self, step: &Step<'_>) {
        let (now, deadline) = (step.now, step.machine.deadline());
        step.check(deadline.is_none_or(|at| at > now), || "due for ever".to_owned());
        if matches!(step.input, Input::Tick) {
            let before = self.ticks.filter(|(at, _)| *at == now).map_or(0, |(_, count)| count);
            self.ticks = Some((now, before + 1));
            step.check(before < 1000, || "1000 ticks at one instant".to_owned());
        }
    }

    /// A status that differs from before was announced, and no incarnation fell.
    fn changes_are_announced(&mut self, step: &Step<'_>) {
        for (peer, it) in &step.machine.peers {
            let live = it.live.as_ref().map(|live| live.attempt);
            let seen = Seen { status: it.status, incarnation: it.incarnation, live };
            if let Some(before) = self.peers.get(peer) {
                let fell = it.incarnation < before.incarnation;
                let taken = self.older.as_ref() == Some(peer);
                let shown = matches!(step.input, Input::Shown(..) | Input::Beacon(..));
                let rekeyed = shown && it.incarnation == Incarnation(0);
                step.check(!fell || taken || rekeyed, || format!("2: {peer} was {before:?}"));
                let told = before.status == it.status || announces(step.out, peer, it.status);
                step.check(told, || format!("{peer} is {:?}, unannounced", it.status));
            }
            self.peers.insert(peer.clone(), seen);
        }
        self.peers.retain(|peer, _| step.machine.peers.contains_key(peer)); // one that is back is a new one
    }
}

fn announces(out: &[Output], of: &NodeName, status: Status) -> bool {
    let is = |event: &Event| match event {
        Event::PeerConnecting { peer } => status == Status::Connecting && peer == of,
        Event::PeerSyncing { peer, .. } => status == Status::Syncing && peer == of,
        Event::PeerOnline { peer, .. } => status == Status::Online && peer == of,
        Event::PeerOffline { peer, .. } => status == Status::Offline && peer == of,
        _ => false,
    };
    out.iter().any(|output| matches!(output, Output::Announce(event) if is(event)))
}
