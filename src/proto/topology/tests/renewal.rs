//! A certificate that is renewed while its node runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::proto::node::{Credential, KeyId};
use crate::proto::seal::Seal;

/// Seals under a certificate of one byte.
#[derive(Debug)]
struct Numbered(Arc<AtomicU8>);

impl Seals for Numbered {
    fn make(&mut self, _statement: &[u8]) -> Option<Seal> {
        Some(Seal { certificate: vec![self.0.load(Ordering::Relaxed)], signature: vec![7] })
    }

    fn is_current(&self, seal: &Seal) -> bool {
        seal.certificate == [self.0.load(Ordering::Relaxed)]
    }

    fn credential(&self, _seal: &Seal) -> Option<Credential> {
        Some(Credential { key: KeyId([7; 16]), since: 0 })
    }

    fn may_operate(&self, _seal: &Seal) -> bool {
        true
    }

    fn is_revoked(&self, _seal: &Seal) -> bool {
        false
    }

    fn hold(&mut self, _maker: &NodeName, _statement: &[u8], _seal: &Seal) -> bool {
        true
    }
}

#[test]
fn a_renewed_certificate_is_sent_with_the_row_as_a_whole() {
    let (now, rng) = (start(), StdRng::seed_from_u64(1));
    let certificate = Arc::new(AtomicU8::new(1));
    let seals = Box::new(Numbered(certificate.clone()));
    let machine = Topology::new(name("a@h"), life(3), 1, now, WALL, rng, seals);
    let mut a = Alone::linked(machine, now, &["b@h"]);
    let mut sent = || {
        let out = a.tick(2 * Links::DIGEST);
        let rows = out.into_iter().filter_map(|output| match output {
            Output::Send(_, Word::Rows(rows)) => Some(rows),
            _ => None,
        });
        let seals = rows.flatten().filter_map(|row| row.seal);
        seals.map(|seal| seal.certificate).collect::<Vec<_>>()
    };
    assert_eq!(sent(), [[0_u8; 0]; 0]);
    certificate.store(2, Ordering::Relaxed);
    assert_eq!(sent(), [[2]]);
    assert_eq!(sent(), [[0_u8; 0]; 0]);
}
