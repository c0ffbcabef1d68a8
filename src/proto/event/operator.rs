//! Who had something done to a node, and over which node.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::proto::node::NodeName;

/// Longest text of an operator, in bytes: the longest subject of a token fits.
pub(crate) const MAX_OPERATOR: usize = 264;

/// Who asked for something: `token:SUBJECT` over HTTP, `uid:NUMBER`, a user of the node's machine, over the admin socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Operator(String);

/// A text is no operator: it has no or too many bytes, or control characters. The sender is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an operator has 1 to {MAX_OPERATOR} bytes without control characters")]
pub struct OperatorError;

impl Operator {
    /// A user of the node's machine.
    pub fn local(uid: u32) -> Self {
        Self(format!("uid:{uid}"))
    }

    /// The subject of a token, which has at most 255 bytes without control characters.
    ///
    /// # Errors
    /// [`OperatorError`]: it has not.
    pub fn token(subject: &str) -> Result<Self, OperatorError> {
        Self::try_from(format!("token:{subject}"))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Operator {
    type Error = OperatorError;

    fn try_from(text: String) -> Result<Self, OperatorError> {
        let sound = (1..=MAX_OPERATOR).contains(&text.len()) && !text.chars().any(char::is_control);
        sound.then_some(Self(text)).ok_or(OperatorError)
    }
}

impl From<Operator> for String {
    fn from(operator: Operator) -> Self {
        operator.0
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The node that did something to another one, and who asked it to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Author {
    /// The node.
    pub by: NodeName,
    /// Who asked it.
    pub operator: Operator,
}

impl Author {
    /// That node, asked by that operator.
    pub fn new(by: NodeName, operator: Operator) -> Self {
        Self { by, operator }
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by {}, asked by {}", self.by, self.operator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec::{self, CodecError};

    #[test]
    fn an_operator_has_bounds_also_where_it_is_read() {
        let longest = format!("token:{}", "x".repeat(255));
        for good in ["uid:0", "token:é b", &longest] {
            let operator = Operator::try_from(good.to_owned()).expect(good);
            let bytes = codec::encode(&operator).expect("encodes");
            assert_eq!(codec::decode(&bytes, 1024), Ok(operator));
        }
        assert_eq!(Operator::token(&longest["token:".len()..]).map(String::from), Ok(longest));
        for bad in ["", "token:a\u{1b}[2J", &"x".repeat(MAX_OPERATOR + 1)] {
            assert_eq!(Operator::try_from(bad.to_owned()), Err(OperatorError), "{bad:?}");
            let forged = codec::encode(&bad.to_owned()).expect("encodes");
            assert_eq!(codec::decode::<Operator>(&forged, 1024), Err(CodecError::Malformed));
        }
    }
}
