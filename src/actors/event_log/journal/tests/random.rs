//! Whatever is done to a trail and its journal, in whatever order: who reads or follows gets what a plain list of the
//! noted events says.

use std::sync::OnceLock;

use proptest::prelude::*;
use tokio::runtime;

use super::*;
use crate::actors::tests::PATIENCE;
use crate::proto::node::NodeName;

/// Some dozens of events.
const LIMITS: Limits = Limits { age: Duration::MAX, bytes: 20_000 };

#[derive(Clone, Debug)]
enum Step {
    /// So many events.
    Note(u64),
    Write,
    /// The first so many of those that wait are written, and nobody hears of it.
    WriteUnheard(usize),
    /// Signs, and forgets what is past the limits.
    Seal,
    /// The next life; the events that wait are lost, unless they are written first.
    Restart(bool),
    /// From where on, in parts of what there is, how many on a page, and which.
    Read(f64, usize, Option<bool>),
    Latest(usize, Option<bool>),
    Follow(f64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wanted = || proptest::option::of(any::<bool>());
    let step = prop_oneof![
        4 => (1..900_u64).prop_map(Step::Note),
        3 => Just(Step::Write),
        1 => (1..900_usize).prop_map(Step::WriteUnheard),
        1 => Just(Step::Seal),
        1 => any::<bool>().prop_map(Step::Restart),
        3 => (0.0..1.1, 1..700_usize, wanted()).prop_map(|(from, many, it)| Step::Read(from, many, it)),
        1 => (1..700_usize, wanted()).prop_map(|(many, it)| Step::Latest(many, it)),
        1 => (0.0..1.1).prop_map(Step::Follow),
    ];
    proptest::collection::vec(step, 1..40)
}

/// The event with this number; every third is about a peer.
fn event(seq: u64) -> Event {
    if seq.is_multiple_of(3) {
        Event::PeerConnecting { peer: peer() }
    } else {
        Event::Paused { millis: seq }
    }
}

fn peer() -> NodeName {
    name("b@127.0.0.1")
}

/// Those about a peer, all others, or all.
fn wanted(which: Option<bool>) -> Query {
    match which {
        Some(true) => Query { node: Some(peer()), ..Query::default() },
        Some(false) => Query { label: Some("paused".to_owned()), ..Query::default() },
        None => Query::default(),
    }
}

fn fits(which: Option<bool>, seq: u64) -> bool {
    which.is_none_or(|of_peer| of_peer == seq.is_multiple_of(3))
}

struct Model {
    dir: TempDir,
    /// `None` between two lives: the file is locked.
    open: Option<Journal>,
    last: u64,
    /// Those who follow, and the last number that each of them has.
    followers: Vec<(Following, u64)>,
}

impl Model {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut model = Self { dir, open: None, last: 0, followers: Vec::new() };
        model.begin();
        model
    }

    fn begin(&mut self) {
        static IDENTITY: OnceLock<Arc<Identity>> = OnceLock::new();
        let identity = IDENTITY.get_or_init(|| Arc::new(cluster(&["a@127.0.0.1"]).remove(0)));
        self.open = Some(open(self.dir.path(), identity, LIMITS).1);
    }

    fn journal(&self) -> &Journal {
        self.open.as_ref().expect("a life")
    }

    /// The first number that is in the file, and the first in memory.
    fn firsts(&self) -> (u64, u64) {
        let Inside { chain, trail, .. } = &*self.journal().0;
        (chain.first().expect("reads"), trail.first())
    }

    /// The first number that somebody who asks for those after one can get.
    fn from(&self, after: u64) -> u64 {
        let (stored, held) = self.firsts();
        if after + 1 >= held { after + 1 } else { stored.max(after + 1) }
    }

