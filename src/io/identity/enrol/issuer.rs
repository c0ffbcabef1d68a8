//! The side that issues: judges requests, keeps invitations.

mod answered;
mod guesses;
mod snapshot;
#[cfg(feature = "gateway")]
mod spoken;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

pub use self::answered::{Answered, Means, Outcome};
use self::guesses::Guesses;
use self::snapshot::Snapshot;
use super::invitations::{InvitationInfo, Invitations, Pending, Redeemed, Terms};
use super::mac::MacKey;
use super::{CsrKey, EnrolError, Line};
use crate::io::clock::unix_millis;
use crate::io::identity::disk::{self, Layout};
use crate::io::identity::pki::Certificate;
use crate::io::identity::{Authority, IdentityError};
use crate::io::seeds::Seed;
use crate::proto::capability::Capabilities;
use crate::proto::enrol::{
    AuthorityHash, Host, InvitationId, Issued, MAX_CLOCK_DIFFERENCE, MAX_MESSAGE, MAX_PEERS, Proof,
    Refused, Request, RequestId,
};

/// Room that an answer has for each of its lists, in bytes: a longer list comes over a link.
const LIST: usize = MAX_MESSAGE / 5;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// By what an issuer issues.
#[derive(Clone, Debug)]
pub struct Rules {
    /// How long a certificate is valid.
    pub life: Duration,
    /// How long after its end a certificate is renewed for its key, and its name belongs to that key; zero for not at all.
    pub grace: Duration,
    /// By what tokens of machines are judged, if they are taken.
    #[cfg(feature = "gateway")]
    pub machine: Option<super::MachineRules>,
}

impl Default for Rules {
    /// 90 days, and 180.
    fn default() -> Self {
        Self {
            life: 90 * DAY,
            grace: 180 * DAY,
            #[cfg(feature = "gateway")]
            machine: None,
        }
    }
}

/// Issues certificates by what requests prove, with the authority's key in one certificate directory. Processes that share
/// the directory take turns by its lock. Each method may block while a disk does.
#[derive(Debug)]
pub struct Issuer {
    certs: PathBuf,
    rules: Rules,
    state: Mutex<State>,
    #[cfg(feature = "gateway")]
    machines: Option<super::machine::Machines>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<Arc<Snapshot>>,
    guesses: Guesses,
    #[cfg(feature = "gateway")]
    sessions: super::spoken::Sessions,
}

/// A request that has proven itself.
struct Proven {
    means: Means,
    /// The key that the answer is sealed with.
    seal: Option<MacKey>,
    /// What the node may do.
    capabilities: Capabilities,
}

impl Issuer {
    /// The issuer of the authority in `certs`.
    ///
    /// # Errors
    /// As [`Authority::open`]; [`EnrolError::DamagedInvitations`].
    pub fn open(certs: &Path, rules: Rules) -> Result<Self, EnrolError> {
        let issuer = Self {
            certs: certs.to_owned(),
            #[cfg(feature = "gateway")]
            machines: rules.machine.clone().map(super::machine::Machines::new),
            rules,
            state: Mutex::default(),
        };
        issuer.snapshot()?;
        Ok(issuer)
    }

    /// Answers a request. `peers` are addresses of nodes, for a host that joins.
    ///
    /// What a request proves is looked at before anything is read from disk or parsed for it.
    pub fn answer(&self, request: &[u8], peers: &[SocketAddr], now: SystemTime) -> Answered {
        let answered = decode(request).and_then(|parsed| {
            #[cfg(feature = "gateway")]
            if let Proof::SpokenStart { number, share } = &parsed.proof {
                return self.begin_spoken(*number, share, now);
            }
            let proven = self.prove(&parsed, now)?;
            self.grant(request, &parsed, proven, peers, now)
        });
        answered.unwrap_or_else(Answered::error)
    }

