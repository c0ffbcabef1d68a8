//! The line that invites a host into a cluster: `xpando1:ID.SECRET@HOST:PORT[,HOST:PORT…]#HASH`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use super::mac::MacKey;
use crate::io::identity::IdentityError;
use crate::io::seeds::{Seed, SeedError};
use crate::proto::enrol::{AuthorityHash, InvitationId};

/// What every line begins with.
const PREFIX: &str = "xpando1:";
/// Longest line, in bytes.
const MAX_LINE: usize = 1024;
/// Most addresses in a line.
const MAX_ADDRESSES: usize = 8;

/// An invitation as a person passes it on. Its text has the secret, its `Debug` has not.
pub struct Line {
    id: InvitationId,
    secret: Zeroizing<[u8; 16]>,
    addresses: Vec<Seed>,
    authority: AuthorityHash,
}

/// Why a text is no invitation. Nothing changed; anyone who supplied it must correct it. No text of it has the secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// It is something else.
    #[error("this is no invitation, which begins with {PREFIX:?}")]
    Foreign,
    /// It is of a later version.
    #[error("this invitation was made by a later version of the program: use that version")]
    Later,
    /// It has no end.
    #[error(
        "the invitation is cut off: copy the whole line, and put it in single quotes, because a shell may take '#' for a comment"
    )]
    CutOff,
    /// It is longer than any invitation.
    #[error("the invitation is longer than {MAX_LINE} bytes: copy one line, and nothing else")]
    TooLong,
    /// One of its parts is damaged.
    #[error("the invitation's {0} is damaged: copy the line again")]
    Damaged(&'static str),
    /// An address is none.
    #[error("the invitation's address {0}")]
    Address(SeedError),
    /// It has more addresses than there may be.
    #[error("the invitation has more than {MAX_ADDRESSES} addresses")]
    TooManyAddresses,
}

impl Line {
    /// A line with a new id and a new secret. Of the addresses as many are taken as a line has room for, the first ones.
    pub(super) fn draw(
        addresses: &[Seed],
        authority: AuthorityHash,
    ) -> Result<Self, IdentityError> {
        let (mut id, mut secret) = ([0; 16], Zeroizing::new([0; 16]));
        let drawn = aws_lc_rs::rand::fill(&mut id)
            .and_then(|()| aws_lc_rs::rand::fill(secret.as_mut_slice()));
        drawn.map_err(|_unspecified| IdentityError::Crypto("draw random bytes"))?;
        let addresses = addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        let mut line = Self { id: InvitationId(id), secret, addresses, authority };
        while line.to_string().len() > MAX_LINE && line.addresses.pop().is_some() {}
        Ok(line)
    }

    /// Which invitation it is.
    pub fn id(&self) -> InvitationId {
        self.id
    }

    /// Where nodes of the cluster are, in the order in which to ask them.
    pub fn addresses(&self) -> &[Seed] {
        &self.addresses
    }

    /// An authority of the cluster.
    pub fn authority(&self) -> AuthorityHash {
        self.authority
    }

    /// The key that the secret stands for.
    pub(super) fn key(&self) -> MacKey {
        MacKey::of_secret(self.secret.as_slice())
    }
}

/// So many bytes, in base64url without padding (RFC 4648, 5), written in the one way that there is.
fn read<const N: usize>(text: &str, part: &'static str) -> Result<[u8; N], LineError> {
    let mut bytes = Zeroizing::new([0; N]);
    match URL_SAFE_NO_PAD.decode_slice(text, bytes.as_mut_slice()) {
        Ok(length) if length == N => Ok(*bytes),
        Ok(_) | Err(_) => Err(LineError::Damaged(part)),
    }
}

