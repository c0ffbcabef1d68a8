//! Requests for certificates: of machines that come to the link port, and of other nodes.
//!
//! A node with the authority's key answers under one name, and everybody who comes to its link port. One without it
//! passes a newcomer's request on, unchanged, to the nodes that answer, one after another. Invariants: answers are made
//! one at a time, on a thread of their own; each node that asks is answered one request at a time, and not before
//! `IDLE` times as long as its last answer took have passed; of the nodes that answer at most `MAX_ASKED` are asked,
//! each for `EACH`; of an answer that grants a certificate it is checked that the authority has signed it for that
//! name before it is passed on. What else it must hold, the one that asked checks: a node that lies costs time.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::task::JoinError;

use crate::actors::exchange::{HandlerError, ServeError, Serving};
use crate::actors::link::Enrolment;
use crate::actors::news::Bus;
use crate::actors::peers::Peers;
use crate::actors::timer;
use crate::gateway::askers::{Askers, IDLE};
use crate::io::clock;
use crate::io::identity::enrol::{
    Answered, EnrolError, Issuer, Means, Outcome, Pending, Rules, Terms,
};
use crate::io::identity::{Authority, CertificateDer, CertificateVerifier, IdentityError};
use crate::io::metrics::{Count, Metrics};
use crate::io::seeds::Seed;
use crate::proto::enrol::{Answer, Refused, Request, RequestId};
use crate::proto::event::{Deed, Event, Operator, Status};
use crate::proto::node::NodeName;
use crate::proto::notices::Notices;
use crate::proto::topic::{Address, Name};

/// Nodes that are asked about one request.
const MAX_ASKED: usize = 4;
/// How long each may take.
const EACH: Duration = Duration::from_secs(4);
/// Addresses of nodes that a newcomer is told.
const MAX_PEERS: usize = 16;

/// Why an operator's wish about certificates is not done. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// This node has not the authority's key.
    #[error("this node cannot issue certificates, for it has no ca/key.pem; {}", Able(.0))]
    NoKey(Vec<NodeName>),
    /// The issuer's own reason.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The revocation that frees a name was not possible.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What did it has ended.
    #[error("it was not done: the task ended ({0})")]
    Ended(JoinError),
}

impl From<JoinError> for IssueError {
    fn from(error: JoinError) -> Self {
        Self::Ended(error)
    }
}

/// Who can issue instead.
struct Able<'a>(&'a [NodeName]);

impl fmt::Display for Able<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f
                .write_str("nor can any node that it is linked with: ask where the authority is");
        }
        f.write_str("ask one that can:")?;
        self.0.iter().try_for_each(|node| write!(f, " {node}"))
    }
}

/// What this node does with requests for certificates. Clones are the same.
#[derive(Clone)]
pub struct Issuing(Arc<Inside>);

struct Inside {
    /// Where this node has the authority's key.
    issuer: parking_lot::Mutex<Option<Arc<Issuer>>>,
    /// The certificate directory.
    certs: PathBuf,
    verifier: CertificateVerifier,
    /// Where others reach this node.
    advertise: SocketAddr,
    bus: Bus,
    peers: Peers,
    metrics: Metrics,
    /// Whose turn it is.
    one: Mutex<()>,
    /// Who is asked first.
    turn: AtomicUsize,
    notices: parking_lot::Mutex<Notices>,
}

/// Follows whether the authority's key is here: as long as it is, this node issues, and answers other nodes. Once this is
/// dropped, it answers none.
pub struct Offer {
    issuing: Issuing,
    rules: Rules,
    state: parking_lot::Mutex<Offered>,
}

#[derive(Default)]
struct Offered {
    serving: Option<Serving>,
    /// Why the key that is here cannot be used, as it was told.
    told: Option<String>,
}

impl Offer {
    /// Looks whether the key is here. May block while a disk does.
    ///
    /// # Errors
    /// [`ServeError`]: other nodes are not answered.
    pub fn look(&self) -> Result<(), ServeError> {
        let inside = &self.issuing.0;
        let mut state = self.state.lock();
        let (is_here, issues) = (Authority::is_in(&inside.certs), self.issuing.present().is_some());
        if is_here == issues {
            return Ok(());
        }
        if !is_here {
            *inside.issuer.lock() = None;
            state.serving = None;
            tracing::info!("the authority's key is gone: this node issues no certificates");
            return Ok(());
        }
        let opened = Issuer::open(&inside.certs, self.rules.clone());
        let failed = opened.as_ref().err().map(ToString::to_string);
        if let Some(error) = failed.as_ref().filter(|_| failed != state.told) {
            tracing::warn!(%error, "this node cannot issue certificates");
        }
        state.told = failed;
        let Ok(issuer) = opened else { return Ok(()) };
        *inside.issuer.lock() = Some(Arc::new(issuer));
        tracing::info!("the authority's key is here: this node issues certificates");
        let exchange = inside.bus.exchange();
        if exchange.capabilities().may_issue() {
            state.serving = Some(self.issuing.serve()?);
        } else {
            tracing::warn!(may = %exchange.capabilities(), "the authority's key is here, but this node's certificate does not let it answer other nodes' requests for certificates: issue it anew with that right");
        }
        Ok(())
    }
}

