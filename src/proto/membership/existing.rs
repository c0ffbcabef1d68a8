//! Links that outlived the machine before.

use std::time::Instant;

use crate::proto::frame::CloseReason;
use crate::proto::hello::Hello;
use crate::proto::membership::peer::Live;
use crate::proto::membership::{AttemptId, Membership, Output, get_or_insert};

impl Membership {
    /// A link that outlived the machine before. A peer may have two: an ending one and its heir.
    pub(super) fn existing(
        &mut self,
        attempt: AttemptId,
        hello: &Hello,
        ready: bool,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let name = &hello.name;
        if self.take_outdated(attempt).is_some() {
            return out.push(Output::Close(attempt, CloseReason::Replaced));
        }
        let peer = get_or_insert((&mut self.peers, &mut self.forgotten), name, now);
        if peer.judge(hello, now).is_err() {
            return out.push(Output::Close(attempt, CloseReason::Replaced));
        }
        self.claims.linked();
        // A hint may have been faster than the news of the link.
        if let Some(needless) = peer.dialing.take() {
            self.dialing.remove(&needless);
            out.push(Output::Abandon(needless));
        }
        peer.replace(name, hello.incarnation, now, out);
        peer.meet(hello);
        peer.link(name, Live::new(attempt, hello.advertise, now), now, out);
        if ready {
            peer.ready(name, now, out);
        }
    }
}
