//! Certificates that are revoked: the peer's, and this node's own.

use super::super::*;
use super::desk::{Desk, address, hello, name, secs};

const LINK: AttemptId = AttemptId::Inbound(1);

/// Node 5 alone, with what it put out last.
struct Scene {
    desk: Desk,
    out: Vec<Output>,
}

impl Scene {
    fn new() -> Self {
        Self { desk: Desk::new(1), out: Vec::new() }
    }

    /// Linked with node 1.
    fn linked() -> Self {
        let mut scene = Self::new();
        scene.link(LINK, 1);
        scene
    }

    fn link(&mut self, attempt: AttemptId, incarnation: u64) {
        self.hear(Input::Greeted(attempt, hello(1, incarnation)));
        self.hear(Input::Confirmed(attempt));
        self.hear(Input::Ready(attempt));
        assert_eq!(self.stands(), (Status::Online, None));
    }

    fn hear(&mut self, input: Input) {
        self.out = self.desk.give(input);
    }

    fn stands(&self) -> (Status, Option<Reason>) {
        let peer = self.desk.machine.peer(&name(1)).expect("known");
        (peer.status, peer.reason)
    }

    /// Lets time pass until node 1 is dialed; the attempt.
    fn dialed(&mut self) -> AttemptId {
        loop {
            let dial = |o: &Output| if let Output::Dial(id, _) = o { Some(*id) } else { None };
            if let Some(attempt) = self.out.iter().find_map(dial) {
                return attempt;
            }
            self.out = self.desk.tick();
        }
    }

    fn fails(&mut self, failure: Failure) {
        let attempt = self.dialed();
        self.hear(Input::Failed(attempt, failure));
    }

    fn refusals(&self) -> usize {
        let refused = |o: &&Output| matches!(o, Output::Announce(Event::CertificateRefused { .. }));
        self.out.iter().filter(refused).count()
    }
}

fn revoked() -> Failure {
    Failure::Revoked(name(1))
}

const GONE: (Status, Option<Reason>) = (Status::Offline, Some(Reason::Revoked));

#[test]
fn a_revoked_peer_is_closed_stays_revoked_and_may_come_back() {
    let mut scene = Scene::linked();
    scene.hear(Input::Revoked(AttemptId::Inbound(9)));
    assert_eq!(scene.stands(), (Status::Online, None), "not its link");
    scene.hear(Input::Revoked(LINK));
    assert_eq!(scene.out.first(), Some(&Output::Close(LINK, CloseReason::Revoked)));
    let offline = Event::PeerOffline { peer: name(1), reason: Reason::Revoked };
    assert!(scene.out.contains(&Output::Announce(offline)), "{:?}", scene.out);
    assert!(!scene.out.iter().any(|o| matches!(o, Output::Dial(..))), "{:?}", scene.out);
    // Whatever becomes of the process that is refused.
    let unreachable = Failure::Unreachable("no way".to_owned());
    for failure in [revoked(), Failure::Refused, unreachable, Failure::Closed, revoked()] {
        scene.fails(failure);
        assert_eq!(scene.stands(), GONE);
    }
    scene.link(AttemptId::Inbound(2), 2);
}

#[test]
fn revocation_is_learned_by_a_dial_whatever_was_known_before() {
    for before in [Failure::Refused, Failure::Rejected("TLS".to_owned())] {
        let mut scene = Scene::linked();
        scene.hear(Input::Ended(LINK, LinkEnd::Closed));
        scene.fails(before);
        assert_ne!(scene.stands(), GONE);
        scene.fails(revoked());
        assert_eq!(scene.stands(), GONE);
    }
}

#[test]
fn a_revoked_stranger_at_the_address_says_nothing_of_the_peer() {
    let mut scene = Scene::linked();
    scene.hear(Input::Ended(LINK, LinkEnd::Closed));
    scene.fails(Failure::Revoked(name(2)));
    assert_eq!(scene.stands(), (Status::Offline, Some(Reason::Rejected)));
    let cause = scene.desk.machine.peer(&name(1)).and_then(|peer| peer.cause).expect("a cause");
    assert!(cause.contains("another node is there"), "{cause}");
}

#[test]
fn dials_of_a_revoked_peer_back_off() {
    let mut scene = Scene::linked();
    scene.hear(Input::Revoked(LINK));
    let began = scene.desk.now;
    let mut dials = 0;
    while scene.desk.now < began + secs(600) {
        scene.fails(revoked());
        dials += 1;
    }
    assert!((20..120).contains(&dials), "{dials} dials in ten minutes");
}

#[test]
fn a_node_whose_own_certificate_is_revoked_says_so_once_and_backs_off() {
    let mut scene = Scene::linked();
    scene.hear(Input::Ended(LINK, LinkEnd::Goodbye(CloseReason::Revoked)));
    assert_eq!(scene.refusals(), 1);
    assert_eq!(scene.stands(), (Status::Offline, Some(Reason::Rejected)));
    assert!(!scene.out.iter().any(|o| matches!(o, Output::Dial(..))), "{:?}", scene.out);
    let began = scene.desk.now;
    let mut dials = 0;
    while scene.desk.now < began + secs(600) {
        scene.fails(Failure::RefusedAsRevoked);
        assert_eq!((scene.refusals(), scene.stands().1), (0, Some(Reason::Rejected)));
        dials += 1;
        // Beacons of a peer that refuses for good hurry nobody.
        let contact =
            Contact { name: name(1), address: address(3001), incarnation: Incarnation(1) };
        let before = scene.desk.machine.deadline();
        scene.hear(Input::Hint(contact, Source::Beacon));
        assert_eq!(scene.desk.machine.deadline(), before);
    }
    assert!((20..120).contains(&dials), "{dials} dials in ten minutes");
}
