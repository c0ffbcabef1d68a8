//! The gate in front of ractor_cluster: a peer's frames pass only in the order of its handshake,
//! only under the name its certificate proves, and only within caps.
//!
//! ractor's own handshake takes the peer's name on trust, and a session that claims another node's
//! name evicts the genuine one before any subscriber can object. So the bytes are held back until
//! the frame that carries the name is complete and right. Frames are an 8-byte big-endian length
//! and a protobuf `NetworkMessage` (`protocol/meta.proto` in ractor_cluster 0.16).
//!
//! Frames that pass before authentication, in this order:
//! - from a dialer: `auth.Name` (name checked), perhaps `auth.ClientStatus`, `auth.ClientChallenge`
//! - from an acceptor: `auth.ServerStatus`, `auth.ServerChallenge` (name checked), `auth.ServerAck`
//!
//! After it, of the control messages only those pass that nodes here need: joining and leaving groups, the end of actors,
//! and that the session is ready. An actor that is in no group is of no use to a peer, so none is announced alone; sessions are
//! not enumerated, and pings stay at home ([`Quiet`]). Actors and memberships that a peer made ractor keep are counted.
//!
//! Invariants: no byte leaves the gate before the name is proven equal; a frame before
//! authentication has at most `MAX_AUTH_FRAME` bytes; the gate itself never holds more than one
//! such frame or one control frame; ractor keeps at most what `proto::budget` allows of a peer; after an error the gate
//! lets nothing through. Frames are read with the decoder that ractor itself uses (prost), so that the two cannot read
//! one frame in two ways.

use std::time::{Duration, Instant};

use prost::Message;

use crate::proto::budget::{MAX_ACTORS, MEMBERSHIPS};
use crate::proto::capability::Capabilities;
use crate::proto::node::NodeName;

mod kept;
mod quiet;
use kept::Kept;
pub use quiet::{HELD, Quiet};

/// Largest frame before authentication, in bytes.
pub(crate) const MAX_AUTH_FRAME: usize = 4 * 1024;
/// Largest frame after it, in bytes.
pub const MAX_FRAME: u64 = 16 * 1024 * 1024;
/// Largest control frame (groups joined, actors ended), in bytes.
pub(crate) const MAX_CONTROL_FRAME: u64 = 64 * 1024;
/// Control bytes let through in one `CONTROL_WINDOW`.
pub(crate) const CONTROL_BUDGET: u64 = 1024 * 1024;
/// The window of the control budget.
pub(crate) const CONTROL_WINDOW: Duration = Duration::from_secs(10);

/// What a frame costs that ractor ignores.
const EMPTY_COST: u64 = 4;

const PREFIX: usize = 8;
/// Prefix, field tag and the longest varint: all that is looked at in a frame after authentication.
const HEAD: usize = PREFIX + 1 + 10;
const AUTH_TAG: u8 = 0x0a;
const NODE_TAG: u8 = 0x12;
const CONTROL_TAG: u8 = 0x1a;

/// Why the gate shut. The link ends; the peer is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The peer claimed another node's name in ractor's handshake.
    #[error("claims the name {claimed:?} in ractor's handshake, its certificate says {certified}")]
    Name {
        /// What the frame says (at most 64 characters of it).
        claimed: String,
        /// What the certificate says.
        certified: NodeName,
    },
    /// A frame is larger than its kind may be.
    #[error("a {kind} frame of {length} bytes, at most {cap} are allowed")]
    TooLarge {
        /// Which kind of frame.
        kind: &'static str,
        /// Its length in bytes.
        length: u64,
        /// The cap in bytes.
        cap: u64,
    },
    /// A frame other than the handshake's next one, or not a frame at all.
    #[error("a malformed or unexpected frame while waiting for {0}")]
    Unexpected(&'static str),
    /// More control traffic than any well-behaved node sends.
    #[error("more than {CONTROL_BUDGET} control bytes within {CONTROL_WINDOW:?}")]
    Budget,
    /// More actors in groups than a node may have.
    #[error("more than {MAX_ACTORS} actors in groups, or {MEMBERSHIPS} bytes of memberships")]
    TooManyActors,
    /// An actor in a group that the peer's certificate does not name.
    #[error("joins the group {0:?}, which its certificate does not name")]
    NotAllowed(String),
    /// Bytes after an earlier error.
    #[error("the gate is shut")]
    Shut,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(message, tag = "1")]
    Auth(Auth),
    #[prost(message, tag = "2")]
    Node(Opaque),
    #[prost(message, tag = "3")]
    Control(Opaque),
}

