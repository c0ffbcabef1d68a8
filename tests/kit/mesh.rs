//! The nodes of one cluster by number, and what a cut between them may and may not change.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Node, during, linked, now, row};

/// How long a cut is watched for harm to those whom it does not concern.
const CALM: Duration = Duration::from_secs(2);

/// Nodes `n1`, `n2`, … that are all linked.
pub(crate) struct Mesh {
    pub(crate) nodes: Vec<Node>,
}

impl Mesh {
    /// Waits until all these nodes are linked.
    #[track_caller]
    pub(crate) fn form(nodes: Vec<Node>) -> Self {
        let start = now();
        let mesh = Self { nodes };
        for node in &mesh.nodes {
            node.listen(); // many on few cores need their time to start
        }
        mesh.linked();
        eprintln!("{} nodes: a full mesh after {:?}", mesh.nodes.len(), start.elapsed());
        mesh
    }

    pub(crate) fn on(&self, number: usize) -> &Node {
        &self.nodes[number - 1]
    }

    #[track_caller]
    pub(crate) fn linked(&self) {
        linked(&self.nodes.iter().collect::<Vec<_>>());
    }

    /// Every pair of nodes, in both orders.
    pub(crate) fn every_pair(&self) -> Vec<(usize, usize)> {
        self.pairs(|_, _| true)
    }

    /// Every pair of nodes, in both orders, of which this holds.
    pub(crate) fn pairs(&self, of: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
        let numbers = 1..=self.nodes.len();
        let pairs = numbers.clone().flat_map(|a| numbers.clone().map(move |b| (a, b)));
        pairs.filter(|(a, b)| a != b && of(*a, *b)).collect()
    }

    /// The sum of a counter over all nodes.
    pub(crate) fn count(&self, name: &str, kind: &str) -> u64 {
        self.nodes.iter().map(|node| node.counter(name, kind)).sum()
    }

    /// Where each first node stands with the second: the same values mean that nothing happened in
    /// between.
    #[track_caller]
    pub(crate) fn standings(&self, pairs: &[(usize, usize)]) -> Vec<Value> {
        let views: Vec<Value> = self.nodes.iter().map(|node| node.status().unwrap()).collect();
        let standing = |(of, with): &(usize, usize)| {
            let row = row(&views[of - 1], &self.on(*with).name).cloned().unwrap_or_default();
            json!([row["name"], row["status"], row["reason"], row["incarnation"], row["since"]])
        };
        pairs.iter().map(standing).collect()
    }

    /// The processes and their lives.
    #[track_caller]
    pub(crate) fn lives(&self) -> Vec<(u32, Value)> {
        let life = |node: &Node| (node.pid(), node.status().unwrap()["incarnation"].clone());
        self.nodes.iter().map(life).collect()
    }

    /// No peer was taken for offline and no link ended, on any node, since it started.
    #[track_caller]
    pub(crate) fn is_unharmed(&self) {
        for node in &self.nodes {
            assert_eq!(node.count_logged("peer_offline", &[]), 0, "{}", node.name);
            assert_eq!(node.total("xpando_links_ended_total"), 0, "{}", node.name);
        }
    }

    /// Cuts, until exactly the pairs that `concerned` names are unreachable for each other; does
    /// what `then` wants to see; heals, until the mesh is full. Nobody restarts, and for all other
    /// pairs nothing happens.
    #[track_caller]
    pub(crate) fn mends(
        &self,
        what: &str,
        concerned: impl Fn(usize, usize) -> bool,
        [cut, heal]: [&dyn Fn(); 2],
        then: impl FnOnce(),
    ) {
        let [apart, kept] = [true, false].map(|cut| self.pairs(|a, b| concerned(a, b) == cut));
        let (lives, before) = (self.lives(), self.standings(&kept));
        let start = now();
        cut();
        for (number, node) in (1..).zip(&self.nodes) {
            let lost: Vec<_> = apart.iter().filter(|pair| pair.0 == number).collect();
            node.shows(&format!("unreachable peers ({what})"), |status| {
                lost.iter().all(|(_, with)| {
                    let row = row(status, &self.on(*with).name);
                    row.is_some_and(|r| r["status"] == "offline" && r["reason"] == "unreachable")
                })
            });
        }
        let lost = start.elapsed();
        let silence = self.standings(&apart);
        during(CALM, || {
            assert_eq!(self.standings(&kept), before, "{what}: who is not concerned stays linked");
            assert_eq!(self.standings(&apart), silence, "{what}: who is cut off stays so");
        });
        then();
        let start = now();
        heal();
        self.linked();
        eprintln!("{what}: unreachable after {lost:?}, healed after {:?}", start.elapsed());
        assert_eq!(self.lives(), lives, "{what}: nobody restarted");
        assert_eq!(self.standings(&kept), before, "{what}: who was not concerned kept its links");
    }
}

/// Every way to split so many nodes in two, as the numbers of one half: the one without the last.
pub(crate) fn halves(count: usize) -> Vec<Vec<usize>> {
    let chosen = |mask: usize| (1..count).filter(|n| mask >> (n - 1) & 1 == 1).collect();
    (1..1 << (count - 1)).map(chosen).collect()
}
