//! A frame from any client of the channels, text in both dialects and binary: the reader neither panics nor takes
//! memory, what it reads keeps the bounds, and a text frame means the same when it is said back.
//!
//! `cargo fuzz run --sanitizer none channel_frame -- -runs=1000000`, from the repository's root.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use xpando_node::internals::proto::channel::session::{Ask, Session};
use xpando_node::internals::proto::channel::{Dialect, Encoded, Frame, Json, MAX_WORD, Payload, Say};
use xpando_node_fuzz::bounded;

fuzz_target!(|input: &[u8]| {
    let bytes = Bytes::copy_from_slice(input);
    let texts =
        [Dialect::V1, Dialect::V2].map(|dialect| bounded(|| Frame::text(dialect, &bytes)).ok());
    for frame in texts.iter().flatten() {
        let Payload::Json(json) = &frame.payload else { panic!("a text frame carries text") };
        assert!(
            Json::read(json.as_bytes().clone()).is_some(),
            "a payload that is no JSON, or too deep"
        );
        let say = Say::Push(frame.join_ref.as_ref(), &frame.event, &frame.payload);
        let Some(Encoded::Text(text)) = say.encode(Dialect::V2, &frame.topic) else {
            panic!("no text")
        };
        let again = Frame::text(Dialect::V2, &text).expect("what was read can be said");
        assert_eq!(
            (&again.join_ref, &again.topic, &again.event),
            (&frame.join_ref, &frame.topic, &frame.event)
        );
        assert_eq!(again.payload, frame.payload);
    }
    for frame in texts.into_iter().flatten().chain(bounded(|| Frame::binary(&bytes)).ok()) {
        for word in [&frame.topic, &frame.event] {
            assert!((1..=MAX_WORD).contains(&word.len()), "a word of {} bytes", word.len());
        }
        let mut session = Session::new(Dialect::V2);
        // Nothing is joined: a frame is answered, or is a join.
        assert!(matches!(session.hear(&frame), Ask::Answer(..) | Ask::Join(_, None)));
    }
});
