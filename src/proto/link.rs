//! Attempts, and exactly one session per peer: what the link layer does with connections.
//!
//! The machine behind Link. It keeps every attempt from its first step to the end of its link. Connections, tasks and
//! ractor's sessions are the actor's; the machine names them by their [`AttemptId`].
//!
//! # The life of an attempt
//! ```text
//! pending   Dial, or Authenticated → Step … → Established, or Failed; each step is reported and waits for a decision
//! parked    established, while the peer has a link that is not gone yet
//! running   Start: the connection carries its lanes, ractor's session is handed over; SessionReady makes it ready
//! closing   MuxEnded: the connection is gone, ractor's session not yet; SessionGone ends it, and the next one starts
//! ```
//! Unready links have `READY`, parked and closing ones `GONE` to get on. A new listener abandons what is pending and is told of
//! every link that lives.
//!
//! # Invariants
//! 1. Of one peer at most one link is running or closing.
//! 2. An attempt of which nothing is known takes no step: its resources are given up.
//! 3. At most `ATTEMPTS` inbound attempts of one peer are pending; a further one ends the oldest.
//! 4. Every attempt that became a link is reported as ended exactly once, unless it is closed while it is parked.
//! 5. A certificate that is revoked makes no link, and each link made with it is reported.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::proto::capability::Capabilities;
use crate::proto::frame::CloseReason;
use crate::proto::hello::{Hello, Refusal};
use crate::proto::membership::{AttemptId, Failure, LinkEnd};
use crate::proto::node::{Credential, NodeName};
use crate::proto::talk::DownReason;

/// Time to connect.
pub const CONNECT: Duration = Duration::from_secs(5);
/// Time for TLS, and again for the hello.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
/// Time for ractor's sessions to agree once a stream is theirs. It is long: on a machine where a hundred nodes start at
/// once, each step takes a while, and whatever was begun is lost when it is late.
const READY: Duration = Duration::from_secs(10);
/// Time for an earlier session to be gone.
const GONE: Duration = Duration::from_secs(5);
/// Inbound attempts of one peer at once.
const ATTEMPTS: usize = 4;

/// A step of an attempt or a link, for the one that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// An outbound attempt read this name and key in the other side's certificate.
    Connected(AttemptId, NodeName, Credential),
    /// An inbound attempt brought a hello that matches its certificate.
    Greeted(AttemptId, Hello, Credential),
    /// An outbound attempt was welcomed.
    Welcomed(AttemptId, Hello),
    /// An inbound attempt was confirmed.
    Confirmed(AttemptId),
    /// An attempt ended.
    Failed(AttemptId, Failure),
    /// ractor's sessions agree.
    Ready(AttemptId),
    /// A link ended.
    Ended(AttemptId, LinkEnd),
    /// The certificate that a link was made with is revoked by now.
    Revoked(AttemptId),
    /// A link that lives, for a listener that has just attached.
    Existing(AttemptId, Hello, Credential, bool),
    /// Every link that lives has been reported to the listener that has just attached.
    Attached,
}

impl Report {
    /// Whose certificate an attempt showed, and what it is of.
    pub fn shown(&self) -> Option<(AttemptId, &NodeName, Credential)> {
        match self {
            Self::Connected(attempt, name, it) => Some((*attempt, name, *it)),
            Self::Greeted(attempt, hello, it) | Self::Existing(attempt, hello, it, _) => {
                Some((*attempt, &hello.name, *it))
            }
            Self::Welcomed(..)
            | Self::Confirmed(_)
            | Self::Failed(..)
            | Self::Ready(_)
            | Self::Ended(..)
            | Self::Revoked(_)
            | Self::Attached => None,
        }
    }
}

/// Why the link of a peer is down whose connection ended so.
pub fn down_reason(end: &LinkEnd) -> DownReason {
    match *end {
        LinkEnd::Goodbye(CloseReason::Left) => DownReason::NodeOffline,
        LinkEnd::Goodbye(_) | LinkEnd::Closed | LinkEnd::TimedOut | LinkEnd::Fault(_) => {
            DownReason::LinkLost
        }
    }
}

