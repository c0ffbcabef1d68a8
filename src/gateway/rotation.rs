//! The replacement of the cluster's authority, of its nodes' certificates, and of the key of its tokens, while it works.
//!
//! Every node says under one name how far it is. A node that has the authority's key takes the next step of a rotation when
//! all nodes that are known, and not forgotten, are ready for it; it asks them once in `EVERY` while one is under way. What is
//! under way is written in the trust list and in the token list: it goes on after restarts, and on whichever node has the keys.
//!
//! Invariants: no step is taken before every known node has answered that it is ready, unless an operator forces it; an
//! operator's deed is in the trail, and in force on this node when it is answered; what a node says of others is not asked.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use crate::actors::exchange::{ServeError, Serving};
use crate::actors::files::Files;
use crate::actors::lists::ListKeeper;
use crate::actors::news::Bus;
use crate::actors::registry::Registry;
use crate::actors::supervisor::Child;
use crate::gateway::askers::Askers;
use crate::io::clock;
use crate::io::identity::{
    Authority, Identity, IdentityError, InForce, RotationError, RotationStep, TokenRotation,
};
use crate::io::metrics::Metrics;
use crate::proto::event::{Deed, Event, Operator};
use crate::proto::lists::ListKind;
use crate::proto::node::NodeName;
use crate::proto::rotation::{NodeTrust, Wanted};
use crate::proto::token::TokenKeyId;
use crate::proto::topic::{Address, Name};

/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often nodes are asked while a rotation is under way.
const EVERY: Duration = Duration::from_secs(1);

/// What an operator has done about certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Rotate {
    /// A new authority takes the place of the one before.
    Authority,
    /// Every node renews its certificate.
    Nodes,
    /// The earlier authority comes back.
    Abort,
    /// The next step is taken, whoever is not ready.
    Force,
    /// A new key for tokens takes the place of the one before.
    Tokens,
    /// The next key for tokens is forgotten.
    AbortTokens,
    /// One key for tokens counts alone, at once.
    ForceTokens,
}

/// How far a rotation is, and every node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RotationStatus {
    /// The one that is under way.
    pub rotation: Option<Underway>,
    /// What each known node says; nothing where it does not answer.
    pub nodes: BTreeMap<NodeName, Option<NodeTrust>>,
    /// Those that the next step waits for.
    pub waits_for: Vec<NodeName>,
    /// The keys of tokens; nothing without a token list.
    pub tokens: Option<TokenKeys>,
}

/// The keys by which tokens are verified.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenKeys {
    /// The one that signs, 16 hexadecimal digits.
    pub signs: String,
    /// The one that is to sign.
    pub next: Option<NextTokenKey>,
    /// Those that have signed and whose tokens count still, the latest first.
    pub former: Vec<FormerTokenKey>,
}

/// A key that is to sign tokens once every node knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NextTokenKey {
    /// 16 hexadecimal digits of it.
    pub key: String,
    /// When its rotation began: RFC 3339, UTC.
    pub began: String,
    /// Who began it.
    pub by: String,
    /// The nodes that do not know it yet.
    pub waits_for: Vec<NodeName>,
}

/// A key that has signed tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormerTokenKey {
    /// 16 hexadecimal digits of it.
    pub key: String,
    /// From when on none of its tokens counts: RFC 3339, UTC.
    pub until: String,
}

/// A rotation that is under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Underway {
    /// When it began: RFC 3339, UTC.
    pub began: String,
    /// Who began it.
    pub by: String,
    /// The id of the key of the authority that remains.
    pub authority: String,
    /// Whether nodes are given certificates of it already.
    pub moving: bool,
}

/// Why nothing is rotated. Nothing changed; the operator acts.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The authority's own reason.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// Forcing the last step would cut off the node that is asked to.
    #[error(
        "this node's own certificate is not of the new authority yet, so that it would be cut off as well: it renews within seconds, try again"
    )]
    OwnCertificate,
    /// What did it has ended.
    #[error("it was not done: the task ended ({0})")]
    Ended(JoinError),
}

impl From<JoinError> for RotateError {
    fn from(error: JoinError) -> Self {
        Self::Ended(error)
    }
}

impl From<IdentityError> for RotateError {
    fn from(error: IdentityError) -> Self {
        Self::Rotation(error.into())
    }
}

/// What a node does about rotations. Clones are the same.
#[derive(Clone, Debug)]
pub struct Rotations {
    certs: Arc<PathBuf>,
    identity: Arc<Identity>,
    files: Files,
    lists: ListKeeper,
    registry: Registry,
    bus: Bus,
}

