//! Whether a node sees most of the cluster it knows.

use serde::{Deserialize, Serialize};

use crate::proto::event::{Reason, Status};
use crate::proto::membership::PeerView;
use crate::proto::node::NodeName;

/// How much of the known cluster a node is linked with.
///
/// Every node that was ever known and has not left counts, dead or alive: of two halves that cannot
/// see each other at most one is the majority. An even split has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Majority {
    /// True when more than half of the known nodes are here.
    pub held: bool,
    /// This node, and those it is linked with.
    pub here: usize,
    /// All known nodes, this one among them.
    pub known: usize,
    /// Those that are not here, by name.
    pub missing: Vec<NodeName>,
}

impl Majority {
    /// What a node with these peers sees.
    pub(crate) fn of<'a>(peers: impl Iterator<Item = &'a PeerView>) -> Self {
        let members = peers.filter(|peer| peer.reason != Some(Reason::Left));
        let (here, missing): (Vec<_>, Vec<_>) =
            members.partition(|peer| peer.status == Status::Online);
        let (here, known) = (here.len() + 1, here.len() + missing.len() + 1);
        let missing = missing.into_iter().map(|peer| peer.name.clone()).collect();
        Self { held: here * 2 > known, here, known, missing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::node::Incarnation;
    use crate::proto::tests::start;

    fn peer(name: &str, status: Status, reason: Option<Reason>) -> PeerView {
        PeerView {
            name: name.parse().expect("valid"),
            address: None,
            status,
            reason,
            cause: None,
            incarnation: Incarnation(1),
            since: start(),
        }
    }

    #[test]
    fn more_than_half_is_a_majority_and_who_left_does_not_count() {
        let online = |name| peer(name, Status::Online, None);
        let gone = |name| peer(name, Status::Offline, Some(Reason::Unreachable));
        let left = peer("z@h", Status::Offline, Some(Reason::Left));
        let held = |peers: &[PeerView]| {
            let majority = Majority::of(peers.iter());
            (majority.held, majority.here, majority.known)
        };
        assert_eq!(held(&[]), (true, 1, 1), "alone and knowing nobody");
        assert_eq!(held(&[gone("b@h")]), (false, 1, 2), "an even split has none");
        assert_eq!(held(&[online("b@h"), gone("c@h")]), (true, 2, 3));
        assert_eq!(held(&[online("b@h"), gone("c@h"), gone("d@h")]), (false, 2, 4));
        assert_eq!(held(&[left]), (true, 1, 1));
        let joining = peer("c@h", Status::Syncing, None);
        let majority = Majority::of([online("b@h"), joining, gone("d@h")].iter());
        let missing: Vec<&str> = majority.missing.iter().map(NodeName::as_str).collect();
        assert_eq!((majority.held, missing), (false, vec!["c@h", "d@h"]));
    }
}
