//! Revocation: notices new lists of revoked certificates and tokens while the node runs.
//!
//! - **Owns** the looks at the two files.
//! - **Hears** nothing but its own looks.
//! - **Says** to Link that the list of certificates has changed, so that live links are judged by it; to all, as events,
//!   what came of each new list.
//! - **After a restart**: looks at once, and has the links judged, in case its earlier life did not come
//!   to it.
//! - **Never** reads a file itself: its file system may hang. A list that cannot be used changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::ActorProcessingErr;
use tokio::task::JoinSet;

use crate::actors::link::Link;
use crate::actors::pubsub::PubSub;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::identity::{Identity, IdentityError, RevocationFile, Tokens};
use crate::io::metrics::{Count, Metrics};
use crate::proto::event::{Event, Revocable};

/// Between two looks at the files.
const EVERY: Duration = Duration::from_secs(2);

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// The list's file; all verifiers of the identity follow it.
    pub file: Arc<RevocationFile>,
    /// What judges clients' tokens by their list's file.
    pub tokens: Tokens,
    /// Whose identity it is.
    pub identity: Arc<Identity>,
    /// Has the links to judge.
    pub link: Link,
    /// The door.
    pub pubsub: PubSub,
    /// Counters.
    pub metrics: Metrics,
}

/// How many a list names now, when it is new.
type Found = Result<Option<usize>, IdentityError>;

enum Msg {
    Looked { certificates: Found, tokens: Found },
}

/// The child to put under a supervisor.
#[must_use]
pub fn child(setup: Setup) -> Child {
    let handle = Handle::new("revocation", &setup.metrics);
    Child::actor::<Inside>(&handle, setup)
}

struct Inside {
    setup: Setup,
    myself: Address<Msg>,
    /// When to look next; `None` during a look.
    next: Option<Instant>,
    look: JoinSet<()>,
}

impl Inside {
    fn refused(&self, list: Revocable, error: &IdentityError) {
        self.setup.pubsub.announce(Event::RevocationsRefused { list, why: error.to_string() });
    }

    fn looked_at_tokens(&self, found: Found) {
        match found {
            Ok(None) => {}
            Ok(Some(tokens)) => {
                self.setup.metrics.count(Count::Revocations, "tokens_loaded");
                self.setup.pubsub.announce(Event::TokensRevoked { tokens });
            }
            Err(error) => {
                self.setup.metrics.count(Count::Revocations, "tokens_refused");
                self.refused(Revocable::Tokens, &error);
            }
        }
    }

    fn looked(&self, found: Found) {
        match found {
            Ok(None) => {}
            Ok(Some(certificates)) => {
                self.setup.metrics.count(Count::Revocations, "loaded");
                let own = self.setup.identity.is_revoked();
                self.setup.pubsub.announce(Event::CertificatesRevoked { certificates, own });
                self.setup.link.judge();
            }
            Err(error) => {
                self.setup.metrics.count(Count::Revocations, "refused");
                self.refused(Revocable::Certificates, &error);
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "revocation";
    type Message = Msg;
    type Setup = Setup;

    async fn start(setup: Setup, myself: &Address<Msg>) -> Result<Self, ActorProcessingErr> {
        setup.link.judge();
        let (next, look) = (Some(timer::now()), JoinSet::new());
        Ok(Self { setup, myself: myself.clone(), next, look })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        let Msg::Looked { certificates, tokens } = message;
        while self.look.try_join_next().is_some() {}
        self.looked(certificates);
        self.looked_at_tokens(tokens);
        self.next = Some(timer::now() + EVERY);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.next
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        self.next = None;
        let (file, tokens) = (self.setup.file.clone(), self.setup.tokens.clone());
        let to = self.myself.clone();
        // An actor that ended has a successor, which looks for itself.
        self.look.spawn_blocking(move || {
            let looked = Msg::Looked { certificates: file.look(), tokens: tokens.look() };
            drop(to.cast(Mail::Message(looked)));
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
