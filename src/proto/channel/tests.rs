//! Frames as the official client sends and reads them (recorded from its releases 1.6 to 1.8).

use proptest::prelude::*;

use super::session::{Ask, Join, Session};
use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn two(text: &str) -> Result<Frame, Malformed> {
    Frame::text(Dialect::V2, &bytes(text))
}

fn one(text: &str) -> Result<Frame, Malformed> {
    Frame::text(Dialect::V1, &bytes(text))
}

fn hex(text: &str) -> Bytes {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("hex"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect::<Vec<_>>().into()
}

fn reference(text: &str) -> Option<Ref> {
    Ref::of(text).expect("short")
}

fn json(text: &str) -> Payload {
    Payload::Json(Json::read(bytes(text)).expect("JSON"))
}

fn frame(join_ref: &str, its: &str, topic: &str, event: &str, payload: Payload) -> Frame {
    Frame {
        join_ref: reference(join_ref),
        reference: reference(its),
        topic: topic.to_owned(),
        event: event.to_owned(),
        payload,
    }
}

fn text(said: Option<Encoded>) -> String {
    match said {
        Some(Encoded::Text(text)) => String::from_utf8(text.to_vec()).expect("UTF-8"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn text_frames_are_read_in_both_dialects() {
    let said = two(r#"["6","7","room:é","echo",{"x":1}]"#);
    assert_eq!(said, Ok(frame("6", "7", "room:é", "echo", json(r#"{"x":1}"#))));
    let beat = two(r#"[null,"8","phoenix","heartbeat",{}]"#);
    assert_eq!(beat, Ok(frame("", "8", "phoenix", "heartbeat", json("{}"))));
    let old = one(r#"{"topic":"room:pc","event":"phx_join","payload":{},"ref":"1"}"#);
    assert_eq!(old, Ok(frame("", "1", "room:pc", "phx_join", json("{}"))));
    let beat =
        one(r#"{"topic":"phoenix","event":"heartbeat","payload":{},"ref":null,"join_ref":null}"#);
    assert_eq!(beat, Ok(frame("", "", "phoenix", "heartbeat", json("{}"))));
    let spaced = two("[ \"1\" , 2 , \"t\" , \"e\" , null ]").expect("a frame");
    assert_eq!(spaced.reference, Some(Ref("2".into())), "numbers stay numbers");
    assert_eq!(spaced.payload, json("null"));
}

#[test]
fn binary_frames_are_read() {
    let said = Frame::binary(&hex("00010106043638726f6f6d3a31626c6f6200ff10"));
    let data = Payload::Binary(hex("00ff10"));
    assert_eq!(said, Ok(frame("6", "8", "room:1", "blob", data)));
}

#[test]
fn what_is_no_frame_is_named() {
    let long = "t".repeat(256);
    let deep = format!(r#"["1","2","t","e",{}{}]"#, "[".repeat(200), "]".repeat(200));
    for (text, why) in [
        (r#"["1","2","t","e"]"#, Malformed::Shape),
        (r#"["1","2","t","e",{},1]"#, Malformed::Shape),
        (r#"["1","2","t",3,{}]"#, Malformed::Shape),
        (r#"{"topic":"t"}"#, Malformed::Shape),
        (r#"["1","2","t","e",{}"#, Malformed::Shape),
        ("", Malformed::Shape),
        (r#"["1",{},"t","e",{}]"#, Malformed::Reference),
        (&format!(r#"["1","{long}","t","e",{{}}]"#), Malformed::Reference),
        (r#"["1","2","","e",{}]"#, Malformed::Word),
        (&format!(r#"["1","2","{long}","e",{{}}]"#), Malformed::Word),
        (&deep, Malformed::Deep),
    ] {
        assert_eq!(two(text), Err(why), "{text}");
    }
    for (bytes, why) in [
        ("", Malformed::Lengths),
        ("00ffffffff", Malformed::Lengths),
        ("000101", Malformed::Lengths),
        ("0001010101ffffffff", Malformed::Lengths),
        ("03010101", Malformed::Kind),
        ("0000000000", Malformed::Word),
    ] {
        assert_eq!(Frame::binary(&hex(bytes)), Err(why), "{bytes}");
    }
}

#[test]
fn brackets_in_strings_are_no_depth() {
    let text = format!(r#"{{"x":"{}\"["}}"#, "[".repeat(500));
    assert!(Json::read(bytes(&text)).is_some());
    let deep =
        |levels: usize| Json::read(bytes(&format!("{}{}", "[".repeat(levels), "]".repeat(levels))));
    assert!(deep(DEPTH).is_some() && deep(DEPTH + 1).is_none());
}

#[test]
fn what_is_said_reads_as_clients_expect() {
    let (join_ref, its, payload) = (reference("6"), reference("7"), json(r#"{"x":1}"#));
    let (join_ref, its) = (join_ref.as_ref(), its.as_ref());
    for (said, two, one) in [
        (
            Say::Reply(join_ref, its, Outcome::Ok, &payload),
            r#"["6","7","room:1","phx_reply",{"status":"ok","response":{"x":1}}]"#,
            r#"{"ref":"7","topic":"room:1","event":"phx_reply","payload":{"status":"ok","response":{"x":1}}}"#,
        ),
        (
            Say::Push(join_ref, "presence_state", &payload),
            r#"["6",null,"room:1","presence_state",{"x":1}]"#,
            r#"{"ref":null,"topic":"room:1","event":"presence_state","payload":{"x":1}}"#,
        ),
        (
            Say::Broadcast("shout", &payload),
            r#"[null,null,"room:1","shout",{"x":1}]"#,
            r#"{"ref":null,"topic":"room:1","event":"shout","payload":{"x":1}}"#,
        ),
        (
            Say::End(join_ref, "phx_close", &payload),
            r#"["6","6","room:1","phx_close",{"x":1}]"#,
            r#"{"ref":"6","topic":"room:1","event":"phx_close","payload":{"x":1}}"#,
        ),
    ] {
        assert_eq!(text(said.encode(Dialect::V2, "room:1")), two);
        assert_eq!(text(said.encode(Dialect::V1, "room:1")), one);
    }
}

#[test]
fn binary_is_said_as_clients_expect_and_not_at_all_in_v1() {
    let (join_ref, its, data) = (reference("6"), reference("8"), Payload::Binary(hex("00ff10")));
    let (join_ref, its) = (join_ref.as_ref(), its.as_ref());
    for (said, expected) in [
        (Say::Reply(join_ref, its, Outcome::Ok, &data), "01010106023638726f6f6d3a316f6b00ff10"),
        (Say::Push(join_ref, "direct", &data), "0001060636726f6f6d3a3164697265637400ff10"),
        (Say::Broadcast("blob", &data), "020604726f6f6d3a31626c6f6200ff10"),
    ] {
        assert_eq!(said.encode(Dialect::V2, "room:1"), Some(Encoded::Binary(hex(expected))));
        assert_eq!(said.encode(Dialect::V1, "room:1"), None);
    }
    let (dialect, state) = (Dialect::V2, json(r#"{"x":1}"#));
    let Payload::Json(shared) = &state else { panic!("JSON") };
    for dialect in [dialect, Dialect::V1] {
        let push = Say::Push(join_ref, "presence_state", &state);
        let Encoded::Parts(first, second) =
            push.with_tail(dialect, "room:1", &tail(dialect, shared))
        else {
            panic!("parts")
        };
        let whole = text(push.encode(dialect, "room:1"));
        assert_eq!([&first[..], &second[..]].concat(), whole.into_bytes());
    }
    assert_eq!(Say::Broadcast(&"e".repeat(256), &data).encode(Dialect::V2, "t"), None);
}

#[test]
fn versions_are_told_apart() {
    let of = |text| Dialect::of(Some(text));
    assert_eq!((Dialect::of(None), of("1.0.0")), (Some(Dialect::V1), Some(Dialect::V1)));
    assert_eq!((of("2.0.0"), of("3.0.0"), of("")), (Some(Dialect::V2), None, None));
}

/// A socket, and what it says to frames.
struct Socket(Session);

/// Topics that a socket of these tests may join.
const TOPICS: usize = 100;

impl Socket {
    fn new() -> Self {
        Self(Session::new(Dialect::V2, TOPICS))
    }

    fn hear(&mut self, text: &str) -> Ask {
        self.0.hear(&two(text).expect("a frame"))
    }

    fn join(&mut self, topic: &str, its: u32) -> Join {
        let asked = self.hear(&format!(r#"["{its}","{its}","{topic}","phx_join",{{}}]"#));
        let Ask::Join(join, _) = asked else { panic!("{asked:?}") };
        self.0.joined(&join);
        join
    }
}

fn error(why: &'static str) -> Ask {
    Ask::Answer(None, Outcome::Error, why)
}

#[test]
fn a_join_makes_its_frames_count() {
    let mut socket = Socket::new();
    let push = r#"["3","4","room:1","ev",{}]"#;
    assert_eq!(socket.hear(push), error("unmatched topic"));
    let join = socket.join("room:1", 3);
    assert_eq!(socket.hear(push), Ask::Push(join.clone()));
    assert_eq!(socket.hear(r#"[null,"4","room:1","ev",{}]"#), Ask::Push(join.clone()));
    assert_eq!(socket.hear(r#"["2","4","room:1","ev",{}]"#), Ask::Ignore, "a join before");
    let own = Ask::Answer(reference("3"), Outcome::Error, "reserved event");
    assert_eq!(socket.hear(r#"["3","4","room:1","presence_diff",{}]"#), own);
    assert_eq!(socket.hear(r#"["2","4","room:1","phx_leave",{}]"#), Ask::Ignore);
    assert_eq!(socket.hear(r#"["3","5","room:1","phx_leave",{}]"#), Ask::Leave(join));
    let left = Ask::Answer(reference("3"), Outcome::Ok, "");
    assert_eq!(socket.hear(r#"["3","5","room:1","phx_leave",{}]"#), left, "once more");
    assert_eq!(socket.hear(push), error("unmatched topic"));
}

#[test]
fn a_topic_joined_again_ends_the_join_before() {
    let mut socket = Socket::new();
    let first = socket.join("room:1", 3);
    let again = socket.hear(r#"["6","6","room:1","phx_join",{}]"#);
    let Ask::Join(second, Some(before)) = again else { panic!("{again:?}") };
    assert_eq!(before, first);
    assert_ne!(second.number, first.number);
    let early = socket.hear(r#"["6","7","room:1","ev",{}]"#);
    assert_eq!(early, Ask::Wait(second.clone()), "not yet");
    assert!(!socket.0.joined(&first), "that is over");
    assert!(socket.0.joined(&second));
    assert_eq!(socket.hear(r#"["3","7","room:1","ev",{}]"#), Ask::Ignore, "of the join before");
    assert!(!socket.0.ended(&first), "the first join's end is not the second's");
    assert_eq!(socket.hear(r#"["6","7","room:1","ev",{}]"#), Ask::Push(second.clone()));
    assert!(socket.0.ended(&second) && !socket.0.ended(&second));
}

#[test]
fn what_comes_while_a_join_is_pending_waits_for_it() {
    let mut socket = Socket::new();
    let ask = |socket: &mut Socket, its: &str| {
        let asked = socket.hear(&format!(r#"["{its}","{its}","room:1","phx_join",{{}}]"#));
        let Ask::Join(join, before) = asked else { panic!("{asked:?}") };
        (join, before)
    };
    let (first, none) = ask(&mut socket, "1");
    assert_eq!(none, None);
    assert_eq!(socket.0.pending(&first.topic), Some(&first));
    let waiting = [
        r#"["1","2","room:1","ev",{}]"#,
        r#"["1","3","room:1","phx_close",{}]"#,
        r#"["1","4","room:1","phx_leave",{}]"#,
        r#"["5","5","room:1","phx_join",{}]"#,
        r#"["5","6","room:1","ev",{}]"#,
    ];
    for frame in waiting {
        assert_eq!(socket.hear(frame), Ask::Wait(first.clone()), "{frame}");
    }
    assert!(socket.0.joined(&first));
    assert_eq!(socket.0.pending(&first.topic), None);
    let reserved = Ask::Answer(reference("1"), Outcome::Error, "reserved event");
    assert_eq!(socket.hear(waiting[0]), Ask::Push(first.clone()));
    assert_eq!(socket.hear(waiting[1]), reserved);
    assert_eq!(socket.hear(waiting[2]), Ask::Leave(first.clone()));
    let Ask::Join(second, None) = socket.hear(waiting[3]) else { panic!("a join") };
    assert_eq!(socket.hear(waiting[4]), Ask::Wait(second.clone()));
    assert!(socket.0.ended(&second), "refused");
    assert_eq!(socket.hear(waiting[4]), error("unmatched topic"));
    // The pending ones are among the hundred.
    for at in 0..TOPICS {
        let asked = socket.hear(&format!(r#"["{at}","{at}","room:p{at}","phx_join",{{}}]"#));
        assert!(matches!(asked, Ask::Join(_, None)), "{asked:?}");
    }
    let many = socket.hear(r#"["a","a","room:x","phx_join",{}]"#);
    assert_eq!(many, Ask::Answer(reference("a"), Outcome::Error, "too many channels joined"));
}

#[test]
fn a_socket_has_a_hundred_topics() {
    let mut socket = Socket::new();
    (0..100).for_each(|at| drop(socket.join(&format!("room:{at}"), at + 1)));
    let many = socket.hear(r#"["a","a","room:x","phx_join",{}]"#);
    assert_eq!(many, Ask::Answer(reference("a"), Outcome::Error, "too many channels joined"));
    let again = socket.hear(r#"["b","b","room:7","phx_join",{}]"#);
    assert!(matches!(again, Ask::Join(_, Some(_))), "one of the hundred: {again:?}");
    assert_eq!(socket.0.joins().count(), 100, "that one is pending");
}

#[test]
fn the_socket_itself_only_beats() {
    let mut socket = Socket::new();
    let beat = socket.hear(r#"[null,"8","phoenix","heartbeat",{}]"#);
    assert_eq!(beat, Ask::Answer(None, Outcome::Ok, ""));
    assert_eq!(socket.hear(r#"[null,"8","phoenix","phx_join",{}]"#), error("unmatched topic"));
    let bad = socket.hear(r#"["1","1","room *","phx_join",{}]"#);
    assert_eq!(bad, error("unmatched topic"), "no topic at all");
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let frames = [Frame::text(Dialect::V1, &bytes), Frame::text(Dialect::V2, &bytes), Frame::binary(&bytes)];
        for frame in frames.into_iter().flatten() {
            drop(Session::new(Dialect::V2, TOPICS).hear(&frame));
        }
    }

    #[test]
    fn binary_frames_with_any_lengths_are_read_or_refused(lengths: [u8; 4], rest: Vec<u8>) {
        let bytes = Bytes::from([&[0], &lengths[..], &rest[..]].concat());
        let words: usize = lengths.iter().map(|length| usize::from(*length)).sum();
        if let Ok(frame) = Frame::binary(&bytes) {
            let Payload::Binary(data) = frame.payload else { panic!("binary") };
            prop_assert_eq!(data.len() + words, rest.len());
        }
    }

    #[test]
    fn what_is_said_in_v2_is_a_frame_again(event in "[a-z]{1,9}", topic in "\\PC{1,40}", x: i64) {
        let payload = json(&format!("{{\"x\":{x}}}"));
        let said = Say::Push(reference("1").as_ref(), &event, &payload).encode(Dialect::V2, &topic);
        let Some(Encoded::Text(text)) = said else { panic!("{said:?}") };
        let frame = Frame::text(Dialect::V2, &text).expect("a frame");
        prop_assert_eq!((frame.topic, frame.event, frame.payload), (topic, event, payload));
    }

    #[test]
    fn a_damaged_frame_is_read_or_refused(kind in 0..3_usize, cut: prop::sample::Index, at: prop::sample::Index, byte: u8) {
        let frames = [
            r#"["6","7","room:é","echo",{"x":[1,"\\u00e9{\\"",null]}]"#.as_bytes().to_vec(),
            r#"{"topic":"room:é","event":"echo","payload":{"x":[[]]},"ref":"1","join_ref":2}"#.as_bytes().to_vec(),
            hex("00010106043638726f6f6d3a31626c6f6200ff10").to_vec(),
        ];
        let mut damaged = frames[kind].clone();
        let at = at.index(damaged.len());
        damaged[at] = byte;
        damaged.truncate(cut.index(frames[kind].len() * 2) + 1);
        let bytes = Bytes::from(damaged);
        let read = [Frame::text(Dialect::V1, &bytes), Frame::text(Dialect::V2, &bytes), Frame::binary(&bytes)];
        for frame in read.into_iter().flatten() {
            for word in [&frame.topic, &frame.event] {
                prop_assert!((1..=MAX_WORD).contains(&word.len()), "{} bytes", word.len());
            }
            if let Payload::Json(json) = &frame.payload {
                prop_assert!(Json::read(json.as_bytes().clone()).is_some(), "{json:?}");
            }
            let asked = Session::new(Dialect::V2, TOPICS).hear(&frame);
            prop_assert!(matches!(asked, Ask::Answer(..) | Ask::Join(_, None)), "{asked:?}");
        }
    }

    #[test]
    fn a_payload_is_as_deep_as_it_may_be(depth in 1..3 * DEPTH, objects: bool, broad in 0..50_usize) {
        let (open, close) = if objects { (r#"{"a":"#, "}") } else { ("[", "]") };
        let beside = "{},".repeat(broad); // many on one level are not deep
        let nested = format!("{}[{beside}0]{}", open.repeat(depth - 1), close.repeat(depth - 1));
        let read = two(&format!(r#"["1","2","t","e",{nested}]"#));
        let fits = depth + usize::from(broad > 0) <= DEPTH;
        prop_assert_eq!(read.map(drop), if fits { Ok(()) } else { Err(Malformed::Deep) });
        prop_assert_eq!(Json::read(bytes(&nested)).is_some(), fits);
    }

    #[test]
    fn a_word_has_at_most_255_bytes(topic in 0..600_usize, event in 0..600_usize, its in 0..600_usize) {
        let (topic, event, its) = ("t".repeat(topic), "e".repeat(event), "7".repeat(its));
        let text = format!(r#"["1","{its}","{topic}","{event}",{{}}]"#);
        let fits = |word: &str| (1..=MAX_WORD).contains(&word.len());
        let read = two(&text).map(|frame| (frame.topic, frame.event));
        prop_assert_eq!(read, match its.len() + 2 <= MAX_WORD { // with its quotes
            false => Err(Malformed::Reference),
            true if fits(&topic) && fits(&event) => Ok((topic, event)),
            true => Err(Malformed::Word),
        });
    }

    #[test]
    fn a_socket_keeps_its_rules_whatever_is_said(said in prop::collection::vec((0..4_u8, 0..130_u8, 0..4_u8), 1..400)) {
        let mut socket = Socket::new();
        let mut joined = std::collections::BTreeMap::new();
        for (step, (what, topic, stale)) in said.into_iter().enumerate() {
            let topic = format!("room:{topic}");
            let current: Option<Join> = joined.get(&topic).cloned();
            let its = match &current {
                Some(join) if stale > 0 => join.join_ref.as_ref().map(|its| its.0.to_string()),
                Some(_) | None => None,
            };
            let (old, its) = (stale == 0, its.unwrap_or_else(|| "\"old\"".to_owned()));
            match what {
                0 | 1 => {
                    let asked = socket.hear(&format!(r#"["{step}","{step}","{topic}","phx_join",{{}}]"#));
                    if current.is_none() && joined.len() == TOPICS {
                        prop_assert!(matches!(asked, Ask::Answer(_, Outcome::Error, "too many channels joined")));
                        continue;
                    }
                    let Ask::Join(join, before) = asked else { panic!("{asked:?}") };
                    prop_assert_eq!(before, current);
                    socket.0.joined(&join);
                    joined.insert(topic, join);
                }
                2 => {
                    let asked = socket.hear(&format!(r#"[{its},"{step}","{topic}","say",{{}}]"#));
                    prop_assert_eq!(asked, match current {
                        None => error("unmatched topic"),
                        Some(_) if old => Ask::Ignore,
                        Some(join) => Ask::Push(join),
                    });
                }
                _ => {
                    let asked = socket.hear(&format!(r#"[{its},"{step}","{topic}","phx_leave",{{}}]"#));
                    match current {
                        None => prop_assert!(matches!(asked, Ask::Answer(_, Outcome::Ok, ""))),
                        Some(_) if old => prop_assert_eq!(asked, Ask::Ignore),
                        Some(join) => {
                            joined.remove(&topic);
                            prop_assert_eq!(asked, Ask::Leave(join));
                        }
                    }
                }
            }
            prop_assert!(socket.0.joins().eq(joined.values()), "{:?}", joined.keys());
        }
    }
}
