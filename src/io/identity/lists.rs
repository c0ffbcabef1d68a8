//! The lists that the authority signs, of a running node: which is in force, and its file.
//!
//! Owns the files `ca/crl.pem` and `ca/tokens` as a node has them. A list comes from the file, from what the node kept
//! of an earlier run, or from a peer, and the latest of all is in force. Invariants:
//!
//! 1. A list counts only with the authority's own signature, and whole. What is not signed of it is not kept: of each list
//!    there is one text.
//! 2. The list in force never becomes an earlier one ([`Mark`]), nor none, while the node runs.
//! 3. What any list that was in force has revoked stays revoked in this process. The node that has the authority's key
//!    makes a list of all that, if the latest lacks some.
//! 4. The file follows the list in force, where it can be written. A damaged file stays as it is until there is a later
//!    list: somebody may be writing it.
//!
//! Nothing here waits for a file but [`Lists::look`] and `write`; `issuing` makes lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::disk::{self, FileState, Layout};
use super::pki::Signed;
use super::revocation::RevocationList;
use super::tokens::list::TokenList;
use super::trust::TrustList;
use super::verifier::CertificateVerifier;
use super::{Identity, IdentityError, ListFault, Remedy};
use crate::io::clock::{self, unix_seconds};
use crate::proto::lists::{ListKind, Mark, Marks};
use crate::proto::token::TokenKeyId;

/// What a list says.
enum Content {
    Trust(TrustList),
    Revocations(RevocationList),
    Tokens(TokenList),
}

/// A list that is in force.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its number and digest.
    pub mark: Mark,
    /// The list, as it lies in its file and goes to others.
    pub bytes: Arc<[u8]>,
    /// Whether it is of this node's own disk; otherwise a peer sent it.
    pub here: bool,
}

/// The lists that are in force.
#[derive(Clone, Debug, Default)]
pub struct InForce(BTreeMap<ListKind, Document>);

impl InForce {
    /// The list of this kind.
    pub fn get(&self, kind: ListKind) -> Option<&Document> {
        self.0.get(&kind)
    }

    /// All marks.
    pub fn marks(&self) -> Marks {
        self.0.iter().map(|(kind, document)| (*kind, document.mark)).collect()
    }
}

/// Why a list that a peer sent is not taken. Nothing changed; the peer is at fault, unless it is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListRefused {
    /// It is no list of this cluster.
    #[error("{0}")]
    Damaged(&'static str),
    /// It is another one than was announced.
    #[error("it is not the list that was announced")]
    Other,
    /// It is earlier than the list in force.
    #[error("it is older than the list in force")]
    Older,
}

/// What a look at a list or a peer has brought: how many the list in force names, when that is news.
pub type News = Option<usize>;

/// The lists of a running node. Clones share them.
#[derive(Clone, Debug)]
pub struct Lists(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    certs: PathBuf,
    verifier: CertificateVerifier,
    tokens: ArcSwapOption<TokenList>,
    /// What the last look at each file saw. Held while one looks.
    seen: Mutex<BTreeMap<ListKind, FileState>>,
    in_force: watch::Sender<InForce>,
    /// Held while a list is judged: one at a time, which bounds the memory for that.
    judging: Mutex<()>,
    /// Those of which the list in force lacks something that was revoked.
    lacking: Mutex<BTreeSet<ListKind>>,
    /// Held while a file is written.
    settling: Mutex<()>,
}

/// The file of each kind in the authority's directory.
fn file(kind: ListKind) -> &'static str {
    match kind {
        ListKind::Trust => disk::TRUST,
        ListKind::Revocations => disk::REVOCATIONS,
        ListKind::Tokens => disk::TOKENS,
    }
}

impl Identity {
    /// True when this node's own certificate is on the revocation list in force, or the intermediate authority's that signed it.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.verifier.any_revoked(&self.leaf.load().peer.serials())
    }

    /// Refuses this node's own certificate when it is on the revocation list in force.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`].
    pub fn check_revoked(&self) -> Result<(), IdentityError> {
        let revoked = self.verifier.check_revoked(&self.leaf.load().peer);
        revoked.map_err(Layout::new(&self.certs).leaf_error(&self.name))
    }

    /// The lists that the authority signs, to be looked at while the node runs. None is in force before the first
    /// [`Lists::look`], but for the revocations that were there when the identity was read. What they say counts for every
    /// verifier of this identity.
    pub fn lists(&self) -> Lists {
        Lists::new(self.certs().to_owned(), self.verifier())
    }
}

