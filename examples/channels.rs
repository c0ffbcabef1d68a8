//! A service with topics of its own for Phoenix clients: who joins `test:NAME` (or `veiled:NAME`) sees who else is there,
//! and each event gets the answer that it is named after. So it is also what a client is tried against: every answer that
//! a channel can give, on demand.
//!
//! ```text
//! channels DIR HOST:PORT NAME@HOST ADDR:PORT      serves clients on ADDR:PORT until it is told to end
//! ```
//!
//! | A client sends | It gets |
//! |---|---|
//! | a join with `{"deny":true}` or `{"crash":true}` | a refusal, from the handler or because that is lost |
//! | a join with `{"wait": N}` | its answer after so many milliseconds; its other topics do not wait |
//! | any other join | `{"welcome": who, "params": what it sent}` |
//! | `echo` | the payload back, JSON or binary |
//! | `fail` | an error with a reason |
//! | `count` | how many events this join has sent |
//! | `silent` | nothing, so its own time-out |
//! | `hold`, then `release` | the answer to the first with the second; its other events do not wait |
//! | `hold`, then `forget` | the error that the first is not answered |
//! | `follow` with `{"topic": T}` | `ok`, and from then on `news` with each message that is published there; with `over`, `phx_close` |
//! | `role` | the role that its token gives it |
//! | `slow` with `{"ms": N}` | its answer after so long; its other topics do not wait |
//! | `shout` | `ok`, and everybody on the topic gets the event, on every node |
//! | `appear` with an object | `ok`, and everybody sees a `bot` with that as its meta, until the join ends |
//! | `vanish` | `ok`, and the bot of this join leaves |
//! | `who` | the keys of all who are there |
//! | `others` | `ok`, and everybody else on the topic gets the event |
//! | `aside` | `ok`, and everybody gets the event, on `veiled:NAME` each with how many events its join has sent |
//! | `secret` | `ok`, and everybody gets the event, on `veiled:NAME` those whose join has sent one |
//! | `crash` | `phx_error`: the handler is lost for this join alone, and the client joins again |
//! | `close` | `phx_close`: the client does not join again |
//!
//! Certificates are in DIR/certs, the node's data in DIR/NAME@HOST; HOST:PORT is a node to join at. A client needs a
//! token: `xpando-node token create --sub ada --topics 'test:*' --certs DIR/certs`. `scripts/example channels` starts
//! everything and talks with it.
#![allow(clippy::print_stdout, reason = "what an example comes to is printed")]

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use xpando_node::serde_json::{Value, json};
use xpando_node::{
    Channel, Client, Ended, HandlerError, Joined, Json, Node, Outgoing, Payload, PresenceEntry,
    Presences, Push, Reaction, Received, ReplyTo, Topic, Tracked,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The longest that anything waits.
const SLOWEST: u64 = 5_000;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, join, name, http] = args.as_slice() else {
        return Err("channels DIR HOST:PORT NAME@HOST ADDR:PORT".into());
    };
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut node = Node::builder(name)
        .join(join)
        .certs(format!("{dir}/certs"))
        .data_dir(format!("{dir}/{name}"))
        .beacons(false)
        .http(http)
        .start()
        .await?;
    let presences = || node.presence().clone();
    node.channel("test:*", ByName { presences: presences(), veiled: &[] })?;
    let veiled = &["aside", "secret"];
    node.channel("veiled:*", ByName { presences: presences(), veiled })?;
    let at = node.http().ok_or("no clients are served")?;
    println!("{name} serves clients at ws://{at}/socket");
    let ended = tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = node.failed() => Err("the node cannot go on".into()),
    };
    node.shutdown().await;
    ended
}

/// Does what the event's name says.
struct ByName {
    presences: Presences,
    /// Events that do not reach a client as they are.
    veiled: &'static [&'static str],
}

/// What a join keeps.
#[derive(Default)]
struct Kept {
    /// How many events it has sent.
    sent: u64,
    /// An event that is not answered yet.
    held: Option<ReplyTo>,
    /// Somebody who is there as long as this join.
    bot: Option<Tracked>,
}

impl Channel for ByName {
    type State = Kept;

    async fn join(&self, client: &Client, params: Value) -> Result<Joined<Kept>, HandlerError> {
        let asks = |what: &str| params.get(what) == Some(&Value::Bool(true));
        if asks("deny") {
            return Err("denied".into());
        }
        if asks("crash") {
            crash();
        }
        tokio::time::sleep(pause(&params, "wait")).await;
        // The node has checked the token, and that it allows this topic.
        let who = client.claims.as_ref().map_or("anonymous", |claims| &claims.sub);
        Ok(Joined::new(Kept::default()).response(json!({ "welcome": who, "params": params })))
    }