/// What an attempt does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its next step.
    Proceed,
    /// Ends with a word to the other side.
    Refuse(Refusal),
}

/// Who is at the other end of a finished handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// What it says of itself.
    pub hello: Hello,
    /// Its key, and since when its certificate counts.
    pub credential: Credential,
    /// The serial numbers of which each ends it when it is revoked: that of its certificate first.
    pub serials: Vec<String>,
    /// What its certificate lets it do.
    pub capabilities: Capabilities,
}

/// What the machine receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Another listener takes the reports from now on.
    Attach,
    /// Open a connection.
    Dial(AttemptId, SocketAddr),
    /// A connection showed the certificate of this node.
    Authenticated(AttemptId, NodeName),
    /// What an attempt does next.
    Decide(AttemptId, Decision),
    /// An attempt ends without a word.
    Abandon(AttemptId),
    /// An attempt came to a step, or failed.
    Step(AttemptId, Report),
    /// An attempt is through.
    Established(AttemptId, Proven),
    /// End a link with a goodbye.
    Close(AttemptId, CloseReason),
    /// The connection of a link is gone.
    MuxEnded(AttemptId, LinkEnd),
    /// ractor has a session for a link.
    SessionOpened(AttemptId),
    /// ractor's sessions agree.
    SessionReady(AttemptId),
    /// ractor's session is gone.
    SessionGone(AttemptId),
    /// Other certificates are revoked than before.
    Judge,
    /// The deadline passed.
    Tick,
}

/// What the machine wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell the listener.
    Report(Report),
    /// Open a connection.
    Dial(AttemptId, SocketAddr),
    /// Tell a pending attempt.
    Decide(AttemptId, Decision),
    /// Give up all that a pending or parked attempt has.
    Drop(AttemptId),
    /// An outbound attempt took so long.
    Took(Duration),
    /// A peer tried too often: count that its oldest attempt ends.
    Evicted,
    /// A peer broke the protocol of its link: count it.
    Fault(NodeName, String),
    /// Run the lanes on the connection of an attempt, and hand ractor its end.
    Start(AttemptId),
    /// Say goodbye on a running link.
    Part(AttemptId, CloseReason),
    /// Break off the connection of a running link.
    Break(AttemptId),
    /// Stop ractor's session, if there is one.
    StopSession(AttemptId),
    /// A link is over: nothing of it is needed any more.
    Over(AttemptId),
}

#[derive(Debug)]
struct Pending {
    /// Who it is, once a certificate said so; of outbound attempts membership keeps count.
    from: Option<NodeName>,
    since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Parked,
    Running { ready: bool, parting: bool },
    Closing,
}

#[derive(Debug)]
struct Link {
    proven: Proven,
    stage: Stage,
    /// Since when it is in this stage.
    since: Instant,
}

impl Link {
    /// Until when it must have got out of its stage; a ready one may stay as it is.
    fn unready(&self) -> Option<Instant> {
        match self.stage {
            Stage::Running { ready: true, .. } => None,
            Stage::Running { ready: false, .. } => Some(self.since + READY),
            Stage::Parked | Stage::Closing => Some(self.since + GONE),
        }
    }
}

/// The machine.
#[derive(Debug, Default)]
pub struct Links {
    pending: BTreeMap<AttemptId, Pending>,
    links: BTreeMap<AttemptId, Link>,
}

