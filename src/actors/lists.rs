//! Takes the lists that the authority signs, from files, from peers and from the store, and has them in force.
//!
//! Runs in the tasks of those who bring a list: the reader of a link, and Files. Invariants:
//! 1. A list is in force before the one who brought it goes on; what follows for links is on its way then.
//! 2. What is in force is written to the store and to the list's file, later, on threads that may wait for a disk.
//! 3. A peer whose lists are refused gets none judged for the rest of the minute, after `REFUSED` of them. What judging
//!    takes is at the expense of the peer.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::actors::exchange::{Kept, Outlet};
use crate::actors::news::Bus;
use crate::actors::timer;
use crate::io::clock;
use crate::io::identity::{
    IdentityError, ListFault, ListRefused, Lists, News, RevocationReason, Revocee, Revoked,
};
use crate::io::metrics::{Count, Metrics};
use crate::io::store::Store;
use crate::proto::event::{Event, Revocable};
use crate::proto::lists::{ListKind, Mark, Marks};
use crate::proto::quota::Quota;

/// Lists of one peer that are refused within a minute, before no more are judged.
const REFUSED: u32 = 4;

/// What a keeper is made from.
pub struct Setup {
    /// The lists.
    pub lists: Lists,
    /// Whether this node's own certificate is revoked.
    pub own: Box<dyn Fn() -> bool + Send + Sync>,
    /// Where they are kept, if anywhere.
    pub store: Option<Arc<Store>>,
    /// Where what came of a list is announced.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
    /// Has the live links judged.
    pub judge: Box<dyn Fn() + Send + Sync>,
    /// Has handshakes follow another bundle of authorities.
    pub trust: Box<dyn Fn() + Send + Sync>,
}

/// Keeps the lists. Clones share them.
#[derive(Clone)]
pub struct ListKeeper(Arc<Inner>);

struct Inner {
    setup: Setup,
    /// What was written down.
    settled: Mutex<Marks>,
    refused: Mutex<Quota>,
}

impl std::fmt::Debug for ListKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ListKeeper")
    }
}

impl ListKeeper {
    /// A keeper of lists of which none was written down yet.
    pub fn new(setup: Setup) -> Self {
        let (settled, refused) = (Mutex::default(), Mutex::new(Quota::new(REFUSED)));
        Self(Arc::new(Inner { setup, settled, refused }))
    }

    /// The lists.
    pub fn lists(&self) -> &Lists {
        &self.0.setup.lists
    }

    /// Puts in force what the store has. What cannot be used, as after a change of the authority, is left there.
    pub fn recall(&self) {
        let Setup { lists, store, .. } = &self.0.setup;
        for kind in ListKind::ALL {
            let kept = store.as_ref().map_or(Ok(None), |store| store.list(kind.label()));
            match kept {
                Ok(None) => {}
                Ok(Some(bytes)) => match lists.recalled(kind, &bytes) {
                    Ok(news) => self.announce(kind, Ok(news)),
                    Err(why) => {
                        tracing::info!(list = kind.label(), %why, "the list of the earlier run does not count");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, list = kind.label(), "the list of the earlier run cannot be read");
                }
            }
        }
    }

    /// Looks at a list's file. May block while a disk does; [`Self::announce`] is to have what it found.
    ///
    /// # Errors
    /// As [`Lists::look`].
    pub fn look(&self, kind: ListKind) -> Result<News, IdentityError> {
        let lists = self.lists();
        let found = lists.look(kind);
        let is_behind = matches!(
            found,
            Err(IdentityError::List { fault: ListFault::Older { .. }, .. }
                | IdentityError::Missing { .. })
        );
        if is_behind || lists.lacks(kind) || !self.is_settled(kind) {
            self.settle(kind);
        }
        found
    }

    fn is_settled(&self, kind: ListKind) -> bool {
        let settled = self.0.settled.lock();
        settled.get(kind) == self.lists().marks().get(kind)
    }

    /// Writes down what is in force.
    fn settle(&self, kind: ListKind) {
        let Setup { lists, store, .. } = &self.0.setup;
        if let Err(error) = lists.settle(kind, clock::wall()) {
            // A directory that only its operator writes is as good.
            tracing::debug!(%error, list = kind.label(), "the list's file is not written");
        }
        let Some(document) = lists.in_force().get(kind).cloned() else { return };
        let mut settled = self.0.settled.lock();
        if settled.raise(kind, document.mark)
            && let Some(store) = store
            && let Err(error) = store.keep_list(kind.label(), &document.bytes)
        {
            tracing::warn!(%error, list = kind.label(), "the list in force is not remembered");
        }
    }