impl Rotations {
    /// Those of a node with this certificate directory.
    pub fn new(
        certs: PathBuf,
        identity: Arc<Identity>,
        (files, lists): (Files, ListKeeper),
        (registry, bus): (Registry, Bus),
    ) -> Self {
        Self { certs: Arc::new(certs), identity, files, lists, registry, bus }
    }

    fn own(&self) -> NodeTrust {
        let keys = self.lists.lists().token_keys(clock::wall());
        NodeTrust {
            token_keys: keys.iter().map(ToString::to_string).collect(),
            list: self.identity.trust_list(),
            authority: self.identity.authority().to_string(),
            until: clock::rfc3339(self.identity.validity().not_after),
        }
    }

    /// What is to be true of every node before the rotation goes on, if one is under way.
    fn wanted(&self) -> Option<Wanted> {
        let (rotation, step) = self.identity.rotation()?;
        Some(match step {
            RotationStep::Introduced => Wanted::List(self.identity.trust_list()),
            RotationStep::Moving => Wanted::Signed(rotation.target),
        })
    }

    /// The key that is to sign tokens, if there is one.
    fn next_token_key(&self) -> Option<TokenKeyId> {
        let (key, ..) = self.lists.lists().token_rotation(clock::wall())?.next?;
        Some(key)
    }

    /// Changes the authority's files, off the workers; this node follows them when this returns.
    async fn change(
        &self,
        change: impl FnOnce(&Authority, SystemTime) -> Result<(), RotationError> + Send + 'static,
    ) -> Result<(), RotateError> {
        let (certs, lists) = (self.certs.clone(), self.lists.clone());
        let changing = tokio::task::spawn_blocking(move || {
            change(&Authority::open(&certs)?, clock::wall())?;
            for kind in [ListKind::Trust, ListKind::Tokens] {
                lists.announce(kind, lists.look(kind));
            }
            Ok(())
        });
        let changed = changing.await?;
        self.files.look();
        changed.map_err(RotateError::Rotation)
    }

    /// Does what an operator wants.
    ///
    /// # Errors
    /// [`RotateError`].
    pub async fn rotate(
        &self,
        rotate: Rotate,
        operator: Operator,
        via: &str,
    ) -> Result<(), RotateError> {
        let by = format!("{operator} on {}", self.identity.name());
        match rotate {
            Rotate::Authority => self.change(move |it, now| it.begin_rotation(&by, now)).await,
            Rotate::Nodes => self.change(|it, now| it.renew_nodes(now)).await,
            Rotate::Abort => self.change(|it, now| it.abort_rotation(now)).await,
            Rotate::Force if self.would_cut_off_itself() => Err(RotateError::OwnCertificate),
            Rotate::Force => self.change(step).await,
            Rotate::Tokens => self.change(move |it, now| it.begin_tokens(&by, now)).await,
            Rotate::AbortTokens => self.change(|it, now| it.abort_tokens(now)).await,
            Rotate::ForceTokens => self.change(|it, now| it.drop_tokens(now)).await,
        }?;
        let deed = Deed::Rotate { what: rotate.to_string() };
        self.bus.announce(Event::OperatorActed { deed, operator, via: via.to_owned() });
        Ok(())
    }

    /// Whether the next step drops the authority that signed this node's certificate.
    fn would_cut_off_itself(&self) -> bool {
        let rotation = self.identity.rotation();
        let last = rotation.filter(|(_, step)| *step == RotationStep::Moving);
        last.is_some_and(|(rotation, _)| rotation.target != self.identity.authority())
    }

    /// What is being replaced, and who began that; no other node is asked.
    pub fn under_way(&self) -> Vec<String> {
        let authority = self.identity.rotation().map(|(it, _)| ("the authority", it.began, it.by));
        let tokens = self.lists.lists().token_rotation(clock::wall()).and_then(|it| it.next);
        let tokens = tokens.map(|(_, began, by)| ("the key of tokens", began, by));
        let all = authority.into_iter().chain(tokens);
        let told = all.map(|(what, began, by)| {
            format!("{by} began to rotate {what} at {}", clock::rfc3339(began))
        });
        told.collect()
    }

    /// How far every node is.
    pub async fn status(&self) -> RotationStatus {
        let rotation = self.identity.rotation().map(|(rotation, step)| Underway {
            began: clock::rfc3339(rotation.began),
            by: rotation.by,
            authority: rotation.target.to_string(),
            moving: step == RotationStep::Moving,
        });
        let nodes = self.nodes().await;
        let waits_for = self.wanted().map(|wanted| wanted.waits_for(&nodes));
        let tokens = self.token_keys(&nodes);
        RotationStatus { rotation, nodes, waits_for: waits_for.unwrap_or_default(), tokens }
    }

