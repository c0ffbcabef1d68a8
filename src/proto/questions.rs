//! Other nodes' questions whether this one hears a third: when to answer, and who asks too much.
//!
//! A node that is asked listens for a moment before it answers, so that the third node's reply to a
//! beat of now counts. Invariants: at most [`OPEN`] questions are open, of one peer at most [`EACH`];
//! a peer that says more than [`WORDS`] words a minute is past its cap.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::proto::node::NodeName;
use crate::proto::quota::Quota;

/// How long a node that is asked about another listens for it.
pub const LISTEN: Duration = Duration::from_millis(400);
/// Questions under way: all of some hundred nodes ask the same three about one that died.
pub const OPEN: usize = 1024;
/// Of one peer.
pub const EACH: usize = 16;
/// Questions, answers and doubts of one peer within a minute: when half of a thousand nodes is cut
/// off, each tells of five hundred.
pub const WORDS: u32 = 2048;

/// A question, to be answered when its time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who asks.
    pub from: NodeName,
    /// About whom.
    pub about: NodeName,
    /// When.
    pub asked: Instant,
}

/// The machine.
#[derive(Debug)]
pub struct Questions {
    me: NodeName,
    open: VecDeque<Question>,
    words: Quota,
}

impl Questions {
    /// Nobody has asked yet.
    pub fn new(me: NodeName) -> Self {
        Self { me, open: VecDeque::new(), words: Quota::new(WORDS) }
    }

    /// Counts a word of a peer; false when the peer is past its cap and its link is to end.
    #[must_use]
    pub fn word(&mut self, from: &NodeName, now: Instant) -> bool {
        self.words.spend(from, now)
    }

    /// Takes a question.
    ///
    /// # Errors
    /// Why it is dropped, as a metric label: `flood`, or `absurd` when it is about the asker or this
    /// node itself.
    pub fn ask(
        &mut self,
        from: NodeName,
        about: NodeName,
        asked: Instant,
    ) -> Result<(), &'static str> {
        if about == self.me || about == from {
            return Err("absurd");
        }
        let same = self.open.iter().filter(|open| open.from == from).count();
        if self.open.len() >= OPEN || same >= EACH {
            return Err("flood");
        }
        self.open.push_back(Question { from, about, asked });
        Ok(())
    }

    /// The next question whose time to be answered has come.
    pub fn due(&mut self, now: Instant) -> Option<Question> {
        let due = self.deadline().is_some_and(|at| at <= now);
        if due { self.open.pop_front() } else { None }
    }

    /// When the next question is to be answered.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.front().map(|question| question.asked + LISTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;

    fn name(text: &str) -> NodeName {
        text.parse().expect("valid")
    }

    #[test]
    fn a_question_is_due_after_a_while_and_in_turn() {
        let (mut questions, now) = (Questions::new(name("me@h")), start());
        assert_eq!(questions.deadline(), None);
        let later = now + Duration::from_millis(100);
        assert_eq!(questions.ask(name("a@h"), name("x@h"), now), Ok(()));
        assert_eq!(questions.ask(name("b@h"), name("x@h"), later), Ok(()));
        assert_eq!(questions.due(now + LISTEN / 2), None);
        let due = questions.due(now + LISTEN).map(|question| (question.from, question.asked));
        assert_eq!(due, Some((name("a@h"), now)));
        assert_eq!(questions.due(now + LISTEN), None);
        assert_eq!(questions.deadline(), Some(later + LISTEN));
    }

    #[test]
    fn what_peers_can_ask_is_bounded_for_each_and_for_all() {
        let (mut questions, now) = (Questions::new(name("me@h")), start());
        let ask =
            |questions: &mut Questions, from: &str| questions.ask(name(from), name("x@h"), now);
        assert_eq!((0..EACH).filter(|_| ask(&mut questions, "a@h").is_ok()).count(), EACH);
        assert_eq!(ask(&mut questions, "a@h"), Err("flood"));
        assert_eq!(ask(&mut questions, "b@h"), Ok(()), "one cannot use up the room of all");
        let many = (0..OPEN).filter(|n| ask(&mut questions, &format!("n{n}@h")).is_ok()).count();
        assert_eq!(many, OPEN - EACH - 1);
    }

    #[test]
    fn questions_about_the_asker_or_oneself_are_absurd() {
        let (mut questions, now) = (Questions::new(name("me@h")), start());
        for about in ["me@h", "a@h"] {
            assert_eq!(questions.ask(name("a@h"), name(about), now), Err("absurd"));
        }
        assert_eq!(questions.deadline(), None);
    }
}
