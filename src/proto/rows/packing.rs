//! How rows and names fit the words that carry them.

use std::sync::Arc;

use super::{
    HEAD, MAX_ROWS, MAX_WORD, Mark, Output, OutputOf, Row, State, Table, Values, Word, WordOf,
};
use crate::proto::codec;
use crate::proto::node::NodeName;
use crate::proto::seal::{MAX_SEAL, Seal};

pub(super) fn send_want<T: Table>(
    peer: &NodeName,
    names: Vec<NodeName>,
    out: &mut Vec<OutputOf<T>>,
) {
    for names in codec::chunks(MAX_ROWS, names, MAX_WORD - HEAD, |name| name.as_str().len() + 2) {
        out.push(Output::Send(peer.clone(), Word::Want(names)));
    }
}

pub(super) fn send_news<T: Table>(
    peer: &NodeName,
    marks: Vec<(NodeName, Mark)>,
    out: &mut Vec<OutputOf<T>>,
) {
    for marks in codec::chunks(MAX_ROWS, marks, MAX_WORD - HEAD, mark_size) {
        out.push(Output::Send(peer.clone(), Word::News(marks)));
    }
}

/// Rows in as many words as they need.
pub(super) fn row_words<T: Table>(
    rows: impl IntoIterator<Item = Arc<Row<T::Value>>>,
) -> Vec<WordOf<T>> {
    let (mut words, mut short) = (Vec::new(), Vec::new());
    for row in rows {
        match row.value().filter(|_| row_size::<T>(&row) > MAX_WORD - HEAD) {
            Some(value) => words.extend(parts::<T>(&row, value)),
            None => short.push(Arc::unwrap_or_clone(row)),
        }
    }
    let short = codec::chunks(MAX_ROWS, short, MAX_WORD - HEAD, row_size::<T>);
    words.extend(short.into_iter().map(Word::Rows));
    words
}

fn parts<T: Table>(row: &Row<T::Value>, value: &T::Value) -> impl Iterator<Item = WordOf<T>> {
    let changes = T::parts(value, MAX_WORD - HEAD - MAX_SEAL);
    let parts = u16::try_from(changes.len()).unwrap_or(u16::MAX);
    let (origin, incarnation, version) = (row.origin.clone(), row.incarnation, row.version);
    (0..parts).zip(changes).map(move |(part, adds)| {
        let origin = origin.clone();
        let seal = row.seal.clone().filter(|_| part + 1 == parts);
        Word::Part { origin, incarnation, version, part, parts, adds, seal }
    })
}

// What things need on the wire, at most.

pub(super) fn mark_size((name, _): &(NodeName, Mark)) -> usize {
    name.as_str().len() + 23 + Values::SIZE
}

pub(crate) fn row_size<T: Table>(row: &Row<T::Value>) -> usize {
    let sealed = |seal: Option<&Seal>| seal.map_or(0, Seal::size);
    let rest = match &row.state {
        State::Live(value) => T::size(value),
        State::Gone { by, .. } => by.as_str().len(),
        State::Ruled(ruling) => {
            let last = ruling.last.as_ref();
            let last = last.map_or(0, |it| T::size(&it.value) + sealed(Some(&it.seal)) + 24);
            ruling.author.by.as_str().len() + ruling.author.operator.as_str().len() + last + 16
        }
    };
    row.origin.as_str().len() + sealed(row.seal.as_ref()) + 42 + rest
}