impl Lists {
    pub(super) fn new(certs: PathBuf, verifier: CertificateVerifier) -> Self {
        Self(Arc::new(Inner {
            certs,
            verifier,
            tokens: ArcSwapOption::empty(),
            seen: Mutex::default(),
            in_force: watch::Sender::default(),
            judging: Mutex::default(),
            lacking: Mutex::default(),
            settling: Mutex::default(),
        }))
    }

    /// What is in force.
    pub fn in_force(&self) -> InForce {
        self.0.in_force.borrow().clone()
    }

    /// The marks of what is in force.
    pub fn marks(&self) -> Marks {
        self.0.in_force.borrow().marks()
    }

    /// What is in force, now and as it changes.
    pub fn follow(&self) -> watch::Receiver<InForce> {
        self.0.in_force.subscribe()
    }

    pub(super) fn verifier(&self) -> &CertificateVerifier {
        &self.0.verifier
    }

    pub(super) fn token_list(&self) -> Option<Arc<TokenList>> {
        self.0.tokens.load_full()
    }

    /// The keys whose tokens count at `now`, the one that signs first; none without a token list.
    pub fn token_keys(&self, now: SystemTime) -> Vec<TokenKeyId> {
        self.token_list().map_or_else(Vec::new, |list| list.keys(unix_seconds(now)).collect())
    }

    /// Reads a list if its file has changed since the last look, which costs one question to the file system when it has
    /// not. From then on everything is judged by it. May block while a disk does.
    ///
    /// # Errors
    /// [`IdentityError::List`];
    /// [`IdentityError::Missing`] when a list that was there is gone; [`IdentityError::Io`]. The list in force stays, and
    /// the same file is not judged twice.
    pub fn look(&self, kind: ListKind) -> Result<News, IdentityError> {
        let path = Layout::new(&self.0.certs).of_authority(file(kind));
        // Until this look is over: what a look has found is in force when another one says that nothing changed.
        let mut seen = self.0.seen.lock();
        let state = disk::file_state(&path);
        if seen.insert(kind, state) == Some(state) {
            return Ok(None);
        }
        let Some(bytes) = disk::read_list(&path)? else {
            let gone = self.in_force().get(kind).is_some();
            return if gone {
                Err(IdentityError::Missing { path, remedy: Remedy::Nothing })
            } else {
                Ok(None)
            };
        };
        let _one = self.0.judging.lock();
        let read = self.read(kind, &bytes);
        let (mark, bytes, content) =
            read.map_err(|reason| IdentityError::unusable(kind, path.clone(), reason))?;
        self.take(kind, mark, bytes, content, true).map_err(|in_force| {
            let (found, in_force) = (mark.number, in_force.number);
            {
                let (fault, remedy) = (ListFault::Older { found, in_force }, Remedy::Nothing);
                IdentityError::List { kind, path, fault, remedy }
            }
        })
    }

    /// Takes a list that the node kept of an earlier run.
    ///
    /// # Errors
    /// [`ListRefused`]: nothing of it counts.
    pub fn recalled(&self, kind: ListKind, bytes: &[u8]) -> Result<News, ListRefused> {
        let _one = self.0.judging.lock();
        let (mark, bytes, content) = self.read(kind, bytes).map_err(ListRefused::Damaged)?;
        self.take(kind, mark, bytes, content, true).map_err(|_later| ListRefused::Older)
    }

    /// Takes a list that a peer sent and announced with this mark.
    ///
    /// # Errors
    /// [`ListRefused`].
    pub fn offered(&self, kind: ListKind, said: Mark, bytes: &[u8]) -> Result<News, ListRefused> {
        let _one = self.0.judging.lock();
        let (mark, bytes, content) = self.read(kind, bytes).map_err(ListRefused::Damaged)?;
        if mark != said {
            return Err(ListRefused::Other);
        }
        self.take(kind, mark, bytes, content, false).map_err(|_later| ListRefused::Older)
    }

