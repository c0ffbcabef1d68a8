//! Numbered messages: a ledger of which arrived, and in what order.
//!
//! A publisher counts through its topics by turns; each payload says its number within its topic and who
//! published it. A ledger knows of every number below the last that it came once, never came, or came
//! again or too late. What it remembers is bounded.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Fallible;
use crate::actors::exchange::{Exchange, Message, Received, Subscription};
use crate::actors::timer;
use crate::io::clock;
use crate::proto::node::NodeName;
use crate::proto::topic::Topic;

/// Topics of one publisher.
const TOPICS: u64 = 1_000_000;
/// Streams that a ledger tells apart.
const STREAMS: usize = 64;
/// Gaps of a stream that are told one by one.
const GAPS: usize = 1000;
/// Messages between two pauses.
const PORTION: u64 = 256;
/// Bytes that say which message it is.
const MARK: usize = 16;

/// Messages to publish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbers {
    /// What the topics begin with.
    pub below: String,
    /// So many topics, by turns.
    pub topics: u64,
    /// Bytes of a payload, at least 16.
    pub size: usize,
    /// So many messages in all.
    pub count: u64,
    /// Whether to wait for room, or to let peers without room miss it.
    pub wait: bool,
    /// A pause after every 256 messages.
    pub pause: Duration,
}

/// What publishing them came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Messages.
    pub sent: u64,
    /// How many peers each was sent to, in all.
    pub reached: u64,
    /// How many peers wanted it and did not get it, in all.
    pub missed: u64,
    /// How long the slowest took.
    pub longest: Duration,
    /// From the first to the last.
    pub took: Duration,
}

/// Numbers that did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The first of them.
    pub begin: u64,
    /// The number that came next.
    pub end: u64,
    /// When the number before them came, in milliseconds since 1970.
    pub since: u64,
    /// When the next one came, likewise.
    pub until: u64,
}

/// What one publisher said on one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The publisher.
    pub from: NodeName,
    /// The topic.
    pub topic: Topic,
    /// The number that is to come next.
    pub next: u64,
    /// Messages that came.
    pub received: u64,
    /// Messages that came again, or behind a later one.
    pub back: u64,
    /// Numbers that did not come.
    pub lost: u64,
    /// Where they are missing.
    pub gaps: Vec<Gap>,
    last: u64,
}

/// What a subscriber got.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// By publisher and topic.
    pub streams: Vec<Stream>,
    /// What it missed because it was too slow.
    pub dropped: u64,
    /// Messages that are not as their publisher made them.
    pub foreign: u64,
    since: u64,
}

/// FNV-1a: short, and the same everywhere.
fn mark(publisher: &NodeName) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    publisher.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

fn numbered(number: u64, mark: u64, size: usize) -> Bytes {
    let mut payload = BytesMut::with_capacity(size);
    payload.put_u64(number);
    payload.put_u64(mark);
    payload.put_bytes(number as u8, size - MARK);
    payload.freeze()
}

/// The number in a payload that is as its publisher made it.
fn number(message: &Message) -> Option<u64> {
    let (number, rest) = message.payload.split_first_chunk()?;
    let (from, rest) = rest.split_first_chunk()?;
    let number = u64::from_be_bytes(*number);
    let sound = u64::from_be_bytes(*from) == mark(&message.from)
        && rest.iter().all(|byte| *byte == number as u8);
    sound.then_some(number)
}

impl Ledger {
    /// An empty one, from now on.
    pub(super) fn new() -> Self {
        Self { since: clock::millis(), ..Self::default() }
    }

    fn enter(&mut self, received: &Received, now: u64) {
        match received {
            Received::Missed(many) => self.dropped += many,
            // Said to learn who listens.
            Received::Message(message) if message.payload.is_empty() => {}
            Received::Message(message) => match number(message) {
                Some(number) => self.message(message, number, now),
                None => self.foreign += 1,
            },
        }
    }