impl Links {
    /// Takes one input and appends what follows from it. `revoked` tells whether one of these serial numbers is revoked.
    pub fn handle(
        &mut self,
        input: Input,
        revoked: impl Fn(&[String]) -> bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match input {
            Input::Attach => self.attach(revoked, out),
            Input::Dial(attempt, address) => {
                self.pending.insert(attempt, Pending { from: None, since: now });
                out.push(Output::Dial(attempt, address));
            }
            Input::Authenticated(attempt, from) => self.authenticated(attempt, from, now, out),
            Input::Decide(attempt, decision) => {
                if self.pending.contains_key(&attempt) {
                    out.push(Output::Decide(attempt, decision));
                }
            }
            Input::Abandon(attempt) => self.drop_pending(attempt, out),
            Input::Step(attempt, report) => {
                if !self.pending.contains_key(&attempt) {
                    return; // abandoned meanwhile
                }
                if matches!(report, Report::Failed(..)) {
                    self.drop_pending(attempt, out);
                }
                out.push(Output::Report(report));
            }
            Input::Established(attempt, proven) => {
                self.established(attempt, proven, revoked, now, out);
            }
            Input::Close(attempt, parting) => self.close(attempt, parting, out),
            Input::MuxEnded(attempt, end) => self.mux_ended(attempt, end, now, out),
            Input::SessionOpened(attempt) => {
                let running = |link: &Link| matches!(link.stage, Stage::Running { .. });
                if !self.links.get(&attempt).is_some_and(running) {
                    out.push(Output::StopSession(attempt));
                }
            }
            Input::SessionReady(attempt) => {
                if let Some(Stage::Running { ready, .. }) = self.stage(attempt) {
                    *ready = true;
                    out.push(Output::Report(Report::Ready(attempt)));
                }
            }
            Input::SessionGone(attempt) => self.session_gone(attempt, now, out),
            Input::Judge => self.judge(revoked, out),
            Input::Tick => self.tick(now, out),
        }
    }

    /// When the machine wants its next [`Input::Tick`].
    pub fn deadline(&self) -> Option<Instant> {
        self.links.values().filter_map(Link::unready).min()
    }

    /// Whether every link has said its goodbye.
    pub fn is_closed(&self) -> bool {
        self.links.values().all(|link| link.stage == Stage::Closing)
    }

    /// Who is at the other end of a link.
    pub fn proven(&self, attempt: AttemptId) -> Option<&Proven> {
        self.links.get(&attempt).map(|link| &link.proven)
    }

    fn stage(&mut self, attempt: AttemptId) -> Option<&mut Stage> {
        self.links.get_mut(&attempt).map(|link| &mut link.stage)
    }

    fn drop_pending(&mut self, attempt: AttemptId, out: &mut Vec<Output>) {
        if self.pending.remove(&attempt).is_some() {
            out.push(Output::Drop(attempt));
        }
    }

    fn attach(&mut self, revoked: impl Fn(&[String]) -> bool, out: &mut Vec<Output>) {
        out.extend(std::mem::take(&mut self.pending).into_keys().map(Output::Drop));
        for (attempt, Link { proven, stage, .. }) in &self.links {
            let ready = match stage {
                Stage::Running { ready, .. } => *ready,
                Stage::Parked => false,
                Stage::Closing => continue,
            };
            let (hello, credential) = (proven.hello.clone(), proven.credential);
            out.push(Output::Report(Report::Existing(*attempt, hello, credential, ready)));
        }
        out.push(Output::Report(Report::Attached));
        self.judge(revoked, out); // an earlier listener may not have come to it
    }

    fn judge(&self, revoked: impl Fn(&[String]) -> bool, out: &mut Vec<Output>) {
        let lives = self.links.iter().filter(|(_, link)| link.stage != Stage::Closing);
        let found = lives.filter(|(_, link)| revoked(&link.proven.serials));
        out.extend(found.map(|(attempt, _)| Output::Report(Report::Revoked(*attempt))));
    }

    /// A peer may try again while its earlier attempt hangs, but not fill this node with attempts.
    fn authenticated(
        &mut self,
        attempt: AttemptId,
        from: NodeName,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let same = self.pending.iter().filter(|(_, pending)| pending.from.as_ref() == Some(&from));
        let same: Vec<AttemptId> = same.map(|(attempt, _)| *attempt).collect();
        for oldest in same.iter().take((same.len() + 1).saturating_sub(ATTEMPTS)) {
            self.drop_pending(*oldest, out);
            out.push(Output::Report(Report::Failed(*oldest, Failure::Closed)));
            out.push(Output::Evicted);
        }
        self.pending.insert(attempt, Pending { from: Some(from), since: now });
    }