impl FromStr for Line {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, LineError> {
        let text = text.trim();
        if text.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        let Some(rest) = text.strip_prefix(PREFIX) else {
            let version = text.strip_prefix("xpando").and_then(|rest| rest.split_once(':'));
            let later = version.is_some_and(|(version, _)| version.parse::<u16>().is_ok());
            return Err(if later { LineError::Later } else { LineError::Foreign });
        };
        let (secrets, rest) = rest.split_once('@').ok_or(LineError::CutOff)?;
        let (id, secret) = secrets.split_once('.').ok_or(LineError::Damaged("beginning"))?;
        let (addresses, hash) = rest.split_once('#').ok_or(LineError::CutOff)?;
        if hash.len() < 43 {
            return Err(LineError::CutOff);
        }
        let id = InvitationId(read(id, "id")?);
        let secret = Zeroizing::new(read(secret, "secret")?);
        let authority = AuthorityHash(read(hash, "hash")?);
        let all: Vec<&str> = addresses.split(',').collect();
        if all.len() > MAX_ADDRESSES {
            return Err(LineError::TooManyAddresses);
        }
        let graphic = |text: &&str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if !all.iter().all(graphic) {
            return Err(LineError::Damaged("address"));
        }
        let addresses = all.into_iter().map(str::parse).collect::<Result<_, _>>();
        let addresses = addresses.map_err(LineError::Address)?;
        Ok(Self { id, secret, addresses, authority })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(self.secret.as_slice()));
        write!(f, "{PREFIX}{}.{}@", URL_SAFE_NO_PAD.encode(self.id.0), *secret)?;
        for (at, address) in self.addresses.iter().enumerate() {
            write!(f, "{}{address}", if at == 0 { "" } else { "," })?;
        }
        write!(f, "#{}", URL_SAFE_NO_PAD.encode(self.authority.0))
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, secret: _, addresses, authority } = self;
        f.debug_struct("Line")
            .field("id", &id.to_string())
            .field("addresses", addresses)
            .field("authority", &authority.to_string())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line() -> Line {
        let addresses = ["10.0.0.1:4697", "db.example:4697", "[2001:db8::1]:4697"]
            .map(|address| address.parse::<Seed>().unwrap());
        Line::draw(&addresses, AuthorityHash([7; 32])).unwrap()
    }

    #[test]
    fn a_line_is_read_as_it_was_written_and_its_debug_has_no_secret() {
        let line = line();
        let text = line.to_string();
        assert!(text.starts_with("xpando1:") && text.len() < 200, "{text}");
        let again: Line = format!("  {text}\n").parse().unwrap();
        assert_eq!(again.to_string(), text);
        assert_eq!(
            (again.id(), again.addresses(), again.authority()),
            (line.id(), line.addresses(), line.authority())
        );
        assert_eq!(again.key().bytes(), line.key().bytes());
        let secret = text.split(['.', '@']).nth(1).unwrap();
        let debug = format!("{line:?} {:?}", line.key());
        assert!(!debug.contains(secret), "{debug}");
        let bytes = format!("{:?}", line.secret.as_slice());
        assert!(!debug.contains(&bytes), "{debug}");
    }

    #[test]
    fn a_line_that_is_none_says_what_to_do_and_shows_no_secret() {
        let text = line().to_string();
        let secret = text.split(['.', '@']).nth(1).unwrap();
        let (before, hash) = text.split_once('#').unwrap();
        let many = ["h:1"; MAX_ADDRESSES + 1].join(",");
        for (bad, error) in [
            (String::new(), LineError::Foreign),
            ("https://h".to_owned(), LineError::Foreign),
            (text.replace("xpando1:", "xpando2:"), LineError::Later),
            (before.to_owned(), LineError::CutOff),
            (text[..text.len() - 1].to_owned(), LineError::CutOff),
            (text[..20].to_owned(), LineError::CutOff),
            (format!("{text}x"), LineError::Damaged("hash")),
            (format!("{before}#{hash}{}", "x".repeat(MAX_LINE)), LineError::TooLong),
            (text.replacen('.', "", 1), LineError::Damaged("beginning")),
            (text.replace(secret, &secret[1..]), LineError::Damaged("secret")),
            (text.replace(secret, &format!("{secret}AA")), LineError::Damaged("secret")),
            (text.replace("xpando1:", "xpando1:A"), LineError::Damaged("id")),
            (text.replace("10.0.0.1:4697", &many), LineError::TooManyAddresses),
            (text.replace("10.0.0.1:4697", "h\u{7}:1"), LineError::Damaged("address")),
        ] {
            let found = bad.parse::<Line>().unwrap_err();
            assert_eq!(found, error, "{bad}");
            let shown = format!("{found} {found:?}");
            assert!(secret.len() < 20 || !shown.contains(secret), "{shown}");
        }
        for bad in ["", "h:", "0.0.0.0:1", "h:0", "a b:1"] {
            let bad = text.replace("10.0.0.1:4697", bad);
            assert!(bad.parse::<Line>().is_err(), "{bad}");
        }
        // Base64 has a second way to write the last character of a part.
        let other =
            format!("{before}#{}", hash.replace(char::from(*hash.as_bytes().last().unwrap()), "/"));
        assert!(other.parse::<Line>().is_err());
    }

    #[test]
    fn a_line_has_room_for_some_addresses_of_many_or_long_ones() {
        let long = format!("{}.example:4697", ["x".repeat(60).as_str(); 4].join("."));
        let addresses: Vec<Seed> = (0..20).map(|_| long.parse().unwrap()).collect();
        let line = Line::draw(&addresses, AuthorityHash([7; 32])).unwrap();
        assert!((1..=MAX_ADDRESSES).contains(&line.addresses().len()));
        assert!(line.to_string().parse::<Line>().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_is_a_line_or_none(
            text in ".{0,60}", cut in 0_usize..200, insert in "[ -~]{0,3}"
        ) {
            let sound = line().to_string();
            let at = cut.min(sound.len());
            let changed = format!("{}{insert}{}", &sound[..at], &sound[at..]);
            for text in [text.clone(), format!("{PREFIX}{text}"), changed] {
                if let Ok(line) = text.parse::<Line>() {
                    prop_assert_eq!(line.to_string().parse::<Line>().unwrap().to_string(), line.to_string());
                }
            }
        }
    }
}
