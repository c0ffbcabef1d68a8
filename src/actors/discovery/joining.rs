//! What became of each `--join`: looked up, dialed, linked, or why not.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use crate::io::seeds::Seed;
use crate::proto::event::Status;
use crate::proto::membership::{JoinView, PeerView, usable};
use crate::proto::node::NodeName;

/// A `--join` and what its last look-up found.
#[derive(Clone, Debug)]
pub(super) struct LookUp {
    pub(super) seed: Seed,
    /// When, and the addresses or what the resolver says.
    pub(super) found: Option<(Instant, Result<Vec<SocketAddr>, String>)>,
}

/// One `--join`, and one address behind it where there are some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedRow {
    /// As it was given.
    pub seed: String,
    /// Where that leads.
    pub address: Option<SocketAddr>,
    /// Who showed a certificate there last.
    pub node: Option<NodeName>,
    /// That node is linked.
    pub linked: bool,
    /// When it was looked up or dialed last.
    pub tried: Option<Instant>,
    /// What went wrong then.
    pub error: Option<String>,
}

/// A row for each address of each seed, and for each seed without one.
pub(super) fn rows(
    lookups: &[LookUp],
    join: &JoinView,
    peers: &[PeerView],
    me: &NodeName,
) -> Vec<SeedRow> {
    let row = |lookup: &LookUp| SeedRow {
        seed: lookup.seed.to_string(),
        address: None,
        node: None,
        linked: false,
        tried: None,
        error: None,
    };
    let mut rows = Vec::new();
    for lookup in lookups {
        match &lookup.found {
            None => rows.push(row(lookup)),
            Some((at, Err(why))) => {
                let error = Some(format!("cannot be looked up: {why}"));
                rows.push(SeedRow { tried: Some(*at), error, ..row(lookup) });
            }
            Some((_, Ok(addresses))) => rows
                .extend(addresses.iter().map(|address| at(row(lookup), *address, join, peers, me))),
        }
    }
    rows
}

fn at(
    row: SeedRow,
    address: SocketAddr,
    join: &JoinView,
    peers: &[PeerView],
    me: &NodeName,
) -> SeedRow {
    let row = SeedRow { address: Some(address), ..row };
    if !usable(address) {
        return SeedRow {
            error: Some("nobody can be dialed at such an address".to_owned()),
            ..row
        };
    }
    let Some(seed) = join.seeds.iter().find(|seed| seed.address == address) else { return row };
    let node = seed.node.clone();
    let peer = peers.iter().find(|peer| Some(&peer.name) == node.as_ref());
    let linked = peer.is_some_and(|peer| peer.status == Status::Online);
    let error = match &seed.failure {
        Some(failure) => Some(failure.to_string()),
        None if node.as_ref() == Some(me) => Some("it is this node itself".to_owned()),
        None => peer.filter(|_| !linked).and_then(|peer| peer.cause.clone()),
    };
    SeedRow { node, linked, tried: seed.tried, error, ..row }
}

/// `SEED (ADDRESS): what came of it`, for the log.
impl fmt::Display for SeedRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        if let Some(address) = self.address.filter(|address| address.to_string() != self.seed) {
            write!(f, " ({address})")?;
        }
        match &self.error {
            Some(error) => write!(f, ": {error}"),
            None => f.write_str(": no answer yet"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::membership::{Failure, SeedView};
    use crate::proto::node::Incarnation;
    use crate::proto::tests::start;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn each_seed_has_the_last_thing_that_went_wrong() {
        let (now, me) = (start(), "a@h".parse().expect("valid"));
        let lookup = |seed: &str, found| LookUp {
            seed: seed.parse().expect("valid"),
            found: Some((now, found)),
        };
        let lookups = [
            lookup("db.example:1", Err("no such host".to_owned())),
            lookup("two.example:2", Ok(vec![address("10.0.0.2:2"), address("[::]:2")])),
            lookup("10.0.0.3:3", Ok(vec![address("10.0.0.3:3")])),
            lookup("10.0.0.4:4", Ok(vec![address("10.0.0.4:4")])),
            LookUp { seed: "later.example:5".parse().expect("valid"), found: None },
        ];
        let node: NodeName = "b@h".parse().expect("valid");
        let seed = |at: &str, node: Option<&NodeName>, failure| SeedView {
            address: address(at),
            node: node.cloned(),
            tried: Some(now),
            failure,
        };
        let seeds = vec![
            seed("10.0.0.2:2", None, Some(Failure::Refused)),
            seed("10.0.0.3:3", Some(&node), None),
            seed("10.0.0.4:4", Some(&me), None),
        ];
        let mut peer = PeerView {
            name: node.clone(),
            address: None,
            status: Status::Offline,
            reason: None,
            cause: Some("not heard for too long".to_owned()),
            incarnation: Incarnation(1),
            since: now,
        };
        let join = JoinView { seeds, namesake: None };
        let found = rows(&lookups, &join, std::slice::from_ref(&peer), &me);
        let told: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "db.example:1: cannot be looked up: no such host",
                "two.example:2 (10.0.0.2:2): connection refused",
                "two.example:2 ([::]:2): nobody can be dialed at such an address",
                "10.0.0.3:3: not heard for too long",
                "10.0.0.4:4: it is this node itself",
                "later.example:5: no answer yet",
            ]
        );
        (peer.status, peer.cause) = (Status::Online, None);
        let found = rows(&lookups[2..3], &join, &[peer], &me);
        assert!(found[0].linked && found[0].error.is_none() && found[0].node == Some(node));
    }
}
