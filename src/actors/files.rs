//! Files: notices what changes in the files under a running node.
//!
//! - **Owns** the looks at certificates, keys, lists of what is revoked, the admin socket and the link to it; when key sets
//!   that are elsewhere are fetched.
//! - **Hears** that somebody wants a look at once; what its own looks and fetches found.
//! - **Says** to the keeper of lists what a look at their files found; to the log, what became of other files, and which
//!   certificates end soon; to Link, when it starts, that live links are to be judged.
//! - **After a restart**: looks at once, and has the links judged, in case its earlier life did not come
//!   to it.
//! - **Never** reads a file itself: its file system may hang. What cannot be used changes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use ractor::ActorProcessingErr;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use crate::actors::link::{Enrolment, Link};
use crate::actors::lists::ListKeeper;
use crate::actors::news::Bus;
use crate::actors::peers::Peers;
use crate::actors::supervisor::{Address, Child, Handle, Mail, Process};
use crate::actors::timer;
use crate::io::clock;
use crate::io::identity::{
    Fetch, Fetched, Identity, IdentityError, IdentityFiles, KeySetState, Look, News,
};
use crate::io::metrics::{Count, Metrics};
use crate::io::sockets::{AdminSocket, Renewed};
use crate::io::tls::{Tls, Web};
use crate::proto::event::Event;
use crate::proto::link::Input;
use crate::proto::lists::ListKind;
use crate::proto::renewal::{Held, Renewal};

mod notes;
mod renewal;
use notes::{Ends, Trouble};
use renewal::{RenewalError, renew};

/// Between two looks at the same files.
const EVERY: Duration = Duration::from_secs(1);

/// Files that are looked at again and again.
pub trait Followed: Send + Sync {
    /// Looks at them once, and may wait for the file system.
    ///
    /// # Errors
    /// Why they cannot be used.
    fn look(&self) -> Result<Look<()>, String>;

    /// The fetches of key sets that are due by this clock.
    fn due(&self, clock: fn() -> Instant) -> Vec<Fetch>;

    /// How it stands with each key set that is fetched.
    fn key_sets(&self) -> Vec<KeySetState>;

    /// Why some are not in force as they are.
    fn trouble(&self) -> Option<String>;

    /// What is to be said of those that were read since this was asked last.
    fn notes(&self) -> Vec<String>;

    /// How many systems it is whose tokens count besides the cluster's.
    fn count(&self) -> usize;
}

/// What the actor is made from.
#[derive(Clone)]
pub struct Setup {
    /// What the authority has signed.
    pub lists: ListKeeper,
    /// Whose identity it is.
    pub identity: Arc<Identity>,
    /// The identity's own files.
    pub own: Arc<IdentityFiles>,
    /// Shows the identity's certificate in handshakes.
    pub tls: Tls,
    /// What clients are served with, if they are over TLS.
    pub web: Option<Web>,
    /// Looks at what says whose tokens count besides the cluster's, if there is such.
    pub providers: Option<Arc<dyn Followed>>,
    /// The admin socket, as long as the node has it.
    pub admin: Weak<AdminSocket>,
    /// Answers requests for certificates, here or by way of another node.
    pub enrolment: Enrolment,
    /// Looks whether the authority's key is here.
    pub issuing: Arc<dyn Fn() + Send + Sync>,
    /// Whose addresses are known.
    pub peers: Peers,
    /// Has the links to judge.
    pub link: Link,
    /// The bus inside the node.
    pub bus: Bus,
    /// Counters.
    pub metrics: Metrics,
}

/// Files that are looked at together. Each part waits for its own file system alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Certs,
    Web,
    Providers,
    Admin,
}

enum Found {
    Certs {
        lists: Vec<(ListKind, Result<News, IdentityError>)>,
        own: Result<Look<SystemTime>, String>,
    },
    Web(Result<Look<()>, String>),
    Providers(Result<Look<()>, String>),
    Admin(Result<Vec<Renewed>, String>),
}