#[derive(Clone, PartialEq, Message)]
struct Auth {
    #[prost(oneof = "Step", tags = "1, 2, 3, 4, 5, 6")]
    step: Option<Step>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Step {
    #[prost(message, tag = "1")]
    Name(Named),
    #[prost(message, tag = "2")]
    ServerStatus(Opaque),
    #[prost(message, tag = "3")]
    ClientStatus(Opaque),
    #[prost(message, tag = "4")]
    ServerChallenge(Named),
    #[prost(message, tag = "5")]
    ClientChallenge(Opaque),
    #[prost(message, tag = "6")]
    ServerAck(Opaque),
}

/// Both messages that carry a name carry it in field 1.
#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Opaque {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Name,
    ClientChallenge,
    ServerStatus,
    ServerChallenge,
    ServerAck,
    /// Authenticated; this many bytes of the current frame pass unseen.
    Open(u64),
    Shut,
}

/// One direction of one link: the bytes that the peer sends to ractor.
#[derive(Debug)]
pub struct Gate {
    certified: NodeName,
    phase: Phase,
    held: Vec<u8>,
    budget_since: Option<Instant>,
    budget_used: u64,
    /// Of groups, since it was asked for.
    changed: u64,
    kept: Kept,
}

impl Gate {
    /// A gate for a peer that dialed us, whose certificate says `certified` and lets it do this.
    pub fn inbound(certified: NodeName, may: Capabilities) -> Self {
        Self::new(certified, may, Phase::Name)
    }

    /// A gate for a peer that we dialed, whose certificate says `certified` and lets it do this.
    pub fn outbound(certified: NodeName, may: Capabilities) -> Self {
        Self::new(certified, may, Phase::ServerStatus)
    }

    fn new(certified: NodeName, may: Capabilities, phase: Phase) -> Self {
        let (held, kept) = (Vec::new(), Kept::new(may));
        Self { certified, phase, held, budget_since: None, budget_used: 0, changed: 0, kept }
    }

