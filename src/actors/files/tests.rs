//! Files in paused time, beside a mock of Link.

use std::fs;
use std::path::Path;

use super::*;
use crate::actors::exchange::Exchange;
use crate::actors::link::tests::{Command, Mock};
use crate::actors::lists;
use crate::actors::supervisor::{ActorTable, Root};
use crate::actors::tests::{counted, name, run, settled};
use crate::io::clock;
use crate::io::identity::enrol::{Issuer, Rules};
use crate::io::identity::{Authority, TokenError, Tokens, Validity};
use crate::proto::token::{Claims, Role};

struct World {
    dir: tempfile::TempDir,
    authority: Authority,
    identity: Arc<Identity>,
    tokens: Tokens,
    link: Mock,
    metrics: Metrics,
    roster: ActorTable,
    _root: Root,
}

/// What answers requests with the authority's key.
fn issuing(certs: &Path) -> Enrolment {
    let issuer = Arc::new(Issuer::open(certs, Rules::default()).expect("has the key"));
    Enrolment::new(move |request| {
        let issuer = issuer.clone();
        async move { issuer.answer(&request, &[], clock::wall()).bytes.into() }
    })
}

/// Node a, whose cluster has a node b.
async fn world() -> World {
    world_at(clock::wall()).await
}

/// As [`world`], with certificates made then.
async fn world_at(made: SystemTime) -> World {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::init(dir.path(), clock::wall()).expect("a CA");
    let issue = |node: &str| {
        let valid = Validity::leaf(made);
        authority.issue(dir.path(), &name(node), valid).expect("a leaf")
    };
    let (identity, _) = (Arc::new(issue("a@h")), issue("b@h"));
    let metrics = Metrics::default();
    let (link, mock) = Mock::start().await;
    let bus = Bus::new(&Exchange::new(name("a@h"), &metrics));
    let lists = identity.lists();
    let tokens = Tokens::of(&lists);
    let judge = link.clone();
    let keeper = ListKeeper::new(lists::Setup {
        lists,
        own: Box::new({
            let identity = identity.clone();
            move || identity.is_revoked()
        }),
        store: None,
        bus: bus.clone(),
        metrics: metrics.clone(),
        judge: Box::new(move || judge.input(Input::Judge)),
        trust: Box::new(|| {}),
    });
    let setup = Setup {
        lists: keeper,
        own: Arc::new(identity.files(dir.path())),
        tls: Tls::new(&identity).expect("an identity"),
        web: None,
        providers: None,
        admin: Weak::new(),
        identity: identity.clone(),
        enrolment: issuing(dir.path()),
        issuing: Arc::new(|| {}),
        peers: Peers::new(&metrics, []),
        link,
        bus: bus.clone(),
        metrics: metrics.clone(),
    };
    let (_root, roster) = run(&metrics, vec![bus.child(), Files::new(&metrics).child(setup)]).await;
    World { dir, authority, identity, tokens, link: mock, metrics, roster, _root }
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
    assert!(world.roster.kill("files"));
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

#[tokio::test(start_paused = true)]
async fn tokens_are_judged_by_the_list_that_lies_there() {
    let world = world().await;
    let now = clock::wall();
    let make = || world.authority.token("alice", Role::User, vec![], Duration::from_secs(60), now);
    let token = make().expect("a token");
    let judged = || world.tokens.verify(&token, now);
    world.looked().await;
    assert_eq!(judged().map(|claims: Claims| claims.sub), Ok("alice".to_owned()));
    let counts = |kind| counted(&world.metrics, "revocation_lists", kind);
    assert_eq!((counts("tokens_loaded"), counts("tokens_refused")), (1, 0));

    let claims = judged().expect("claims");
    world.authority.revoke_token(&claims.jti, claims.expires(), now).expect("revoked");
    world.looked().await;
    assert_eq!(judged(), Err(TokenError::Revoked));
    assert_eq!((counts("tokens_loaded"), counts("tokens_refused")), (2, 0));

    let path = world.dir.path().join("ca/tokens");
    fs::remove_file(&path).expect("removed");
    world.looked().await;
    world.looked().await;
    assert_eq!(judged(), Err(TokenError::Revoked), "the last good list is in force");
    assert_eq!((counts("tokens_loaded"), counts("tokens_refused")), (2, 1));
    assert!(path.exists(), "and is there again");
}

#[tokio::test(start_paused = true)]
async fn a_list_of_tokens_that_comes_later_is_found() {
    let world = world().await;
    let path = world.dir.path().join("ca/tokens");
    fs::remove_file(&path).expect("removed");
    assert!(world.roster.kill("files"), "the next life looks at once, too");
    let now = clock::wall();
    world.looked().await;
    world.looked().await;
    let token = world.authority.token("a", Role::User, vec![], Duration::from_secs(60), now);
    assert!(path.exists(), "making a token brings the list back");
    world.looked().await;
    assert!(world.tokens.verify(&token.expect("a token"), now).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_old_enough_is_renewed_and_shown_without_a_hand() {
    let day = Duration::from_secs(24 * 60 * 60);
    let young = world_at(clock::wall() - 40 * day).await;
    let old = world_at(clock::wall() - 75 * day).await;
    let until = old.identity.validity().not_after;
    let key = old.identity.id();
    let renewed = async {
        while old.identity.validity().not_after == until {
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("renewed");
    assert!(old.identity.validity().not_after > clock::wall() + 89 * day);
    assert_eq!(old.identity.id(), key);
    old.looked().await;
    let counts = |world: &World, event| counted(&world.metrics, "files", event);
    assert_eq!(counts(&old, "node_certificate_renewed"), 1);
    young.looked().await;
    assert_eq!(counts(&young, "node_certificate_renewed"), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_renewed_is_tried_again_and_stays_in_force() {
    let day = Duration::from_secs(24 * 60 * 60);
    let world = world_at(clock::wall() - 75 * day).await;
    let key = world.dir.path().join("ca/key.pem");
    // Before its first look nothing has run.
    fs::rename(&key, key.with_extension("away")).expect("moved");
    let failed = || counted(&world.metrics, "files", "node_certificate_not_renewed");
    let waiting = async {
        while failed() < 3 {
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), waiting).await.expect("tried again");
    assert!(world.identity.validity().not_after < clock::wall() + 20 * day);
    fs::rename(key.with_extension("away"), &key).expect("back");
    let renewed = async {
        while world.identity.validity().not_after < clock::wall() + 80 * day {
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), renewed).await.expect("renewed");
}