    fn at(&self, part: f64) -> u64 {
        (self.last as f64 * part) as u64
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Note(many) => {
                for seq in self.last + 1..=self.last + many {
                    self.journal().trail().note(event(seq));
                }
                self.last += many;
            }
            Step::Write => self.journal().write().expect("writes"),
            Step::WriteUnheard(many) => {
                let Inside { chain, trail, .. } = &*self.journal().0;
                let (stored, waiting) = trail.unstored(many);
                // A second one goes on from what is in the file, as the journal itself does.
                if chain.last().expect("reads").seq == stored {
                    chain.append(&waiting).expect("writes");
                }
            }
            Step::Seal => self.journal().seal().expect("signs"),
            Step::Restart(written) => self.restart(written),
            Step::Read(from, limit, which) => self.read(self.at(from), limit, which).await,
            Step::Latest(limit, which) => self.latest(limit, which).await,
            Step::Follow(from) => self.follow(self.at(from)).await,
        }
        self.followers_have_all().await;
    }

    fn restart(&mut self, written: bool) {
        if written {
            self.journal().write().expect("writes");
        }
        let stored = self.journal().0.chain.last().expect("reads").seq;
        assert!(if written { stored == self.last } else { stored <= self.last });
        self.last = stored;
        self.followers.clear();
        self.open = None;
        self.begin();
    }

    /// All pages from there on, of so many each.
    async fn read(&self, after: u64, limit: usize, which: Option<bool>) {
        let from = self.from(after);
        let mut expected = (from..=self.last).filter(|seq| fits(which, *seq)).peekable();
        let mut next = after;
        loop {
            let query = Query { after: Some(next), limit, ..wanted(which) };
            let page = self.journal().read(query).await;
            let wanted: Vec<_> = expected.by_ref().take(limit).collect();
            assert_eq!(seqs(&page.events), wanted, "after {next} of {}", self.last);
            let full = wanted.last().filter(|_| wanted.len() == limit);
            assert_eq!(page.next, *full.unwrap_or(&self.last));
            if wanted.len() < limit {
                return;
            }
            next = page.next;
        }
    }

    async fn latest(&self, limit: usize, which: Option<bool>) {
        let (stored, held) = self.firsts();
        let mut expected: Vec<_> =
            (stored.min(held)..=self.last).filter(|seq| fits(which, *seq)).collect();
        expected.drain(..expected.len().saturating_sub(limit));
        let query = Query { limit, ..wanted(which) };
        let page = self.journal().read(query).await;
        assert_eq!((seqs(&page.events), page.next), (expected, self.last));
    }

    async fn follow(&mut self, after: u64) {
        let after = after.min(self.last);
        let forgotten = self.from(after) - (after + 1);
        let mut following = self.journal().follow(Some(after));
        if forgotten > 0 {
            let told = tokio::time::timeout(PATIENCE, following.recv()).await;
            let told = told.expect("in time").expect("runs");
            assert_eq!(told.event, Event::EventsMissed { count: forgotten });
        }
        self.followers.push((following, after + forgotten));
    }

    async fn followers_have_all(&mut self) {
        for (following, has) in &mut self.followers {
            while *has < self.last {
                let told = tokio::time::timeout(PATIENCE, following.recv()).await.expect("in time");
                let told = told.expect("runs");
                *has += 1;
                assert_eq!((told.seq, told.event), (*has, event(*has)));
            }
        }
    }
}

fn seqs(events: &[Recorded]) -> Vec<u64> {
    assert!(events.iter().all(|it| it.event == event(it.seq)));
    events.iter().map(|it| it.seq).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn whatever_is_done_nothing_is_missing_and_nothing_comes_twice(steps in steps()) {
        let runtime = runtime::Builder::new_current_thread().enable_time().build().expect("runs");
        runtime.block_on(async {
            let mut model = Model::new();
            for step in steps {
                model.take(step).await;
            }
            let verified = model.journal().verify().await.expect("sound");
            assert_eq!((verified.last, verified.proved), (model.last, model.last));
        });
    }
}
