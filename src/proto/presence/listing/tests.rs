//! Members as Phoenix's clients keep them, against who is there in truth.

#![allow(clippy::indexing_slicing, reason = "an index that is off is a failed test")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::counts::PORTION;
use super::*;
use crate::proto::presence::words::META;
use crate::proto::tests::start;

/// Who is there: metas by key and reference.
type State = BTreeMap<String, BTreeMap<String, Value>>;

/// What a client keeps, as `syncState` and `syncDiff` of Phoenix do; `None` before the first state. Those of V1 do not look for
/// doubles, so that here a double is a failure.
#[derive(Default)]
struct Client {
    state: Option<State>,
    counts: Vec<u64>,
    /// What it has not taken yet.
    queue: Vec<(String, Value)>,
    bytes: usize,
    reads: bool,
    states: usize,
}

fn metas(listed: &Value) -> impl Iterator<Item = (String, String, Value)> + '_ {
    let keys = listed.as_object().expect("an object").iter();
    keys.flat_map(|(key, listed)| {
        let metas = listed["metas"].as_array().expect("a list");
        assert!(!metas.is_empty(), "{key} without metas");
        let of = |meta: &Value| meta["phx_ref"].as_str().expect("a text").to_owned();
        metas.iter().map(move |meta| (key.clone(), of(meta), meta.clone()))
    })
}

impl Client {
    fn take(&mut self) {
        self.bytes = 0;
        for (event, payload) in std::mem::take(&mut self.queue) {
            match event.as_str() {
                "presence_state" => {
                    self.states += 1;
                    let mut state = State::new();
                    for (key, reference, meta) in metas(&payload) {
                        let double = state.entry(key).or_default().insert(reference, meta);
                        assert_eq!(double, None);
                    }
                    self.state = Some(state);
                }
                "presence_diff" => {
                    let state = self.state.as_mut().expect("no change before the state");
                    for (key, reference, meta) in metas(&payload["joins"]) {
                        let double = state.entry(key).or_default().insert(reference, meta);
                        assert_eq!(double, None, "joined twice");
                    }
                    for (key, reference, meta) in metas(&payload["leaves"]) {
                        let known = state.get_mut(&key).expect("known");
                        assert_eq!(
                            known.remove(&reference).map(|it| it["m"].clone()),
                            Some(meta["m"].clone())
                        );
                        if known.is_empty() {
                            state.remove(&key);
                        }
                    }
                }
                other => {
                    assert_eq!(other, "presence_count");
                    self.counts.push(payload["count"].as_u64().expect("a number"));
                }
            }
        }
    }
}

#[derive(Default)]
struct Room(BTreeMap<u64, Client>);

impl Audience for Room {
    fn is_ready(&self, member: u64) -> bool {
        self.0[&member].bytes <= QUEUE
    }

    fn give(&mut self, member: u64, shown: Shown<'_>) -> usize {
        let (event, payload, length) = match shown {
            Shown::All(Encoded::Text(text)) => {
                let frame: Value = serde_json::from_slice(text).expect("JSON");
                let at = |two: usize, one: &str| {
                    if frame.is_array() { frame[two].clone() } else { frame[one].clone() }
                };
                (at(3, "event").as_str().expect("a text").to_owned(), at(4, "payload"), text.len())
            }
            Shown::All(other) => panic!("{other:?}"),
            Shown::Join(event, tail) => {
                let payload = serde_json::from_slice(&tail[..tail.len() - 1]).expect("JSON");
                (event.to_owned(), payload, tail.len())
            }
        };
        assert!(length <= PART + 4096, "{length} bytes");
        let client = self.0.get_mut(&member).expect("a member");
        client.queue.push((event, payload));
        client.bytes += length;
        assert!(client.bytes <= QUEUE + 16 * PART, "{} bytes wait", client.bytes);
        if client.reads {
            client.take();
        }
        length
    }
}

struct World {
    listing: Listing,
    now: Instant,
    truth: BTreeMap<Ref, Arc<Entry>>,
    room: Room,
    number: u64,
}

impl World {
    fn new() -> Self {
        let listing = Listing::new("room:1".parse().expect("valid"));
        Self { listing, now: start(), truth: BTreeMap::new(), room: Room::default(), number: 0 }
    }

    fn entry(&mut self, key: &str, previous: Option<Ref>, length: usize) -> Arc<Entry> {
        self.number += 1;
        let meta = format!("{{\"m\":\"{}{}\"}}", self.number, "x".repeat(length.min(META - 32)));
        Arc::new(Entry {
            topic: "room:1".parse().expect("valid"),
            key: key.into(),
            reference: Ref { tag: 7, number: self.number },
            previous,
            meta: meta.into(),
        })
    }

    fn join(&mut self, entry: Arc<Entry>) {
        self.truth.insert(entry.reference, entry.clone());
        self.listing.joined(entry);
    }

    fn leave(&mut self, at: usize) -> Option<Arc<Entry>> {
        let nth = at.checked_rem(self.truth.len())?;
        let reference = *self.truth.keys().nth(nth)?;
        let entry = self.truth.remove(&reference)?;
        self.listing.left(&entry);
        Some(entry)
    }

