//! How one TLS stream carries several lanes: a 4-byte header before each piece.
//!
//! ```text
//! byte 0      lane: 0 control, 1 ractor, 2 system, 3 calls, 4 bulk, 5 lists
//! bytes 1–3   length of the payload, big-endian, 1 to 66048
//! then        payload
//! ```
//!
//! *control* is the link's own talk ([`Control`]), *ractor* is the byte stream of ractor_cluster's
//! session, *system* carries what the nodes' own actors say to each other, *calls* requests and replies,
//! *bulk* broadcasts (`proto::outbox` says what is in those three); *lists* what the authority has signed
//! (`proto::lists`), only with a peer whose hello names its lists. A piece is at most 64 KiB, so that
//! no lane waits behind more than that of another; but all wait behind lists, except control.

use serde::{Deserialize, Serialize};
use strum::IntoStaticStr;

use crate::proto::codec::{self, CodecError};

/// Bytes of a header.
pub const HEADER: usize = 4;
/// Largest payload of one piece, in bytes: 64 KiB of a message, and what says whose they are.
pub const MAX_PAYLOAD: usize = 64 * 1024 + 512;
/// Largest control message, in bytes.
pub(crate) const MAX_CONTROL: usize = 256;

/// What a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Lane {
    /// The link's own talk.
    Control,
    /// ractor_cluster's byte stream.
    Ractor,
    /// What the nodes' own actors say.
    System,
    /// Requests and replies.
    Calls,
    /// Broadcasts.
    Bulk,
    /// What the authority has signed.
    Lists,
}

impl Lane {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Control, Self::Ractor, Self::System, Self::Calls, Self::Bulk, Self::Lists];

    /// The lane as a metric label.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// Why a header is not one: the peer speaks another protocol, and the link ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No such lane.
    #[error("no lane {0}")]
    Lane(u8),
    /// Empty, or too long.
    #[error("a piece of {0} bytes")]
    Length(usize),
}

/// The header of a piece of `length` bytes in `lane`; `None` when the length is out of range.
pub fn header(lane: Lane, length: usize) -> Option<[u8; HEADER]> {
    let lane = match lane {
        Lane::Control => 0,
        Lane::Ractor => 1,
        Lane::System => 2,
        Lane::Calls => 3,
        Lane::Bulk => 4,
        Lane::Lists => 5,
    };
    let [_, a, b, c] = u32::try_from(length).ok()?.to_be_bytes();
    (1..=MAX_PAYLOAD).contains(&length).then_some([lane, a, b, c])
}

/// Reads a header.
///
/// # Errors
/// [`FrameError`] when it names no lane or a length out of range.
pub fn parse_header(bytes: [u8; HEADER]) -> Result<(Lane, usize), FrameError> {
    let [lane, a, b, c] = bytes;
    let length = (usize::from(a) << 16) | (usize::from(b) << 8) | usize::from(c);
    if !(1..=MAX_PAYLOAD).contains(&length) {
        return Err(FrameError::Length(length));
    }
    match lane {
        0 => Ok((Lane::Control, length)),
        1 => Ok((Lane::Ractor, length)),
        2 => Ok((Lane::System, length)),
        3 => Ok((Lane::Calls, length)),
        4 => Ok((Lane::Bulk, length)),
        5 => Ok((Lane::Lists, length)),
        other => Err(FrameError::Lane(other)),
    }
}

/// What the two ends of a link say to each other about the link itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// The sender ends the link on purpose; nothing follows.
    Goodbye(CloseReason),
    /// A beat: the sender is alive. Answered at once with [`Control::Pong`] and the same number.
    Ping(u64),
    /// The answer to a beat.
    Pong(u64),
    /// So many bytes of bulk pieces were taken by those they were for.
    Credit(u32),
}

/// Kinds of [`Control`], which its first byte tells.
const KINDS: u8 = 4;

/// Why an end of a link closed it on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CloseReason {
    /// The node stops and leaves the cluster.
    Left,
    /// A newer link to the same node took this one's place.
    Replaced,
    /// The node goes on under a higher incarnation and will be back at once.
    Renewed,
    /// The receiver was not heard for too long and has been given up.
    Silent,
    /// The receiver keeps breaking rules.
    Misbehaved,
    /// The receiver's certificate is revoked.
    Revoked,
    /// An operator ended the link.
    Disconnected,
}

impl Control {
    /// The message as bytes.
    ///
    /// # Errors
    /// As [`codec::encode`].
    pub fn encode(self) -> Result<Vec<u8>, CodecError> {
        codec::encode(&self)
    }

    /// The message in a control piece; `None` for one of a kind that only a later version knows.
    ///
    /// # Errors
    /// As [`codec::decode`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, CodecError> {
        if bytes.len() <= MAX_CONTROL && bytes.first().is_some_and(|kind| *kind >= KINDS) {
            return Ok(None);
        }
        codec::decode(bytes, MAX_CONTROL).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_bad_ones_are_named() {
        for lane in Lane::ALL {
            for length in [1, 255, 256, MAX_PAYLOAD] {
                let bytes = header(lane, length).expect("in range");
                assert_eq!(parse_header(bytes), Ok((lane, length)));
            }
            assert_eq!(header(lane, 0), None);
            assert_eq!(header(lane, MAX_PAYLOAD + 1), None);
        }
        assert_eq!(parse_header([6, 0, 0, 1]), Err(FrameError::Lane(6)));
        assert_eq!(parse_header([0, 0, 0, 0]), Err(FrameError::Length(0)));
        assert_eq!(parse_header([0, 1, 2, 1]), Err(FrameError::Length(66049)));
    }

    #[test]
    fn control_round_trips() {
        for parting in
            [CloseReason::Left, CloseReason::Replaced, CloseReason::Renewed, CloseReason::Revoked]
        {
            let bytes = Control::Goodbye(parting).encode().expect("encodes");
            assert_eq!(Control::decode(&bytes), Ok(Some(Control::Goodbye(parting))));
        }
        let credit = Control::Credit(5).encode().expect("encodes");
        assert_eq!(
            (credit[0], Control::decode(&credit)),
            (KINDS - 1, Ok(Some(Control::Credit(5))))
        );
        assert_eq!(Control::decode(&[KINDS, 9]), Ok(None), "a later version's");
        assert!(Control::decode(&[0, 99]).is_err());
        assert!(Control::decode(&[9; MAX_CONTROL + 1]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let _either = Control::decode(&bytes);
            let _either = bytes.first_chunk().map(|header| parse_header(*header));
        }
    }
}
