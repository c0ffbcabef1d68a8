//! Clients of Phoenix Channels: real WebSockets, each in a task of its own, that come back as the official client does,
//! and a [`Presence`] as it keeps one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::now;

/// After how many milliseconds the official client connects again, try after try.
const AGAIN: [u64; 10] = [10, 50, 100, 150, 200, 250, 500, 1000, 2000, 5000];
/// How often it beats.
const BEAT: Duration = Duration::from_secs(30);
/// Bytes that a client reads at once: there are many of them.
const BUFFER: usize = 4 * 1024;

/// What runs the clients of a test.
pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Who a client is, and where it goes.
pub(crate) struct Caller {
    pub(crate) token: String,
    pub(crate) topic: String,
    /// One after another, from the first, whenever a connection is lost or refused.
    pub(crate) nodes: Vec<SocketAddr>,
    /// It follows who is present; others let that pass unread.
    pub(crate) watches: bool,
}

/// What a client has seen so far.
#[derive(Default)]
pub(crate) struct Seen {
    /// Where it is joined, and since when.
    pub(crate) joined: Option<(SocketAddr, Instant)>,
    /// Messages with a number, and when each came.
    pub(crate) numbers: Vec<(u64, Instant)>,
    pub(crate) presence: Presence,
    /// Why it is where it is, when that is nowhere.
    pub(crate) trouble: String,
}

/// A client that runs until its runtime ends.
pub(crate) struct Client {
    pub(crate) seen: Arc<Mutex<Seen>>,
    topic: String,
    says: mpsc::UnboundedSender<String>,
}

impl Client {
    pub(crate) fn start(runtime: &Runtime, caller: Caller) -> Self {
        let (seen, topic) = (Arc::<Mutex<Seen>>::default(), caller.topic.clone());
        let (says, orders) = mpsc::unbounded_channel();
        runtime.spawn(Running { caller, seen: seen.clone(), orders }.run());
        Self { seen, topic, says }
    }

    /// Tells the whole topic a number.
    pub(crate) fn send(&self, number: u64) {
        let push = json!(["1", "2", self.topic, "say", { "number": number }]);
        self.says.send(push.to_string()).unwrap();
    }
}

struct Running {
    caller: Caller,
    seen: Arc<Mutex<Seen>>,
    orders: mpsc::UnboundedReceiver<String>,
}

