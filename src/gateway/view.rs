//! What can be read of the node, and done to it: what the admin socket, clients and the API answer from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use crate::actors::discovery::Discovery;
use crate::actors::event_log::Journal;
use crate::actors::files::Followed;
use crate::actors::history_log::Recorder;
use crate::actors::lists::ListKeeper;
use crate::actors::news::Bus;
use crate::actors::peers::{Peers, Row, majority};
use crate::actors::registry::Registry;
use crate::actors::supervisor::ActorTable;
use crate::actors::timer;
use crate::gateway::clients::Clients;
use crate::gateway::rotation::Rotations;
use crate::gateway::status::{
    ClusterView, NodeRecord, NodeStatus, PeerStatus, RevokedStatus, TopologyStatus, profile_texts,
};
use crate::io::clock;
use crate::io::identity::{IdentityError, KeySetState, RevocationReason, Revocee};
use crate::io::metrics::Metrics;
use crate::io::store::Store;
use crate::proto::capability::Capabilities;
use crate::proto::event::{Deed, Event, Operator, Status};
use crate::proto::lists::ListKind;
use crate::proto::node::{ClusterId, Incarnation, NodeId, NodeName};
use crate::proto::registry::{Known, book};
use crate::proto::topology::Matrix;

/// What can be read of the node, and done to it.
#[derive(Clone)]
pub struct NodeView {
    /// The node's name.
    pub name: NodeName,
    /// The id of its key.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its life.
    pub incarnation: Arc<AtomicU64>,
    /// Where it listens for links.
    pub listen: std::net::SocketAddr,
    /// Where it listens for clients over HTTP.
    pub http: Option<std::net::SocketAddr>,
    /// When it started.
    pub started: Instant,
    /// All peers.
    pub peers: Peers,
    /// What became of each `--join`.
    pub discovery: Discovery,
    /// The link matrix.
    pub matrix: watch::Receiver<Arc<Matrix>>,
    /// All known nodes.
    pub registry: Registry,
    /// What happened.
    pub journal: Journal,
    /// The bus inside the node.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
    /// What the node does about rotations of certificates.
    pub rotations: Rotations,
    /// The clients that are here.
    pub clients: Arc<Clients>,
    /// What is remembered.
    pub store: Arc<Store>,
    /// What keeps topics on disk.
    pub history: Option<Recorder>,
    /// The certificates of this node: of several sources, read when asked.
    pub certificates: Arc<dyn Fn() -> OwnCertificates + Send + Sync>,
    /// The lists that the authority signs.
    pub lists: ListKeeper,
    /// The systems whose tokens count besides the cluster's, if there are any.
    pub identities: Option<Arc<dyn Followed>>,
    /// Peers that must be linked before the node calls itself ready.
    pub min_peers: usize,
    /// The actors.
    pub roster: ActorTable,
    /// Whether they may be killed.
    pub chaos: bool,
}

/// What this node's certificates say.
#[derive(Clone, Debug, Default)]
pub struct OwnCertificates {
    /// Until when they are valid, by what they are for.
    pub until: Vec<(&'static str, SystemTime)>,
    /// What the node may do.
    pub may: Capabilities,
}

/// Why a deed of an operator is not done. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeedError {
    /// It is the node that was asked.
    #[error("this is the node itself")]
    Myself,
    /// It lives.
    #[error("{0} is linked: stop it or disconnect it first")]
    Linked(NodeName),
    /// Others would not believe it.
    #[error(
        "this node's certificate does not let it have nodes forgotten (it may: {0}): ask a node whose certificate does"
    )]
    NotAllowed(Capabilities),
    /// There is no such node.
    #[error("no node {0} is known")]
    Unknown(NodeName),
    /// There is nothing to take back.
    #[error("{0} is not forgotten")]
    NotForgotten(NodeName),
    /// There is nothing to end.
    #[error("{node} is not linked: {}", status.label())]
    NotLinked {
        /// Which.
        node: NodeName,
        /// Where it stands.
        status: Status,
    },
    /// Actors are killed for tests alone.
    #[error("this node was not started with --chaos")]
    NoChaos,
    /// What is done about certificates is done where they are issued.
    #[error("certificates are the admin socket's own affair")]
    Certificates,
    /// There is no such actor.
    #[error("the actors are: {0}")]
    NoActor(String),
}

