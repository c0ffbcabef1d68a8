//! An ordinary ractor actor that other nodes send messages to, through ractor's process groups.
//!
//! ```text
//! remote_actors DIR HOST:PORT NAME@HOST             adds what it is told, until a node `ask@…` has left
//! remote_actors DIR HOST:PORT NAME@HOST UP ADDERS   tells so many adders 1 to UP, and asks for their sums
//! ```
//!
//! The reference that a group gives has no `stop`, and each call a deadline. Certificates are in DIR/certs,
//! the node's data in DIR/NAME@HOST; HOST:PORT is a node to join at. `scripts/example remote_actors`
//! starts everything.
#![allow(clippy::print_stdout, reason = "what an example comes to is printed")]

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::RactorClusterMessage;
use xpando_node::{Node, NodeHandle, Status};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Between two looks at who is there.
const TICK: Duration = Duration::from_millis(20);
/// How long an answer may take.
const WITHIN: Duration = Duration::from_secs(5);

#[derive(RactorClusterMessage)]
enum Adding {
    Add(u64),
    #[rpc]
    Sum(RpcReplyPort<u64>),
}

struct Adder;

impl Actor for Adder {
    type Msg = Adding;
    type State = u64;
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<Adding>,
        _nothing: (),
    ) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Adding>,
        message: Adding,
        sum: &mut u64,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Adding::Add(number) => *sum += number,
            Adding::Sum(reply) => reply.send(*sum)?,
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, join, name, rest @ ..] = args.as_slice() else {
        return Err("remote_actors DIR HOST:PORT NAME@HOST [UP ADDERS]".into());
    };
    let node = Node::builder(name)
        .join(join)
        .certs(format!("{dir}/certs"))
        .data_dir(format!("{dir}/{name}"))
        .beacons(false)
        .start()
        .await?;
    let done = match rest {
        [] => add(&node).await,
        [up, adders] => ask(&node, up.parse()?, adders.parse()?).await,
        _ => Err("UP and ADDERS, or neither".into()),
    };
    node.shutdown().await;
    done
}

/// Offers an adder until whoever asks has come and gone.
async fn add(node: &NodeHandle) -> Result<(), Failure> {
    let (adder, _ended) = Actor::spawn(None, Adder, ()).await?;
    node.exchange().join_group(&"adders".parse()?, &adder)?;
    let (mut members, mut came) = (node.members(), false);
    loop {
        let asks = members
            .borrow_and_update()
            .iter()
            .any(|row| row.peer.name.short() == "ask" && row.peer.status == Status::Online);
        if came && !asks {
            break;
        }
        came |= asks;
        members.changed().await?;
    }
    adder.stop(None);
    Ok(())
}

/// Tells all adders the same numbers and prints their sums.
async fn ask(node: &NodeHandle, up: u64, adders: usize) -> Result<(), Failure> {
    let group = "adders".parse()?;
    let mut found = node.exchange().group::<Adding>(&group);
    while found.len() < adders {
        tokio::time::sleep(TICK).await;
        found = node.exchange().group(&group);
    }
    found.sort_by_key(|adder| adder.node().to_string());
    for adder in &found {
        for number in 1..=up {
            adder.cast(Adding::Add(number))?;
        }
    }
    for adder in &found {
        println!("{}: {}", adder.node(), adder.call(Adding::Sum, WITHIN).await?);
    }
    Ok(())
}
