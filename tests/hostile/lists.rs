//! A member that offers lists which the authority has not signed, has signed long ago, or signed for others.

use sha2::{Digest as _, Sha256};
use xpando_node::internals::proto::frame::Lane;
use xpando_node::internals::proto::lists::{ListKind, MAX_LIST, Mark, PART, Word};

use crate::harm::Scene;
use crate::kit::{Cluster, Node, full};
use crate::member::Tie;

/// Later than whatever is in force.
const LATER: Mark = Mark { number: u64::MAX, digest: [9; 16] };

impl Tie {
    fn word(&mut self, word: &Word<'_>) {
        self.piece(Lane::Lists, &word.encode().unwrap());
    }

    /// Sends a list under this mark.
    fn offer(&mut self, kind: ListKind, mark: Mark, bytes: &[u8]) {
        self.word(&Word::begin(kind, mark, bytes.len()));
        bytes.chunks(PART).for_each(|part| self.word(&Word::More(part)));
    }
}

fn revoke(cluster: &Cluster, name: &str) -> Vec<u8> {
    let certs = cluster.certs();
    cluster.issue(name);
    cluster.print(&["cert", "revoke", &full(name), "--certs", certs.to_str().unwrap()]);
    std::fs::read(certs.join("ca/crl.pem")).unwrap()
}

/// What a node has in force, as far as its counters tell.
fn loaded(node: &Node) -> u64 {
    node.counter("xpando_revocation_lists_total", "loaded")
}

#[test]
fn lists_that_are_rubbish_old_or_of_others_are_refused_and_change_nothing() {
    let mut scene = Scene::new();
    let first = revoke(&scene.cluster, "x");
    let second = revoke(&scene.cluster, "y");
    let foreign = revoke(&scene.cluster.beside(), "a");
    let nodes = &scene.nodes;
    nodes.iter().for_each(|node| {
        node.logged("certificates_revoked", &[("message", "2 in all")]);
    });
    let before = nodes.each_ref().map(loaded);
    let refused = |node: &Node| node.counter("xpando_revocation_lists_total", "peer_refused");
    let harm = scene.under(|member, nodes| {
        let mut tie = member.link_with_lists(&nodes[0]);
        // A mark that says nothing true of the list behind it.
        for list in [b"rubbish".as_slice(), &foreign, &first, &second] {
            tie.offer(ListKind::Revocations, LATER, list);
        }
        nodes[0].counts("xpando_revocation_lists_total", "peer_refused", 3);
        // After four of them none is looked at.
        for _ in 0..100 {
            tie.offer(ListKind::Tokens, LATER, b"rubbish");
        }
        nodes[0].counts("xpando_node_messages_total", "list_not_judged", 99);
        // An honest mark of an old list is known, and skipped.
        let digest = Sha256::digest(b"x").first_chunk().copied().unwrap();
        tie.offer(ListKind::Revocations, Mark { number: 1, digest }, &first);
        // What is announced and does not come, and what asks again and again.
        for _ in 0..1000 {
            tie.word(&Word::Have(1, LATER));
            tie.word(&Word::Want(1));
        }
        tie.word(&Word::begin(ListKind::Tokens, LATER, MAX_LIST));
    });
    // It is over within seconds: what a peer may cost at once says nothing of a rate.
    harm.bearable_flood("lists that count for nothing");
    assert_eq!(scene.nodes.each_ref().map(loaded), before, "nothing changed");
    assert_eq!(refused(&scene.nodes[0]), 4);
    assert_eq!([1, 2].map(|node| refused(&scene.nodes[node])), [0, 0], "and nobody passes it on");
}

#[test]
fn a_list_within_a_list_or_longer_than_announced_ends_the_link() {
    let mut scene = Scene::new();
    for words in [
        [Word::begin(ListKind::Tokens, LATER, 9), Word::begin(ListKind::Tokens, LATER, 9)],
        [Word::begin(ListKind::Tokens, LATER, 2), Word::More(b"three")],
        [Word::Want(1), Word::More(b"of nothing")],
        [Word::Want(1), Word::begin(ListKind::Tokens, LATER, MAX_LIST + 1)],
    ] {
        let node = &scene.nodes[0];
        let before = node.counter("xpando_connections_refused_total", "protocol");
        let mut tie = scene.member.link_with_lists(node);
        words.iter().for_each(|word| tie.word(word));
        node.counts("xpando_connections_refused_total", "protocol", before);
    }
}
