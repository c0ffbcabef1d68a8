//! When others are asked, and what waits for them.

use super::*;
use crate::actors::channel_router::tests::{room, world};
use crate::actors::channel_router::topic::tests::{P, Q, payload, position, takes, task};
use crate::actors::exchange::Message;
use crate::actors::tests::name;
use crate::proto::channel::envelope::Envelope;
use crate::proto::history::Ask;
use crate::proto::history::chunk::Chunk;
use crate::proto::history::words::{Question, Theirs};
use crate::proto::replay::Position;

fn links<const N: usize>(names: [&str; N]) -> Links {
    Arc::new(names.map(|it| (name(it), 1)).into())
}

/// The message of a publisher with this number, as it comes.
fn message(from: &str, n: u64) -> Received {
    let payload = Envelope::encode(position(n), "say", &payload(n)).expect("short");
    Received::Message(Message { topic: room(), from: name(from), payload })
}

/// How far a publisher has come here.
fn heard(task: &TopicTask, from: &str) -> u64 {
    task.log.latest(&name(from)).map_or(0, |latest| latest.n)
}

#[tokio::test]
async fn what_others_say_waits_for_a_new_link_and_what_is_said_here_does_not() {
    let world = world().await;
    let mut task = task(&world);
    takes(&mut task, Q, 1);
    task.linked(&links([P]));
    let me = task.shared.me.clone();
    task.receive(message(P, 1));
    task.receive(message(P, 2));
    task.receive(message(me.as_str(), 1));
    assert_eq!((heard(&task, P), heard(&task, me.as_str())), (0, 1));
    // P asks for a join of its own.
    let (to, mut answer) = oneshot::channel();
    task.answer(&Question::Past(room(), String::new(), Some(Ask::Last(9))), to);
    assert!(answer.try_recv().is_err());
    task.answered(Vec::new());
    assert_eq!(heard(&task, P), 2);
    let theirs = Theirs::decode(&answer.try_recv().expect("an answer")).expect("well-formed");
    assert_eq!(theirs.chunks.iter().map(Chunk::count).sum::<u32>(), 4);
    task.receive(message(P, 3));
    assert_eq!(heard(&task, P), 3);
}

#[tokio::test]
async fn nothing_waits_longer_than_three_seconds_and_no_more_than_is_held() {
    let world = world().await;
    let mut task = task(&world);
    takes(&mut task, Q, 1);
    let before = timer::now();
    task.linked(&links([P]));
    let (join, to) = (Box::new(world.member(None)), oneshot::channel().0);
    let id = join.id;
    task.ask_for(join);
    task.keep_for(to, &links([P]));
    task.receive(message(P, 1));
    let due = task.rounds_due().expect("something waits");
    assert!(due >= before + WAITS && due <= timer::now() + WAITS);
    task.step_rounds(due - Duration::from_millis(1));
    assert_eq!((heard(&task, P), task.members.len()), (0, 0));
    task.step_rounds(due);
    assert_eq!((heard(&task, P), task.members.contains_key(&id)), (1, true));
    assert_eq!(task.rounds_due(), None);

    // The one that has not answered is asked still; another link has all wait anew.
    task.linked(&links([P, Q]));
    let mut held = 1;
    while task.listens() {
        held += 1;
        task.receive(message(P, held));
    }
    let bytes = task.round.held.as_ref().map_or(0, |held| held.bytes);
    assert!((HELD..HELD + 1024).contains(&bytes), "{bytes}");
    task.answered(Vec::new());
    assert_eq!(heard(&task, P), 1, "the other one is asked now");
    task.answered(Vec::new());
    assert_eq!(heard(&task, P), held);
}

#[tokio::test]
async fn a_node_is_asked_once_in_a_round_and_others_next() {
    let world = world().await;
    let mut task = task(&world);
    task.links = links([P]);
    let join = |task: &mut TopicTask| {
        let member = Box::new(world.member(None));
        let id = member.id;
        task.ask_for(member);
        id
    };
    let first = join(&mut task);
    let second = join(&mut task);
    task.answered(Vec::new());
    assert_eq!(task.jobs.len(), 1, "both wait for one question");
    assert!([first, second].iter().all(|id| task.members.contains_key(id)));

    let third = join(&mut task);
    task.links = links([P, Q]);
    let fourth = join(&mut task);
    task.answered(Vec::new());
    assert_eq!((task.jobs.len(), task.members.len()), (3, 2), "Q is asked before the round ends");
    task.finish(Ok(Job::Asked(Vec::new())));
    assert!([third, fourth].iter().all(|id| task.members.contains_key(id)));
    assert!(!task.round.runs);
}

#[tokio::test]
async fn another_epoch_of_a_publisher_has_all_asked_once_more() {
    let world = world().await;
    let mut task = task(&world);
    task.links = links([P, Q]);
    task.asked = task.links.clone();
    takes(&mut task, P, 1);
    assert!(!task.is_to_ask());
    let other = Position { epoch: 2, n: 1, tag: 7 };
    let text = Envelope::encode(other, "say", &payload(1)).expect("short");
    task.receive(Received::Message(Message { topic: room(), from: name(P), payload: text }));
    assert_eq!(task.log.latest(&name(P)), Some(other));
    assert!(task.is_to_ask());
    task.ask_for(Box::new(world.member(None)));
    assert_eq!(task.round.asked, *links([P, Q]));
    task.answered(Vec::new());
    assert!(!task.is_to_ask());
}

#[tokio::test]
async fn a_job_that_crashed_leaves_no_round_behind() {
    let world = world().await;
    let mut task = task(&world);
    task.links = links([P]);
    task.ask_for(Box::new(world.member(None)));
    let crashed = tokio::spawn(async { std::future::pending::<Job>().await });
    crashed.abort();
    task.finish(crashed.await);
    assert_eq!((task.members.len(), task.round.runs), (1, false));
}

#[tokio::test]
async fn when_a_link_ends_others_are_asked_again_after_a_while_and_once_more() {
    let world = world().await;
    let mut task = task(&world);
    takes(&mut task, P, 1);
    (task.links, task.asked) = (links([P, Q]), links([P, Q]));
    let before = timer::now();
    task.unlinked(&name(P), &links([Q]));
    assert_eq!(task.jobs.len(), 0, "nobody is here");
    task.members.insert(1, Box::new(world.member(None)));
    for after in AGAIN {
        let due = task.rounds_due().expect("others are asked again");
        assert!(due >= before + after && due <= timer::now() + after);
        task.step_rounds(due);
        assert!(task.round.runs);
        task.answered(Vec::new());
    }
    assert_eq!((task.rounds_due(), task.jobs.len()), (None, 2));
}
