//! How a join is seen, changed while it lives: a push of `presence_meta`.
//!
//! # Invariants
//! 1. Changes take effect in the order of the pushes; each is answered once.
//! 2. A change that waits for the router has a place among the client's frames that wait.

use super::super::entrance::Live;
use super::super::{Refusal, presence};
use super::{ClientTask, empty};
use crate::actors::channel_router::outbox::ClientOverflow;
use crate::io::metrics::Count;
use crate::proto::channel::session::Join;
use crate::proto::channel::{Frame, Outcome, Payload, Say, reason};

const NOBODY: Refusal = "this join is not seen";

/// The meta that a push asks for, of a client that may push.
fn asked(live: &Live, payload: &Payload) -> Result<String, Refusal> {
    let fields = presence::fields(payload)?;
    live.face.as_ref().ok_or(NOBODY)?.meta(&fields, true)
}

impl ClientTask {
    /// Changes how a join is seen, and answers in a task of its own.
    pub(super) fn show(&self, frame: &Frame, join: &Join) {
        if let Err(why) = self.try_show(frame, join) {
            self.channels.metrics.count(Count::Channels, "presence_invalid");
            self.reply(join, frame.reference.as_ref(), Outcome::Error, &reason(why));
        }
    }

    fn try_show(&self, frame: &Frame, join: &Join) -> Result<(), Refusal> {
        let live = self.live.get(&join.number).ok_or("unmatched topic")?;
        let meta = asked(live, &frame.payload)?;
        let place = self.room(&frame.payload).ok_or("overloaded")?;
        // In the order of the pushes; the answers follow.
        let updated = self.channels.router.update(live.member, meta);
        let (outbox, dialect) = (self.outbox.clone(), self.session.dialect());
        let (join, reference, slow) =
            (join.clone(), frame.reference.clone(), ClientOverflow::Disconnect);
        tokio::spawn(async move {
            let (outcome, response) = match updated.await {
                Ok(Ok(())) => (Outcome::Ok, empty()),
                Ok(Err(refused)) => (Outcome::Error, reason(&refused.to_string())),
                Err(_router_is_gone) => (Outcome::Error, reason("overloaded")),
            };
            let reply = Say::Reply(join.join_ref.as_ref(), reference.as_ref(), outcome, &response);
            outbox.push(reply.encode(dialect, join.topic.as_str()), slow);
            drop(place);
        });
        Ok(())
    }
}