    async fn handle_in(
        &self,
        kept: &mut Kept,
        client: &Client,
        push: &Push,
    ) -> Result<Reaction, HandlerError> {
        kept.sent += 1;
        Ok(match push.event.as_str() {
            "echo" => Reaction::Reply(push.payload.clone()),
            "count" => Reaction::reply(&json!({ "sent": kept.sent })),
            "fail" => Err("as you wish")?,
            "silent" => Reaction::Silent,
            "slow" => {
                let told: Value = push.decode().unwrap_or_default();
                tokio::time::sleep(pause(&told, "ms")).await;
                Reaction::Reply(push.payload.clone())
            }
            "hold" => {
                kept.held = Some(client.reply_to(push));
                Reaction::Silent
            }
            "release" => {
                let held = kept.held.take().ok_or("nothing is held")?;
                held.ok(&push.payload);
                Reaction::reply(&json!({}))
            }
            "forget" => {
                kept.held = None;
                Reaction::reply(&json!({}))
            }
            "appear" => {
                let meta: Value = push.decode()?;
                match &kept.bot {
                    Some(bot) => bot.update(&meta).await?,
                    None => {
                        kept.bot = Some(self.presences.track(&client.topic, "bot", &meta).await?)
                    }
                }
                Reaction::reply(&json!({}))
            }
            "vanish" => {
                kept.bot = None;
                Reaction::reply(&json!({}))
            }
            "who" => {
                let all = self.presences.list(&client.topic).await;
                let keys: Vec<_> = all.iter().map(PresenceEntry::key).collect();
                Reaction::reply(&json!({ "keys": keys }))
            }
            "shout" | "aside" | "secret" => Reaction::Broadcast,
            "others" => {
                client.broadcast_from("others", &push.payload)?;
                Reaction::reply(&json!({}))
            }
            "follow" => {
                let Follow { topic } = push.decode()?;
                client.subscribe(topic.parse::<Topic>()?)?;
                Reaction::reply(&json!({}))
            }
            "role" => Reaction::reply(&json!({ "role": client.claims.as_ref().map(|it| it.role) })),
            "crash" => crash(),
            "close" => {
                client.close();
                Reaction::Silent
            }
            _ => Err("no such event")?,
        })
    }

    async fn handle_info(
        &self,
        _kept: &mut Kept,
        client: &Client,
        received: Received,
    ) -> Result<(), HandlerError> {
        match received {
            Received::Message(message) => {
                let text = String::from_utf8_lossy(&message.payload);
                let told = json!({ "topic": message.topic, "from": message.from, "text": text });
                client.push("news", &Payload::Json(Json::of(&told)));
                if text == "over" {
                    client.close();
                }
                Ok(())
            }
            Received::Missed(messages) => Err(format!("{messages} messages were missed"))?,
        }
    }

    fn intercept(&self) -> &[&str] {
        self.veiled
    }

    async fn handle_out(
        &self,
        kept: &mut Kept,
        _client: &Client,
        event: &str,
        payload: &Payload,
    ) -> Result<Outgoing, HandlerError> {
        Ok(match (event, payload) {
            ("aside", Payload::Json(said)) => {
                let told = json!({ "said": said.decode::<Value>()?, "sent": kept.sent });
                Outgoing::Changed(Payload::Json(Json::of(&told)))
            }
            // For those alone who have said something.
            ("secret", _) if kept.sent == 0 => Outgoing::Withheld,
            _ => Outgoing::AsItIs,
        })
    }

    async fn terminate(&self, kept: Kept, client: &Client, why: Ended) {
        println!("{} ended after {} events: {why:?}", client.topic, kept.sent);
    }

    fn presence(&self) -> bool {
        true
    }
}

/// A topic to follow.
#[derive(serde::Deserialize)]
struct Follow {
    topic: String,
}

/// How long a client wants to wait.
fn pause(told: &Value, name: &str) -> Duration {
    let told = told.get(name).and_then(Value::as_u64);
    Duration::from_millis(told.unwrap_or_default().min(SLOWEST))
}

#[expect(clippy::panic, reason = "a crash was asked for")]
fn crash() -> ! {
    panic!("a client asked for it")
}
