//! `ca/invitations`: who was invited, and who came.
//!
//! A JSON text, readable by its owner alone, written anew as a whole under the directory's lock. Of a secret it has the
//! SHA-256. Invariants: a use is bound to the key and the name that took it; at most [`MAX_INVITATIONS`] invitations and
//! [`MAX_TAKEN`] uses are kept, each for a week after its invitation's end.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

use super::EnrolError;
use super::mac::MacKey;
use crate::io::clock::unix_seconds;
use crate::io::identity::IdentityError;
use crate::io::identity::disk::{self, Layout};
use crate::io::modes;
use crate::proto::capability::Capabilities;
use crate::proto::enrol::{Host, InvitationId, NamePattern, Refused, RequestId};
use crate::proto::node::{KeyId, NodeName};

/// File name beside the authority.
const FILE: &str = disk::INVITATIONS;
/// Most invitations at a time.
const MAX_INVITATIONS: usize = 1024;
/// Most uses of all invitations that are remembered.
const MAX_TAKEN: usize = 8192;
/// Most requests that wait for approval.
const MAX_WAITING: usize = 256;
/// Most uses of one invitation.
const MAX_USES: u32 = 1000;
/// Longest time of an invitation.
const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// Longest name of who made it, in bytes.
const MAX_MAKER: usize = 264;
/// How long an invitation is remembered after its end, in seconds: what was approved in time may be fetched so long.
const REMEMBERED: u64 = 7 * 24 * 60 * 60;

/// In which terms somebody is invited.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The names that may be taken.
    pub names: NamePattern,
    /// For how long, up to a year.
    pub time: Duration,
    /// How many certificates, 1 to 1,000.
    pub uses: u32,
    /// Whether somebody has to approve each request.
    pub approval: bool,
    /// What the nodes may do.
    pub capabilities: Capabilities,
    /// Who invites, for people.
    pub by: String,
}

/// An invitation as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvitationInfo {
    /// Its id, in hexadecimal.
    pub id: String,
    /// The names that may be taken.
    pub names: NamePattern,
    /// Its last second, since 1970.
    pub ends: u64,
    /// How many more certificates it is good for.
    pub left: u32,
    /// Whether somebody has to approve each request.
    pub approval: bool,
    /// Who invited.
    pub by: String,
    /// The names that were taken with it.
    pub taken: Vec<NodeName>,
}

/// A request that waits for approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// Its id.
    pub id: RequestId,
    /// The name that is asked for.
    pub name: NodeName,
    /// The id of the key, which the host that asks can show.
    pub key: String,
    /// The hosts that it asks for.
    pub hosts: Vec<Host>,
    /// What it may do then.
    pub capabilities: Capabilities,
    /// When it came first, in seconds since 1970.
    pub at: u64,
    /// Who made the invitation.
    pub by: String,
}

/// How a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Granted,
    Waiting,
    Denied,
}

/// One use of an invitation.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Use {
    #[serde(with = "hex")]
    key: [u8; 16],
    name: NodeName,
    hosts: Vec<Host>,
    at: u64,
    state: State,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Invitation {
    #[serde(with = "hex")]
    id: [u8; 16],
    #[serde(with = "secret")]
    key: MacKey,
    names: NamePattern,
    ends: u64,
    left: u32,
    approval: bool,
    #[serde(default)]
    capabilities: Capabilities,
    by: String,
    taken: Vec<Use>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spoken: Option<Spoken>,
}

/// What makes an invitation one that is spoken.
#[derive(Clone, Serialize, Deserialize)]
struct Spoken {
    number: u32,
    words: String,
    /// Whether somebody has tried other words.
    burnt: bool,
}

impl Drop for Spoken {
    fn drop(&mut self) {
        self.words.zeroize();
    }
}

impl std::fmt::Debug for Spoken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spoken({}, secret, burnt: {})", self.number, self.burnt)
    }
}

/// All that was invited.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Invitations {
    invitations: Vec<Invitation>,
}

/// What using an invitation has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Redeemed {
    /// This key may have this name, and nothing is to be written down. Where that was approved, so were these hosts.
    Again(Option<Vec<Host>>),
    /// Likewise, from now on.
    Taken,
    /// Somebody has to approve it; whether it is new.
    Waits(RequestId, bool),
}

impl Invitations {
    /// What is on disk.
    pub(super) fn read(layout: Layout<'_>) -> Result<Self, EnrolError> {
        let path = layout.of_authority(FILE);
        let Some(text) = disk::read_list(&path)? else { return Ok(Self::default()) };
        modes::tighten(&path, disk::PRIVATE).map_err(|cause| IdentityError::Io {
            action: "change the mode of",
            path: path.clone(),
            cause,
        })?;
        let text = zeroize::Zeroizing::new(text);
        serde_json::from_slice(&text).map_err(|_detail| EnrolError::DamagedInvitations(path))
    }