    /// Takes bytes from the peer and appends to `out` those that may pass now.
    ///
    /// # Errors
    /// [`GateError`]; nothing that was held passes, now or later.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), GateError> {
        while !bytes.is_empty() {
            let step = match self.phase {
                Phase::Shut => Err(GateError::Shut),
                Phase::Open(0) => self.open_head(&mut bytes, now, out),
                Phase::Open(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (pass, rest) = bytes.split_at(take);
                    out.extend_from_slice(pass);
                    bytes = rest;
                    self.phase = Phase::Open(left.saturating_sub(take as u64));
                    Ok(())
                }
                waiting @ (Phase::Name
                | Phase::ClientChallenge
                | Phase::ServerStatus
                | Phase::ServerChallenge
                | Phase::ServerAck) => self.handshake(waiting, &mut bytes, out),
            };
            if let Err(error) = step {
                self.phase = Phase::Shut;
                self.held = Vec::new();
                return Err(error);
            }
        }
        Ok(())
    }

    /// What passed since the last call and was of no actor: bytes, and what each change of a group costs beside them.
    pub fn changed(&mut self) -> u64 {
        std::mem::take(&mut self.changed)
    }

    /// What of the peer ractor keeps, in bytes.
    pub fn kept(&self) -> usize {
        self.kept.bytes()
    }

    fn handshake(
        &mut self,
        phase: Phase,
        bytes: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), GateError> {
        if !hold(&mut self.held, bytes, PREFIX) {
            return Ok(());
        }
        let length = length(&self.held);
        let cap = MAX_AUTH_FRAME as u64;
        let body = usize::try_from(length).ok().filter(|n| *n <= MAX_AUTH_FRAME);
        let body = body.ok_or(GateError::TooLarge { kind: "handshake", length, cap })?;
        if !hold(&mut self.held, bytes, PREFIX + body) {
            return Ok(());
        }
        let step =
            self.held.get(PREFIX..).and_then(|body| match Network::decode(body).ok()?.kind? {
                Kind::Auth(auth) => auth.step,
                Kind::Node(_) | Kind::Control(_) => None,
            });
        self.phase = self.next_phase(phase, step)?;
        out.append(&mut self.held);
        Ok(())
    }

    fn next_phase(&self, phase: Phase, step: Option<Step>) -> Result<Phase, GateError> {
        match (phase, step) {
            (Phase::Name, Some(Step::Name(named))) => {
                self.check(named).map(|()| Phase::ClientChallenge)
            }
            (Phase::ClientChallenge, Some(Step::ClientStatus(_))) => Ok(Phase::ClientChallenge),
            (Phase::ServerStatus, Some(Step::ServerStatus(_))) => Ok(Phase::ServerChallenge),
            (Phase::ServerChallenge, Some(Step::ServerChallenge(named))) => {
                self.check(named).map(|()| Phase::ServerAck)
            }
            (Phase::ClientChallenge, Some(Step::ClientChallenge(_)))
            | (Phase::ServerAck, Some(Step::ServerAck(_))) => Ok(Phase::Open(0)),
            (Phase::Name, _) => Err(GateError::Unexpected("the peer's name")),
            (Phase::ClientChallenge, _) => Err(GateError::Unexpected("the client's challenge")),
            (Phase::ServerStatus, _) => Err(GateError::Unexpected("the server's status")),
            (Phase::ServerChallenge, _) => Err(GateError::Unexpected("the server's challenge")),
            (Phase::ServerAck | Phase::Open(_) | Phase::Shut, _) => {
                Err(GateError::Unexpected("the server's acknowledgement"))
            }
        }
    }

    fn check(&self, named: Named) -> Result<(), GateError> {
        if named.name == self.certified.as_str() {
            return Ok(());
        }
        let claimed = named.name.chars().take(64).collect();
        Err(GateError::Name { claimed, certified: self.certified.clone() })
    }

    /// Reads the head of a frame after authentication: which kind it is, and how long.
    fn open_head(
        &mut self,
        bytes: &mut &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), GateError> {
        if !hold(&mut self.held, bytes, PREFIX) {
            return Ok(());
        }
        let length = length(&self.held);
        if length > MAX_FRAME {
            return Err(GateError::TooLarge { kind: "message", length, cap: MAX_FRAME });
        }
        let head = PREFIX + usize::try_from(length).unwrap_or(usize::MAX).min(HEAD - PREFIX);
        if !hold(&mut self.held, bytes, head) {
            return Ok(());
        }
        let unexpected = GateError::Unexpected("a message");
        match self.held.get(PREFIX..).and_then(<[u8]>::split_first) {
            None => self.changed += EMPTY_COST, // ractor ignores it
            Some((&tag, rest)) => {
                // The one field must fill the frame: a second field could turn it into another kind.
                let field = varint(rest).and_then(|(n, size)| n.checked_add(1 + size));
                if field != Some(length) {
                    return Err(unexpected);
                }
                match tag {
                    AUTH_TAG => self.changed += EMPTY_COST + length, // likewise
                    NODE_TAG => {}
                    CONTROL_TAG => {
                        if !self.control(length, bytes, now)? {
                            return Ok(());
                        }
                    }
                    _ => return Err(unexpected),
                }
            }
        }
        let passed = self.held.len().saturating_sub(PREFIX) as u64;
        out.append(&mut self.held);
        self.phase = Phase::Open(length.saturating_sub(passed));
        Ok(())
    }

    /// A control frame of this length: holds it until it is whole, and looks into it. Whether it is whole.
    fn control(&mut self, length: u64, bytes: &mut &[u8], now: Instant) -> Result<bool, GateError> {
        let cap = MAX_CONTROL_FRAME;
        let whole = usize::try_from(length).ok().filter(|_| length <= cap);
        let whole = whole.ok_or(GateError::TooLarge { kind: "control", length, cap })?;
        if !hold(&mut self.held, bytes, PREFIX + whole) {
            return Ok(false);
        }
        let cost = self.kept.take(self.held.get(PREFIX..).unwrap_or(&[]))?;
        let since = *self.budget_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= CONTROL_WINDOW {
            self.budget_since = Some(now);
            self.budget_used = 0;
        }
        self.changed += length + cost;
        self.budget_used = self.budget_used.saturating_add(length).saturating_add(cost);
        if self.budget_used > CONTROL_BUDGET { Err(GateError::Budget) } else { Ok(true) }
    }
}

/// Moves bytes into `held` until it has `want`; true once it has.
fn hold(held: &mut Vec<u8>, bytes: &mut &[u8], want: usize) -> bool {
    let missing = want.saturating_sub(held.len()).min(bytes.len());
    let (take, rest) = bytes.split_at(missing);
    held.extend_from_slice(take);
    *bytes = rest;
    held.len() >= want
}