    /// Answers a request that an operator brings who holds the authority's key: it needs no proof, and may be old.
    pub fn sign(&self, request: &[u8], capabilities: Capabilities, now: SystemTime) -> Answered {
        let answered = decode(request).and_then(|parsed| {
            let snapshot = self.snapshot()?;
            Self::check_authority(&snapshot, &parsed)?;
            let proven = Proven { means: Means::Operator, seal: None, capabilities };
            self.grant(request, &parsed, proven, &[], now)
        });
        answered.unwrap_or_else(Answered::error)
    }

    fn check_authority(snapshot: &Snapshot, request: &Request) -> Result<(), EnrolError> {
        let meant =
            request.authority == AuthorityHash::ANY || snapshot.hashes.contains(&request.authority);
        if meant {
            return Ok(());
        }
        let ours = snapshot.hashes.first().copied().unwrap_or(AuthorityHash::ANY);
        Err(Refused::OtherAuthority { ours }.into())
    }

    /// What the request proves. A proof that fails is counted as a guess.
    fn prove(&self, request: &Request, now: SystemTime) -> Result<Proven, EnrolError> {
        let snapshot = self.snapshot()?;
        Self::check_authority(&snapshot, request)?;
        let statement = request.statement().map_err(|_detail| Refused::NotTaken)?;
        let proven = match &request.proof {
            Proof::Invitation { id, mac } => {
                let key = snapshot.invitations.key(*id);
                // Whether there is such an invitation is not told by the time that a refusal takes.
                let none = MacKey::from_bytes([0; 32]);
                let holds = key.unwrap_or(&none).verify(&statement, mac);
                let key = key.filter(|_| holds).ok_or(Refused::UnknownInvitation);
                let capabilities = snapshot.invitations.capabilities(*id);
                let means = Means::Invitation(*id);
                key.map(|key| Proven { means, seal: Some(key.clone()), capabilities })
            }
            Proof::Certificate { der, signature } => {
                let proof = (der.as_slice(), signature.as_slice());
                self.check_certificate(&snapshot.authority, request, proof, &statement, now)
                    .map(|capabilities| Proven { means: Means::Renewal, seal: None, capabilities })
            }
            #[cfg(feature = "gateway")]
            Proof::Spoken { session, mac } => match self.prove_spoken(session, mac, &statement) {
                Ok(proven) => Ok(proven),
                Err(EnrolError::Refused(refused)) => Err(refused),
                Err(failed) => return Err(failed),
            },
            #[cfg(feature = "gateway")]
            Proof::Machine { jwt } => {
                let machines = self.machines.as_ref().ok_or(Refused::NotTaken)?;
                let judged = machines.judge(jwt, &request.name, now)?;
                let unproven = |reason: &str| Refused::Unproven { reason: reason.to_owned() };
                let capabilities = Capabilities::MEMBER;
                let proven = Proven { means: Means::Machine, seal: None, capabilities };
                judged.map_err(unproven).map(|()| proven)
            }
            #[cfg(not(feature = "gateway"))]
            Proof::Spoken { .. } | Proof::Machine { .. } => return Err(Refused::NotTaken.into()),
            Proof::SpokenStart { .. } | Proof::Operator => return Err(Refused::NotTaken.into()),
        };
        let proven = proven.map_err(|refused| self.guessed(refused, now))?;
        check_clock(request.time, now)?;
        Ok(proven)
    }

    /// Whether a certificate proves that it may be renewed: the cluster's, of this name, and the requester has its key.
    /// Returns what it lets the node do, which the next one will.
    fn check_certificate(
        &self,
        authority: &Authority,
        request: &Request,
        (der, signature): (&[u8], &[u8]),
        statement: &[u8],
        now: SystemTime,
    ) -> Result<Capabilities, Refused> {
        let unproven = |reason: &str| Refused::Unproven { reason: reason.to_owned() };
        let judge = authority.judge();
        let der = CertificateDer::from(der);
        let peer = judge
            .examine_of(&der, &request.name)
            .map_err(|error| unproven(&format!("its certificate {error}")))?;
        if !peer.verify(statement, signature) {
            return Err(unproven("the request is not signed with the certificate's key"));
        }
        if judge.any_revoked(&peer.serials()) {
            return Err(Refused::Revoked);
        }
        let end = peer.validity.not_after;
        if now > end + self.rules.grace {
            let ended = end.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            return Err(Refused::Lapsed { ended, grace: self.rules.grace.as_secs() });
        }
        match CsrKey::of(&request.csr) {
            Ok(key) if peer.has_key(key.point()) => Ok(peer.capabilities),
            Ok(_) => Err(unproven("the certificate is of another key than the one asked for")),
            Err(reason) => Err(Refused::Malformed { reason: reason.to_owned() }),
        }
    }