    fn read(&self, kind: ListKind, bytes: &[u8]) -> Result<(Mark, Vec<u8>, Content), &'static str> {
        let (verifier, now) = (&self.0.verifier, clock::wall());
        match kind {
            ListKind::Trust => {
                let Signed { list, mark, bytes } =
                    TrustList::parse(bytes, &verifier.trusted().bundle)?;
                Ok((mark, bytes, Content::Trust(list)))
            }
            ListKind::Revocations => {
                let Signed { list, mark, bytes } =
                    RevocationList::parse(bytes, &verifier.signers()?, now)?;
                Ok((mark, bytes, Content::Revocations(list)))
            }
            ListKind::Tokens => {
                let Signed { list, mark, bytes } =
                    TokenList::parse(bytes, &verifier.signers()?, now)?;
                Ok((mark, bytes, Content::Tokens(list)))
            }
        }
    }

    /// Puts a list in force, for a caller that judges alone; the mark in force when that is later, and nothing of the list
    /// is new.
    fn take(
        &self,
        kind: ListKind,
        mark: Mark,
        bytes: Vec<u8>,
        content: Content,
        here: bool,
    ) -> Result<News, Mark> {
        let in_force = self.marks().get(kind);
        if in_force == Some(mark) {
            return Ok(None);
        }
        let later = in_force < Some(mark);
        let (news, lacks) = self.enforce(content, later);
        if lacks {
            self.set_lacks(kind, true);
        }
        match in_force {
            Some(in_force) if !later => news.map(Some).ok_or(in_force),
            Some(_) | None => {
                let document = Document { mark, bytes: bytes.into(), here };
                self.0.in_force.send_modify(|all| drop(all.0.insert(kind, document)));
                Ok(news)
            }
        }
    }

    /// Judges by this list from now on, and by what was revoked before. How many are revoked, when that is news; whether
    /// the latest list lacks some of them.
    fn enforce(&self, content: Content, later: bool) -> (News, bool) {
        match content {
            Content::Trust(list) => {
                let trusted = later.then(|| list.in_force(&self.0.verifier.trusted().bundle).ok());
                let Some(trusted) = trusted.flatten() else { return (None, false) };
                let all = trusted.bundle.roots().len();
                self.0.verifier.replace_trusted(trusted);
                (Some(all), false)
            }
            Content::Revocations(list) => {
                let before = self.0.verifier.list();
                let named = list.entries.len();
                let number = if later { list.number } else { before.number };
                let mut entries = before.entries.clone();
                entries.extend(list.entries);
                let all = entries.len();
                let news = (all > before.entries.len()).then_some(all);
                let lacks = if later { all > named } else { news.is_some() };
                if later || lacks {
                    self.0.verifier.replace_list(RevocationList { number, entries });
                }
                (news, lacks)
            }
            Content::Tokens(list) => {
                let now = unix_seconds(clock::wall());
                let Some(before) = self.token_list() else {
                    let all = list.revoked.len();
                    self.0.tokens.store(Some(Arc::new(list)));
                    return (Some(all), false);
                };
                let union = if later {
                    list.clone().with(&before, now)
                } else {
                    TokenList::clone(&before).with(&list, now)
                };
                let all = union.revoked.len();
                let news = (!union.judges_as(&before)).then_some(all);
                let lacks = !union.judges_as(if later { &list } else { &before });
                self.0.tokens.store(Some(Arc::new(union)));
                (news, lacks)
            }
        }
    }

    /// Whether something is revoked that the list in force does not name.
    pub fn lacks(&self, kind: ListKind) -> bool {
        self.0.lacking.lock().contains(&kind)
    }

    /// The certificate directory.
    pub(super) fn certs(&self) -> &Path {
        &self.0.certs
    }

    /// Says that something is revoked that the list in force does not name, or that this was looked after; what was so.
    pub(super) fn set_lacks(&self, kind: ListKind, lacks: bool) -> bool {
        let mut lacking = self.0.lacking.lock();
        if lacks { !lacking.insert(kind) } else { lacking.remove(&kind) }
    }

    /// Held while a file is written.
    pub(super) fn settling(&self) -> MutexGuard<'_, ()> {
        self.0.settling.lock()
    }

    /// Writes the list in force, unless its file has it, or a later one.
    pub(super) fn write(&self, kind: ListKind) -> Result<(), IdentityError> {
        let layout = Layout::new(&self.0.certs);
        let path = layout.of_authority(file(kind));
        let Some(document) = self.in_force().get(kind).cloned() else { return Ok(()) };
        let has_it = || {
            let bytes = disk::read_list(&path)?.unwrap_or_default();
            let read = self.read(kind, &bytes).ok();
            Ok::<_, IdentityError>(read.is_some_and(|(mark, ..)| mark >= document.mark))
        };
        // Without the lock first: where nothing is to be written, nothing need be writable.
        if has_it()? {
            return Ok(());
        }
        let _lock = layout.lock()?;
        if !has_it()? {
            disk::write(&path, &document.bytes, disk::PUBLIC)?;
            if kind == ListKind::Trust {
                // Whoever reads certificates alone finds those of the list.
                let pem = self.0.verifier.trusted().bundle.to_pem();
                disk::write(&layout.of_authority(disk::CERTIFICATE), pem.as_bytes(), disk::PUBLIC)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