impl Issuing {
    /// What a node does, which issues nothing before the first [`Offer::look`].
    pub fn new(
        (certs, verifier): (&Path, CertificateVerifier),
        advertise: SocketAddr,
        (bus, peers, metrics): (&Bus, &Peers, &Metrics),
    ) -> Self {
        Self(Arc::new(Inside {
            issuer: parking_lot::Mutex::default(),
            certs: certs.to_owned(),
            verifier,
            advertise,
            bus: bus.clone(),
            peers: peers.clone(),
            metrics: metrics.clone(),
            one: Mutex::default(),
            turn: AtomicUsize::default(),
            notices: parking_lot::Mutex::default(),
        }))
    }

    /// What answers those who come to the link port.
    pub fn enrolment(&self) -> Enrolment {
        let issuing = self.clone();
        Enrolment::new(move |request| {
            let issuing = issuing.clone();
            async move {
                match issuing.present() {
                    Some(issuer) => issuing.judge(&issuer, request).await,
                    None => issuing.pass_on(request).await,
                }
            }
        })
    }

    /// What follows whether the authority's key is here, by these rules.
    pub fn offer(&self, rules: Rules) -> Offer {
        Offer { issuing: self.clone(), rules, state: parking_lot::Mutex::default() }
    }

    /// The issuer, where this node has the authority's key.
    fn present(&self) -> Option<Arc<Issuer>> {
        self.0.issuer.lock().clone()
    }

    /// Answers other nodes until the result is dropped.
    fn serve(&self) -> Result<Serving, ServeError> {
        let (issuing, askers) = (self.clone(), Askers::default());
        self.0.bus.exchange().serve(Name::issue(), move |request| {
            let issuing = issuing.clone();
            let turn = askers.turn(&request.from);
            async move {
                let turn = turn?;
                // A request that is past its deadline waits no more: it is dropped here.
                let mut next = turn.lock().await;
                tokio::time::sleep_until((*next).into()).await;
                let began = timer::now();
                let answer = match issuing.present() {
                    Some(issuer) => issuing.judge(&issuer, request.payload).await,
                    None => issuing.refuse(Refused::CannotIssue {
                        reason: "the node that was asked has not the authority's key any more"
                            .to_owned(),
                    }),
                };
                let now = timer::now();
                *next = now + now.saturating_duration_since(began) * IDLE;
                Ok::<_, HandlerError>(answer)
            }
        })
    }

    /// Answers a request with the authority's key.
    async fn judge(&self, issuer: &Arc<Issuer>, request: Bytes) -> Bytes {
        let _one = self.0.one.lock().await;
        let (issuer, peers) = (issuer.clone(), self.addresses());
        let judging =
            tokio::task::spawn_blocking(move || issuer.answer(&request, &peers, clock::wall()));
        match judging.await {
            Ok(answered) => self.answered(answered),
            Err(error) => {
                tracing::error!(%error, "a request for a certificate was not judged");
                self.refuse(Refused::CannotIssue { reason: "the judgement failed".to_owned() })
            }
        }
    }

    /// Counts what an answer says, and tells it.
    fn answered(&self, Answered { bytes, outcome }: Answered) -> Bytes {
        let label = match outcome {
            Outcome::Issued { name, key, until, means } => {
                let by = match means {
                    Means::Invitation(id) => format!("invitation {id}"),
                    Means::Renewal => "the certificate before it".to_owned(),
                    Means::Machine => "a token of its platform".to_owned(),
                    Means::Operator => "an operator".to_owned(),
                };
                let (key, until) = (key.to_string(), clock::rfc3339(until));
                self.0.bus.announce(Event::CertificateIssued { peer: name, key, until, by });
                "issued"
            }
            Outcome::Waiting { request, name, key, is_new } => {
                if is_new {
                    let (request, key) = (request.to_string(), key.to_string());
                    self.0.bus.announce(Event::CertificateRequested { peer: name, key, request });
                }
                "waiting"
            }
            Outcome::Continued => "continued",
            Outcome::Refused(refused) => {
                self.notice(refused.label(), &refused);
                refused.label()
            }
            Outcome::Failed(error) => {
                self.notice("failed", &error);
                "failed"
            }
        };
        self.0.metrics.count(Count::Enrolments, label);
        bytes.into()
    }