    fn established(
        &mut self,
        attempt: AttemptId,
        proven: Proven,
        revoked: impl Fn(&[String]) -> bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let Some(pending) = self.pending.remove(&attempt) else {
            return out.push(Output::Drop(attempt)); // abandoned meanwhile
        };
        if matches!(attempt, AttemptId::Outbound(_)) {
            out.push(Output::Took(now.saturating_duration_since(pending.since)));
        }
        if revoked(&proven.serials) {
            out.push(Output::Drop(attempt));
            return out.push(Output::Report(Report::Revoked(attempt))); // while the hellos were exchanged
        }
        self.links.insert(attempt, Link { proven, stage: Stage::Parked, since: now });
        self.start_parked(now, out);
    }

    /// Starts the parked links whose peers have no earlier session any more.
    fn start_parked(&mut self, now: Instant, out: &mut Vec<Output>) {
        let parked = |(attempt, link): (&AttemptId, &Link)| {
            let name = &link.proven.hello.name;
            let busy =
                |other: &Link| other.stage != Stage::Parked && other.proven.hello.name == *name;
            let free = link.stage == Stage::Parked && !self.links.values().any(busy);
            free.then_some(*attempt)
        };
        let Some(attempt) = self.links.iter().find_map(parked) else { return };
        if let Some(link) = self.links.get_mut(&attempt) {
            link.stage = Stage::Running { ready: false, parting: false };
            link.since = now;
            out.push(Output::Start(attempt));
        }
    }

    fn close(&mut self, attempt: AttemptId, parting: CloseReason, out: &mut Vec<Output>) {
        match self.stage(attempt) {
            Some(Stage::Running { parting: parts, .. }) => {
                if !std::mem::replace(parts, true) {
                    out.push(Output::Part(attempt, parting));
                }
            }
            Some(Stage::Parked) => {
                self.links.remove(&attempt);
                out.push(Output::Drop(attempt));
            }
            Some(Stage::Closing) | None => {}
        }
    }

    fn mux_ended(&mut self, attempt: AttemptId, end: LinkEnd, now: Instant, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&attempt) else { return };
        if !matches!(link.stage, Stage::Running { .. }) {
            return;
        }
        (link.stage, link.since) = (Stage::Closing, now);
        if let LinkEnd::Fault(fault) = &end {
            out.push(Output::Fault(link.proven.hello.name.clone(), fault.clone()));
        }
        out.push(Output::StopSession(attempt));
        out.push(Output::Report(Report::Ended(attempt, end)));
    }

    /// ractor gave up a session: the connection goes with it.
    fn session_gone(&mut self, attempt: AttemptId, now: Instant, out: &mut Vec<Output>) {
        let Some(stage) =
            self.links.get(&attempt).map(|link| link.stage).filter(|stage| *stage != Stage::Parked)
        else {
            return; // a parked link has no session
        };
        self.links.remove(&attempt);
        if let Stage::Running { .. } = stage {
            out.push(Output::Break(attempt));
            let fault = "ractor_cluster ended the session".to_owned();
            out.push(Output::Report(Report::Ended(attempt, LinkEnd::Fault(fault))));
        }
        out.push(Output::Over(attempt));
        self.start_parked(now, out);
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        let late = |link: &Link| link.unready().is_some_and(|at| at <= now);
        let late = self.links.iter().filter(|(_, link)| late(link));
        let late: Vec<_> = late.map(|(attempt, link)| (*attempt, link.stage)).collect();
        for (attempt, stage) in late {
            let fault = LinkEnd::Fault("ractor's sessions did not agree in time".to_owned());
            match stage {
                Stage::Running { .. } => {
                    out.push(Output::Break(attempt));
                    self.mux_ended(attempt, fault, now, out);
                }
                // A session that never came to life is never reported gone either.
                Stage::Closing => self.session_gone(attempt, now, out),
                Stage::Parked => {
                    if self.links.remove(&attempt).is_some() {
                        out.push(Output::Drop(attempt));
                        out.push(Output::Report(Report::Ended(attempt, fault)));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