    fn token_keys(&self, nodes: &BTreeMap<NodeName, Option<NodeTrust>>) -> Option<TokenKeys> {
        let TokenRotation { signs, next, former } =
            self.lists.lists().token_rotation(clock::wall())?;
        let next = next.map(|(key, began, by)| NextTokenKey {
            key: key.to_string(),
            began: clock::rfc3339(began),
            by,
            waits_for: Wanted::Accepts(key).waits_for(nodes),
        });
        let former = former.into_iter().map(|(key, until)| FormerTokenKey {
            key: key.to_string(),
            until: clock::rfc3339(until),
        });
        Some(TokenKeys { signs: signs.to_string(), next, former: former.collect() })
    }

    /// What each node says that is known and not forgotten.
    async fn nodes(&self) -> BTreeMap<NodeName, Option<NodeTrust>> {
        let (known, me) = (self.registry.nodes(), self.identity.name());
        let known = known.values().filter(|known| !known.is_forgotten() && known.name != *me);
        let mut asking = JoinSet::new();
        for name in known.map(|known| known.name.clone()) {
            let to = Address { name: Name::trust(), node: Some(name.clone()) };
            let bus = self.bus.clone();
            asking.spawn(async move {
                let answer = bus.exchange().call(&to, Bytes::new(), PATIENCE).await.ok();
                (name, answer.and_then(|answer| serde_json::from_slice(&answer).ok()))
            });
        }
        let mut nodes = BTreeMap::from([(me.clone(), Some(self.own()))]);
        while let Some(answered) = asking.join_next().await {
            nodes.extend(answered.ok());
        }
        nodes
    }

    /// Waits for a reason to see whether a rotation goes on: one is under way, or there is another list.
    async fn reason(&self, lists: &mut watch::Receiver<InForce>) {
        if self.wanted().is_some() || self.next_token_key().is_some() {
            tokio::time::sleep(EVERY).await;
        } else {
            // Who changes lists lives as long as this does.
            drop(lists.changed().await);
        }
    }

    /// Takes the next steps when all are ready, on a node that has the authority's key.
    ///
    /// # Errors
    /// [`RotateError`].
    async fn go_on(&self) -> Result<(), RotateError> {
        let (wanted, next) = (self.wanted(), self.next_token_key());
        if (wanted.is_none() && next.is_none()) || !Authority::is_in(&self.certs) {
            return Ok(());
        }
        let nodes = self.nodes().await;
        let is_ready = |wanted: &Wanted| wanted.waits_for(&nodes).is_empty();
        // While nodes were asked, another node may have taken this step, or an operator gone back.
        let wanted = wanted.filter(|wanted| is_ready(wanted) && self.wanted() == Some(*wanted));
        if let Some(wanted) = wanted {
            self.advance(wanted).await?;
        }
        let ready = |key: &TokenKeyId| is_ready(&Wanted::Accepts(*key));
        match next.filter(|key| ready(key) && self.next_token_key() == Some(*key)) {
            Some(key) => self.advance(Wanted::Accepts(key)).await,
            None => Ok(()),
        }
    }

    /// Takes the step for which this was wanted.
    async fn advance(&self, wanted: Wanted) -> Result<(), RotateError> {
        let changed = match wanted {
            Wanted::List(_) => self.change(|it, now| it.move_rotation(now)).await,
            Wanted::Signed(key) => {
                self.change(move |it, now| it.finish_rotation(Some(key), now)).await
            }
            Wanted::Accepts(key) => self.change(move |it, now| it.move_tokens(key, now)).await,
        };
        match changed {
            // Another node with the keys was faster, or will be.
            Err(RotateError::Rotation(
                RotationError::None | RotationError::NoTokens | RotationError::NoRoot,
            )) => Ok(()),
            done => done,
        }
    }
}

/// The next step of the rotation that is under way.
fn step(authority: &Authority, now: SystemTime) -> Result<(), RotationError> {
    match authority.rotation() {
        None => Err(RotationError::None),
        Some((_, RotationStep::Introduced)) => authority.move_rotation(now),
        Some((_, RotationStep::Moving)) => authority.finish_rotation(None, now),
    }
}