    /// Counts a proof that failed: the refusal, or the one behind too many.
    fn guessed(&self, refused: Refused, now: SystemTime) -> Refused {
        let after = self.state.lock().guesses.count(now);
        after.map_or(refused, |after| {
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            Refused::RateLimited { after }
        })
    }

    /// Makes the certificate that a proven request asks for, under the lock.
    fn grant(
        &self,
        bytes: &[u8],
        request: &Request,
        proven: Proven,
        peers: &[SocketAddr],
        now: SystemTime,
    ) -> Result<Answered, EnrolError> {
        let key = CsrKey::of(&request.csr)
            .map_err(|reason| Refused::Malformed { reason: reason.to_owned() })?;
        let layout = Layout::new(&self.certs);
        let _lock = layout.lock()?;
        let authority = Authority::open(&self.certs)?;
        authority.may_have(&request.name, key.id(), self.rules.grace, now)??;
        if !Authority::fits(&request.name, &proven.capabilities) {
            return Err(Refused::UnusableName.into());
        }
        let mut hosts = match &request.proof {
            // Whoever renews keeps its hosts, and gets no others.
            Proof::Certificate { der, .. } => named_hosts(der),
            Proof::Invitation { .. }
            | Proof::SpokenStart { .. }
            | Proof::Spoken { .. }
            | Proof::Machine { .. }
            | Proof::Operator => request.hosts.clone(),
        };
        if let Means::Invitation(id) = proven.means {
            let mut invitations = Invitations::read(layout)?;
            match invitations.redeem(id, key.id(), &request.name, &hosts, now)? {
                Redeemed::Again(approved) => hosts = approved.unwrap_or(hosts),
                Redeemed::Taken => invitations.write(layout)?,
                Redeemed::Waits(id, is_new) => {
                    if is_new {
                        invitations.write(layout)?;
                    }
                    return Ok(Answered::waiting(id, request.name.clone(), key.id(), is_new));
                }
            }
        }
        let says = (hosts.as_slice(), &proven.capabilities);
        let (certificate, until) =
            authority.grant(&request.name, &key, says, self.rules.life, now)?;
        let mut issued = Issued {
            certificate: certificate.to_vec(),
            authorities: authority.authorities(),
            trust: list(&layout.of_authority(disk::TRUST))?,
            tokens: list(&layout.of_authority(disk::TOKENS))?,
            revocations: list(&layout.of_authority(disk::REVOCATIONS))?,
            peers: peers.iter().take(MAX_PEERS).copied().collect(),
            seal: None,
        };
        if let Some(seal) = proven.seal {
            let statement = issued.statement(bytes);
            let statement = statement.map_err(|_detail| EnrolError::Answer("it is too long"))?;
            issued.seal = Some(seal.code(&statement));
        }
        let (name, key, means) = (request.name.clone(), key.id(), proven.means);
        Ok(Answered::issued(issued, Outcome::Issued { name, key, until, means }))
    }

    /// Makes an invitation; `addresses` are where nodes of the cluster are.
    ///
    /// # Errors
    /// [`EnrolError::Terms`]; [`EnrolError::Full`]; [`IdentityError::Io`].
    pub fn invite(
        &self,
        terms: &Terms,
        addresses: &[Seed],
        now: SystemTime,
    ) -> Result<Line, EnrolError> {
        let hash = self.snapshot()?.hashes.first().copied().unwrap_or(AuthorityHash::ANY);
        let line = Line::draw(addresses, hash)?;
        self.change(|invitations| invitations.add(line.id(), line.key(), terms, now))?;
        Ok(line)
    }