    fn update(&mut self, at: usize, length: usize) {
        if let Some(old) = self.leave(at) {
            let new = self.entry(&old.key, Some(old.reference), length);
            self.join(new);
        }
    }

    fn admit(&mut self, member: u64, sees: Sees, reads: bool) {
        self.room.0.insert(member, Client { reads, ..Client::default() });
        let dialect = if member.is_multiple_of(2) { Dialect::V1 } else { Dialect::V2 };
        self.listing.admit(member, sees, dialect, self.now);
    }

    fn step(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.listing.step(self.now, &mut self.room);
        self.listing.told.check();
    }

    /// Until nothing is left to be told to those that read.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.room.0.values_mut().for_each(Client::take);
            let Some(due) = self.listing.due(self.now) else { return };
            self.now = self.now.max(due);
            self.step(0);
        }
        panic!("it does not end: {:?}", self.listing.due(self.now));
    }

    fn state(&self) -> State {
        let mut state = State::new();
        for entry in self.truth.values() {
            let shown = serde_json::from_str(&entry.shown()).expect("JSON");
            let metas = state.entry(entry.key.to_string()).or_default();
            metas.insert(entry.reference.to_string(), shown);
        }
        state
    }
}

/// As far as members can know: what an entry replaced may have been told to nobody.
fn without_previous(state: &State) -> State {
    let mut state = state.clone();
    for meta in state.values_mut().flat_map(BTreeMap::values_mut) {
        meta.as_object_mut().expect("an object").remove("phx_ref_prev");
    }
    state
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8, bool),
    Leave(usize),
    Update(usize, bool),
    Back(usize),
    Many(u8),
    Admit(u8, u8, bool),
    Forget(u8),
    Read(u8),
    Wait(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12_u8, any::<bool>()).prop_map(|(key, long)| Step::Join(key, long)),
        3 => any::<usize>().prop_map(Step::Leave),
        4 => (any::<usize>(), any::<bool>()).prop_map(|(at, long)| Step::Update(at, long)),
        1 => any::<usize>().prop_map(Step::Back),
        1 => (1..=120_u8).prop_map(Step::Many),
        2 => (0..6_u8, 0..4_u8, any::<bool>()).prop_map(|(id, sees, reads)| Step::Admit(id, sees, reads)),
        1 => (0..6_u8).prop_map(Step::Forget),
        2 => (0..6_u8).prop_map(Step::Read),
        6 => (0..1500_u16).prop_map(|ms| Step::Wait(if ms < 1200 { ms / 20 } else { ms })),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn in_steps_and_among_changes_every_member_comes_to_the_truth(steps in steps(), many in 0..300_u32) {
        let mut world = World::new();
        for key in 0..many {
            let entry = world.entry(&format!("k{}", key % 97), None, 900);
            world.join(entry);
        }
        for step in steps {
            match step {
                Step::Join(key, long) => {
                    let entry = world.entry(&format!("k{key}"), None, if long { 900 } else { 0 });
                    world.join(entry);
                }
                Step::Leave(at) => drop(world.leave(at)),
                Step::Update(at, long) => world.update(at, if long { 900 } else { 0 }),
                // A node's entries leave and come back as they were.
                Step::Back(at) => if let Some(entry) = world.leave(at) { world.join(entry) },
                Step::Many(count) => for at in 0..usize::from(count) {
                    if at % 3 == 0 { drop(world.leave(at * 7)) } else { world.update(at * 5, 900) }
                },
                Step::Admit(id, sees, reads) => {
                    let id = u64::from(id);
                    if world.room.0.remove(&id).is_some() { world.listing.forget(id); }
                    let sees = [Sees::State, Sees::State, Sees::Count, Sees::Nothing][usize::from(sees)];
                    world.admit(id, sees, reads);
                }
                Step::Forget(id) => if world.room.0.remove(&u64::from(id)).is_some() { world.listing.forget(u64::from(id)) },
                Step::Read(id) => if let Some(client) = world.room.0.get_mut(&u64::from(id)) { client.take() },
                Step::Wait(ms) => world.step(u64::from(ms)),
            }
        }
        world.settle();
        let (truth, keys) = (without_previous(&world.state()), world.state().len() as u64);
        for (id, client) in &world.room.0 {
            if let Some(state) = &client.state {
                prop_assert_eq!(client.states, 1);
                prop_assert_eq!(&without_previous(state), &truth, "member {}", id);
            }
            prop_assert!(client.counts.last().is_none_or(|count| *count == keys));
            let shown = [client.state.is_some(), !client.counts.is_empty()];
            let sees = [world.listing.settled.contains_key(id), world.listing.counts.members.contains_key(id)];
            prop_assert_eq!(shown, sees);
        }
    }
}

fn last(world: &World, member: u64) -> &(String, Value) {
    world.room.0[&member].queue.last().expect("something")
}

