//! What a frame that cannot be taken says of itself, so that it can be answered: the references and the topic.
//!
//! A client joins again what is not answered, and connects again when it is closed, so whatever it sends wrong is
//! answered with an error where its sender can be made out. The bytes may be cut off anywhere. Nothing here panics.

use serde_json::value::RawValue;

use super::{Dialect, PUSH, Ref};

/// Bytes of a frame that is too long in which its head is looked for: more than the words of any frame need.
pub const HEAD: usize = 8 * 1024;

/// The beginning of a frame, as far as it can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The reference of the join that it belongs to.
    pub join_ref: Option<Ref>,
    /// Its own reference.
    pub reference: Option<Ref>,
    /// The topic as the client wrote it, of any length.
    pub topic: Option<String>,
}

impl Head {
    /// Of a text frame.
    pub fn text(dialect: Dialect, text: &[u8]) -> Self {
        let mut head = Self::default();
        let text = text.trim_ascii_start();
        match dialect {
            Dialect::V2 => {
                let mut rest = text.strip_prefix(b"[");
                for name in ["join_ref", "ref", "topic"] {
                    rest = rest.and_then(|text| head.value(name, text));
                }
            }
            Dialect::V1 => {
                let mut rest = text.strip_prefix(b"{");
                while let Some(member) = rest {
                    let Some((name, after)) = value(member) else { break };
                    let Ok(name) = serde_json::from_str::<String>(name.get()) else { break };
                    rest = after.strip_prefix(b":").and_then(|text| head.value(&name, text));
                }
            }
        }
        head
    }

    /// Of a binary frame.
    pub fn binary(bytes: &[u8]) -> Self {
        let mut head = Self::default();
        let [kind, join_ref, reference, topic, _event, rest @ ..] = bytes else { return head };
        if *kind != PUSH {
            return head; // other kinds may have other fields
        }
        let (mut words, mut rest) = ([None; 3], rest);
        for (word, length) in words.iter_mut().zip([join_ref, reference, topic]) {
            let Some((text, after)) = rest.split_at_checked(usize::from(*length)) else { break };
            (*word, rest) = (std::str::from_utf8(text).ok(), after);
        }
        let [join_ref, reference, topic] = words;
        let read = |text: Option<&str>| Ref::of(text?).ok().flatten();
        (head.join_ref, head.reference) = (read(join_ref), read(reference));
        head.topic = topic.map(str::to_owned);
        head
    }

    /// Takes a value that another one follows, or nothing; what comes behind it.
    fn value<'a>(&mut self, name: &str, text: &'a [u8]) -> Option<&'a [u8]> {
        let (raw, rest) = value(text)?;
        match name {
            "join_ref" => self.join_ref = Ref::read(raw).ok().flatten(),
            "ref" => self.reference = Ref::read(raw).ok().flatten(),
            "topic" => self.topic = serde_json::from_str(raw.get()).ok(),
            _ => {}
        }
        rest.strip_prefix(b",")
    }
}

/// The first value of a text, and what follows it.
fn value(text: &[u8]) -> Option<(&RawValue, &[u8])> {
    let mut values = serde_json::Deserializer::from_slice(text).into_iter::<&RawValue>();
    let first = values.next()?.ok()?;
    let rest = text.get(values.byte_offset()..)?.trim_ascii_start();
    // A number that ends the text may have been cut off.
    (!rest.is_empty()).then_some((first, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(join_ref: &str, its: &str, topic: Option<&str>) -> Head {
        let read = |text: &str| Ref::of(text).expect("short");
        let (join_ref, reference) = (read(join_ref), read(its));
        Head { join_ref, reference, topic: topic.map(str::to_owned) }
    }

    #[test]
    fn frames_that_are_none_are_answered_where_they_can_be() {
        let long = "t".repeat(300);
        let of = |text: &str| Head::text(Dialect::V2, text.as_bytes());
        for (text, wanted) in [
            (format!(r#"["1","2","{long}","phx_join",{{}}]"#), head("1", "2", Some(&long))),
            (r#"["1","2","","phx_join",{}]"#.into(), head("1", "2", Some(""))),
            (r#" [ "1" , "2" , "t" , 3 , {} ]"#.into(), head("1", "2", Some("t"))),
            (r#"["1","2","t"]"#.into(), head("1", "2", Some("t"))),
            (r#"["1","2","t","e",{},7]"#.into(), head("1", "2", Some("t"))),
            (r#"["1","2","t","e",{"x":"#.into(), head("1", "2", Some("t"))),
            (r#"["1","2","t\u00e9","#.into(), head("1", "2", Some("té"))),
            (format!(r#"["1","{long}","t","e",{{}}]"#), head("1", "", Some("t"))),
            (r#"["1",{},"t","e",{}]"#.into(), head("1", "", Some("t"))),
            (r#"["1","2",{"t":1},"e",{}]"#.into(), head("1", "2", None)),
            (r#"["1","2","cut"#.into(), head("1", "2", None)),
            (r#"["1",2"#.into(), head("1", "", None)),
            (format!(r#"["1","2",{}"#, "[".repeat(300_000)), head("1", "2", None)),
            ("hello".into(), Head::default()),
            (String::new(), Head::default()),
        ] {
            assert_eq!(of(&text), wanted, "{:.60}", text);
        }
        let old = |text: &str| Head::text(Dialect::V1, text.as_bytes());
        assert_eq!(
            old(r#"{"topic":"t","event":1,"payload":{},"ref":"2"}"#),
            head("", "2", Some("t"))
        );
        assert_eq!(old(r#"{"ref":"2","topic":"t","payload":{"x":"#), head("", "2", Some("t")));
        assert_eq!(old(r#"["1","2","t","e",{}]"#), Head::default());
        let binary = |lengths: [u8; 4], text: &str| {
            Head::binary(&[&[PUSH], &lengths[..], text.as_bytes()].concat())
        };
        assert_eq!(binary([1, 1, 6, 255], "12room:1"), head("1", "2", Some("room:1")));
        assert_eq!(binary([1, 1, 60, 3], "12room:1say"), head("1", "2", None));
        assert_eq!(binary([9, 1, 1, 1], "12"), head("", "", None));
        assert_eq!(Head::binary(&[3, 1, 1, 1, 1, b'1', b'2', b't']), Head::default());
        assert_eq!(Head::binary(&[PUSH, 1]), Head::default());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_a_cut_frame_has_the_head_of_the_whole(bytes: Vec<u8>, cut in 0..80_usize) {
            for dialect in [Dialect::V1, Dialect::V2] {
                drop(Head::text(dialect, &bytes));
            }
            drop(Head::binary(&bytes));
            let whole = r#"["12","34","room:é","say",{"x":[1,2,{"y":"\u00e9"}]}]"#.as_bytes();
            let part = whole.get(..cut.min(whole.len())).expect("within");
            let (found, wanted) = (Head::text(Dialect::V2, part), head("12", "34", Some("room:é")));
            prop_assert!(found.topic.is_none() || found == wanted, "{found:?}");
            prop_assert!(cut <= 20 || found == wanted, "{found:?} of {cut}");
        }
    }
}