    /// Announces and counts what became of a list, and has the links judged by it.
    pub fn announce(&self, kind: ListKind, found: Result<News, IdentityError>) {
        let Setup { bus, own, judge, trust, .. } = &self.0.setup;
        match found {
            Ok(None) => {}
            Ok(Some(count)) => {
                self.count(kind, "loaded");
                match kind {
                    ListKind::Trust => {
                        trust();
                        bus.announce(Event::TrustChanged { authorities: count });
                    }
                    ListKind::Revocations => {
                        let (certificates, own) = (count, own());
                        bus.announce(Event::CertificatesRevoked { certificates, own });
                        judge();
                    }
                    ListKind::Tokens => bus.announce(Event::TokensRevoked { tokens: count }),
                }
            }
            Err(error) => {
                let older =
                    matches!(error, IdentityError::List { fault: ListFault::Older { .. }, .. });
                self.count(kind, if older { "older" } else { "refused" });
                let list = match kind {
                    ListKind::Trust => Revocable::Trust,
                    ListKind::Revocations => Revocable::Certificates,
                    ListKind::Tokens => Revocable::Tokens,
                };
                bus.announce(Event::RevocationsRefused { list, why: error.to_string() });
            }
        }
    }

    /// Revokes certificates, where the authority's key is; the list is in force when this returns. May block while a disk
    /// does.
    ///
    /// # Errors
    /// As [`Lists::revoke`].
    pub fn revoke(
        &self,
        what: &Revocee,
        reason: Option<RevocationReason>,
    ) -> Result<Revoked, IdentityError> {
        let revoked = self.lists().revoke(what, reason, clock::wall())?;
        let found = self.look(ListKind::Revocations);
        self.announce(ListKind::Revocations, found);
        Ok(revoked)
    }

    /// Counts what became of a list.
    pub(crate) fn count(&self, kind: ListKind, outcome: &'static str) {
        let outcome = match (kind, outcome) {
            (ListKind::Revocations, outcome) => outcome,
            (ListKind::Trust, "loaded") => "trust_loaded",
            (ListKind::Trust, "older") => "trust_older",
            (ListKind::Trust, "sent") => "trust_sent",
            (ListKind::Trust, "peer_refused") => "trust_peer_refused",
            (ListKind::Trust, _) => "trust_refused",
            (ListKind::Tokens, "loaded") => "tokens_loaded",
            (ListKind::Tokens, "older") => "tokens_older",
            (ListKind::Tokens, "sent") => "tokens_sent",
            (ListKind::Tokens, "peer_refused") => "tokens_peer_refused",
            (ListKind::Tokens, _) => "tokens_refused",
        };
        self.0.setup.metrics.count(Count::Revocations, outcome);
    }

    /// Counts a list or a word of a peer that is skipped.
    pub(crate) fn skipped(&self, why: &'static str) {
        // That several peers send the same list is as it should be.
        if why != "known" {
            self.0.setup.metrics.count(Count::Messages, why);
        }
    }

    /// Room for a list of a peer.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn room(&self, link: &Arc<Outlet>, length: usize) -> Result<Kept, &'static str> {
        let refused = self.0.refused.lock();
        if refused.is_spent(link.peer(), timer::now()) {
            return Err("list_not_judged");
        }
        link.account().room(length).ok_or("no_room")
    }

    /// Judges a list that a peer announced with this mark. It is in force when this returns, or refused.
    pub(crate) async fn offered(
        &self,
        link: &Arc<Outlet>,
        kind: ListKind,
        mark: Mark,
        bytes: Vec<u8>,
    ) {
        let (lists, account) = (self.lists().clone(), link.account().clone());
        let judged = tokio::task::spawn_blocking(move || {
            let _paid = account.measure();
            lists.offered(kind, mark, &bytes)
        });
        match judged.await {
            Ok(Ok(news)) => {
                self.announce(kind, Ok(news));
                let keeper = self.clone();
                // What is in force is written down without the link.
                drop(tokio::task::spawn_blocking(move || keeper.settle(kind)));
            }
            // Another link was faster.
            Ok(Err(ListRefused::Older)) => {}
            Ok(Err(why @ (ListRefused::Damaged(_) | ListRefused::Other))) => {
                self.count(kind, "peer_refused");
                let peer = link.peer();
                let mut refused = self.0.refused.lock();
                let _counted = refused.spend(peer, timer::now());
                if link.account().notable("list") {
                    tracing::warn!(%peer, list = kind.label(), %why, "a list of a peer is refused: see what it runs, or revoke it");
                }
            }
            Err(error) => tracing::error!(%error, "a list was not judged"),
        }
    }
}