#[test]
fn an_update_is_one_diff_and_names_what_was_known() {
    let mut world = World::new();
    let first = world.entry("anna", None, 0);
    world.join(first.clone());
    world.admit(1, Sees::State, true);
    world.step(0);
    world.room.0.get_mut(&1).expect("a member").reads = false;
    // Three updates within a step: what was between is told to nobody.
    (0..3).for_each(|_| world.update(0, 0));
    world.step(500);
    let (event, diff) = last(&world, 1).clone();
    assert_eq!((event.as_str(), world.room.0[&1].queue.len()), ("presence_diff", 1));
    let (joined, left) = (&diff["joins"]["anna"]["metas"], &diff["leaves"]["anna"]["metas"]);
    assert_eq!(joined[0]["phx_ref_prev"], first.reference.to_string());
    assert_eq!(left[0]["phx_ref"], first.reference.to_string());
    assert_eq!(joined[0]["phx_ref"], world.truth.keys().next().expect("one").to_string());
    // One that came within the step comes without a predecessor, however often it was updated.
    let ben = world.entry("ben", None, 0);
    world.join(ben);
    (0..2).for_each(|_| world.update(1, 0));
    world.step(500);
    let (_, diff) = last(&world, 1).clone();
    assert_eq!(diff["joins"]["ben"]["metas"][0].get("phx_ref_prev"), None);
    assert_eq!(diff["leaves"], serde_json::json!({}));
    world.settle();
    assert_eq!(world.room.0[&1].state.as_ref().map(BTreeMap::len), Some(2));
}

#[test]
fn a_large_state_comes_in_parts_as_fast_as_it_is_read() {
    let mut world = World::new();
    for key in 0..2000 {
        let entry = world.entry(&format!("user{key}"), None, 300);
        world.join(entry);
    }
    world.admit(1, Sees::State, false);
    world.admit(2, Sees::State, true);
    world.step(0);
    let slow = &world.room.0[&1];
    assert!((QUEUE..=QUEUE + PART + 4096).contains(&slow.bytes), "{} bytes wait", slow.bytes);
    assert_eq!(world.room.0[&2].state.as_ref().map(BTreeMap::len), Some(2000), "all at once");
    // Of what it has not read it hears nothing; of what it has, it does.
    world.step(100);
    let before = world.room.0[&1].queue.len();
    assert!(world.room.0[&1].queue.iter().all(|(_, it)| it.get("user999").is_none()));
    let (known, unknown) = (
        world.truth.values().position(|it| &*it.key == "user0"),
        world.truth.values().position(|it| &*it.key == "user999"),
    );
    world.update(unknown.expect("there"), 0);
    world.step(500);
    assert_eq!(world.room.0[&1].queue.len(), before);
    world.update(known.expect("there"), 0);
    world.step(500);
    assert_eq!(world.room.0[&1].queue.len(), before + 1);
    world.settle();
    assert_eq!(world.room.0[&1].state, world.room.0[&2].state);
}

#[test]
fn a_newcomer_is_in_its_own_state_unless_a_crowd_comes() {
    let mut world = World::new();
    (10..2010).for_each(|member| world.admit(member, Sees::State, true));
    world.settle();
    let anna = world.entry("anna", None, 0);
    world.join(anna);
    world.step(1000);
    // Nothing more is told for a while, so that the next one waits for its state.
    let ben = world.entry("ben", None, 0);
    world.join(ben);
    world.admit(1, Sees::State, true);
    world.step(50);
    assert_eq!(world.room.0[&1].states, 0);
    world.settle();
    assert_eq!(world.room.0[&1].state, Some(world.state()));
    assert_eq!(world.room.0[&10].state, Some(world.state()));
}

#[test]
fn counts_are_of_keys_and_told_in_portions_to_newcomers_first() {
    let mut world = World::new();
    (0..1000).for_each(|member| world.admit(member, Sees::Count, false));
    for key in ["anna", "anna", "ben"] {
        let entry = world.entry(key, None, 0);
        world.join(entry);
    }
    let told = |world: &World| world.room.0.values().map(|it| it.queue.len()).sum::<usize>();
    world.step(0);
    assert_eq!(told(&world), PORTION);
    (0..8).for_each(|_| world.step(1000));
    assert_eq!(told(&world), 1000);
    assert_eq!(last(&world, 7), &("presence_count".to_owned(), serde_json::json!({ "count": 2 })));
    world.update(0, 0);
    world.step(1000);
    assert_eq!(told(&world), 1000, "there are as many as before");
    for at in 0..50 {
        let entry = world.entry(&format!("k{at}"), None, 0);
        world.join(entry);
        world.step(1);
    }
    assert_eq!(told(&world), 1000 + 3 * PORTION, "not each one to all");
    world.admit(1000, Sees::Count, false);
    world.step(1000);
    assert_eq!(last(&world, 1000).1, serde_json::json!({ "count": 52 }));
    world.settle();
    assert!(world.room.0.values().all(|it| it.counts.last() == Some(&52)));
    assert!(world.room.0.values().all(|it| it.counts.len() <= 3), "in turn");
    assert_eq!(world.listing.told.part(None, Dialect::V2).0.map(|it| it.len() > 100), Some(true));
}