impl NodeView {
    /// The node's status now.
    pub fn status(&self) -> NodeStatus {
        let own = self.registry.nodes().get(&self.name).cloned();
        let (specializations, metadata) = own.as_deref().map(profile_texts).unwrap_or_default();
        let seeds = self.discovery.seeds(&self.peers, &self.name);
        let certificates = (self.certificates)();
        NodeStatus {
            specializations,
            metadata,
            name: self.name.clone(),
            id: self.id.to_string(),
            cluster: self.cluster.to_string(),
            incarnation: self.life(),
            listen: self.listen,
            http: self.http,
            uptime_s: timer::now().saturating_duration_since(self.started).as_secs(),
            degraded: self.degraded(),
            draining: self.clients.draining(),
            drain_left_s: self.clients.drain_left().map(|left| left.as_secs()),
            clients: self.clients.connected.load(Ordering::Relaxed),
            limits: self.clients.limits.settings(),
            token_list: self.has_token_list(),
            identities: self.identities.as_ref().map_or(0, |it| it.count()),
            key_sets: self.key_sets().into_iter().map(Into::into).collect(),
            may: certificates.may.to_string(),
            rotations: self.rotations.under_way(),
            certificates: certificates
                .until
                .into_iter()
                .map(|(what, until)| (what.to_owned(), clock::rfc3339(until)))
                .collect(),
            local_health: self.peers.vitals().local_health,
            namesake: self.peers.joining().namesake,
            seeds: seeds.into_iter().map(Into::into).collect(),
            majority: majority(&self.peers.view()),
            peers: self.peer_statuses(),
        }
    }

    /// Whether there is a list by which clients' tokens are verified.
    fn has_token_list(&self) -> bool {
        self.lists.lists().marks().get(ListKind::Tokens).is_some()
    }

    fn key_sets(&self) -> Vec<KeySetState> {
        self.identities.as_ref().map(|it| it.key_sets()).unwrap_or_default()
    }

    /// What it does not do as it should: remember, or judge tokens.
    pub fn degraded(&self) -> Option<String> {
        let store = self.store.condition();
        let failing = store.failing.map(|why| format!("nothing is remembered: {why}"));
        let history = self.history.as_ref().map(|it| it.history().condition()).unwrap_or_default();
        let in_memory =
            history.failing.map(|why| format!("history is kept in memory alone: {why}"));
        let aside = |what, path: Option<PathBuf>| {
            let path = path?;
            Some(format!("{what} was damaged and begins anew; it is kept as {}", path.display()))
        };
        failing
            .or(in_memory)
            .or_else(|| {
                let why = self.identities.as_ref()?.trouble()?;
                Some(format!(
                    "an identity provider and what it has revoked stay as they were: {why}"
                ))
            })
            .or_else(|| aside("the store", store.set_aside))
            .or_else(|| aside("the topics' history", history.set_aside))
            .or_else(|| {
                let missing = self.key_sets().into_iter().find(|it| it.keys == 0)?;
                let why = missing.error.as_deref().unwrap_or("it is being fetched");
                let url = &missing.url;
                Some(format!(
                    "there is no key set from {url} yet, and its issuer's tokens are refused: {why}"
                ))
            })
    }