enum Msg {
    Look,
    Looked(Part, Found),
    Fetched(Fetched),
    /// An attempt to have another certificate is over.
    Renewed(Result<(), RenewalError>),
}

impl Setup {
    fn look(&self, part: Part) -> Found {
        match part {
            Part::Certs => {
                (self.issuing)();
                Found::Certs {
                    lists: ListKind::ALL.map(|kind| (kind, self.lists.look(kind))).into(),
                    own: self.look_at_own(),
                }
            }
            Part::Web => {
                let look = self.web.as_ref().map(|web| web.look(&self.identity));
                Found::Web(look.unwrap_or(Ok(Look::Unchanged)).map_err(|error| error.to_string()))
            }
            Part::Providers => Found::Providers(
                self.providers.as_ref().map_or(Ok(Look::Unchanged), |it| it.look()),
            ),
            Part::Admin => {
                let look = self.admin.upgrade().map(|admin| admin.look());
                Found::Admin(look.unwrap_or(Ok(Vec::new())).map_err(|error| error.to_string()))
            }
        }
    }

    fn look_at_own(&self) -> Result<Look<SystemTime>, String> {
        let found = self.own.look(clock::wall()).map_err(|error| error.to_string())?;
        if matches!(found, Look::New(_)) {
            self.tls.renew(&self.identity).map_err(|error| error.to_string())?;
        }
        Ok(found)
    }
}

/// The handle.
#[derive(Clone)]
pub struct Files {
    handle: Handle<Msg>,
}

impl std::fmt::Debug for Files {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Files")
    }
}

impl Files {
    /// An actor that does not run yet.
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("files", metrics) }
    }

    /// The child to put under a supervisor.
    pub fn child(&self, setup: Setup) -> Child {
        Child::actor::<Inside>(&self.handle, setup)
    }

    /// Looks at all files at once.
    pub fn look(&self) {
        self.handle.cast(Msg::Look);
    }
}

struct Inside {
    setup: Setup,
    myself: Address<Msg>,
    /// When to look next; none of those that are being looked at.
    next: BTreeMap<Part, Instant>,
    looks: JoinSet<()>,
    own: Trouble,
    web: Trouble,
    providers: Trouble,
    /// Of key sets, by where they are.
    fetches: BTreeMap<String, [Trouble; 2]>,
    admin: Trouble,
    ends: Ends,
    renewal: Renewal,
    rng: StdRng,
}

impl Inside {
    /// What became of a certificate or a socket.
    fn became(&self, kind: &'static str) {
        self.setup.metrics.count(Count::Files, kind);
    }

    fn renewed(&self, kind: &'static str, purpose: &str, until: Option<String>) {
        self.became(kind);
        self.setup.bus.announce(Event::CertificateRenewed { purpose: purpose.to_owned(), until });
    }

    fn looked_at_own(&mut self, found: Result<Look<SystemTime>, String>) {
        match &found {
            Ok(Look::New(until)) => {
                let until = Some(clock::rfc3339(*until));
                self.renewed("node_certificate_loaded", "node", until);
            }
            Err(_) => self.became("node_certificate_refused"),
            Ok(Look::Unchanged | Look::Sound) => {}
        }
        if let Some(error) = self.own.log(found, timer::now()) {
            tracing::warn!(%error, "certificate files refused: what was in force before stays");
        }
    }

    fn looked_at_web(&mut self, found: Result<Look<()>, String>) {
        match &found {
            Ok(Look::New(())) => self.renewed("http_certificate_loaded", "http", None),
            Err(_) => self.became("http_certificate_refused"),
            Ok(Look::Unchanged | Look::Sound) => {}
        }
        if let Some(error) = self.web.log(found, timer::now()) {
            tracing::warn!(%error, "certificate for clients refused: the one before stays in force");
        }
    }

