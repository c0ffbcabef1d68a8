//! A client's share of the node: how much of what it sends is taken in a second.
//!
//! What it sends is counted by what it costs the node: its bytes, and [`FRAME`] more for each frame, however short. A
//! client that has used up its share is read again when it has one anew, so that its own socket slows it; nothing is lost.
//!
//! Invariants: a share is overdrawn by at most what was read at once; who sends less than its rate never waits.

use std::time::{Duration, Instant};

/// What a frame costs beside its bytes.
pub const FRAME: u64 = 512;
/// What a request costs beside its body.
pub const REQUEST: u64 = 16 * 1024;

/// The shortest wait, so that one who always overdraws does not wake all the time.
const PAUSE: Duration = Duration::from_millis(10);

/// How much is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Bytes a second.
    pub second: f64,
    /// Bytes at once, after a time of quiet.
    pub burst: f64,
}

impl Rate {
    /// Of those who are entitled, each user with all connections: some 30,000 short frames a second, or 16 MiB in
    /// long ones.
    pub const ENTITLED: Self = Self { second: (16 << 20) as f64, burst: (64 << 20) as f64 };
    /// Of a connection that is not entitled yet, for itself: a request, and a few joins with their tokens.
    pub const PROVISIONAL: Self = Self { second: 1024.0, burst: (20 << 10) as f64 };
    /// Of all connections of an address that are not entitled yet, beyond that: some 100 requests a second, or 4,000
    /// short frames.
    pub const STRANGERS: Self = Self { second: (2 << 20) as f64, burst: (8 << 20) as f64 };
}

/// What is left of a share.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    rate: Rate,
    left: f64,
    at: Instant,
}

impl Share {
    /// A whole burst.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, left: rate.burst, at: now }
    }

    /// Takes from the share what something costs, more than there is perhaps.
    pub fn spend(&mut self, cost: u64, now: Instant) {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * self.rate.second).min(self.rate.burst) - cost as f64;
        self.at = now;
    }

    /// Whether nothing of it is used.
    pub fn is_whole(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left + since * self.rate.second >= self.rate.burst
    }

    /// When more is taken; `None`: now.
    pub fn ready(&self, now: Instant) -> Option<Instant> {
        if self.left >= 0.0 {
            return None;
        }
        let ready = self.at + Duration::from_secs_f64(-self.left / self.rate.second);
        (ready > now).then_some(ready.max(now + PAUSE))
    }
}

/// Counts the frames in what a WebSocket's client sends (RFC 6455, 5.2). What is no frame is counted as if it were.
#[derive(Debug, Default)]
pub struct Frames {
    /// The beginning of a frame's head, so far.
    head: [u8; 14],
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: u64,
}

impl Frames {
    /// How many frames have their payload's beginning here.
    pub fn count(&mut self, mut bytes: &[u8]) -> u64 {
        let mut frames = 0;
        while !bytes.is_empty() {
            let skip = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            bytes = bytes.get(skip..).unwrap_or_default();
            self.payload -= skip as u64;
            while self.payload == 0 {
                let Some((byte, rest)) = bytes.split_first() else { break };
                bytes = rest;
                if let Some(room) = self.head.get_mut(self.have) {
                    *room = *byte;
                    self.have += 1;
                }
                if let Some(payload) = self.whole() {
                    (self.payload, self.have) = (payload, 0);
                    frames += 1;
                }
            }
        }
        frames
    }

    /// The payload's length, when the head is whole.
    fn whole(&self) -> Option<u64> {
        let [_, second, rest @ ..] = &self.head;
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (more, length) = match second & 0x7f {
            126 => (2, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
            127 => (8, u64::from_be_bytes(*rest.first_chunk()?)),
            short => (0, u64::from(short)),
        };
        (self.have >= 2 && self.have >= 2 + more + mask).then_some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tests::start;
    use proptest::prelude::*;

    const RATE: Rate = Rate { second: 1000.0, burst: 4000.0 };

    #[test]
    fn a_burst_is_taken_at_once_and_then_so_much_a_second() {
        let (mut now, mut share) = (start(), Share::new(RATE, start()));
        let begin = now;
        let mut taken = 0;
        while taken < 14_000 {
            if let Some(ready) = share.ready(now) {
                now = ready;
            }
            share.spend(100, now);
            taken += 100;
        }
        let took = (now - begin).as_secs_f64();
        assert!((took - 10.0).abs() < 0.2, "a burst, and ten seconds' worth, took {took} s");
    }

    #[test]
    fn who_sends_less_than_the_rate_never_waits_and_quiet_saves_up_one_burst() {
        let (mut now, mut share) = (start(), Share::new(RATE, start()));
        for _ in 0..1000 {
            now += Duration::from_millis(100);
            share.spend(99, now);
            assert_eq!(share.ready(now), None);
        }
        now += Duration::from_secs(3600);
        share.spend(4000, now);
        assert_eq!(share.ready(now), None, "a burst");
        share.spend(2000, now);
        assert_eq!(share.ready(now), Some(now + Duration::from_secs(2)), "and no more");
        assert_eq!(share.ready(now + Duration::from_secs(2)), None);
    }

    /// A client's frame.
    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![0x81];
        match length {
            0..126 => frame.push(mask | length as u8),
            126..0x1_0000 => {
                frame.push(mask | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.resize(frame.len() + length + if masked { 4 } else { 0 }, 0xff);
        frame
    }

    proptest! {
        #[test]
        fn frames_are_counted_wherever_the_stream_is_cut(
            lengths in prop::collection::vec(prop_oneof![0..4_usize, 120..130_usize, 65_530..65_540_usize], 1..6),
            masked: bool,
            cut in 1..5000_usize,
        ) {
            let stream: Vec<u8> = lengths.iter().flat_map(|length| frame(*length, masked)).collect();
            let mut frames = Frames::default();
            let counted: u64 = stream.chunks(cut).map(|bytes| frames.count(bytes)).sum();
            prop_assert_eq!(counted, lengths.len() as u64);
        }
    }

    #[test]
    fn garbage_is_counted_too() {
        let mut frames = Frames::default();
        assert!(frames.count(&[0; 1000]) == 500, "empty frames");
        assert!(Frames::default().count(&[0xff; 100]) <= 100);
    }
}
