//! What a client's token says, and what its bearer may do.
//!
//! Owns the claims (JWT, RFC 7519, 4.1) of the tokens that clients of a node show, and the rules of who may
//! join which topic and push to it. Invariants:
//!
//! 1. [`Claims`] that were read are sound: `Claims::check` holds for them.
//! 2. No token lives longer than [`MAX_LIFETIME`], so what is revoked for so long is revoked for good.
//! 3. Grants only narrow what the role allows; a user never comes to the nodes' own topics.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString};

use crate::proto::codec;
use crate::proto::topic::{Pattern, Topic, TopicError};

pub mod mapping;

/// For whom every token is: the claim `aud`.
pub const AUDIENCE: &str = "xpando";
/// Longest `sub`, in bytes.
pub(crate) const MAX_SUBJECT: usize = 255;
/// Longest `jti`, in bytes.
pub const MAX_ID: usize = 64;
/// Most grants of one token.
pub(crate) const MAX_GRANTS: usize = 64;
/// Between `iat` and `exp`, at most: 366 days.
pub const MAX_LIFETIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The last second of the year 9999: no time of a token is later.
const LAST: u64 = 253_402_300_799;

/// Below these are the nodes' own topics.
const OF_NODES: [&str; 2] = ["network:", "node:"];

/// Who the bearer of a token is to a node.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Display,
    EnumString,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", parse_err_ty = ClaimsError, parse_err_fn = no_role)]
pub enum Role {
    /// Somebody's program: every topic but the nodes' own.
    User,
    /// Looks after the nodes: every topic.
    NodeOperator,
    /// Every topic, and may change the cluster.
    Admin,
}

/// Why a text is not a role, a grant or claims. Nothing changed; anyone who supplied it must correct it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimsError {
    /// Not the name of a role.
    #[error("{0:?} is no role: user, node_operator or admin is expected")]
    Role(String),
    /// What stands behind the last `=` of a grant.
    #[error("{0:?} is nothing to grant: join, push or join+push is expected")]
    Verbs(String),
    /// What stands before it.
    #[error("a grant names a topic or a pattern, such as room:1 or room:*: {0}")]
    Pattern(TopicError),
    /// The claim `sub`.
    #[error("a subject has 1 to {MAX_SUBJECT} bytes without control characters")]
    Subject,
    /// The claim `jti`.
    #[error("a token's id has 1 to {MAX_ID} printable ASCII characters without spaces")]
    Id,
    /// The claim `topics`.
    #[error("a token has at most {MAX_GRANTS} grants")]
    Grants,
    /// The claims `iat` and `exp`.
    #[error("a token expires after it was made, within {} days", MAX_LIFETIME.as_secs() / 86_400)]
    Lifetime,
}

fn no_role(text: &str) -> ClaimsError {
    ClaimsError::Role(text.to_owned())
}

/// What can be done with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Hear what is said there.
    Join,
    /// Say something there.
    Push,
}

/// One or both of the verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verbs {
    /// Only join.
    Join,
    /// Only push.
    Push,
    /// Both.
    Both,
}

impl Verbs {
    /// True when `verb` is among them.
    #[must_use]
    pub fn has(self, verb: Verb) -> bool {
        match self {
            Self::Both => true,
            Self::Join => verb == Verb::Join,
            Self::Push => verb == Verb::Push,
        }
    }
}

/// Some topics, and what may be done with them: `room:*` is both verbs, `room:lobby=join` one.
///
/// What stands behind the last `=` are the verbs, so the grant of a topic with a `=` in its name always
/// spells them: `a=b=join+push`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Grant {
    /// Which topics.
    pub pattern: Pattern,
    /// What may be done with them.
    pub verbs: Verbs,
}

codec::as_text!(Grant);

impl Grant {
    /// True when it lets `verb` be done with `topic`.
    #[must_use]
    pub fn allows(&self, verb: Verb, topic: &Topic) -> bool {
        self.verbs.has(verb) && self.pattern.covers(topic)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = self.pattern.to_string();
        match self.verbs {
            Verbs::Join => write!(f, "{pattern}=join"),
            Verbs::Push => write!(f, "{pattern}=push"),
            Verbs::Both if pattern.contains('=') => write!(f, "{pattern}=join+push"),
            Verbs::Both => f.write_str(&pattern),
        }
    }
}