    fn refuse(&self, refused: Refused) -> Bytes {
        self.0.metrics.count(Count::Enrolments, refused.label());
        // A refusal of a few words is not too long.
        Answer::Refused(refused).encode().unwrap_or_default().into()
    }

    /// Logs what is the matter, once a minute of a kind.
    fn notice(&self, kind: &'static str, why: &dyn fmt::Display) {
        let mut notices = self.0.notices.lock();
        if let Some(left_out) = notices.due(kind, timer::now()) {
            tracing::warn!(%why, kind, left_out, "no certificate issued");
        }
    }

    /// Where nodes of the cluster are: this one, and those that it is linked with.
    fn addresses(&self) -> Vec<SocketAddr> {
        let peers = self.0.peers.view();
        let online = peers.iter().filter(|row| row.peer.status == Status::Online);
        let others = online.filter_map(|row| row.peer.address);
        [self.0.advertise].into_iter().chain(others).take(MAX_PEERS).collect()
    }

    /// The other nodes that can issue, the nearest first.
    fn able(&self) -> Vec<NodeName> {
        let exchange = self.0.bus.exchange();
        let nodes = exchange.lookup(&Name::issue()).into_iter();
        nodes.filter(|node| node != exchange.name()).collect()
    }

    /// Asks nodes that can issue, until one grants the certificate; otherwise the best refusal.
    async fn pass_on(&self, request: Bytes) -> Bytes {
        let wanted = match Request::decode(&request) {
            Ok(parsed) => parsed.name,
            Err(error) => return self.refuse(Refused::Malformed { reason: error.to_string() }),
        };
        let mut able = self.able();
        // The next time another one is asked first: where it lies, another attempt goes well.
        let first = self.0.turn.fetch_add(1, Ordering::Relaxed).checked_rem(able.len());
        able.rotate_left(first.unwrap_or_default());
        let mut best: Option<Refused> = None;
        for node in able.into_iter().take(MAX_ASKED) {
            let to = Address { name: Name::issue(), node: Some(node.clone()) };
            let reply = self.0.bus.exchange().call(&to, request.clone(), EACH).await;
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => {
                    self.notice("unanswered", &format!("{node} does not answer: {error}"));
                    continue;
                }
            };
            match self.judged(&reply, &wanted) {
                Ok(Some(refused)) => {
                    best = best.filter(|it| weight(it) >= weight(&refused)).or(Some(refused));
                }
                Ok(None) => {
                    self.0.metrics.count(Count::Enrolments, "passed_on");
                    return reply;
                }
                Err(why) => self.notice("lie", &format!("{node} answers {why}")),
            }
        }
        self.refuse(best.unwrap_or_else(|| {
            let reason = "the node that was asked has not the authority's key, and none that \
                          has it answers there";
            Refused::CannotIssue { reason: reason.to_owned() }
        }))
    }

    /// What another node's answer refuses; nothing when it grants a certificate of this name.
    fn judged(&self, reply: &[u8], wanted: &NodeName) -> Result<Option<Refused>, String> {
        match Answer::decode(reply) {
            Ok(Answer::Refused(refused)) => Ok(Some(refused)),
            // It proves nothing yet: the answer to the second step does, to the asker.
            Ok(Answer::SpokenShare { .. }) => Ok(None),
            Ok(Answer::Issued(issued)) => {
                let leaf = CertificateDer::from(issued.certificate);
                let peer = self.0.verifier.peer(&leaf, clock::wall());
                let peer = peer.map_err(|error| error.to_string())?;
                if peer.name == *wanted {
                    return Ok(None);
                }
                Err(format!("with a certificate of {}, where {wanted} was meant", peer.name))
            }
            Err(error) => Err(format!("with what is no answer: {error}")),
        }
    }
}

/// Of several refusals the one with the most weight is told: one that only an issuer can give who knows the invitation.
fn weight(refused: &Refused) -> u8 {
    match refused {
        Refused::CannotIssue { .. } => 0,
        Refused::RateLimited { .. } => 1,
        Refused::UnknownInvitation | Refused::NotTaken | Refused::OtherAuthority { .. } => 2,
        Refused::Malformed { .. }
        | Refused::Expired { .. }
        | Refused::UsedUp
        | Refused::NameNotAllowed { .. }
        | Refused::NameTaken { .. }
        | Refused::KeyTaken { .. }
        | Refused::UnusableName
        | Refused::Clock { .. }
        | Refused::Denied
        | Refused::Lapsed { .. }
        | Refused::Revoked
        | Refused::Burnt
        | Refused::Unproven { .. } => 3,
        Refused::Waiting { .. } => 4,
    }
}

