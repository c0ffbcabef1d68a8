//! An answer, and what the issuer's own node makes of it: events, counters, its log.

use std::time::SystemTime;

use crate::io::identity::enrol::EnrolError;
use crate::proto::codec::CodecError;
use crate::proto::enrol::{Answer, InvitationId, Issued, Refused, RequestId};
use crate::proto::node::{KeyId, NodeName};

/// By what right a certificate was issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// By this invitation.
    Invitation(InvitationId),
    /// By the certificate before it.
    Renewal,
    /// By a token of the platform that the host runs on.
    Machine,
    /// By the operator's hand.
    Operator,
}

/// What an answer says.
#[derive(Debug)]
pub enum Outcome {
    /// A certificate was issued.
    Issued {
        /// Whose it is.
        name: NodeName,
        /// The id of its key.
        key: KeyId,
        /// Its last valid second.
        until: SystemTime,
        /// By what right.
        means: Means,
    },
    /// The request waits for approval.
    Waiting {
        /// Its id.
        request: RequestId,
        /// The name that it asks for.
        name: NodeName,
        /// The id of its key.
        key: KeyId,
        /// Whether it is the first time that it came.
        is_new: bool,
    },
    /// A spoken invitation has come to its second step.
    Continued,
    /// It was refused.
    Refused(Refused),
    /// The issuer could not judge it: its own operator must act. The asker is told nothing of the reason.
    Failed(EnrolError),
}

/// An answer on its way.
#[derive(Debug)]
pub struct Answered {
    /// The answer, to be carried back.
    pub bytes: Vec<u8>,
    /// What it says.
    pub outcome: Outcome,
}

impl Answered {
    pub(super) fn issued(issued: Issued, outcome: Outcome) -> Self {
        match Answer::Issued(Box::new(issued)).encode() {
            Ok(bytes) => Self { bytes, outcome },
            Err(_too_long) => Self::failed(EnrolError::Answer("it would be too long")),
        }
    }

    /// The answer where there is no certificate.
    pub(super) fn error(error: EnrolError) -> Self {
        let EnrolError::Refused(refused) = error else { return Self::failed(error) };
        Self::of(Answer::Refused(refused.clone()), Outcome::Refused(refused))
    }

    pub(super) fn waiting(request: RequestId, name: NodeName, key: KeyId, is_new: bool) -> Self {
        let answer = Answer::Refused(Refused::Waiting { request });
        Self::of(answer, Outcome::Waiting { request, name, key, is_new })
    }

    /// The issuer's share of a key.
    #[cfg(feature = "gateway")]
    pub(super) fn share(session: [u8; 16], share: Vec<u8>) -> Self {
        Self::of(Answer::SpokenShare { session, share }, Outcome::Continued)
    }

    fn failed(error: EnrolError) -> Self {
        let reason = "its operator finds why in its log".to_owned();
        let refused = Answer::Refused(Refused::CannotIssue { reason });
        Self::of(refused, Outcome::Failed(error))
    }

    fn of(answer: Answer, outcome: Outcome) -> Self {
        // No refusal is too long.
        let bytes = answer.encode().unwrap_or_else(|_: CodecError| Vec::new());
        Self { bytes, outcome }
    }
}