impl FromStr for Grant {
    type Err = ClaimsError;

    fn from_str(text: &str) -> Result<Self, ClaimsError> {
        let (pattern, verbs) = match text.rsplit_once('=') {
            None => (text, Verbs::Both),
            Some((pattern, "join")) => (pattern, Verbs::Join),
            Some((pattern, "push")) => (pattern, Verbs::Push),
            Some((pattern, "join+push" | "push+join")) => (pattern, Verbs::Both),
            Some((_, other)) => return Err(ClaimsError::Verbs(other.to_owned())),
        };
        Ok(Self { pattern: pattern.parse().map_err(ClaimsError::Pattern)?, verbs })
    }
}

/// What a token says. Times are whole seconds since 1970; fractions that were read are cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
#[non_exhaustive]
pub struct Claims {
    /// Who has made it: the cluster's id as text.
    pub iss: String,
    /// For whom: [`AUDIENCE`].
    pub aud: String,
    /// Whose it is.
    pub sub: String,
    /// Its own id, by which it is revoked.
    pub jti: String,
    /// When it was made.
    pub iat: u64,
    /// From when on it counts no more.
    pub exp: u64,
    /// Who the bearer is.
    pub role: Role,
    /// What the bearer may do; empty is all that the role allows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<Grant>,
}

/// A time of a token as it is read: seconds since 1970, perhaps with a fraction (RFC 7519, 2, "NumericDate").
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum NumericDate {
    /// Whole seconds.
    Whole(u64),
    /// With a fraction, or written with one.
    Fraction(f64),
}

impl NumericDate {
    /// The whole second that it is in, or with `up` the first whole second that is not before it. `None` for a time
    /// before 1970 or after the year 9999.
    pub fn seconds(self, up: bool) -> Option<u64> {
        let seconds = match self {
            Self::Whole(seconds) => return Some(seconds).filter(|seconds| *seconds <= LAST),
            Self::Fraction(seconds) if up => seconds.ceil(),
            Self::Fraction(seconds) => seconds.floor(),
        };
        let representable = (0.0..=LAST as f64).contains(&seconds);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number from 0 to the last second of the year 9999"
        )]
        representable.then_some(seconds as u64)
    }
}

/// For whom a token is, as it is read: one name or a list of them (RFC 7519, 4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// Claims as they are read.
#[derive(Deserialize)]
struct Unchecked {
    iss: String,
    aud: Audience,
    sub: String,
    jti: String,
    iat: NumericDate,
    exp: NumericDate,
    role: Role,
    #[serde(default)]
    topics: Vec<Grant>,
}

impl TryFrom<Unchecked> for Claims {
    type Error = ClaimsError;

    fn try_from(read: Unchecked) -> Result<Self, ClaimsError> {
        let Unchecked { iss, aud, sub, jti, iat, exp, role, topics } = read;
        let aud = match aud {
            Audience::One(one) => one,
            // Ours if it is among them.
            Audience::Many(many) => many
                .into_iter()
                .reduce(|first, next| if next == AUDIENCE { next } else { first })
                .unwrap_or_default(),
        };
        // Downwards: a token never counts for longer than it claims.
        let whole = |time: NumericDate| time.seconds(false).ok_or(ClaimsError::Lifetime);
        let (iat, exp) = (whole(iat)?, whole(exp)?);
        let claims = Self { iss, aud, sub, jti, iat, exp, role, topics };
        claims.check().map(|()| claims)
    }
}

/// The public half of an Ed25519 key that signs tokens (RFC 8032, 5.1.5), by which that key is known. People see its first
/// 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKeyId(pub [u8; 32]);

impl fmt::Display for TokenKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(8).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Refuses what no token has as its id: 1 to [`MAX_ID`] printable ASCII characters without spaces.
///
/// # Errors
/// [`ClaimsError::Id`].
pub fn check_id(jti: &str) -> Result<(), ClaimsError> {
    let plain = jti.bytes().all(|byte| byte.is_ascii_graphic());
    if (1..=MAX_ID).contains(&jti.len()) && plain { Ok(()) } else { Err(ClaimsError::Id) }
}

