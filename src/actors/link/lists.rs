//! The lane of signed lists of one link: `proto::lists` between the reader, the writer and what is in force.
//!
//! Invariants: what is later here goes out before anything of another lane but control; a list of the peer is in force, or
//! refused, before the next piece is read.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::actors::exchange::{Kept, Outlet};
use crate::actors::lists::ListKeeper;
use crate::io::identity::InForce;
use crate::proto::lists::{Marks, Output, PART, Side, Word};
use crate::proto::processor::{BYTE, CONTROL};

/// Both ways of the lane.
pub(super) type Lists = (Incoming, Outgoing);

/// What waits to be sent.
enum Waiting {
    Word(Vec<u8>),
    /// A list, from this byte on.
    List(Arc<[u8]>, usize),
}

struct Shared {
    side: Side,
    waiting: VecDeque<Waiting>,
}

impl Shared {
    /// Has sent what is to be sent; the lists of the peer that are to be judged.
    fn perform(
        &mut self,
        out: Vec<Output>,
        in_force: &InForce,
        keeper: &ListKeeper,
    ) -> Vec<Output> {
        let mut judge = Vec::new();
        for output in out {
            match output {
                Output::Send(kind) => {
                    if let Some(document) = in_force.get(kind) {
                        let bytes = document.bytes.clone();
                        self.say(&Word::begin(kind, document.mark, bytes.len()));
                        self.waiting.push_back(Waiting::List(bytes, 0));
                        keeper.count(kind, "sent");
                    }
                }
                Output::Say(word) => self.say(&word),
                Output::Skipped(why) => keeper.skipped(why),
                Output::Judge(..) => judge.push(output),
            }
        }
        judge
    }

    /// What a peer that does not read has waiting is bounded: no word is there twice.
    fn say(&mut self, word: &Word<'_>) {
        let Ok(word) = word.encode() else { return }; // no word is unencodable
        let same = |waiting: &Waiting| matches!(waiting, Waiting::Word(it) if *it == word);
        if !self.waiting.iter().any(same) {
            self.waiting.push_back(Waiting::Word(word));
        }
    }
}

type Both = Arc<(Mutex<Shared>, Notify)>;

fn shared(both: &Both) -> MutexGuard<'_, Shared> {
    both.0.lock()
}

/// The lane of a link with a peer whose hello had these marks.
pub(super) fn open(keeper: &ListKeeper, theirs: Marks) -> Lists {
    let mut follow = keeper.lists().follow();
    let (in_force, mut out) = (follow.borrow_and_update().clone(), Vec::new());
    let side = Side::new(&in_force.marks(), theirs, &mut out);
    let mut shared = Shared { side, waiting: VecDeque::new() };
    shared.perform(out, &in_force, keeper);
    let both: Both = Arc::new((Mutex::new(shared), Notify::new()));
    let incoming = Incoming { both: both.clone(), keeper: keeper.clone(), room: None };
    (incoming, Outgoing { both, keeper: keeper.clone(), follow })
}

/// What the peer sends.
pub(super) struct Incoming {
    both: Both,
    keeper: ListKeeper,
    /// For the list that comes.
    room: Option<Kept>,
}

impl Incoming {
    /// A piece of the lane.
    pub(super) async fn piece(
        &mut self,
        outlet: &Arc<Outlet>,
        payload: &[u8],
    ) -> Result<(), String> {
        outlet.account().spend(CONTROL + BYTE * payload.len() as u64);
        let word = Word::decode(payload).map_err(|error| format!("a word of lists: {error}"))?;
        let Some(word) = word else {
            self.keeper.skipped("unknown_kind");
            return Ok(());
        };
        let judge = {
            let in_force = self.keeper.lists().in_force();
            let (mut room, keeper) = (None, &self.keeper);
            let mut out = Vec::new();
            let mut shared = shared(&self.both);
            let taken = shared.side.word(
                word,
                &in_force.marks(),
                |length| {
                    room = Some(keeper.room(outlet, length)?);
                    Ok(())
                },
                &mut out,
            );
            taken.map_err(|fault| fault.to_string())?;
            self.room = room.or(self.room.take());
            shared.perform(out, &in_force, keeper)
        };
        self.both.1.notify_one();
        for list in judge {
            if let Output::Judge(kind, mark, bytes) = list {
                self.keeper.offered(outlet, kind, mark, bytes).await;
            }
        }
        if !shared(&self.both).side.holds() {
            self.room = None;
        }
        Ok(())
    }
}

/// What goes to the peer.
pub(super) struct Outgoing {
    both: Both,
    keeper: ListKeeper,
    follow: watch::Receiver<InForce>,
}

impl Outgoing {
    /// The next piece, if there is one.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let mut shared = shared(&self.both);
        if self.follow.has_changed().unwrap_or(false) {
            let (in_force, mut out) = (self.follow.borrow_and_update().clone(), Vec::new());
            let here = |kind| in_force.get(kind).is_some_and(|document| document.here);
            shared.side.changed(&in_force.marks(), here, &mut out);
            shared.perform(out, &in_force, &self.keeper);
        }
        match shared.waiting.pop_front()? {
            Waiting::Word(word) => Some(word),
            Waiting::List(bytes, at) => {
                let end = bytes.len().min(at + PART);
                let word = Word::More(bytes.get(at..end).unwrap_or(&[])).encode();
                if end < bytes.len() {
                    shared.waiting.push_front(Waiting::List(bytes, end));
                }
                word.ok()
            }
        }
    }

    /// Returns when there may be a next piece.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            changed = self.follow.changed() => match changed {
                // It is looked at by `next`.
                Ok(()) => self.follow.mark_changed(),
                Err(_gone) => std::future::pending().await,
            },
            () = self.both.1.notified() => {}
        }
    }
}