    fn message(&mut self, message: &Message, number: u64, now: u64) {
        let same = |stream: &Stream| stream.from == message.from && stream.topic == message.topic;
        let at = self.streams.iter().position(same).unwrap_or(self.streams.len());
        if at >= STREAMS {
            self.foreign += 1;
            return;
        }
        if at == self.streams.len() {
            let (from, topic) = (message.from.clone(), message.topic.clone());
            let (gaps, last) = (Vec::new(), self.since);
            let stream = Stream { from, topic, next: 0, received: 0, back: 0, lost: 0, gaps, last };
            self.streams.push(stream);
        }
        let Some(stream) = self.streams.get_mut(at) else { return };
        stream.received += 1;
        match number.cmp(&stream.next) {
            Ordering::Less => {
                stream.back += 1;
                return;
            }
            Ordering::Equal => {}
            Ordering::Greater => {
                stream.lost += number - stream.next;
                if stream.gaps.len() < GAPS {
                    let (begin, since) = (stream.next, stream.last);
                    stream.gaps.push(Gap { begin, end: number, since, until: now });
                }
            }
        }
        (stream.next, stream.last) = (number + 1, now);
    }
}

/// Enters everything that a subscriber gets.
pub(super) async fn keep(mut subscription: Subscription, ledger: Arc<Mutex<Ledger>>) {
    while let Some(received) = subscription.recv().await {
        ledger.lock().enter(&received, clock::millis());
    }
}

/// The topics below a text.
pub(super) fn topics(below: &str, count: u64) -> Fallible<Vec<Topic>> {
    if !(1..=TOPICS).contains(&count) {
        return Err(format!("1 to {TOPICS} topics").into());
    }
    (0..count).map(|number| Ok(format!("{below}{number:06}").parse()?)).collect()
}

/// Publishes numbered messages.
pub(super) async fn publish(exchange: &Exchange, order: &Numbers) -> Fallible<Sent> {
    let topics = topics(&order.below, order.topics)?;
    if !(MARK..=1 << 20).contains(&order.size) {
        return Err(format!("{MARK} bytes to 1 MiB").into());
    }
    let (mark, start) = (mark(exchange.name()), timer::now());
    let (mut sent, mut before) = (Sent::default(), start);
    for (count, topic) in (1..=order.count).zip(topics.iter().cycle()) {
        let number = (count - 1) / order.topics;
        let payload = numbered(number, mark, order.size);
        let report = match order.wait {
            true => exchange.publish(topic, payload).await?,
            false => exchange.try_publish(topic, payload)?,
        };
        sent.sent += 1;
        sent.reached += report.peers as u64;
        sent.missed += report.missed as u64;
        let now = timer::now();
        sent.longest = sent.longest.max(now - before);
        before = now;
        if count % PORTION == 0 {
            match order.pause {
                Duration::ZERO => tokio::task::yield_now().await,
                pause => tokio::time::sleep(pause).await,
            }
            before = timer::now();
        }
    }
    sent.took = before - start;
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(by: &str, number: u64) -> Received {
        let from: NodeName = by.parse().expect("valid");
        let payload = numbered(number, mark(&from), 20);
        Received::Message(Message { topic: "t".parse().expect("valid"), from, payload })
    }

    #[test]
    fn a_ledger_tells_gaps_repeats_and_forgeries() {
        let mut ledger = Ledger::default();
        for (now, number) in [(1, 0), (2, 1), (5, 4), (6, 5)] {
            ledger.enter(&message("a@h", number), now);
        }
        ledger.enter(&message("b@h", 0), 7);
        ledger.enter(&Received::Missed(3), 7);
        let [a, b] = &ledger.streams[..] else { panic!("{ledger:?}") };
        assert_eq!((a.next, a.received, a.back, a.lost), (6, 4, 0, 2));
        assert_eq!(a.gaps, [Gap { begin: 2, end: 4, since: 2, until: 5 }]);
        assert_eq!((b.next, b.lost, ledger.dropped, ledger.foreign), (1, 0, 3, 0));
        ledger.enter(&message("a@h", 5), 8);
        ledger.enter(&message("a@h", 2), 9);
        assert_eq!((ledger.streams[0].back, ledger.streams[0].next), (2, 6));
        let Received::Message(forged) = message("a@h", 6) else { panic!("a message") };
        let from = "b@h".parse().expect("valid");
        ledger.enter(&Received::Message(Message { from, ..forged }), 10);
        assert_eq!(ledger.foreign, 1, "not b's");
    }
}