impl Claims {
    /// Refuses claims that no token may have. Says nothing about who made them, for whom, and when.
    ///
    /// # Errors
    /// [`ClaimsError::Subject`], [`ClaimsError::Id`], [`ClaimsError::Grants`] or
    /// [`ClaimsError::Lifetime`].
    pub(crate) fn check(&self) -> Result<(), ClaimsError> {
        let named = (1..=MAX_SUBJECT).contains(&self.sub.len());
        if !named || self.sub.chars().any(char::is_control) {
            return Err(ClaimsError::Subject);
        }
        check_id(&self.jti)?;
        if self.topics.len() > MAX_GRANTS {
            return Err(ClaimsError::Grants);
        }
        let lifetime = self.exp.checked_sub(self.iat);
        let sound = |seconds| (1..=MAX_LIFETIME.as_secs()).contains(&seconds);
        if !lifetime.is_some_and(sound) || self.exp > LAST {
            return Err(ClaimsError::Lifetime);
        }
        Ok(())
    }

    /// True when the bearer may do this: the role allows it, and so does a grant unless there is none.
    #[must_use]
    pub fn allows(&self, verb: Verb, topic: &Topic) -> bool {
        let base = match self.role {
            Role::User => !OF_NODES.iter().any(|prefix| topic.as_str().starts_with(prefix)),
            Role::NodeOperator | Role::Admin => true,
        };
        let granted = self.topics.is_empty() || self.topics.iter().any(|g| g.allows(verb, topic));
        base && granted
    }