    fn looked_at_providers(&mut self, found: Result<Look<()>, String>) {
        let followed = self.setup.providers.as_ref();
        let (notes, trouble) = followed.map(|it| (it.notes(), it.trouble())).unwrap_or_default();
        for note in notes {
            self.became("revoked_line_skipped");
            tracing::warn!(note, "a list of revoked tokens has lines that are none");
        }
        // Files may be in force in part.
        let found = found.and_then(|look| trouble.map_or(Ok(look), Err));
        match &found {
            Ok(Look::New(())) => {
                self.became("identity_loaded");
                tracing::info!("identity providers are read again");
            }
            Err(_) => self.became("identity_refused"),
            Ok(Look::Unchanged | Look::Sound) => {}
        }
        if let Some(error) = self.providers.log(found, timer::now()) {
            tracing::warn!(%error, "identity provider refused: it stays as it was");
        }
    }

    /// Fetches the key sets that are due.
    fn fetch(&mut self) {
        let due = self.setup.providers.as_ref().map(|it| it.due(timer::now)).unwrap_or_default();
        for fetch in due {
            let to = self.myself.clone();
            self.looks.spawn(async move {
                drop(to.cast(Mail::Message(Msg::Fetched(fetch.await))));
            });
        }
        let known = self.setup.providers.as_ref().map(|it| it.key_sets()).unwrap_or_default();
        self.fetches.retain(|url, _| known.iter().any(|it| it.url == *url));
    }

    fn fetched(&mut self, Fetched { url, found, not_kept }: Fetched) {
        match &found {
            Ok(Look::New(())) => {
                self.became("key_set_loaded");
                tracing::info!(url, "an issuer's key set is in force");
            }
            Err(_) => self.became("key_set_refused"),
            Ok(Look::Unchanged | Look::Sound) => {}
        }
        let now = timer::now();
        let [fetching, keeping] = self.fetches.entry(url.clone()).or_default();
        if let Some(error) = fetching.log(found, now) {
            tracing::warn!(url, %error, "an issuer's key set is not fetched: the one before stays, if there is one");
        }
        if let Some(error) = keeping.log(not_kept.map_or(Ok(Look::<()>::Sound), Err), now) {
            tracing::warn!(url, %error, "an issuer's key set is not kept for the next start");
        }
    }

    fn looked_at_admin(&mut self, found: Result<Vec<Renewed>, String>) {
        for renewed in found.iter().flatten() {
            match renewed {
                Renewed::Socket => {
                    self.became("admin_socket_renewed");
                    tracing::warn!("the admin socket was removed: it is there again");
                }
                Renewed::Link => {
                    self.became("runtime_link_renewed");
                    tracing::info!(
                        "the link in the runtime directory was removed: it is there again"
                    );
                }
            }
        }
        if let Some(error) = self.admin.log(found.map(|_| Look::<()>::Sound), timer::now()) {
            tracing::warn!(%error, "`xpando-node` finds this node by --data-dir alone, or not at all");
        }
    }

    /// Asks for another certificate when it is time.
    fn renew(&mut self) {
        let (valid, outdated) = (self.setup.identity.validity(), self.setup.identity.is_outdated());
        let held = Held { from: valid.not_before, until: valid.not_after, outdated };
        if self.renewal.due(held, clock::wall(), timer::now(), &mut self.rng) {
            let (setup, to) = (self.setup.clone(), self.myself.clone());
            self.looks.spawn(async move {
                let renewed = renew(setup).await;
                drop(to.cast(Mail::Message(Msg::Renewed(renewed))));
            });
        }
    }