    /// Puts it on disk, for a caller that holds the directory's lock.
    pub(super) fn write(&self, layout: Layout<'_>) -> Result<(), EnrolError> {
        let path = layout.of_authority(FILE);
        let text = serde_json::to_vec(self)
            .map_err(|_detail| EnrolError::DamagedInvitations(path.clone()))?;
        let text = zeroize::Zeroizing::new(text);
        Ok(disk::write(&path, &text, disk::PRIVATE)?)
    }

    /// Where it lies.
    pub(super) fn path(layout: Layout<'_>) -> std::path::PathBuf {
        layout.of_authority(FILE)
    }

    /// Adds an invitation.
    pub(super) fn add(
        &mut self,
        id: InvitationId,
        key: MacKey,
        terms: &Terms,
        now: SystemTime,
    ) -> Result<(), EnrolError> {
        let Terms { names, time, uses, approval, capabilities, by } = terms.clone();
        if !(1..=MAX_USES).contains(&uses) {
            return Err(EnrolError::Terms("it is good for 1 to 1000 certificates"));
        }
        if time < Duration::from_secs(1) || time > MAX_TIME {
            return Err(EnrolError::Terms("it lasts from a second to a year"));
        }
        if by.len() > MAX_MAKER || by.chars().any(char::is_control) {
            return Err(EnrolError::Terms("who invites is named in up to 264 bytes of one line"));
        }
        let now = unix_seconds(now);
        self.prune(now);
        if self.invitations.len() >= MAX_INVITATIONS {
            self.invitations.retain(|it| it.ends >= now);
        }
        if self.invitations.len() >= MAX_INVITATIONS {
            return Err(EnrolError::Full);
        }
        let (id, ends) = (id.0, now.saturating_add(time.as_secs()));
        let taken = Vec::new();
        self.invitations.push(Invitation {
            id,
            key,
            names,
            ends,
            left: uses,
            approval,
            capabilities,
            by,
            taken,
            spoken: None,
        });
        Ok(())
    }

    /// The key that stands for an invitation's secret.
    pub(super) fn key(&self, id: InvitationId) -> Option<&MacKey> {
        self.get(id).map(|it| &it.key)
    }

    /// What the nodes may do that come by it.
    pub(super) fn capabilities(&self, id: InvitationId) -> Capabilities {
        self.get(id).map(|it| it.capabilities.clone()).unwrap_or_default()
    }

    /// The lowest number that no spoken invitation has.
    #[cfg(feature = "gateway")]
    pub(super) fn free_number(&mut self, now: SystemTime) -> u32 {
        // A spoken one that ended is not remembered: its number is to come again.
        let now = unix_seconds(now);
        self.invitations.retain(|it| it.spoken.is_none() || it.ends.saturating_add(60) >= now);
        let taken = self.invitations.iter().filter_map(|it| it.spoken.as_ref());
        let taken: std::collections::BTreeSet<u32> = taken.map(|it| it.number).collect();
        (1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX)
    }

    /// Makes the invitation that was added last one that is spoken.
    #[cfg(feature = "gateway")]
    pub(super) fn speak(&mut self, number: u32, words: &str) {
        if let Some(last) = self.invitations.last_mut() {
            last.spoken = Some(Spoken { number, words: words.to_owned(), burnt: false });
        }
    }

    /// The spoken invitation of this number: its id and its words.
    #[cfg(feature = "gateway")]
    pub(super) fn spoken(&self, number: u32) -> Result<(InvitationId, &str), Refused> {
        let of = |it: &&Invitation| it.spoken.as_ref().is_some_and(|it| it.number == number);
        let it = self.invitations.iter().find(of).ok_or(Refused::UnknownInvitation)?;
        match &it.spoken {
            Some(Spoken { words, burnt: false, .. }) => Ok((InvitationId(it.id), words)),
            Some(_) | None => Err(Refused::Burnt),
        }
    }

    /// Has the spoken invitation of this number count no more.
    #[cfg(feature = "gateway")]
    pub(super) fn burn(&mut self, number: u32) {
        let spoken = self.invitations.iter_mut().filter_map(|it| it.spoken.as_mut());
        spoken.filter(|it| it.number == number).for_each(|it| it.burnt = true);
    }

    fn get(&self, id: InvitationId) -> Option<&Invitation> {
        self.invitations.iter().find(|it| it.id == id.0)
    }

