//! Rooms: anyone who may join talks to everybody who joined, on every node, and sees who is there.

use std::future::{Future, ready};

use serde_json::Value;

use super::super::handler::{Channel, Client, Joined, Push, Reaction};
use crate::actors::exchange::HandlerError;

/// All rooms.
pub(in super::super) struct Room;

impl Channel for Room {
    type State = ();

    async fn join(&self, _client: &Client, _params: Value) -> Result<Joined<()>, HandlerError> {
        Ok(Joined::new(()))
    }

    fn handle_in(
        &self,
        _state: &mut (),
        _client: &Client,
        _push: &Push,
    ) -> impl Future<Output = Result<Reaction, HandlerError>> + Send {
        ready(Ok(Reaction::Broadcast))
    }

    fn presence(&self) -> bool {
        true
    }
}