    /// True when the bearer may change the cluster: an admin whose token is not narrowed. Grants that cover everything narrow
    /// nothing; any other ones say that the token is for topics, and what changes the cluster is on none.
    #[cfg_attr(
        not(feature = "gateway"),
        allow(dead_code, reason = "a gateway alone changes it so")
    )]
    pub(crate) fn may_change(&self) -> bool {
        let all = |grant: &Grant| match &grant.pattern {
            Pattern::Below(prefix) => prefix.is_empty() && grant.verbs == Verbs::Both,
            Pattern::Topic(_) => false,
        };
        self.role == Role::Admin && (self.topics.is_empty() || self.topics.iter().any(all))
    }

    /// The instant from which on the token counts no more.
    pub fn expires(&self) -> SystemTime {
        // An instant that the system cannot tell is none of sound claims.
        UNIX_EPOCH.checked_add(Duration::from_secs(self.exp)).unwrap_or(UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claims(role: Role, grants: &[&str]) -> Claims {
        let topics = grants.iter().map(|grant| grant.parse().expect(grant)).collect();
        let (iss, aud) = ("c".to_owned(), AUDIENCE.to_owned());
        let (sub, jti) = ("alice".to_owned(), "1".to_owned());
        Claims { iss, aud, sub, jti, iat: 100, exp: 200, role, topics }
    }

    fn topic(text: &str) -> Topic {
        text.parse().expect(text)
    }

    /// Who may do what: (role, grants, topic, join, push).
    #[test]
    fn a_role_and_a_grant_allow() {
        use Role::{Admin, NodeOperator, User};
        let table: &[(Role, &[&str], &str, bool, bool)] = &[
            (User, &[], "room:1", true, true),
            (User, &[], "network", true, true),
            (User, &[], "nodes:1", true, true),
            (User, &[], "network:peers", false, false),
            (User, &[], "node:heartbeat", false, false),
            (NodeOperator, &[], "network:peers", true, true),
            (Admin, &[], "node:x", true, true),
            // Grants narrow, whatever the role.
            (User, &["room:*"], "room:1", true, true),
            (User, &["room:*"], "room:a:b", true, true),
            (User, &["room:*"], "room", false, false),
            (User, &["room:*"], "rooms:1", false, false),
            (User, &["room:1"], "room:1", true, true),
            (User, &["room:1"], "room:11", false, false),
            (User, &["room:lobby=join"], "room:lobby", true, false),
            (User, &["room:lobby=push"], "room:lobby", false, true),
            (User, &["room:lobby=join+push"], "room:lobby", true, true),
            (User, &["room:*=join", "room:1=push"], "room:1", true, true),
            (User, &["room:*=join", "room:1=push"], "room:2", true, false),
            (User, &["*"], "room:1", true, true),
            // And never widen.
            (User, &["*"], "network:peers", false, false),
            (User, &["node:heartbeat"], "node:heartbeat", false, false),
            (NodeOperator, &["room:*"], "network:peers", false, false),
            (NodeOperator, &["network:*=join"], "network:peers", true, false),
            (Admin, &["room:*=join"], "room:1", true, false),
            (Admin, &["room:*"], "chat:1", false, false),
        ];
        for (role, grants, on, join, push) in table {
            let claims = claims(*role, grants);
            let found = [Verb::Join, Verb::Push].map(|verb| claims.allows(verb, &topic(on)));
            assert_eq!(found, [*join, *push], "{role} {grants:?} on {on}");
        }
    }

    #[test]
    fn an_admin_changes_the_cluster_unless_narrowed() {
        use Role::{Admin, NodeOperator, User};
        let table: &[(Role, &[&str], bool)] = &[
            (Admin, &[], true),
            (Admin, &["*"], true),
            (Admin, &["room:1", "*=join+push"], true),
            (Admin, &["*=join"], false),
            (Admin, &["*=push"], false),
            (Admin, &["*=join", "*=push"], false),
            (Admin, &["room:*"], false),
            (Admin, &["network:*", "node:*"], false),
            (Admin, &["network:updates"], false),
            (NodeOperator, &[], false),
            (NodeOperator, &["*"], false),
            (User, &[], false),
            (User, &["*"], false),
        ];
        for (role, grants, may) in table {
            assert_eq!(claims(*role, grants).may_change(), *may, "{role} {grants:?}");
        }
    }

    #[test]
    fn roles_have_one_spelling() {
        for text in ["user", "node_operator", "admin"] {
            let role: Role = text.parse().expect(text);
            assert_eq!(role.to_string(), text);
        }
        for bad in ["", "User", "root", "node-operator"] {
            assert_eq!(bad.parse::<Role>(), Err(ClaimsError::Role(bad.to_owned())));
        }
    }

    #[test]
    fn grants_have_a_text() {
        for (text, shown) in [
            ("room:*", "room:*"),
            ("room:lobby=join", "room:lobby=join"),
            ("*=push", "*=push"),
            ("room:x=join+push", "room:x"),
            ("room:x=push+join", "room:x"),
            ("a=b=join+push", "a=b=join+push"),
            ("a=join=push", "a=join=push"),
        ] {
            let grant: Grant = text.parse().expect(text);
            assert_eq!(grant.to_string(), shown);
            assert_eq!(shown.parse(), Ok(grant));
        }
        for bad in ["", "=join", "room*", "room:1=", "room:1=leave", "room:1=join+", "a=b", "x y"] {
            assert!(bad.parse::<Grant>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn claims_are_bounded() {
        let sound = claims(Role::User, &[]);
        assert_eq!(sound.check(), Ok(()));
        let changed = |change: &dyn Fn(&mut Claims)| {
            let mut claims = sound.clone();
            change(&mut claims);
            let Claims { iss, aud, sub, jti, iat, exp, role, topics } = claims.clone();
            let (aud, iat, exp) =
                (Audience::One(aud), NumericDate::Whole(iat), NumericDate::Whole(exp));
            let read = Claims::try_from(Unchecked { iss, aud, sub, jti, iat, exp, role, topics });
            assert_eq!(read, claims.check().map(|()| claims.clone()), "what is read is checked");
            claims.check()
        };
        let sub = |text: String| changed(&|claims| claims.sub.clone_from(&text));
        assert_eq!((sub("ä b".to_owned()), sub("x".repeat(255))), (Ok(()), Ok(())));
        for bad in [String::new(), "x".repeat(256), "a\nb".to_owned(), "\u{7f}".to_owned()] {
            assert_eq!(sub(bad), Err(ClaimsError::Subject));
        }
        let jti = |text: String| changed(&|claims| claims.jti.clone_from(&text));
        assert_eq!((jti("~!a".to_owned()), jti("x".repeat(64))), (Ok(()), Ok(())));
        for bad in [String::new(), "x".repeat(65), "a b".to_owned(), "ä".to_owned()] {
            assert_eq!(jti(bad), Err(ClaimsError::Id));
        }
        let grant: Grant = "room:*".parse().expect("a grant");
        let grants = |many| changed(&|claims| claims.topics = vec![grant.clone(); many]);
        assert_eq!((grants(64), grants(65)), (Ok(()), Err(ClaimsError::Grants)));
        let times = |iat, exp| changed(&|claims| (claims.iat, claims.exp) = (iat, exp));
        let most = MAX_LIFETIME.as_secs();
        assert_eq!((times(5, 6), times(5, 5 + most)), (Ok(()), Ok(())));
        assert_eq!(times(LAST - 1, LAST), Ok(()));
        for (iat, exp) in
            [(5, 5), (6, 5), (5, 6 + most), (LAST, LAST + 1), (u64::MAX - 1, u64::MAX)]
        {
            assert_eq!(times(iat, exp), Err(ClaimsError::Lifetime), "{iat} {exp}");
        }
    }

    #[test]
    fn audience_and_times_have_the_types_of_the_standard() {
        let read = |aud: &str, iat: &str, exp: &str| {
            let text = format!(
                r#"{{"iss":"c","aud":{aud},"sub":"a","jti":"1","iat":{iat},"exp":{exp},"role":"user"}}"#
            );
            serde_json::from_str(&text).map(|claims: Claims| (claims.aud, claims.iat, claims.exp))
        };
        let ours = |iat, exp| (AUDIENCE.to_owned(), iat, exp);
        let one = "\"xpando\"";
        assert_eq!(read(one, "100", "200").ok(), Some(ours(100, 200)));
        for list in [r#"["xpando"]"#, r#"["a","xpando","b"]"#, r#"["xpando","a"]"#] {
            assert_eq!(read(list, "100", "200").ok(), Some(ours(100, 200)), "{list}");
        }
        for list in ["[]", r#"["a","b"]"#] {
            assert_ne!(read(list, "100", "200").expect("sound").0, AUDIENCE, "{list}");
        }
        assert_eq!(read(one, "100.9", "200.9").ok(), Some(ours(100, 200)), "cut off");
        assert_eq!(read(one, "1e2", "2.0e2").ok(), Some(ours(100, 200)));
        for (iat, exp) in [
            ("-1", "200"),
            ("-0.5", "200"),
            ("100.2", "100.9"),
            ("1e300", "2e300"),
            ("100", "1e300"),
            ("\"100\"", "200"),
            ("100", "null"),
        ] {
            assert!(read(one, iat, exp).is_err(), "{iat} {exp}");
        }
        assert!(read("7", "100", "200").is_err() && read("[7]", "100", "200").is_err());
        let up = |time: f64| NumericDate::Fraction(time).seconds(true);
        assert_eq!((up(0.1), up(7.0), up(-0.5), up(f64::NAN)), (Some(1), Some(7), Some(0), None));
    }

    #[test]
    fn the_end_is_an_instant_whatever_is_claimed() {
        let mut claims = claims(Role::User, &[]);
        assert_eq!(claims.expires(), UNIX_EPOCH + Duration::from_secs(200));
        claims.exp = u64::MAX;
        assert_eq!(claims.expires(), UNIX_EPOCH, "unsound claims have ended");
    }

    proptest! {
        #[test]
        fn a_grant_survives_its_text(
            name in "[a-z=+:*]{1,12}",
            verbs in prop_oneof![Just(Verbs::Join), Just(Verbs::Push), Just(Verbs::Both)],
        ) {
            if let Ok(pattern) = name.parse() {
                let grant = Grant { pattern, verbs };
                prop_assert_eq!(grant.to_string().parse::<Grant>(), Ok(grant));
            }
        }

        #[test]
        fn any_text_is_a_grant_or_not(text in "\\PC{0,300}") {
            if let Ok(grant) = text.parse::<Grant>() {
                prop_assert_eq!(grant.to_string().parse::<Grant>(), Ok(grant));
            }
        }
    }
}
