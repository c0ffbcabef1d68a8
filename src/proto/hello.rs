//! The hello: what two nodes say to each other before ractor sees a byte.
//!
//! ```text
//! dialer                         acceptor
//!   Hello(who I am)        ->      judged
//!   judged                 <-      Welcome(who I am)   or Refuse(why)
//!   Confirm or Refuse(why) ->      the link is up on both sides
//! ```
//!
//! ```text
//! length, 2 bytes | oldest version | newest version | features, 4 bytes | postcard of the greeting | …
//! ```
//! Numbers are big-endian. Each side says which versions of the link protocol it speaks and which features it has; the
//! link uses the highest version and the features that are common ([`Offer::common`]). This layout is the same in all
//! versions: what is added comes behind, and is skipped by those who do not know it.
//!
//! Behind a Hello and a Welcome are the marks of the sender's lists (`proto::lists`): postcard of kind, number and digest of
//! each. A program without them takes no lists.
//!
//! Invariants: a message has at most [`MAX_GREETING`] bytes; a hello that does not match the certificate of its
//! connection ([`Hello::check`]), or has no version in common with this node, never reaches a judgement.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::proto::codec::{self, CodecError};
pub use crate::proto::event::Refusal;
use crate::proto::lists::Marks;
use crate::proto::node::{ClusterId, Incarnation, NodeName};

/// Largest greeting, in bytes, without its length prefix.
pub const MAX_GREETING: usize = 1024;
/// Bytes before the greeting itself.
const HEAD: usize = 6;

/// What one side of a link speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The oldest version.
    pub oldest: u8,
    /// The newest version.
    pub newest: u8,
    /// Features, one bit each.
    pub features: u32,
}

impl Offer {
    /// What this node speaks.
    pub const OWN: Self = Self { oldest: 1, newest: 1, features: 0 };

    /// The version and the features that both speak; `None` without a common version.
    pub fn common(self, other: Self) -> Option<(u8, u32)> {
        let version = self.newest.min(other.newest);
        let spoken = version >= self.oldest.max(other.oldest);
        spoken.then_some((version, self.features & other.features))
    }
}

/// Who a node says it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's name; must be the one in its certificate.
    pub name: NodeName,
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Drawn at random at each start: tells two processes with one incarnation apart.
    pub boot: u64,
    /// Where others reach it.
    pub advertise: SocketAddr,
    /// Its signed lists; `None`: it takes none.
    #[serde(skip)]
    pub lists: Option<Marks>,
}

/// One message of the exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// The dialer introduces itself.
    Hello(Hello),
    /// The acceptor agrees and introduces itself.
    Welcome(Hello),
    /// The dialer agrees.
    Confirm,
    /// Either side does not agree; nothing follows.
    Refuse(Refusal),
}

impl Hello {
    /// Checks the hello against what the certificate of its connection proves.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub fn check(&self, certified: &NodeName, cluster: ClusterId) -> Result<(), Refusal> {
        if self.name != *certified {
            return Err(Refusal::Name);
        }
        if self.cluster != cluster {
            return Err(Refusal::Cluster);
        }
        if self.incarnation > Incarnation::LAST {
            return Err(Refusal::Unexpected);
        }
        Ok(())
    }
}