    /// Uses an invitation for this key under this name. What it answers holds once it is written down.
    pub(super) fn redeem(
        &mut self,
        id: InvitationId,
        key: KeyId,
        name: &NodeName,
        hosts: &[Host],
        now: SystemTime,
    ) -> Result<Redeemed, Refused> {
        let now = unix_seconds(now);
        self.prune(now);
        let all: usize = self.invitations.iter().map(|it| it.taken.len()).sum();
        let waiting = self.waiting().count();
        let full = Refused::CannotIssue { reason: "too many requests are open".to_owned() };
        let it = self.invitations.iter_mut().find(|it| it.id == id.0);
        let it = it.ok_or(Refused::UnknownInvitation)?;
        if !it.names.matches(name) {
            return Err(Refused::NameNotAllowed { pattern: it.names.to_string() });
        }
        let expired = Refused::Expired { ended: it.ends };
        let over = now > it.ends;
        let taken = it.taken.iter().find(|one| one.key == key.0 && one.name == *name);
        let request = RequestId::of(id, key, name);
        if let Some(taken) = taken {
            return match taken.state {
                State::Denied => Err(Refused::Denied),
                State::Waiting if over => Err(expired),
                State::Waiting => Ok(Redeemed::Waits(request, false)),
                // What was approved in time may be fetched later.
                State::Granted if over && !it.approval => Err(expired),
                State::Granted => Ok(Redeemed::Again(it.approval.then(|| taken.hosts.clone()))),
            };
        }
        if over {
            return Err(expired);
        }
        let left = it.left.checked_sub(1).ok_or(Refused::UsedUp)?;
        if all >= MAX_TAKEN || (it.approval && waiting >= MAX_WAITING) {
            return Err(full);
        }
        it.left = left;
        let state = if it.approval { State::Waiting } else { State::Granted };
        let (name, hosts) = (name.clone(), hosts.to_vec());
        it.taken.push(Use { key: key.0, name, hosts, at: now, state });
        Ok(if it.approval { Redeemed::Waits(request, true) } else { Redeemed::Taken })
    }

    fn waiting(&self) -> impl Iterator<Item = (&Invitation, &Use)> {
        let uses = self.invitations.iter().flat_map(|it| it.taken.iter().map(move |one| (it, one)));
        uses.filter(|(_, one)| one.state == State::Waiting)
    }

    /// The requests that wait at `now`, the oldest first.
    pub(super) fn pending(&self, now: SystemTime) -> Vec<Pending> {
        let now = unix_seconds(now);
        let open = self.waiting().filter(|(it, _)| it.ends >= now);
        let mut pending: Vec<Pending> = open.map(|(it, one)| describe(it, one)).collect();
        pending.sort_by_key(|pending| (pending.at, pending.id));
        pending
    }

    /// Approves or denies a request that waits.
    pub(super) fn decide(
        &mut self,
        request: RequestId,
        approve: bool,
        now: SystemTime,
    ) -> Result<Pending, EnrolError> {
        let now = unix_seconds(now);
        for it in self.invitations.iter_mut().filter(|it| it.ends >= now) {
            let id = InvitationId(it.id);
            let of = |one: &&mut Use| RequestId::of(id, KeyId(one.key), &one.name) == request;
            let waiting = it.taken.iter_mut().filter(|one| one.state == State::Waiting);
            if let Some(one) = waiting.into_iter().find(of) {
                one.state = if approve { State::Granted } else { State::Denied };
                let one = one.clone();
                return Ok(describe(it, &one));
            }
        }
        Err(EnrolError::NoSuchRequest(request))
    }

    /// Takes an invitation back.
    pub(super) fn withdraw(&mut self, id: InvitationId) -> Result<(), EnrolError> {
        let before = self.invitations.len();
        self.invitations.retain(|it| it.id != id.0);
        if self.invitations.len() == before { Err(EnrolError::NoSuchInvitation) } else { Ok(()) }
    }

    /// Those that are open at `now`.
    pub(super) fn list(&self, now: SystemTime) -> Vec<InvitationInfo> {
        let now = unix_seconds(now);
        let info = |it: &Invitation| InvitationInfo {
            id: InvitationId(it.id).to_string(),
            names: it.names.clone(),
            ends: it.ends,
            left: it.left,
            approval: it.approval,
            by: it.by.clone(),
            taken: it.taken.iter().map(|one| one.name.clone()).collect(),
        };
        self.invitations.iter().filter(|it| it.ends >= now).map(info).collect()
    }

    fn prune(&mut self, now: u64) {
        self.invitations.retain(|it| it.ends.saturating_add(REMEMBERED) >= now);
    }
}

fn describe(it: &Invitation, one: &Use) -> Pending {
    Pending {
        id: RequestId::of(InvitationId(it.id), KeyId(one.key), &one.name),
        name: one.name.clone(),
        key: KeyId(one.key).to_string(),
        hosts: one.hosts.clone(),
        capabilities: it.capabilities.clone(),
        at: one.at,
        by: it.by.clone(),
    }
}

/// Bytes as hexadecimal in a JSON text.
mod hex {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::proto::codec::{hexadecimal, read_hexadecimal};

    pub(super) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        hexadecimal(bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        let bytes = read_hexadecimal(&text).and_then(|bytes| bytes.try_into().ok());
        bytes.ok_or_else(|| D::Error::custom("another length, or no hexadecimal digits"))
    }
}

mod secret {
    use serde::{Deserializer, Serializer};

    use super::MacKey;

    pub(super) fn serialize<S: Serializer>(key: &MacKey, to: S) -> Result<S::Ok, S::Error> {
        super::hex::serialize(key.bytes(), to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MacKey, D::Error> {
        super::hex::deserialize(from).map(MacKey::from_bytes)
    }
}
