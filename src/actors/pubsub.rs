//! PubSub: the one door between nodes, and the news inside this one.
//!
//! - **Owns** who listens to what, and the outlet of every live link.
//! - **Hears** announcements from any actor, messages from peers (through `link`), and subscriptions.
//! - **Says** to subscribers what they subscribed to; to peers what is sent to them.
//! - **After a restart**: empty. The tree restarts everything after it, and they subscribe again; the
//!   links go with them and come back within the second.
//! - **Never** waits for a subscriber or a peer: an outlet that is full refuses, and that is counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use ractor::ActorProcessingErr;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::actors::supervisor::{Address, Child, Handle, Process};
use crate::io::metrics::{Count, Metrics};
use crate::proto::codec;
use crate::proto::event::Event;
use crate::proto::frame::MAX_PAYLOAD;
use crate::proto::membership::AttemptId;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

mod announce;

const VERSION: u8 = 1;

/// What travels between two doors.
#[derive(Serialize, Deserialize)]
struct Wire {
    topic: Topic,
    payload: Vec<u8>,
}

/// A message of a peer, as its subscribers get it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The peer that sent it; certain, its certificate says so.
    pub from: NodeName,
    /// The message.
    pub payload: Arc<[u8]>,
}

type EventSink = Box<dyn Fn(&Event) + Send>;
type TopicSink = Box<dyn Fn(Delivery) + Send>;

enum Msg {
    Announce(Event),
    Events(&'static str, EventSink),
    Topic(&'static str, Topic, TopicSink),
    Up(AttemptId, NodeName, mpsc::Sender<Vec<u8>>),
    Down(AttemptId),
    Send(NodeName, Topic, Vec<u8>),
    Received(NodeName, Vec<u8>, OwnedSemaphorePermit),
}

/// The handle.
#[derive(Clone)]
pub struct PubSub {
    handle: Handle<Msg>,
    metrics: Metrics,
}

impl PubSub {
    /// A door that nobody stands behind yet.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self { handle: Handle::new("pubsub", metrics), metrics: metrics.clone() }
    }

    /// The child to put under a supervisor.
    #[must_use]
    pub fn child(&self) -> Child {
        Child::actor::<Inside>(&self.handle, self.metrics.clone())
    }

    /// Logs and counts an event, and tells everybody in this node who listens.
    pub fn announce(&self, event: Event) {
        announce::log(&event);
        announce::count(&event, &self.metrics);
        self.handle.cast(Msg::Announce(event));
    }

    /// Gives every later event to `sink`. A subscriber has one name; a second one replaces the first.
    pub fn on_events(&self, name: &'static str, sink: impl Fn(&Event) + Send + 'static) {
        self.handle.cast(Msg::Events(name, Box::new(sink)));
    }

    /// Gives every later message of peers on `topic` to `sink`, likewise.
    pub fn subscribe(
        &self,
        name: &'static str,
        topic: Topic,
        sink: impl Fn(Delivery) + Send + 'static,
    ) {
        self.handle.cast(Msg::Topic(name, topic, Box::new(sink)));
    }

    /// Sends to the subscribers of `topic` on one peer: at most once, in order while the link lasts.
    /// At most about 64 KiB; a larger or unsendable message is counted and dropped.
    pub fn send(&self, peer: NodeName, topic: Topic, payload: Vec<u8>) {
        self.handle.cast(Msg::Send(peer, topic, payload));
    }

    /// A link is up: its door lane drains this outlet.
    pub fn up(&self, link: AttemptId, peer: NodeName, outlet: mpsc::Sender<Vec<u8>>) {
        self.handle.cast(Msg::Up(link, peer, outlet));
    }

    /// A link is gone.
    pub fn down(&self, link: AttemptId) {
        self.handle.cast(Msg::Down(link));
    }

    /// A piece arrived on a link's door lane. The permit bounds what a peer can have waiting here.
    pub fn received(&self, from: NodeName, piece: Vec<u8>, permit: OwnedSemaphorePermit) {
        self.handle.cast(Msg::Received(from, piece, permit));
    }
}

struct Inside {
    metrics: Metrics,
    events: BTreeMap<&'static str, EventSink>,
    topics: BTreeMap<(Topic, &'static str), TopicSink>,
    outlets: BTreeMap<NodeName, (AttemptId, mpsc::Sender<Vec<u8>>)>,
}

impl Inside {
    fn send(&self, peer: &NodeName, topic: Topic, payload: Vec<u8>) -> &'static str {
        let Some((_, outlet)) = self.outlets.get(peer) else { return "not_linked" };
        match codec::encode_versioned(VERSION, &Wire { topic, payload }) {
            Ok(bytes) if bytes.len() <= MAX_PAYLOAD => match outlet.try_send(bytes) {
                Ok(()) => "sent",
                Err(_full_or_closed) => "overloaded",
            },
            Ok(_) | Err(_) => "too_large",
        }
    }