    /// The invitations that are open.
    ///
    /// # Errors
    /// [`EnrolError::DamagedInvitations`]; [`IdentityError`] about the directory.
    pub fn invitations(&self, now: SystemTime) -> Result<Vec<InvitationInfo>, EnrolError> {
        Ok(self.snapshot()?.invitations.list(now))
    }

    /// Takes an invitation back. What was issued by it stays.
    ///
    /// # Errors
    /// [`EnrolError::NoSuchInvitation`].
    pub fn withdraw(&self, id: InvitationId) -> Result<(), EnrolError> {
        self.change(|invitations| invitations.withdraw(id))
    }

    /// The requests that wait for approval, the oldest first.
    ///
    /// # Errors
    /// As [`Issuer::invitations`].
    pub fn requests(&self, now: SystemTime) -> Result<Vec<Pending>, EnrolError> {
        Ok(self.snapshot()?.invitations.pending(now))
    }

    /// Approves a request that waits: the host gets its certificate when it asks again, within a week.
    ///
    /// # Errors
    /// [`EnrolError::NoSuchRequest`].
    pub fn approve(&self, request: RequestId, now: SystemTime) -> Result<Pending, EnrolError> {
        self.change(|invitations| invitations.decide(request, true, now))
    }

    /// Denies a request that waits. The use of the invitation is spent.
    ///
    /// # Errors
    /// [`EnrolError::NoSuchRequest`].
    pub fn deny(&self, request: RequestId, now: SystemTime) -> Result<Pending, EnrolError> {
        self.change(|invitations| invitations.decide(request, false, now))
    }

    /// How many proofs have failed.
    pub fn guesses(&self) -> u64 {
        self.state.lock().guesses.total()
    }

    /// Changes the invitations on disk, under the lock. After an error they are as before.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Invitations) -> Result<T, EnrolError>,
    ) -> Result<T, EnrolError> {
        let layout = Layout::new(&self.certs);
        let _lock = layout.lock()?;
        let mut invitations = Invitations::read(layout)?;
        let changed = change(&mut invitations)?;
        invitations.write(layout)?;
        self.state.lock().snapshot = None;
        Ok(changed)
    }

    /// The files as they are now, read again if they have changed.
    fn snapshot(&self) -> Result<Arc<Snapshot>, EnrolError> {
        let layout = Layout::new(&self.certs);
        let kept = self.state.lock().snapshot.clone();
        if let Some(kept) = kept.filter(|kept| kept.is_current(layout)) {
            return Ok(kept);
        }
        let read = Arc::new(Snapshot::read(layout)?);
        self.state.lock().snapshot = Some(read.clone());
        Ok(read)
    }
}

/// The hosts of a certificate.
fn named_hosts(der: &[u8]) -> Vec<Host> {
    Certificate::parse(der).map(|certificate| certificate.hosts()).unwrap_or_default()
}

fn decode(request: &[u8]) -> Result<Request, EnrolError> {
    Request::decode(request)
        .map_err(|error| Refused::Malformed { reason: error.to_string() }.into())
}

/// A list that lies beside the authority, if an answer has room for it.
fn list(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    Ok(disk::read_list(path)?.filter(|list| list.len() <= LIST))
}

/// Refuses a clock that is too far from ours.
fn check_clock(theirs: u64, now: SystemTime) -> Result<(), Refused> {
    let ahead = i128::from(theirs) - i128::from(unix_millis(now));
    if ahead.unsigned_abs() <= MAX_CLOCK_DIFFERENCE.as_millis() {
        return Ok(());
    }
    let nearest = if ahead > 0 { i64::MAX } else { i64::MIN };
    Err(Refused::Clock { ahead: i64::try_from(ahead).unwrap_or(nearest) })
}