    /// Its life.
    pub fn life(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// All that this node sees now.
    pub fn sight(&self) -> ClusterView {
        ClusterView { status: self.status(), topology: self.topology() }
    }

    /// The link matrix now.
    pub fn topology(&self) -> TopologyStatus {
        let (peers, matrix) = (self.peers.view(), self.matrix.borrow());
        TopologyStatus::new(&self.name, &peers, &matrix)
    }

    /// One peer now.
    pub fn peer(&self, name: &NodeName) -> Option<PeerStatus> {
        let (peers, vitals, matrix) =
            (self.peers.view(), self.peers.vitals(), self.matrix.borrow());
        let row = peers.iter().find(|row| row.peer.name == *name)?;
        let nodes = self.registry.nodes();
        let known = nodes.get(name).map(Arc::as_ref);
        Some(PeerStatus::new(&self.name, row, vitals.peers.get(name), &matrix, known))
    }

    /// All known nodes, this one first.
    pub fn records(&self) -> Vec<NodeRecord> {
        let (status, nodes) = (self.status(), self.registry.nodes());
        let peers: BTreeMap<_, _> = status.peers.iter().map(|peer| (&peer.name, peer)).collect();
        let known = nodes.values().filter(|known| !known.is_forgotten());
        let known: BTreeMap<_, _> = known.map(|known| (&known.name, known)).collect();
        let record = |name: &NodeName| {
            let peer = peers.get(name).copied();
            match known.get(name) {
                Some(known) => NodeRecord::new(known, peer),
                // Heard of, and never linked.
                None => NodeRecord::new(&Known::new(name.clone(), clock::millis()), peer),
            }
        };
        let own = NodeRecord::own(record(&self.name), &status);
        let names: BTreeSet<_> = peers.keys().chain(known.keys()).copied().collect();
        let others = names.into_iter().filter(|name| **name != self.name).map(record);
        [own].into_iter().chain(others).collect()
    }

    /// Does what an operator asks, and has the trail say so. But for `issue`, nothing else in the gateway
    /// changes the node.
    ///
    /// # Errors
    /// [`DeedError`]. Nothing changed.
    pub fn perform(&self, deed: Deed, operator: Operator, via: String) -> Result<(), DeedError> {
        match &deed {
            Deed::Forget { peer } => self.forget(peer, operator.clone())?,
            Deed::Restore { peer } => self.restore(peer, operator.clone())?,
            Deed::Disconnect { peer } => self.disconnect(peer)?,
            Deed::Revoke { .. } => return Err(DeedError::Certificates),
            Deed::Drain => self.clients.drain(None),
            Deed::Undrain => self.clients.undrain(),
            Deed::Kill { .. } if !self.chaos => return Err(DeedError::NoChaos),
            Deed::Kill { actor } if self.roster.kill(actor) => {}
            Deed::Kill { .. } => return Err(DeedError::NoActor(self.roster.names().join(" "))),
            Deed::Rotate { .. } => return Err(DeedError::Certificates),
            Deed::Invite { .. }
            | Deed::Approve { .. }
            | Deed::Deny { .. }
            | Deed::Release { .. } => return Err(DeedError::Certificates),
        }
        self.bus.announce(Event::OperatorActed { deed, operator, via });
        Ok(())
    }

    /// Has the node drained over this time, or over its own one, and the trail say so.
    pub fn drain(&self, over: Option<Duration>, operator: Operator, via: String) {
        self.clients.drain(over);
        self.bus.announce(Event::OperatorActed { deed: Deed::Drain, operator, via });
    }

    /// Revokes certificates, and has the trail say so; from then on the list of them goes to all nodes.
    ///
    /// # Errors
    /// What is wrong, and who acts. Nothing changed.
    pub async fn revoke(
        &self,
        what: Revocee,
        why: Option<String>,
        operator: Operator,
        via: String,
    ) -> Result<RevokedStatus, String> {
        let (lists, reason) = (self.lists.clone(), why.as_deref().and_then(RevocationReason::of));
        let certificates = what.to_string();
        let done = tokio::task::spawn_blocking(move || lists.revoke(&what, reason)).await;
        let revoked = done.map_err(|error| error.to_string())?.map_err(|error| {
            if matches!(error, IdentityError::Missing { .. }) {
                format!(
                    "this node has not the authority's key ({error}): run `xpando-node revoke` where it is; the list reaches every node from there"
                )
            } else {
                error.to_string()
            }
        })?;
        let deed = Deed::Revoke { certificates, why };
        self.bus.announce(Event::OperatorActed { deed, operator, via });
        let list = revoked.path.display().to_string();
        Ok(RevokedStatus { added: revoked.added, total: revoked.total, list })
    }

    /// Has a node forgotten that is known and not linked, here and everywhere.
    fn forget(&self, node: &NodeName, operator: Operator) -> Result<(), DeedError> {
        if *node == self.name {
            return Err(DeedError::Myself);
        }
        self.may_operate()?;
        let peer = self.peer(node);
        let known = self.registry.nodes().get(node).cloned();
        let known = known.filter(|known| !known.is_forgotten());
        if peer.is_none() && known.is_none() {
            return Err(DeedError::Unknown(node.clone()));
        }
        let status = peer.as_ref().map(|peer| peer.status);
        if matches!(status, Some(Status::Online | Status::Syncing)) {
            return Err(DeedError::Linked(node.clone()));
        }
        let lives = [peer.and_then(|peer| peer.incarnation), known.map(|it| it.incarnation.0)];
        let life = lives.into_iter().flatten().max().unwrap_or_default();
        self.registry.forget(node.clone(), Incarnation(life), operator);
        Ok(())
    }

    /// Has a node that is forgotten known again, here and everywhere.
    fn restore(&self, node: &NodeName, operator: Operator) -> Result<(), DeedError> {
        if !self.registry.nodes().get(node).is_some_and(|known| book::has_tombstone(known)) {
            return Err(DeedError::NotForgotten(node.clone()));
        }
        self.may_operate()?;
        self.registry.restore(node.clone(), operator);
        Ok(())
    }

    /// Refuses what other nodes would not believe.
    fn may_operate(&self) -> Result<(), DeedError> {
        let may = (self.certificates)().may;
        if may.may_operate() { Ok(()) } else { Err(DeedError::NotAllowed(may)) }
    }

    /// Ends the link to a peer that is known.
    fn disconnect(&self, node: &NodeName) -> Result<(), DeedError> {
        let peer = self.peer(node).ok_or_else(|| DeedError::Unknown(node.clone()))?;
        if peer.status != Status::Online && peer.status != Status::Syncing {
            return Err(DeedError::NotLinked { node: node.clone(), status: peer.status });
        }
        self.peers.disconnect(node.clone());
        Ok(())
    }

    /// What keeps the node from being ready, by name: `true` is as it should be. (Its identity is there, or it
    /// would not run.)
    pub fn checks(&self) -> [(&'static str, bool); 7] {
        let online =
            self.peers.view().iter().filter(|row| row.peer.status == Status::Online).count();
        [
            ("identity", true),
            ("store", self.store.condition().failing.is_none()),
            ("discovery", self.roster.names().contains(&"discovery")),
            ("peers", online >= self.min_peers),
            ("clients", !self.clients.draining()),
            // Where other systems make tokens, those are judged without it.
            ("token_list", self.has_token_list() || self.identities.is_some()),
            ("key_sets", self.key_sets().iter().all(|it| it.keys > 0)),
        ]
    }

    fn peer_statuses(&self) -> Vec<PeerStatus> {
        let (peers, vitals, matrix) =
            (self.peers.view(), self.peers.vitals(), self.matrix.borrow());
        let nodes = self.registry.nodes();
        let status = |row: &Row| {
            let known = nodes.get(&row.peer.name).map(Arc::as_ref);
            PeerStatus::new(&self.name, row, vitals.peers.get(&row.peer.name), &matrix, known)
        };
        peers.iter().map(status).collect()
    }
}