impl Running {
    async fn run(mut self) {
        let (nodes, mut tries) = (self.caller.nodes.clone(), 0);
        for node in nodes.into_iter().cycle() {
            let ended = match connect(node, &self.caller.token).await {
                Ok(socket) => {
                    tries = 0;
                    self.talk(node, socket).await
                }
                Err(error) => Err(error),
            };
            {
                let mut seen = self.seen.lock();
                (seen.joined, seen.trouble) = (None, format!("{node}: {ended:?}"));
            }
            let pause = AGAIN[tries.min(AGAIN.len() - 1)];
            tries += 1;
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn talk(
        &mut self,
        node: SocketAddr,
        mut socket: WebSocketStream<TcpStream>,
    ) -> Result<(), Error> {
        let join = json!(["1", "1", self.caller.topic, "phx_join", {}]).to_string();
        socket.send(Message::text(join)).await?;
        self.seen.lock().presence = Presence::default();
        let mut beats = tokio::time::interval_at((now() + BEAT).into(), BEAT);
        loop {
            tokio::select! {
                _ = beats.tick() => {
                    let beat = json!([null, "3", "phoenix", "heartbeat", {}]).to_string();
                    socket.send(Message::text(beat)).await?;
                }
                Some(said) = self.orders.recv() => socket.send(Message::text(said)).await?,
                message = socket.next() => match message {
                    Some(Ok(Message::Text(text))) => self.hear(node, text.as_str()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return Err(Error::ConnectionClosed),
                },
            }
        }
    }

    fn hear(&self, node: SocketAddr, text: &str) {
        let event = text.get(..self.caller.topic.len() + 64).unwrap_or(text);
        if !self.caller.watches && event.contains("\"presence_") {
            return;
        }
        let [_, reference, _, event, payload]: [Value; 5] = serde_json::from_str(text).unwrap();
        let mut seen = self.seen.lock();
        match event.as_str().unwrap() {
            "phx_reply" if reference == "1" && payload["status"] == "ok" => {
                seen.joined = Some((node, now()));
            }
            "phx_reply" if payload["status"] != "ok" => seen.trouble = payload.to_string(),
            "say" => seen.numbers.push((payload["number"].as_u64().unwrap(), now())),
            "presence_state" => seen.presence.state(&payload),
            "presence_diff" => seen.presence.diff(payload),
            _ => {}
        }
    }
}

async fn connect(node: SocketAddr, token: &str) -> Result<WebSocketStream<TcpStream>, Error> {
    let stream = TcpStream::connect(node).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{node}/socket/websocket?vsn=2.0.0&token={token}");
    let config = WebSocketConfig::default().read_buffer_size(BUFFER).write_buffer_size(0);
    Ok(client_async_with_config(url, stream, Some(config)).await?.0)
}

/// Who is there, by key, as the `Presence` of the official client has it.
#[derive(Default)]
pub(crate) struct Presence {
    /// Nothing before the first state.
    listed: Option<BTreeMap<String, Vec<Value>>>,
    /// Changes that came before it.
    early: Vec<Value>,
}

impl Presence {
    fn state(&mut self, state: &Value) {
        let metas = |listed: &Value| listed["metas"].as_array().unwrap().clone();
        let state = state.as_object().unwrap().iter();
        self.listed = Some(state.map(|(key, listed)| (key.clone(), metas(listed))).collect());
        std::mem::take(&mut self.early).into_iter().for_each(|diff| self.diff(diff));
    }

    fn diff(&mut self, diff: Value) {
        let Some(listed) = &mut self.listed else { return self.early.push(diff) };
        let each = |of: &str| diff[of].as_object().unwrap().clone();
        let (metas, same) = (
            |listed: &Value| listed["metas"].as_array().unwrap().clone(),
            |metas: &[Value], meta: &Value| metas.iter().any(|m| m["phx_ref"] == meta["phx_ref"]),
        );
        for (key, joined) in each("joins") {
            let joined = metas(&joined);
            let known = listed.entry(key).or_default();
            known.retain(|meta| !same(&joined, meta));
            known.extend(joined);
        }
        for (key, left) in each("leaves") {
            let left = metas(&left);
            let Some(known) = listed.get_mut(&key) else { continue };
            known.retain(|meta| !same(&left, meta));
            if known.is_empty() {
                listed.remove(&key);
            }
        }
    }

    /// Each of these keys is there once, at its node, and nobody else is; otherwise what is wrong.
    pub(crate) fn is_exactly(&self, wanted: &BTreeMap<String, String>) -> Result<(), String> {
        let listed = self.listed.as_ref().ok_or("no state has come")?;
        let missing = wanted.keys().filter(|key| !listed.contains_key(*key)).collect::<Vec<_>>();
        let wrong = listed.iter().filter(|(key, metas)| {
            let node = wanted.get(*key);
            !matches!(&metas[..], [meta] if node.is_some_and(|node| meta["node"] == node.as_str()))
        });
        let wrong = wrong.collect::<Vec<_>>();
        if missing.is_empty() && wrong.is_empty() {
            return Ok(());
        }
        let some = |count: usize, shown: String| format!("{count}, such as {shown}");
        Err(format!(
            "{} there; missing {}; not once at the right node {}",
            listed.len(),
            some(missing.len(), format!("{:?}", missing.first())),
            some(wrong.len(), format!("{:?}", wrong.first()))
        ))
    }
}