/// What the prefix of a frame says.
fn length(held: &[u8]) -> u64 {
    held.first_chunk().map_or(0, |prefix| u64::from_be_bytes(*prefix))
}

/// A protobuf varint at the start of `bytes`: its value and its size in bytes.
fn varint(bytes: &[u8]) -> Option<(u64, u64)> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, at as u64 + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;
    use proptest::prelude::*;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    fn frame(kind: Kind) -> Vec<u8> {
        raw(&Network { kind: Some(kind) }.encode_to_vec())
    }

    fn raw(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u64).to_be_bytes(), body].concat()
    }

    fn auth(step: Step) -> Vec<u8> {
        frame(Kind::Auth(Auth { step: Some(step) }))
    }

    fn named(text: &str) -> Named {
        Named { name: text.to_owned() }
    }

    /// A frame of one field with this tag and `length` bytes of payload.
    fn field(tag: u8, length: usize) -> Vec<u8> {
        let mut body = vec![tag];
        prost::encoding::encode_varint(length as u64, &mut body);
        body.resize(body.len() + length, 0);
        raw(&body)
    }

    /// A control frame that says of so many actors that they ended.
    fn ended(actors: usize) -> Vec<u8> {
        let inner = field(0x0a, actors)[PREFIX..].to_vec();
        let message = [field(0x12, inner.len())[PREFIX..].to_vec()].concat();
        let message = [&message[..message.len() - inner.len()], &inner].concat();
        let frame = field(CONTROL_TAG, message.len())[PREFIX..].to_vec();
        raw(&[&frame[..frame.len() - message.len()], &message].concat())
    }

    fn dialer() -> Vec<u8> {
        [auth(Step::Name(named("b@h"))), auth(Step::ClientChallenge(Opaque {}))].concat()
    }

    fn feed(gate: &mut Gate, bytes: &[u8], chunk: usize) -> Result<Vec<u8>, GateError> {
        let mut out = Vec::new();
        for piece in bytes.chunks(chunk) {
            gate.feed(piece, start(), &mut out)?;
        }
        Ok(out)
    }

    #[test]
    fn a_genuine_handshake_passes_unchanged_in_chunks_of_any_size() {
        let inbound = [dialer(), ended(9), field(NODE_TAG, 100_000), raw(&[])].concat();
        let outbound = [
            auth(Step::ServerStatus(Opaque {})),
            auth(Step::ServerChallenge(named("b@h"))),
            auth(Step::ServerAck(Opaque {})),
            field(NODE_TAG, 3),
        ]
        .concat();
        for chunk in [1, 2, 7, 4096, usize::MAX] {
            let passed = feed(&mut Gate::inbound(name("b@h"), Capabilities::ALL), &inbound, chunk);
            assert!(passed == Ok(inbound.clone()), "inbound in chunks of {chunk}");
            let passed =
                feed(&mut Gate::outbound(name("b@h"), Capabilities::ALL), &outbound, chunk);
            assert!(passed == Ok(outbound.clone()), "outbound in chunks of {chunk}");
        }
    }

    #[test]
    fn a_claimed_name_stops_every_byte() {
        let expect =
            |claimed: &str| GateError::Name { claimed: claimed.into(), certified: name("b@h") };
        let mut out = Vec::new();
        let mut gate = Gate::inbound(name("b@h"), Capabilities::ALL);
        let claim = auth(Step::Name(named("a@h")));
        assert_eq!(gate.feed(&claim, start(), &mut out), Err(expect("a@h")));
        assert_eq!(gate.feed(&dialer(), start(), &mut out), Err(GateError::Shut));
        let mut gate = Gate::outbound(name("b@h"), Capabilities::ALL);
        gate.feed(&auth(Step::ServerStatus(Opaque {})), start(), &mut Vec::new()).expect("first");
        let claim = auth(Step::ServerChallenge(named("a@h")));
        assert_eq!(gate.feed(&claim, start(), &mut out), Err(expect("a@h")));
        assert!(out.is_empty());
    }

    /// protobuf takes the last of repeated fields: so must the gate.
    #[test]
    fn a_second_name_in_one_frame_is_the_one_that_counts() {
        let twice = [
            Network { kind: Some(Kind::Auth(Auth { step: Some(Step::Name(named("b@h"))) })) },
            Network { kind: Some(Kind::Auth(Auth { step: Some(Step::Name(named("a@h"))) })) },
        ]
        .map(|m| m.encode_to_vec())
        .concat();
        let mut gate = Gate::inbound(name("b@h"), Capabilities::ALL);
        let result = gate.feed(&raw(&twice), start(), &mut Vec::new());
        assert!(matches!(result, Err(GateError::Name { .. })), "{result:?}");
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        for bytes in [
            auth(Step::ClientChallenge(Opaque {})),
            field(NODE_TAG, 2),
            field(CONTROL_TAG, 2),
            raw(&[0xff, 0xff]),
            raw(&[]),
        ] {
            let result = feed(&mut Gate::inbound(name("b@h"), Capabilities::ALL), &bytes, 64);
            assert_eq!(result, Err(GateError::Unexpected("the peer's name")));
        }
        let again = [auth(Step::Name(named("b@h"))), auth(Step::Name(named("b@h")))].concat();
        let result = feed(&mut Gate::inbound(name("b@h"), Capabilities::ALL), &again, 64);
        assert_eq!(result, Err(GateError::Unexpected("the client's challenge")));
    }

    #[test]
    fn large_frames_are_refused_before_they_arrive() {
        let huge = (MAX_AUTH_FRAME as u64 + 1).to_be_bytes();
        let result = feed(&mut Gate::inbound(name("b@h"), Capabilities::ALL), &huge, 8);
        assert!(matches!(result, Err(GateError::TooLarge { kind: "handshake", .. })));
        let huge = [dialer(), (MAX_FRAME + 1).to_be_bytes().to_vec()].concat();
        let result = feed(&mut Gate::inbound(name("b@h"), Capabilities::ALL), &huge, 8);
        assert!(matches!(result, Err(GateError::TooLarge { kind: "message", .. })));
        let joins = [dialer(), field(CONTROL_TAG, 65 * 1024)].concat();
        let result = feed(&mut Gate::inbound(name("b@h"), Capabilities::ALL), &joins, 4096);
        assert!(matches!(result, Err(GateError::TooLarge { kind: "control", .. })));
    }

    #[test]
    fn a_control_frame_cannot_hide_behind_another_field() {
        let inner = [field(NODE_TAG, 1)[8..].to_vec(), field(CONTROL_TAG, 70_000)[8..].to_vec()];
        let result = feed(
            &mut Gate::inbound(name("b@h"), Capabilities::ALL),
            &[dialer(), raw(&inner.concat())].concat(),
            64,
        );
        assert_eq!(result, Err(GateError::Unexpected("a message")));
    }

    #[test]
    fn control_traffic_has_a_budget_that_refills() {
        let mut gate = Gate::inbound(name("b@h"), Capabilities::ALL);
        let start = start();
        gate.feed(&dialer(), start, &mut Vec::new()).expect("genuine");
        let ended = ended(60_000);
        let mut send =
            |at| (0..100).find(|_| gate.feed(&ended, start + at, &mut Vec::new()).is_err());
        assert_eq!(send(Duration::ZERO), Some(17));
        let mut gate = Gate::inbound(name("b@h"), Capabilities::ALL);
        gate.feed(&dialer(), start, &mut Vec::new()).expect("genuine");
        for second in 0..100 {
            let at = start + Duration::from_secs(second);
            gate.feed(&ended, at, &mut Vec::new()).expect("within its budget");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn random_bytes_never_pass_nor_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), chunk in 1_usize..40,
        ) {
            let mut gate = Gate::inbound(name("b@h"), Capabilities::ALL);
            let mut out = Vec::new();
            for piece in bytes.chunks(chunk) {
                let _refused = gate.feed(piece, start(), &mut out);
                prop_assert!(gate.held.capacity() <= 128 * 1024);
            }
            prop_assert!(out.is_empty());
        }

        #[test]
        fn after_the_handshake_random_frames_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), tag in any::<u8>(),
        ) {
            let mut gate = Gate::outbound(name("b@h"), Capabilities::ALL);
            gate.phase = Phase::Open(0);
            let frame = raw(&[&[tag], bytes.as_slice()].concat());
            let _either = gate.feed(&frame, start(), &mut Vec::new());
            let _either = gate.feed(&bytes, start(), &mut Vec::new());
            prop_assert!(gate.held.capacity() <= 128 * 1024);
        }
    }
}
