//! Revocation in paused time, beside a mock of Link.

use std::fs;
use std::path::Path;

use super::*;
use crate::actors::link::tests::{Command, Mock};
use crate::actors::supervisor::{Root, Roster};
use crate::actors::tests::{counted, name, run, settled};
use crate::io::clock;
use crate::io::identity::{Authority, Validity};

struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    identity: Arc<Identity>,
    link: Mock,
    metrics: Metrics,
    roster: Roster,
    _root: Root,
}

/// Node a, whose cluster has a node b.
async fn world() -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::init(dir.path(), clock::wall()).expect("a CA");
    let issue = |node: &str| {
        let valid = Validity::leaf(clock::wall());
        authority.issue(dir.path(), &name(node), valid).expect("a leaf")
    };
    let (identity, _) = (Arc::new(issue("a@h")), issue("b@h"));
    let metrics = Metrics::default();
    let (link, mock) = Mock::start().await;
    let file = Arc::new(identity.revocation_file(dir.path()));
    let setup = Setup { file, identity: identity.clone(), link, metrics: metrics.clone() };
    let (_root, roster) = run(&metrics, vec![child(setup)]).await;
    World { dir, authority, identity, link: mock, metrics, roster, _root }
}

impl World {
    fn crl(&self) -> std::path::PathBuf {
        Path::new(self.dir.path()).join("ca/crl.pem")
    }

    fn revoke(&self, node: &str) {
        self.authority.revoke(&name(node), clock::wall()).expect("revoked");
    }

    async fn judged(&mut self) {
        assert!(matches!(self.link.next().await, Command::Judge));
    }

    /// Waits for a look that begins after now.
    async fn looked(&self) {
        tokio::time::sleep(EVERY * 2).await;
        settled().await;
    }
}

#[tokio::test(start_paused = true)]
async fn links_are_judged_at_the_start_and_by_every_new_list() {
    let mut world = world().await;
    world.judged().await;
    world.looked().await;
    assert!(world.link.heard().is_none(), "no list, no news");
    world.revoke("b@h");
    world.judged().await;
    assert_eq!(counted(&world.metrics, "revocation_lists", "loaded"), 1);
    world.looked().await;
    assert!(world.link.heard().is_none(), "once");
    world.revoke("a@h");
    world.judged().await;
    assert!(world.identity.is_revoked());
    assert!(world.roster.kill("revocation"));
    world.judged().await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_cannot_be_used_changes_nothing_and_is_counted_once() {
    let mut world = world().await;
    world.judged().await;
    // In one step: a look in between would find, and count, the file while it is still empty.
    let beside = world.crl().with_extension("new");
    fs::write(&beside, "rubbish").expect("written");
    fs::rename(&beside, world.crl()).expect("in place");
    world.looked().await;
    world.looked().await;
    assert_eq!(counted(&world.metrics, "revocation_lists", "refused"), 1);
    assert!(world.link.heard().is_none());
    fs::remove_file(world.crl()).expect("removed");
    world.revoke("b@h");
    world.judged().await;
    assert_eq!(counted(&world.metrics, "revocation_lists", "loaded"), 1);
}