impl Greeting {
    /// The greeting of this program with its length prefix.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] when it would pass the cap.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        self.encode_as(Offer::OWN)
    }

    /// As [`Self::encode`], of a program that speaks this.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_as(&self, offer: Offer) -> Result<Vec<u8>, CodecError> {
        let Offer { oldest, newest, features } = offer;
        let [a, b, c, d] = features.to_be_bytes();
        let lists = self.lists().map_or(Ok(Vec::new()), Marks::encode)?;
        let head = [oldest, newest, a, b, c, d];
        let body = [head.as_slice(), &codec::encode(self)?, &lists].concat();
        let too_long = CodecError::TooLong { length: body.len(), cap: MAX_GREETING };
        let length = u16::try_from(body.len()).ok().filter(|n| usize::from(*n) <= MAX_GREETING);
        Ok([&length.ok_or(too_long)?.to_be_bytes(), body.as_slice()].concat())
    }

    /// The greeting in `bytes`, without the length prefix.
    ///
    /// # Errors
    /// Any [`CodecError`], [`CodecError::Version`] with the newest version of the other side among them; the connection
    /// ends.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let (head, greeting) = bytes.split_first_chunk::<HEAD>().ok_or(CodecError::Malformed)?;
        let [oldest, newest, a, b, c, d] = *head;
        let offer = Offer { oldest, newest, features: u32::from_be_bytes([a, b, c, d]) };
        offer.common(Offer::OWN).ok_or(CodecError::Version(newest))?;
        let (mut greeting, behind) = codec::decode_first::<Self>(greeting, MAX_GREETING - HEAD)?;
        if let Self::Hello(hello) | Self::Welcome(hello) = &mut greeting {
            hello.lists = Marks::decode(behind);
        }
        Ok(greeting)
    }

    fn lists(&self) -> Option<&Marks> {
        match self {
            Self::Hello(hello) | Self::Welcome(hello) => hello.lists.as_ref(),
            Self::Confirm | Self::Refuse(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::lists::{ListKind, Mark};
    use crate::proto::node::KeyId;

    fn hello() -> Hello {
        Hello {
            name: "a@h".parse().expect("valid"),
            cluster: KeyId([7; 16]),
            incarnation: Incarnation(3),
            boot: 9,
            advertise: "127.0.0.1:4697".parse().expect("valid"),
            lists: None,
        }
    }

    #[test]
    fn greetings_round_trip_behind_their_length() {
        let digest = [0xfe; 16];
        let mark = Mark { number: u64::MAX, digest };
        let marks: Marks = ListKind::ALL.iter().map(|kind| (*kind, mark)).collect();
        for greeting in [
            Greeting::Hello(Hello { lists: Some(marks.clone()), ..hello() }),
            Greeting::Welcome(Hello { lists: Some(Marks::default()), ..hello() }),
            Greeting::Welcome(hello()),
            Greeting::Confirm,
            Greeting::Refuse(Refusal::Stale {
                known: Incarnation(8),
                linked: Some(([0xff; 16], 1).into()),
            }),
        ] {
            let bytes = greeting.encode().expect("encodes");
            let (length, body) = bytes.split_at(2);
            assert_eq!(usize::from(u16::from_be_bytes([length[0], length[1]])), body.len());
            assert_eq!(Greeting::decode(body), Ok(greeting));
        }
    }

    #[test]
    fn other_versions_and_long_ones_are_named() {
        assert_eq!(Greeting::decode(&[2, 3, 0, 0, 0, 0, 2]), Err(CodecError::Version(3)));
        let long = vec![1; MAX_GREETING + 2];
        assert!(matches!(Greeting::decode(&long), Err(CodecError::TooLong { .. })));
        let mark = Mark { number: u64::MAX, digest: [0xfe; 16] };
        let longest = Hello {
            name: format!("{}@{}", "n".repeat(63), "h.".repeat(95) + "h").parse().expect("valid"),
            lists: Some(ListKind::ALL.iter().map(|kind| (*kind, mark)).collect()),
            ..hello()
        };
        assert!(Greeting::Hello(longest).encode().is_ok(), "the longest name fits");
    }

    #[test]
    fn a_later_program_is_understood_as_far_as_both_go() {
        let mut later = Greeting::Hello(hello()).encode().expect("encodes").split_off(2);
        later[1] = 9;
        later[2..HEAD].fill(0xff);
        later.extend_from_slice(b"a field of version 9");
        assert_eq!(Greeting::decode(&later), Ok(Greeting::Hello(hello())));
        let offer = |oldest, newest, features| Offer { oldest, newest, features };
        assert_eq!(offer(1, 3, 0b110).common(offer(2, 9, 0b011)), Some((3, 0b010)));
        assert_eq!(offer(2, 9, 0).common(offer(1, 2, 0)), Some((2, 0)));
        assert_eq!(offer(1, 3, 0).common(offer(4, 9, 0)), None);
        assert_eq!(offer(4, 9, 0).common(offer(1, 3, 0)), None);
    }

    #[test]
    fn a_hello_must_match_its_certificate() {
        let (a, b) = ("a@h".parse().expect("valid"), "b@h".parse().expect("valid"));
        assert_eq!(hello().check(&a, KeyId([7; 16])), Ok(()));
        assert_eq!(hello().check(&b, KeyId([7; 16])), Err(Refusal::Name));
        assert_eq!(hello().check(&a, KeyId([8; 16])), Err(Refusal::Cluster));
        let last = Hello { incarnation: Incarnation::LAST, ..hello() };
        assert_eq!(last.check(&a, KeyId([7; 16])), Ok(()));
        let beyond = Hello { incarnation: last.incarnation.next(), ..hello() };
        assert_eq!(beyond.check(&a, KeyId([7; 16])), Err(Refusal::Unexpected));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(20_000))]
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..1100)) {
            let _either = Greeting::decode(&bytes);
        }
    }
}
