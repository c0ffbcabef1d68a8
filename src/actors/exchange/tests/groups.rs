//! Groups of actors: nobody gets a message of another type than its own.

use ractor::{Actor, ActorProcessingErr};
use tokio::sync::mpsc;

use super::kit::*;
use super::*;

/// Passes on what it gets.
struct Passing;

impl Actor for Passing {
    type Msg = u32;
    type State = mpsc::UnboundedSender<u32>;
    type Arguments = mpsc::UnboundedSender<u32>;

    async fn pre_start(
        &self,
        _myself: ActorRef<u32>,
        to: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(to)
    }

    async fn handle(
        &self,
        _myself: ActorRef<u32>,
        number: u32,
        to: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(to.send(number)?)
    }
}

#[tokio::test]
async fn an_actor_refuses_messages_of_another_type() {
    let ((a, metrics), (to, mut got)) = (node(A), mpsc::unbounded_channel());
    let (passing, _ended) = Actor::spawn(None, Passing, to).await.expect("starts");
    let group = |text: &str| text.parse::<Name>().expect("valid");
    a.join_group(&group("numbers"), &passing).expect("few");
    let [other] = &a.group::<u64>(&group("numbers"))[..] else { panic!("one member") };
    assert_eq!(other.cast(7), Err(SendError::OtherType("u32".to_owned())));
    assert_eq!(counted(&metrics, "node_messages", "other_type"), 1);
    let [own] = &a.group::<u32>(&group("numbers"))[..] else { panic!("one member") };
    own.cast(8).expect("its own type");
    assert_eq!(tokio::time::timeout(PATIENCE, got.recv()).await.expect("in time"), Some(8));
    assert!(a.group::<u32>(&group("number")).is_empty(), "the beginning of a name is no name");
}
