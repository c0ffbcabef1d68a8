//! Presence: the rules one by one; `world` has several nodes with bad links between them.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a test looks for what it is about")]

use proptest::prelude::*;
use rand::SeedableRng;

use super::*;
use crate::proto::codec;
use crate::proto::node::Incarnation;
use crate::proto::talk::DownReason;
use crate::proto::tests::start;
use crate::proto::wiring::Notice;

mod holders;
mod world;

fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

fn topic(text: &str) -> Topic {
    text.parse().expect("valid")
}

fn epoch(life: u64, boot: u64) -> Epoch {
    Epoch { life: Incarnation(life), boot }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn body(key: &str, meta: &str) -> Body {
    Body { topic: topic("room:1"), key: key.into(), meta: meta.into(), previous: None }
}

fn joined(key: &str) -> Change {
    Change::Joined(body(key, "{}"))
}

/// One machine, `a@h` in epoch 1.1, driven by hand.
struct Alone {
    machine: Presence,
    now: Instant,
}

impl Alone {
    fn new(peers: &[&str]) -> Self {
        let now = start();
        let rng = StdRng::seed_from_u64(1);
        let mut machine = Presence::new(name("a@h"), epoch(1, 1), now, rng);
        peers.iter().for_each(|peer| machine.up(&name(peer), now, &mut Vec::new()));
        Self { machine, now }
    }

    fn hears(&mut self, from: &str, word: Word) -> Vec<Output> {
        let mut out = Vec::new();
        self.machine.heard(&name(from), word, self.now, &mut out);
        out
    }

    fn delta(&mut self, from: &str, epoch: Epoch, after: u64, changes: &[Change]) -> Vec<Output> {
        self.hears(from, Word::Delta { epoch, after, changes: changes.to_vec() })
    }

    fn track(&mut self, key: &str, meta: &str) -> (Ref, Vec<Output>) {
        let mut out = Vec::new();
        let taken = self.machine.track(&topic("room:1"), key, meta, self.now, &mut out);
        (taken.expect("taken"), out)
    }

    fn tick(&mut self, after: Duration) -> Vec<Output> {
        self.now += after;
        let mut out = Vec::new();
        self.machine.tick(self.now, &mut out);
        out
    }

    /// The keys in `room:1`, each as often as it is there.
    fn keys(&self) -> String {
        let room = topic("room:1");
        let keys = self.machine.state(&room).flat_map(|(key, metas)| vec![key; metas.len()]);
        keys.collect::<Vec<_>>().join(" ")
    }
}

#[test]
fn a_new_link_may_begin_with_an_earlier_epoch() {
    let (mut out, now, z) = (Vec::new(), start(), name("z@h"));
    let rng = StdRng::seed_from_u64(2);
    let mut b = Attendance::new(name("b@h"), epoch(1, 0), now, rng);
    for (life, boot, who) in [(5, 0, "old"), (1, 7, "new"), (1, 3, "newer")] {
        b.handle(Notice::Up(z.clone(), Incarnation(life)), now, &mut out);
        let word = Word::Delta { epoch: epoch(life, boot), after: 0, changes: vec![joined(who)] };
        b.handle(Notice::Message(z.clone(), word), now, &mut out);
        let room = topic("room:1");
        let keys: Vec<_> = b.presence().state(&room).map(|(key, _)| key).collect();
        assert_eq!(keys, [who]);
    }
}

#[test]
fn a_raised_life_states_anew_all_that_it_has_and_members_can_still_leave() {
    let mut b = Alone::new(&["z@h"]);
    let earlier = b.delta("z@h", epoch(5, 0), 0, &[joined("old")]);
    assert_eq!(brief(&earlier), "+old d");
    // z lost its disk: what it says in its first life is from before for b.
    let (mut out, now) = (Vec::new(), b.now);
    let rng = StdRng::seed_from_u64(2);
    let mut z = Attendance::new(name("z@h"), epoch(1, 0), now, rng);
    z.handle(Notice::Up(name("a@h"), Incarnation(1)), now, &mut out);
    z.join(7, None, (&topic("room:1"), "anna", "{}"), now, &mut out).expect("taken");
    for output in out.drain(..) {
        if let Output::Say(_, word) = output {
            assert_eq!(brief(&b.hears("z@h", word)), "");
        }
    }
    z.handle(Notice::Renewed(Incarnation(6)), now, &mut out);
    assert_eq!(brief(&out), "-anna +anna >1 D");
    let mut heard = Vec::new();
    for output in out.drain(..) {
        if let Output::Say(_, word) = output {
            heard.extend(b.hears("z@h", word));
        }
    }
    assert_eq!((b.keys().as_str(), heard.is_empty()), ("anna", false));
    z.leave(7, now + ms(30), &mut out);
    assert_eq!(brief(&out), "-anna >1");
}

#[test]
fn what_is_for_all_goes_to_those_that_are_linked() {
    let (mut out, now) = (Vec::new(), start());
    let rng = StdRng::seed_from_u64(2);
    let mut a = Attendance::new(name("a@h"), epoch(1, 0), now, rng);
    for peer in ["b@h", "c@h"] {
        a.handle(Notice::Up(name(peer), Incarnation(1)), now, &mut out);
    }
    let theirs = Word::Delta { epoch: epoch(1, 1), after: 0, changes: vec![joined("bea")] };
    a.handle(Notice::Message(name("b@h"), theirs), now, &mut out);
    out.clear();
    a.handle(Notice::Down(name("b@h"), DownReason::LinkLost), now, &mut out);
    assert_eq!(*a.linked(), BTreeSet::from([name("c@h")]));
    assert_eq!(brief(&out), "", "its members stay, until it is offline");
    a.handle(Notice::Offline(name("b@h")), now, &mut out);
    assert_eq!(brief(&out), "-bea");
}

/// News in short: `+key`, `-key`, `>` a delta to all, `?` a question, `d` a digest, `p` a page, `!` a fault.
fn brief(out: &[Output]) -> String {
    let brief = |output: &Output| match output {
        Output::Joined(entry) => format!("+{}", entry.key),
        Output::Left(entry) => format!("-{}", entry.key),
        Output::Say(To::All, Word::Delta { changes, .. }) => format!(">{}", changes.len()),
        Output::Say(_, Word::Delta { .. }) => "a delta to one".into(),
        Output::Say(_, Word::Ask { .. }) => "?".into(),
        Output::Say(To::All, Word::Digest { .. }) => "D".into(),
        Output::Say(_, Word::Digest { .. }) => "d".into(),
        Output::Say(_, Word::Page(_)) => "p".into(),
        Output::Fault(_, rule) => format!("!{rule}"),
    };
    out.iter().map(brief).collect::<Vec<_>>().join(" ")
}

fn question(out: &[Output]) -> (u64, u64, Option<u64>) {
    match out {
        [.., Output::Say(To::One(_), Word::Ask { have, after, upto, .. })] => {
            (*have, *after, *upto)
        }
        other => panic!("no question in {other:?}"),
    }
}

fn page(after: u64, through: u64, clock: u64, still: &[u64], entries: &[(u64, &str)]) -> Word {
    let entries = entries.iter().map(|(number, key)| (*number, body(key, "{}"))).collect();
    let still = still.to_vec();
    Word::Page(Page { epoch: epoch(1, 1), clock, after, through, still, entries })
}

#[test]
fn own_entries_come_change_and_go() {
    let mut a = Alone::new(&["b@h"]);
    let (first, out) = a.track("u1", r#"{"at": 1}"#);
    assert_eq!(brief(&out), "+u1 >1");
    let (second, _) = a.track("u1", "{}");
    let (mut out, now) = (Vec::new(), a.now);
    let third = a.machine.update(first, r#" {"at": 2} "#, now, &mut out).expect("it is ours");
    assert_eq!(brief(&out), "-u1 +u1", "told with the next ones");
    assert!(first != second && second != third);
    let room = topic("room:1");
    let (key, metas) = a.machine.state(&room).next().expect("somebody");
    let shown: Vec<_> = metas.iter().map(|entry| entry.shown().trim().to_owned()).collect();
    assert_eq!(key, "u1");
    assert_eq!(shown[0], format!(r#"{{"phx_ref":"{second}"}}"#));
    assert_eq!(shown[1], format!(r#"{{"phx_ref":"{third}","phx_ref_prev":"{first}","at": 2}}"#));
    out.clear();
    assert_eq!(a.machine.update(first, "{}", now, &mut out), Err(PresenceError::Unknown));
    a.machine.untrack(first, now, &mut out);
    assert_eq!(brief(&out), "");
    a.machine.untrack(third, now, &mut out);
    a.machine.untrack(second, now, &mut out);
    assert_eq!((brief(&out), a.keys()), ("-u1 -u1".into(), String::new()));
}

#[test]
fn a_reference_is_of_one_node_epoch_and_change() {
    let refs = [("a@h", 1, 1), ("b@h", 1, 1), ("a@h", 2, 1), ("a@h", 1, 2)];
    let refs = refs.map(|(node, life, boot)| {
        let mut alone = Alone::new(&[]);
        let rng = StdRng::seed_from_u64(1);
        alone.machine = Presence::new(name(node), epoch(life, boot), alone.now, rng);
        [alone.track("u", "{}").0.to_string(), alone.track("u", "{}").0.to_string()]
    });
    let all: BTreeSet<&String> = refs.iter().flatten().collect();
    assert_eq!(all.len(), 8, "{refs:?}");
    assert!(all.iter().all(|text| text.len() == 17));
}

#[test]
fn a_foreign_reference_changes_nothing() {
    let mut a = Alone::new(&["b@h"]);
    a.track("u1", "{}");
    let out = a.delta("b@h", epoch(1, 1), 0, &[joined("u2")]);
    let Output::Joined(theirs) = &out[0] else { panic!("{out:?}") };
    let (now, mut out) = (a.now, Vec::new());
    a.machine.untrack(theirs.reference, now, &mut out);
    assert_eq!(
        a.machine.update(theirs.reference, "{}", now, &mut out),
        Err(PresenceError::Unknown)
    );
    assert_eq!((brief(&out), a.keys()), (String::new(), "u1 u2".into()));
}

#[test]
fn what_is_no_entry_is_refused() {
    let mut a = Alone::new(&["b@h"]);
    let long = format!(r#"{{"x":"{}"}}"#, "x".repeat(META - 8));
    assert_eq!(long.len(), META);
    let metas =
        ["", "[]", "1", "{", "{}{}", "{\"a\":}", r#"{"phx_ref":1}"#, r#"{"phx_ref_prev":1}"#];
    let (now, mut out) = (a.now, Vec::new());
    for meta in metas.into_iter().chain([format!("{long} ").as_str()]) {
        let refused = a.machine.track(&topic("t"), "u", meta, now, &mut out);
        assert_eq!(refused, Err(PresenceError::Meta), "{meta}");
        let broken = Change::Joined(body("u", meta));
        let mut b = Alone::new(&["b@h"]);
        let said = b.delta("b@h", epoch(1, 1), 0, &[joined("u1"), broken]);
        assert_eq!(brief(&said), "+u1 -u1 !malformed entry d");
        let bad = Page {
            epoch: epoch(1, 2),
            clock: 1,
            after: 0,
            through: 1,
            still: vec![],
            entries: vec![(1, body("u", meta))],
        };
        b.hears("b@h", Word::Digest { epoch: epoch(1, 2), clock: 1 });
        assert_eq!(brief(&b.hears("b@h", Word::Page(bad))), "!malformed entry");
    }
    let key = "k".repeat(KEY + 1);
    assert_eq!(a.machine.track(&topic("t"), &key, "{}", now, &mut out), Err(PresenceError::Key));
    assert!(out.is_empty());
    a.track(&key[1..], &long);
    let (kept, _) = a.track("u", "{}");
    assert_eq!(a.machine.update(kept, "[]", now, &mut out), Err(PresenceError::Meta));
    assert_eq!(a.machine.state(&topic("room:1")).count(), 2);
}

#[test]
fn changes_that_follow_each_other_are_told_together() {
    let mut a = Alone::new(&["b@h"]);
    assert_eq!(brief(&a.track("u0", "{}").1), "+u0 >1", "the first at once");
    for key in ["u1", "u2"] {
        assert_eq!(brief(&a.track(key, "{}").1), format!("+{key}"));
    }
    assert_eq!(a.machine.deadline(), Some(a.now + HOLD));
    assert_eq!(brief(&a.tick(ms(19))), "");
    let out = a.tick(ms(1));
    let changes = vec![joined("u1"), joined("u2")];
    let delta = Word::Delta { epoch: epoch(1, 1), after: 1, changes };
    assert_eq!(out, [Output::Say(To::All, delta)]);
    a.tick(ms(20));
    assert_eq!(brief(&a.track("u3", "{}").1), "+u3 >1", "at once again");
    a.track("u4", "{}");
    let mut out = Vec::new();
    a.machine.up(&name("c@h"), a.now, &mut out);
    assert_eq!(brief(&out), ">1 d", "a digest says nothing that was not told");
}

#[test]
fn a_digest_goes_to_all_about_every_five_seconds() {
    let mut a = Alone::new(&[]);
    a.track("u", "{}");
    assert_eq!(a.machine.deadline(), None, "there is nobody to tell");
    a.now += ms(60_000);
    a.machine.up(&name("b@h"), a.now, &mut Vec::new());
    for _ in 0..100 {
        let due = a.machine.deadline().expect("somebody is there");
        assert!((ms(4000)..=ms(6000)).contains(&(due - a.now)), "{:?}", due - a.now);
        a.now = due;
        assert_eq!(brief(&a.tick(Duration::ZERO)), "D");
    }
    a.machine.gone(&name("b@h"), &mut Vec::new());
    assert_eq!(a.machine.deadline(), None);
}

#[test]
fn a_peers_changes_apply_once_and_in_order() {
    let mut a = Alone::new(&["b@h"]);
    let b = epoch(1, 1);
    assert_eq!(brief(&a.delta("b@h", b, 0, &[joined("u1"), joined("u2")])), "+u1 +u2 d");
    assert_eq!(brief(&a.delta("b@h", b, 0, &[joined("u1")])), "");
    let update = Change::Joined(Body { previous: Some(1), ..body("u1", "{}") });
    let overlap = [joined("u2"), update, Change::Left(2), Change::Left(9)];
    assert_eq!(brief(&a.delta("b@h", b, 1, &overlap)), "-u1 +u1 -u2");
    assert_eq!(a.keys(), "u1");
    // 6 is missing: asked for once, and again when the next digest finds it unanswered.
    assert_eq!(question(&a.delta("b@h", b, 6, &[joined("u7")])), (5, 0, None));
    assert_eq!(brief(&a.delta("b@h", b, 7, &[joined("u8")])), "");
    assert_eq!(brief(&a.hears("b@h", Word::Digest { epoch: b, clock: 8 })), "?");
    assert_eq!(brief(&a.hears("b@h", page(0, 8, 8, &[3], &[(6, "u6"), (8, "u8")]))), "+u6 +u8");
    assert_eq!(a.keys(), "u1 u6 u8");
    assert_eq!(brief(&a.hears("b@h", Word::Digest { epoch: b, clock: 8 })), "");
    assert_eq!(brief(&a.delta("b@h", b, 7, &[joined("u8"), joined("u9")])), "+u9");
    assert_eq!(brief(&a.hears("b@h", page(0, 9, 9, &[], &[]))), "", "not asked for");
}

#[test]
fn pages_and_deltas_meanwhile_come_to_one_state() {
    let mut a = Alone::new(&["b@h"]);
    let b = epoch(1, 1);
    a.delta("b@h", b, 0, &[joined("u1"), joined("u2"), joined("u3")]);
    assert_eq!(question(&a.hears("b@h", Word::Digest { epoch: b, clock: 20 })), (3, 0, None));
    let out = a.hears("b@h", page(0, 8, 20, &[2, 3], &[(8, "u8")]));
    assert_eq!((brief(&out), question(&out)), ("-u1 +u8 ?".into(), (3, 8, Some(20))));
    // 2 was read and leaves; 10 was not read yet and leaves; 23 comes.
    let meanwhile = [Change::Left(2), Change::Left(10), joined("u23")];
    assert_eq!(brief(&a.delta("b@h", b, 20, &meanwhile)), "-u2 +u23");
    assert_eq!(brief(&a.hears("b@h", page(0, 8, 20, &[2, 3], &[(8, "u8")]))), "", "twice");
    let stale = page(8, 20, 22, &[], &[(10, "u10"), (20, "u20")]);
    assert_eq!(brief(&a.hears("b@h", stale)), "", "of before what is known");
    // A gap meanwhile: anew, and what was there at the start is still only named.
    let out = a.delta("b@h", b, 24, &[joined("u25")]);
    assert_eq!(question(&out), (3, 0, None));
    let named = page(0, 25, 25, &[3, 8], &[(25, "u25")]);
    assert_eq!(brief(&a.hears("b@h", page(0, 25, 25, &[3, 4], &[]))), "", "4 is not known");
    assert_eq!(brief(&a.hears("b@h", named)), "-u23 +u25");
    assert_eq!(a.keys(), "u25 u3 u8");
    // Of a page that goes beyond what is read, the rest comes as deltas.
    a.hears("b@h", Word::Digest { epoch: b, clock: 30 });
    a.hears("b@h", page(0, 3, 30, &[3], &[]));
    a.delta("b@h", b, 30, &[joined("u31")]);
    assert_eq!(
        brief(&a.hears("b@h", page(3, 32, 32, &[8, 25], &[(29, "u29"), (32, "u32")]))),
        "+u29"
    );
    assert_eq!(brief(&a.delta("b@h", b, 31, &[joined("u32")])), "+u32");
}

#[test]
fn a_later_epoch_replaces_all_and_an_earlier_one_is_nothing() {
    let mut a = Alone::new(&["b@h"]);
    a.delta("b@h", epoch(2, 5), 0, &[joined("u1"), joined("u2")]);
    for old in [epoch(2, 4), epoch(1, 9)] {
        assert_eq!(brief(&a.delta("b@h", old, 0, &[joined("u3")])), "");
        assert_eq!(brief(&a.hears("b@h", Word::Digest { epoch: old, clock: 9 })), "");
    }
    let out = a.delta("b@h", epoch(2, 6), 0, &[joined("u1")]);
    assert_eq!(brief(&out), "-u1 -u2 +u1 d", "and it hears where we are");
    let out = a.hears("b@h", Word::Digest { epoch: epoch(3, 0), clock: 1 });
    assert_eq!((brief(&out), a.keys()), ("-u1 ? d".into(), String::new()));
    // The first word on a new link shows the epoch; the same one goes on.
    for (first, then) in [(epoch(3, 0), "+u1"), (epoch(2, 6), "+u1 d")] {
        a.machine.gone(&name("b@h"), &mut Vec::new());
        a.machine.up(&name("b@h"), a.now, &mut Vec::new());
        assert_eq!(brief(&a.delta("b@h", first, 0, &[joined("u1")])), then);
        assert_eq!(brief(&a.delta("b@h", epoch(2, 5), 0, &[joined("u1")])), "");
    }
}

#[test]
fn whoever_is_not_up_says_nothing() {
    let mut a = Alone::new(&["b@h"]);
    let b = epoch(1, 1);
    a.delta("b@h", b, 0, &[joined("u1")]);
    let mut out = Vec::new();
    a.machine.gone(&name("b@h"), &mut out);
    assert_eq!((brief(&out), a.keys()), ("-u1".into(), String::new()));
    assert_eq!(brief(&a.delta("b@h", b, 0, &[joined("u1")])), "");
    assert_eq!(brief(&a.delta("c@h", b, 0, &[joined("u1")])), "");
    assert_eq!(brief(&a.delta("a@h", b, 0, &[joined("u1")])), "", "nor we of ourselves");
    out.clear();
    a.machine.up(&name("a@h"), a.now, &mut out);
    a.machine.gone(&name("c@h"), &mut out);
    a.machine.up(&name("b@h"), a.now, &mut out);
    assert_eq!(brief(&out), "d");
    // What was forgotten is read whole.
    assert_eq!(question(&a.hears("b@h", Word::Digest { epoch: b, clock: 1 })), (0, 0, None));
}

#[test]
fn a_question_about_another_epoch_is_answered_with_ours() {
    let mut a = Alone::new(&["b@h"]);
    a.track("u1", "{}");
    let ask = |epoch| Word::Ask { epoch, have: 0, after: 0, upto: None };
    assert_eq!(brief(&a.hears("b@h", ask(epoch(1, 0)))), "d");
    assert_eq!(brief(&a.hears("b@h", ask(epoch(1, 1)))), "p");
    for (after, upto) in [(u64::MAX, None), (9, Some(3)), (0, Some(u64::MAX)), (5, Some(0))] {
        let ask = Word::Ask { epoch: epoch(1, 1), have: u64::MAX, after, upto };
        assert_eq!(brief(&a.hears("b@h", ask)), "p");
    }
}

#[test]
fn whoever_breaks_a_rule_is_not_heard() {
    let b = epoch(1, 1);
    let bad_pages = [
        page(0, 5, 4, &[], &[]),
        page(0, 0, 4, &[], &[]),
        page(0, 4, 4, &[2, 1], &[]),
        page(0, 4, 4, &[1], &[(1, "u")]),
        page(0, 4, 4, &[0], &[]),
        page(0, 3, 4, &[], &[(4, "u")]),
    ];
    for bad in bad_pages {
        let mut a = Alone::new(&["b@h"]);
        a.delta("b@h", b, 0, &[joined("u1")]);
        a.hears("b@h", Word::Digest { epoch: b, clock: 4 });
        assert_eq!(brief(&a.hears("b@h", bad.clone())), "-u1 !page out of order", "{bad:?}");
        assert_eq!(brief(&a.delta("b@h", b, 0, &[joined("u1")])), "");
        a.machine.up(&name("b@h"), a.now, &mut Vec::new());
        assert_eq!(brief(&a.delta("b@h", b, 0, &[joined("u1")])), "+u1", "another link");
    }
    let mut a = Alone::new(&["b@h"]);
    assert_eq!(brief(&a.delta("b@h", b, u64::MAX, &[joined("u1")])), "!clock at its end d");
    assert_eq!(brief(&a.delta("b@h", epoch(1, 2), 0, &[joined("u1")])), "+u1 d", "another epoch");
}

#[test]
fn the_entries_of_each_owner_are_bounded_in_bytes() {
    let mut a = Alone::new(&["b@h"]);
    let b = epoch(1, 1);
    let Change::Joined(body) = joined("u") else { panic!() };
    let most = PRESENCES / body.cost();
    let many: Vec<Change> = (0..most).map(|_| joined("u")).collect();
    a.delta("b@h", b, 0, &many);
    assert_eq!(a.machine.shown.len(), most);
    let clock = u64::try_from(most).expect("small");
    let swap = [Change::Left(1), joined("u")];
    assert_eq!(brief(&a.delta("b@h", b, clock, &swap)), "-u +u");
    let out = a.delta("b@h", b, clock + 2, &[joined("u")]);
    assert_eq!(out.last(), Some(&Output::Fault(name("b@h"), "too many entries")));
    assert_eq!((out.len(), a.machine.shown.len()), (most + 3, 0));
    assert_eq!(a.machine.peers[&name("b@h")].owner.bytes, 0);

    let mut out = Vec::new();
    let (room, now, long) = (topic("room:1"), a.now, format!("{{\"x\":\"{}\"}}", "x".repeat(990)));
    let mut last = a.machine.track(&room, "u", "{}", now, &mut out).expect("there is room");
    while let Ok(next) = a.machine.track(&room, "u", &long, now, &mut out) {
        out.clear();
        last = next;
    }
    while a.machine.track(&room, "u", "{}", now, &mut out).is_ok() {}
    assert_eq!(a.machine.track(&room, "u", &long, now, &mut out), Err(PresenceError::Full));
    let first = a.machine.own.entries[&1].reference;
    assert_eq!(a.machine.update(first, &long, now, &mut out), Err(PresenceError::Full));
    let last = a.machine.update(last, "{}", now, &mut out).expect("smaller than before");
    a.machine.update(first, &long, now, &mut out).expect("there is room again");
    a.machine.untrack(last, now, &mut out);
    let costs: usize = a.machine.own.entries.values().map(|entry| entry.cost()).sum();
    assert_eq!(a.machine.own.bytes, costs);
}

#[test]
fn an_owner_that_is_full_is_read_from_the_beginning_when_others_came_meanwhile() {
    let (mut a, b) = (Alone::new(&["b@h"]), epoch(1, 1));
    let mut owner = Owner::new(&name("b@h"), b);
    let Change::Joined(body) = joined("u") else { panic!() };
    let most = u64::try_from(PRESENCES / body.cost()).expect("small");
    let many: Vec<Change> = (0..most).map(|_| joined("u")).collect();
    many.iter().for_each(|change| owner.apply(change.clone(), &mut Vec::new()));
    a.delta("b@h", b, 0, &many);
    // Most of them leave, and a does not hear of it.
    let stay = most / 2;
    (stay..most).for_each(|number| owner.apply(Change::Left(number + 1), &mut Vec::new()));
    let asked = |out: &[Output]| {
        out.iter().find_map(|it| match it {
            Output::Say(_, Word::Ask { have, after, upto, .. }) => Some((*have, *after, *upto)),
            _ => None,
        })
    };
    let mut out = a.hears("b@h", Word::Digest { epoch: b, clock: owner.clock });
    let (have, after, upto) = asked(&out).expect("changes are missing");
    assert_eq!(have, most);
    out = a.hears("b@h", Word::Page(owner.page(have, after, upto)));
    assert!(asked(&out).is_some(), "there are more pages");
    // As many come as have left: those that left are still known.
    let clock = owner.clock;
    many[..stay as usize].iter().for_each(|it| owner.apply(it.clone(), &mut Vec::new()));
    out = a.delta("b@h", b, clock, &many[..stay as usize]);
    assert_eq!(asked(&out), Some((0, 0, None)), "from the beginning");
    while let Some((have, after, upto)) = asked(&out) {
        out = a.hears("b@h", Word::Page(owner.page(have, after, upto)));
        assert!(a.machine.bytes_of(&name("b@h")) <= PRESENCES);
        assert!(!out.iter().any(|it| matches!(it, Output::Fault(..))), "no fault of the owner");
    }
    assert_eq!(a.machine.bytes_of(&name("b@h")), owner.bytes);
    assert_eq!(a.machine.shown.len(), owner.entries.len());
}

#[test]
fn peers_that_are_gone_are_forgotten_when_there_are_many() {
    let mut a = Alone::new(&["b@h"]);
    for at in 0..2 * PEERS {
        let peer = name(&format!("x{at}@h"));
        a.machine.up(&peer, a.now, &mut Vec::new());
        a.machine.gone(&peer, &mut Vec::new());
    }
    assert_eq!(a.machine.peers.len(), PEERS);
    assert!(a.machine.peers.contains_key(&name("b@h")));
}

/// Any word of a peer that counts badly on purpose.
fn hostile() -> impl Strategy<Value = Word> {
    let number = || prop_oneof![9 => 0..9_u64, 1 => u64::MAX - 1..=u64::MAX];
    let epoch =
        || prop_oneof![9 => Just(epoch(1, 1)), 1 => Just(epoch(1, 0)), 1 => Just(epoch(1, 2))];
    let body =
        || proptest::option::of(number()).prop_map(|previous| Body { previous, ..body("u", "{}") });
    let change = prop_oneof![body().prop_map(Change::Joined), number().prop_map(Change::Left)];
    let changes = proptest::collection::vec(change, 0..5);
    let still = proptest::collection::btree_set(number(), 0..3);
    let entries = proptest::collection::btree_map(number(), body(), 0..4);
    let page = (epoch(), number(), number(), number(), still, entries).prop_map(
        |(epoch, clock, after, through, still, entries)| {
            let (still, entries) = (still.into_iter().collect(), entries.into_iter().collect());
            Word::Page(Page { epoch, clock, after, through, still, entries })
        },
    );
    prop_oneof![
        3 => (epoch(), number(), changes).prop_map(|(epoch, after, changes)| Word::Delta { epoch, after, changes }),
        2 => (epoch(), number()).prop_map(|(epoch, clock)| Word::Digest { epoch, clock }),
        1 => (epoch(), number(), number(), proptest::option::of(number()))
            .prop_map(|(epoch, have, after, upto)| Word::Ask { epoch, have, after, upto }),
        4 => page,
    ]
}

proptest! {
    #[test]
    fn whatever_a_peer_says_the_listener_has_the_state(
        words in proptest::collection::vec((hostile(), any::<bool>()), 0..60),
    ) {
        let mut a = Alone::new(&["b@h"]);
        a.track("mine", "{}");
        let mut listener: BTreeSet<Arc<Entry>> = a.machine.shown.clone();
        for (word, heals) in words {
            for output in a.hears("b@h", word) {
                match output {
                    Output::Joined(entry) => prop_assert!(listener.insert(entry)),
                    Output::Left(entry) => prop_assert!(listener.remove(&entry)),
                    Output::Fault(peer, _) if heals => a.machine.up(&peer, a.now, &mut Vec::new()),
                    _ => {}
                }
            }
            prop_assert_eq!(&listener, &a.machine.shown);
            prop_assert!(a.keys().starts_with("mine"));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        if let Ok(word) = codec::decode::<Word>(&bytes, WORD) {
            Alone::new(&["b@h"]).hears("b@h", word);
        }
    }
}
