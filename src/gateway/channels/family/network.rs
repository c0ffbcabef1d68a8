//! What happens in the cluster, as this node sees it.
//!
//! A client gets `snapshot` at its join, then `change` for each event and `figures` of the traffic once a second (`feed`).
//! It may ask (`view`) what this node or another one sees, and say anything else to all who joined.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::super::handler::{Channel, Client, Joined, Push, Reaction};
use super::Counted;
use crate::actors::exchange::HandlerError;
use crate::gateway::sight;
use crate::gateway::view::NodeView;
use crate::proto::channel::{Json, Payload};
use crate::proto::node::NodeName;

/// The one topic of this family, by what stands behind its prefix.
pub(in super::super) const UPDATES: &str = "updates";
/// By which a client asks what a node sees.
const VIEW: &str = "view";
/// What the node says there, nobody else says.
const OWN: [&str; 3] = ["snapshot", "change", "figures"];
/// Clients that ask at once what a node sees.
const VIEWS: usize = 16;

/// The channel.
pub(in super::super) struct Network {
    admin: NodeView,
    /// Joins.
    observing: Arc<AtomicUsize>,
    /// Places for those who ask what a node sees.
    views: Arc<Semaphore>,
}

#[derive(Deserialize)]
struct View {
    /// Whose; this node's own unless it names one.
    node: Option<NodeName>,
}

impl Network {
    pub(in super::super) fn new(admin: &NodeView, observing: &Arc<AtomicUsize>) -> Self {
        let (admin, observing) = (admin.clone(), observing.clone());
        Self { admin, observing, views: Arc::new(Semaphore::new(VIEWS)) }
    }

    /// Answers, in a task of its own, what a node sees.
    fn view(&self, client: &Client, push: &Push) -> Result<Reaction, HandlerError> {
        let asked =
            push.decode::<View>().map_err(|_other| "name a node: {\"node\": \"NAME@HOST\"}");
        let (node, admin) = (asked?.node, self.admin.clone());
        let place = self.views.clone().try_acquire_owned().map_err(|_full| "overloaded")?;
        let reply = client.reply_to(push);
        tokio::spawn(async move {
            let node = node.unwrap_or_else(|| admin.name.clone());
            match sight::of(&admin, &node).await {
                Ok(sight) => reply.ok(&Payload::Json(Json::of(&json!(sight)))),
                Err(why) => reply.error(why),
            }
            drop(place);
        });
        Ok(Reaction::Silent)
    }
}

impl Channel for Network {
    type State = Counted;

    async fn join(
        &self,
        _client: &Client,
        _params: Value,
    ) -> Result<Joined<Self::State>, HandlerError> {
        let admin = self.admin.clone();
        let snapshot = move || {
            let snapshot = json!({ "status": admin.status(), "topology": admin.topology() });
            vec![("snapshot", Payload::Json(Json::of(&snapshot)))]
        };
        Ok(Joined::new(Counted::of(&self.observing)).greeting(snapshot))
    }

    async fn handle_in(
        &self,
        _state: &mut Self::State,
        client: &Client,
        push: &Push,
    ) -> Result<Reaction, HandlerError> {
        match push.event.as_str() {
            VIEW => self.view(client, push),
            own if OWN.contains(&own) => Err("reserved".into()),
            _ => Ok(Reaction::Broadcast),
        }
    }

    /// Who may hear of the network may ask for it.
    fn questions(&self) -> &[&str] {
        &[VIEW]
    }

    /// What is newer makes up for what is lost.
    fn lossy(&self) -> bool {
        true
    }
}