    fn received(&self, from: NodeName, piece: &[u8]) -> &'static str {
        let Ok(Wire { topic, payload }) = codec::decode_versioned(VERSION, piece, MAX_PAYLOAD)
        else {
            return "malformed";
        };
        let mut kind = "no_subscriber";
        let delivery = Delivery { from, payload: payload.into() };
        let same = (topic.clone(), "")..;
        for ((_, _), sink) in self.topics.range(same).take_while(|((t, _), _)| *t == topic) {
            sink(delivery.clone());
            kind = "received";
        }
        kind
    }
}

impl Process for Inside {
    const NAME: &'static str = "pubsub";
    type Message = Msg;
    type Setup = Metrics;

    async fn start(metrics: Metrics, _myself: &Address<Msg>) -> Result<Self, ActorProcessingErr> {
        let (events, topics, outlets) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { metrics, events, topics, outlets })
    }

    fn handle(&mut self, message: Msg) -> Result<(), ActorProcessingErr> {
        match message {
            Msg::Announce(event) => self.events.values().for_each(|sink| sink(&event)),
            Msg::Events(name, sink) => drop(self.events.insert(name, sink)),
            Msg::Topic(name, topic, sink) => drop(self.topics.insert((topic, name), sink)),
            Msg::Up(link, peer, outlet) => drop(self.outlets.insert(peer, (link, outlet))),
            Msg::Down(link) => self.outlets.retain(|_, (of, _)| *of != link),
            Msg::Send(peer, topic, payload) => {
                self.metrics.count(Count::Door, self.send(&peer, topic, payload));
            }
            Msg::Received(from, piece, permit) => {
                self.metrics.count(Count::Door, self.received(from, &piece));
                drop(permit);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::actors::supervisor::probe;
    use crate::actors::supervisor::{Root, Roster, Tree, start};
    use crate::actors::tests::{counted, run, until};
    use crate::proto::restart::{Intensity, Strategy};
    use std::time::Duration;
    use tokio::sync::Semaphore;

    async fn door() -> (PubSub, Root, Metrics) {
        let metrics = Metrics::default();
        let pubsub = PubSub::new(&metrics);
        let tree = Tree {
            name: "root",
            strategy: Strategy::OneForOne,
            intensity: Intensity::default(),
            children: vec![pubsub.child()],
            roster: Roster::default(),
            metrics: metrics.clone(),
        };
        (pubsub, start(tree).await.expect("starts"), metrics)
    }

    fn peer() -> NodeName {
        "b@h".parse().expect("valid")
    }

    async fn next<T>(rx: &mut mpsc::UnboundedReceiver<T>) -> T {
        tokio::time::timeout(Duration::from_secs(5), rx.recv())
            .await
            .expect("in time")
            .expect("some")
    }

    #[tokio::test]
    async fn a_message_goes_out_of_one_door_and_in_at_the_other() {
        let (pubsub, _root, metrics) = door().await;
        let (outlet, mut wire) = mpsc::channel(1);
        let link = AttemptId::Outbound(1);
        let topic = Topic::network_peers();
        pubsub.up(link, peer(), outlet);
        pubsub.send(peer(), topic.clone(), b"hi".to_vec());
        pubsub.send(peer(), topic.clone(), b"full".to_vec());
        pubsub.send("c@h".parse().expect("valid"), topic.clone(), vec![]);
        pubsub.send(peer(), topic.clone(), vec![0; MAX_PAYLOAD]);
        let piece = tokio::time::timeout(Duration::from_secs(5), wire.recv()).await;
        let piece = piece.expect("in time").expect("sent");

        let (tx, mut rx) = mpsc::unbounded_channel();
        pubsub.subscribe("test", topic, move |d| drop(tx.send(d)));
        let room = Arc::new(Semaphore::new(2));
        let permit = room.clone().acquire_owned().await.expect("open");
        pubsub.received(peer(), piece.clone(), permit);
        let delivery = next(&mut rx).await;
        assert_eq!((delivery.from, &*delivery.payload), (peer(), b"hi".as_slice()));

        let permit = room.clone().acquire_owned().await.expect("open");
        pubsub.received(peer(), vec![9; 20], permit);
        let _all_returned = room.acquire_many(2).await.expect("open");
        let text = metrics.text().expect("text");
        for kind in ["sent", "overloaded", "not_linked", "too_large", "received", "malformed"] {
            assert!(text.contains(&format!("{{kind=\"{kind}\"}} 1")), "{kind} in {text}");
        }
    }

    #[tokio::test]
    async fn events_reach_each_subscriber_once() {
        let (pubsub, _root, _) = door().await;
        let (tx, mut rx) = mpsc::unbounded_channel();
        let again = tx.clone();
        pubsub.on_events("test", move |_| tx.send("replaced").expect("the test listens"));
        pubsub.on_events("test", move |_| again.send("second").expect("the test listens"));
        pubsub.announce(Event::PeerConnecting { peer: peer() });
        assert_eq!(next(&mut rx).await, "second");
        assert!(rx.try_recv().is_err());
    }

    /// A door behind which nobody answers: what it was told waits in the receiver.
    pub(crate) struct Silent(mpsc::UnboundedReceiver<Msg>);

    impl Silent {
        /// Lets the next piece of a peer go; its length, or `None` when none waits.
        pub(crate) fn release_piece(&mut self) -> Option<usize> {
            while let Ok(message) = self.0.try_recv() {
                if let Msg::Received(_, piece, _permit) = message {
                    return Some(piece.len());
                }
            }
            None
        }

        /// The pieces of peers that wait: they keep their permits until this is dropped.
        pub(crate) fn waiting(&mut self) -> Vec<impl Sized + use<>> {
            let mut pieces = Vec::new();
            while let Ok(message) = self.0.try_recv() {
                if matches!(message, Msg::Received(..)) {
                    pieces.push(message);
                }
            }
            pieces
        }
    }

    /// A handle to a door behind which nobody answers.
    pub(crate) async fn silent() -> (PubSub, Silent) {
        let (handle, heard) = probe("pubsub").await;
        (PubSub { handle, metrics: Metrics::default() }, Silent(heard))
    }

    #[tokio::test]
    async fn after_a_restart_nobody_is_subscribed_and_no_link_has_an_outlet() {
        let metrics = Metrics::default();
        let pubsub = PubSub::new(&metrics);
        let (root, roster) = run(&metrics, vec![pubsub.child()]).await;
        let (tx, mut heard) = mpsc::unbounded_channel();
        let (events, messages) = (tx.clone(), tx.clone());
        pubsub.on_events("test", move |_| events.send("event").unwrap_or(()));
        pubsub.subscribe("test", Topic::network_peers(), move |_| {
            messages.send("message").unwrap_or(())
        });
        drop(tx);
        let (outlet, mut wire) = mpsc::channel(1);
        pubsub.up(AttemptId::Outbound(1), peer(), outlet);
        pubsub.announce(Event::PeerConnecting { peer: peer() });
        assert_eq!(next(&mut heard).await, "event");

        assert!(roster.kill("pubsub"));
        assert_eq!(wire.recv().await, None, "the outlet ends with the actor");
        assert_eq!(heard.recv().await, None, "and so do the subscriptions");
        until("restarted", || counted(&metrics, "actor_restarts", "pubsub") == 1).await;
        let (tx, mut heard) = mpsc::unbounded_channel();
        until("the new life hears", || {
            let tx = tx.clone();
            pubsub.on_events("test", move |_| tx.send("again").unwrap_or(()));
            pubsub.announce(Event::PeerConnecting { peer: peer() });
            heard.try_recv() == Ok("again")
        })
        .await;
        pubsub.send(peer(), Topic::network_peers(), vec![1]);
        let room = Arc::new(Semaphore::new(1));
        let wire = codec::encode_versioned(
            VERSION,
            &Wire { topic: Topic::network_peers(), payload: vec![1] },
        );
        let permit = room.clone().acquire_owned().await.expect("open");
        pubsub.received(peer(), wire.expect("encodes"), permit);
        let handled = tokio::time::timeout(Duration::from_secs(5), room.acquire()).await;
        let _returned = handled.expect("in time").expect("open");
        assert_eq!(counted(&metrics, "door_messages", "not_linked"), 1);
        assert_eq!(counted(&metrics, "door_messages", "no_subscriber"), 1);
        root.stop().await;
    }

    #[tokio::test]
    async fn a_link_that_is_down_takes_its_own_outlet_and_no_other() {
        let (pubsub, _root, metrics) = door().await;
        let (old, new) = (AttemptId::Outbound(1), AttemptId::Inbound(1));
        let (outlet, mut first) = mpsc::channel(4);
        pubsub.up(old, peer(), outlet);
        let (outlet, mut second) = mpsc::channel(4);
        pubsub.up(new, peer(), outlet);
        assert_eq!(first.recv().await, None, "the newer link took its place");
        pubsub.down(old);
        pubsub.send(peer(), Topic::network_peers(), vec![1]);
        assert!(second.recv().await.is_some(), "the end of the old link is not that of the new");
        pubsub.down(new);
        assert_eq!(second.recv().await, None);
        pubsub.send(peer(), Topic::network_peers(), vec![1]);
        until("counted", || counted(&metrics, "door_messages", "not_linked") == 1).await;
    }

    #[tokio::test]
    async fn topics_with_the_same_beginning_are_told_apart() {
        let (pubsub, _root, _) = door().await;
        let topic = |text: &str| Topic::try_from(text.to_owned()).expect("valid");
        let (tx, mut heard) = mpsc::unbounded_channel();
        for (who, what) in [("z", "room:1"), ("a", "room:1"), ("z", "room:10"), ("a", "room:0")] {
            let tx = tx.clone();
            pubsub.subscribe(who, topic(what), move |_| tx.send((who, what)).unwrap_or(()));
        }
        let room = Arc::new(Semaphore::new(1));
        let wire = Wire { topic: topic("room:1"), payload: vec![] };
        let piece = codec::encode_versioned(VERSION, &wire).expect("encodes");
        let permit = room.clone().acquire_owned().await.expect("open");
        pubsub.received(peer(), piece, permit);
        let handled = tokio::time::timeout(Duration::from_secs(5), room.acquire()).await;
        let _returned = handled.expect("in time").expect("open");
        assert_eq!(next(&mut heard).await, ("a", "room:1"));
        assert_eq!(next(&mut heard).await, ("z", "room:1"));
        assert!(heard.try_recv().is_err());
    }
}
