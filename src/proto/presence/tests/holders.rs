//! Whose presences a node has room for, and who waits.

use super::*;
use crate::proto::budget::PRESENCES;
use crate::proto::presence::room::{SHARE, cost};

/// The attendance of one node, and what it has shown.
struct Here {
    attendance: Attendance,
    out: Vec<Output>,
    next: u64,
}

impl Here {
    fn new() -> Self {
        let rng = StdRng::seed_from_u64(2);
        let attendance = Attendance::new(name("a@h"), epoch(1, 0), start(), rng);
        Self { attendance, out: Vec::new(), next: 0 }
    }

    fn join(&mut self, holder: &str, long: usize) -> (u64, Result<(), PresenceError>) {
        self.next += 1;
        let (holder, room, meta) = (Holder::from(holder), topic("room:1"), meta(long));
        let place = (&room, &*holder, meta.as_str());
        let joined = self.attendance.join(self.next, Some(&holder), place, start(), &mut self.out);
        (self.next, joined)
    }

    /// Joins until there is no room.
    fn fill(&mut self, holder: &str, long: usize) -> Vec<u64> {
        let mut members = Vec::new();
        loop {
            let (member, joined) = self.join(holder, long);
            if joined.is_err() {
                self.leave(member);
                return members;
            }
            members.push(member);
        }
    }

    fn leave(&mut self, member: u64) {
        self.attendance.leave(member, start(), &mut self.out);
    }

    fn shown(&self, key: &str) -> usize {
        let room = topic("room:1");
        self.attendance.presence().entries(&room).filter(|it| &*it.key == key).count()
    }

    fn bytes(&self) -> usize {
        PRESENCES - self.attendance.presence().free()
    }
}

fn meta(long: usize) -> String {
    format!("{{\"m\":\"{}\"}}", "x".repeat(long))
}

#[test]
fn one_user_leaves_room_for_those_who_come_later() {
    let mut here = Here::new();
    here.fill("mallory", 950);
    here.fill("mallory", 0);
    let most = PRESENCES - PRESENCES / (SHARE + 1);
    assert!((most - 500..=most).contains(&here.bytes()), "{}", here.bytes());
    let (victim, joined) = here.join("victim", 100);
    assert_eq!(joined, Ok(()));
    let update = |here: &mut Here, long| {
        here.attendance.update(victim, &meta(long), start(), &mut Vec::new())
    };
    assert_eq!((update(&mut here, 200), here.shown("victim")), (Ok(()), 1));
    // Each further one has a part of what is left.
    for (many, user) in (2..).zip(["eve", "oscar"]) {
        here.fill(user, 100);
        here.fill("mallory", 0);
        let left = PRESENCES / (many * SHARE + 1);
        assert!(here.bytes() > PRESENCES - left - 2000, "{user} {}", here.bytes());
        assert_eq!(here.join("victim", 0).1, Ok(()));
    }
}

#[test]
fn who_finds_no_room_is_shown_as_soon_as_there_is_some() {
    let mut here = Here::new();
    let members = here.fill("mallory", 950);
    let (waits, joined) = here.join("mallory", 950);
    assert_eq!(joined, Err(PresenceError::Full));
    let (goes, _) = here.join("mallory", 950);
    here.leave(goes);
    here.attendance.update(waits, &meta(3), start(), &mut Vec::new()).expect("it will be");
    let before = here.shown("mallory");
    here.out.clear();
    here.leave(members[0]);
    assert_eq!(here.shown("mallory"), before, "one for another");
    assert!(here.out.iter().any(|it| matches!(it, Output::Joined(it) if *it.meta == *meta(3))));
    here.leave(waits);
    assert_eq!(here.shown("mallory"), before - 1);
    here.leave(members[1]);
    assert_eq!(here.shown("mallory"), before - 2, "nobody waits");
}

#[test]
fn a_member_that_is_no_users_has_what_is_free_and_does_not_wait() {
    let mut here = Here::new();
    let (room, long) = (topic("room:1"), meta(950));
    let mut joined = Ok(());
    while joined.is_ok() {
        here.next += 1;
        let place = (&room, "bot", long.as_str());
        joined = here.attendance.join(here.next, None, place, start(), &mut Vec::new());
    }
    assert!(here.bytes() > PRESENCES - 2000);
    let shown = here.shown("bot");
    here.leave(1);
    assert_eq!(here.shown("bot"), shown - 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// Whoever joins, changes and leaves: each is shown or waits at most once, nobody waits for whom there is room, and what is
    /// counted is what is there.
    #[test]
    fn what_is_held_and_what_waits_are_counted_right(
        deeds in proptest::collection::vec((0..5_u8, 0..4_usize, 1..60_usize), 1..30),
    ) {
        let mut here = Here::new();
        let users = ["u0", "u1", "u2", "u3"];
        let mut members: BTreeMap<u64, &str> = BTreeMap::new();
        for (deed, user, many) in deeds {
            let some = |members: &BTreeMap<u64, &str>| {
                members.keys().copied().step_by(7).take(many * 20).collect::<Vec<_>>()
            };
            match deed {
                0..3 => for _ in 0..many * 20 {
                    members.insert(here.join(users[user], 900).0, users[user]);
                },
                3 => for member in some(&members) {
                    here.leave(member);
                    members.remove(&member);
                },
                _ => for member in some(&members) {
                    let other = meta(many * 15);
                    let updated = here.attendance.update(member, &other, start(), &mut here.out);
                    prop_assert!(updated != Err(PresenceError::Meta));
                },
            }
            here.attendance.check();
            for output in here.out.drain(..) {
                if let Output::Say(..) = output {
                    prop_assert!(false, "nobody is there");
                }
            }
        }
        let all: Vec<_> = members.into_keys().collect();
        all.into_iter().for_each(|member| here.leave(member));
        here.attendance.check();
        prop_assert_eq!(here.bytes(), 0);
    }
}

#[test]
fn what_one_costs_is_what_it_is_counted_for() {
    let mut here = Here::new();
    here.join("u", 10).1.expect("taken");
    assert_eq!(here.bytes(), cost(&topic("room:1"), "u", &meta(10)));
}