/// Answers other nodes how far this one is, until the result is dropped.
///
/// # Errors
/// [`ServeError`]; nothing changed.
pub fn serve(rotations: &Rotations) -> Result<Serving, ServeError> {
    let (rotations, askers) = (rotations.clone(), Askers::default());
    rotations.bus.clone().exchange().serve(Name::trust(), move |request| {
        let (rotations, turn) = (rotations.clone(), askers.turn(&request.from));
        async move {
            let turn = turn?;
            let _one = turn.lock().await;
            Ok(serde_json::to_vec(&rotations.own())?.into())
        }
    })
}

/// The supervised task that has rotations go on.
pub fn child(rotations: Rotations, metrics: &Metrics) -> Child {
    Child::task("rotation", metrics, move || {
        let rotations = rotations.clone();
        Box::pin(async move {
            let (mut told, mut lists) = (None, rotations.lists.lists().follow());
            loop {
                rotations.reason(&mut lists).await;
                let failed = rotations.go_on().await.err().map(|error| error.to_string());
                // The new key may be on another host, which goes on with it.
                if let Some(error) = failed.as_ref().filter(|_| failed != told) {
                    tracing::warn!(%error, "this node does not go on with a rotation");
                }
                told = failed;
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::exchange::Exchange;
    use crate::actors::link::Link;
    use crate::actors::tests::keeper;
    use crate::io::identity::Validity;

    /// Those of a node that has the authority's key, and whose files nobody looks at.
    fn rotations() -> (tempfile::TempDir, Rotations) {
        let dir = tempfile::tempdir().expect("a directory");
        let (metrics, name) = (Metrics::default(), "a@127.0.0.1".parse::<NodeName>());
        let (name, now) = (name.expect("valid"), clock::wall());
        let authority = Authority::init(dir.path(), now).expect("a CA");
        let identity = authority.issue(dir.path(), &name, Validity::leaf(now)).expect("a leaf");
        let bus = Bus::new(&Exchange::new(name, &metrics));
        let lists = keeper(&identity, &bus, &metrics, &Link::new(&metrics));
        lists.look(ListKind::Tokens).expect("a list");
        let rotations = Rotations::new(
            dir.path().to_owned(),
            Arc::new(identity),
            (Files::new(&metrics), lists),
            (Registry::new(&metrics, []), bus),
        );
        (dir, rotations)
    }

    async fn rotate(rotations: &Rotations, what: Rotate) -> RotationStatus {
        rotations.rotate(what, Operator::local(1), "test").await.expect("is done");
        rotations.status().await
    }

    #[tokio::test]
    async fn what_an_operator_did_is_what_is_shown_next() {
        let (_dir, rotations) = rotations();
        let begun = rotate(&rotations, Rotate::Authority).await;
        assert_eq!(begun.rotation.map(|it| it.moving), Some(false));
        assert!(rotations.under_way()[0].contains("began to rotate the authority at "));
        let moved = rotate(&rotations, Rotate::Force).await;
        assert_eq!(moved.rotation.map(|it| it.moving), Some(true));
        // It would be cut off with the others; the node's files renew its certificate, which nobody follows here.
        let refused = rotations.rotate(Rotate::Force, Operator::local(1), "test").await;
        assert!(matches!(refused, Err(RotateError::OwnCertificate)), "{refused:?}");
        assert_eq!(rotations.status().await.rotation.map(|it| it.moving), Some(true));
        // Going back leads to the authority that its certificate is of.
        assert!(rotate(&rotations, Rotate::Abort).await.rotation.is_some());
        assert!(rotate(&rotations, Rotate::Force).await.rotation.is_none());
        let next = |status: RotationStatus| status.tokens.expect("a list").next;
        assert_eq!(rotations.under_way(), Vec::<String>::new());
        assert!(next(rotate(&rotations, Rotate::Tokens).await).is_some());
        let [told] = &rotations.under_way()[..] else { panic!("one is under way") };
        assert!(told.starts_with("uid:1 on a@127.0.0.1 began to rotate the key of tokens at "));
        assert!(next(rotate(&rotations, Rotate::AbortTokens).await).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_looked_at_while_no_rotation_is_under_way() {
        let (_dir, rotations) = rotations();
        let mut follow = rotations.lists.lists().follow();
        let mut wakes = async || {
            let long = Duration::from_secs(24 * 60 * 60);
            tokio::time::timeout(long, rotations.reason(&mut follow)).await.is_ok()
        };
        assert!(!wakes().await, "there is no reason");
        for change in [Rotate::ForceTokens, Rotate::Tokens] {
            rotate(&rotations, change).await;
            assert!(wakes().await, "there is another list");
        }
        assert!(wakes().await && wakes().await, "one is under way");
        rotate(&rotations, Rotate::AbortTokens).await;
        assert!(wakes().await && !wakes().await, "it is over");
    }
}