/// What operators do.
impl Issuing {
    /// The issuer.
    fn issuer(&self) -> Result<Arc<Issuer>, IssueError> {
        self.present().ok_or_else(|| IssueError::NoKey(self.able()))
    }

    /// Does something with the authority's key, off the workers: it waits for the directory's lock.
    async fn with<T: Send + 'static, E: Into<IssueError> + Send + 'static>(
        &self,
        does: impl FnOnce(&Issuer) -> Result<T, E> + Send + 'static,
    ) -> Result<T, IssueError> {
        let issuer = self.issuer()?;
        tokio::task::spawn_blocking(move || does(&issuer)).await?.map_err(Into::into)
    }

    fn acted(&self, deed: Deed, operator: Operator, via: &str) {
        self.0.bus.announce(Event::OperatorActed { deed, operator, via: via.to_owned() });
    }

    /// Makes an invitation; the line, which is a secret.
    ///
    /// # Errors
    /// [`IssueError`].
    pub async fn invite(
        &self,
        terms: Terms,
        operator: Operator,
        via: &str,
    ) -> Result<String, IssueError> {
        let addresses = self.addresses().into_iter();
        let addresses = addresses.filter_map(|at| at.to_string().parse::<Seed>().ok());
        let addresses: Vec<Seed> = addresses.collect();
        let names = terms.names.to_string();
        let (uses, approval) = (terms.uses, terms.approval);
        let line =
            self.with(move |issuer| issuer.invite(&terms, &addresses, clock::wall())).await?;
        let invitation = line.id().to_string();
        self.acted(Deed::Invite { invitation, names, uses, approval }, operator, via);
        Ok(line.to_string())
    }

    /// Makes an invitation to be said aloud; the code, which is a secret, and where this node can be asked.
    ///
    /// # Errors
    /// [`IssueError`]; without the feature `gateway` there are none.
    #[cfg(feature = "gateway")]
    pub async fn invite_spoken(
        &self,
        terms: Terms,
        operator: Operator,
        via: &str,
    ) -> Result<(String, Option<SocketAddr>), IssueError> {
        let names = terms.names.to_string();
        let code = self.with(move |issuer| issuer.invite_spoken(&terms, clock::wall())).await?;
        let invitation = format!("spoken {}", code.number());
        self.acted(Deed::Invite { invitation, names, uses: 1, approval: false }, operator, via);
        Ok((code.to_string(), Some(self.0.advertise)))
    }

    #[cfg(not(feature = "gateway"))]
    #[expect(clippy::unused_async, reason = "as where there are some")]
    pub(super) async fn invite_spoken(
        &self,
        _terms: Terms,
        _operator: Operator,
        _via: &str,
    ) -> Result<(String, Option<SocketAddr>), IssueError> {
        Err(EnrolError::Terms("this program has no spoken ones").into())
    }

    /// The requests that wait.
    ///
    /// # Errors
    /// [`IssueError`].
    pub async fn requests(&self) -> Result<Vec<Pending>, IssueError> {
        self.with(|issuer| issuer.requests(clock::wall())).await
    }

    /// Approves a request that waits, or denies it; the name that was asked for.
    ///
    /// # Errors
    /// [`IssueError`].
    pub async fn decide(
        &self,
        request: RequestId,
        approve: bool,
        operator: Operator,
        via: &str,
    ) -> Result<NodeName, IssueError> {
        let decided = self.with(move |issuer| {
            let now = clock::wall();
            if approve { issuer.approve(request, now) } else { issuer.deny(request, now) }
        });
        let peer = decided.await?.name;
        let (request, about) = (request.to_string(), peer.clone());
        let deed = if approve {
            Deed::Approve { peer: about, request }
        } else {
            Deed::Deny { peer: about, request }
        };
        self.acted(deed, operator, via);
        Ok(peer)
    }

    /// Frees a name: its certificates are revoked; how many were not before.
    ///
    /// # Errors
    /// [`IssueError`].
    pub async fn release(
        &self,
        peer: NodeName,
        operator: Operator,
        via: &str,
    ) -> Result<usize, IssueError> {
        self.issuer()?;
        let (name, certs) = (peer.clone(), self.0.certs.clone());
        let releasing = tokio::task::spawn_blocking(move || {
            Authority::open(&certs)?.release(&name, clock::wall())
        });
        let revoked = releasing.await??;
        self.acted(Deed::Release { peer }, operator, via);
        Ok(revoked.added.len())
    }
}