    fn attempted(&mut self, renewed: Result<(), RenewalError>) {
        self.renewal.ended(renewed.is_ok(), timer::now(), &mut self.rng);
        match renewed {
            Ok(()) => {
                self.became("node_certificate_renewed");
                self.next.values_mut().for_each(|next| *next = timer::now());
            }
            Err(error) => {
                self.became("node_certificate_not_renewed");
                // Waits double: so do the attempts between two lines.
                if self.renewal.failures().is_power_of_two() {
                    let until = clock::rfc3339(self.setup.identity.validity().not_after);
                    tracing::warn!(%error, %until, "this node's certificate was not renewed: it is tried again");
                }
            }
        }
    }

    /// Warns of certificates that end soon, or have ended.
    fn warn_of_ends(&mut self) {
        let (now, wall) = (timer::now(), clock::wall());
        let Setup { identity, web, .. } = &self.setup;
        let name = identity.name();
        let node = format!(
            "it renews itself by a node that can issue: start one; or run `xpando-node cert issue {name} --replace` where the authority's key is, and copy {name}/cert.pem from there"
        );
        let authority = "run `xpando-node rotate authority` on a node that has the authority's key";
        let file = web.as_ref().and_then(|web| Some((web.validity()?, web.file()?)));
        let certificates = [
            Some(("node", identity.validity(), node)),
            Some(("authority", identity.authority_validity(), authority.to_owned())),
            file.map(|(valid, file)| ("http", valid, format!("renew {}", file.display()))),
        ];
        for (certificate, valid, remedy) in certificates.into_iter().flatten() {
            if self.ends.due(certificate, valid, wall, now) {
                self.became("certificate_ends");
                let until = clock::rfc3339(valid.not_after);
                if valid.not_after < wall {
                    tracing::warn!(certificate, %until, remedy, "a certificate has expired");
                } else {
                    tracing::warn!(certificate, %until, remedy, "a certificate expires soon");
                }
            }
        }
    }
}

impl Process for Inside {
    const NAME: &'static str = "files";
    type Message = Msg;
    type Setup = Setup;

    async fn start(setup: Setup, myself: &Address<Msg>) -> Result<Self, ActorProcessingErr> {
        setup.link.input(Input::Judge);
        let next =
            [Part::Certs, Part::Web, Part::Providers, Part::Admin].map(|part| (part, timer::now()));
        Ok(Self {
            setup,
            myself: myself.clone(),
            next: next.into(),
            looks: JoinSet::new(),
            own: Trouble::default(),
            web: Trouble::default(),
            providers: Trouble::default(),
            fetches: BTreeMap::new(),
            admin: Trouble::default(),
            ends: Ends::default(),
            renewal: Renewal::default(),
            rng: rand::make_rng(),
        })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            // What is being looked at is looked at again soon.
            Msg::Look => self.next.values_mut().for_each(|next| *next = timer::now()),
            Msg::Renewed(renewed) => self.attempted(renewed),
            Msg::Fetched(fetched) => self.fetched(fetched),
            Msg::Looked(part, found) => {
                while self.looks.try_join_next().is_some() {}
                self.next.insert(part, timer::now() + EVERY);
                match found {
                    Found::Certs { lists, own } => {
                        let keeper = &self.setup.lists;
                        lists.into_iter().for_each(|(kind, found)| keeper.announce(kind, found));
                        self.looked_at_own(own);
                        self.renew();
                        self.warn_of_ends();
                    }
                    Found::Web(found) => self.looked_at_web(found),
                    Found::Providers(found) => {
                        self.looked_at_providers(found);
                        self.fetch();
                    }
                    Found::Admin(found) => self.looked_at_admin(found),
                }
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.next.values().min().copied()
    }

    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        let now = timer::now();
        let due: Vec<_> = self.next.iter().filter(|(_, at)| **at <= now).map(|(p, _)| *p).collect();
        for part in due {
            self.next.remove(&part);
            let (setup, to) = (self.setup.clone(), self.myself.clone());
            // An actor that ended has a successor, which looks for itself.
            self.looks.spawn_blocking(move || {
                drop(to.cast(Mail::Message(Msg::Looked(part, setup.look(part)))));
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
