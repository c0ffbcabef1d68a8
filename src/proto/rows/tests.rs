//! What the tests of tables share: one machine driven by hand, and what a machine of a network checks.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Input, InputOf, MAX_WORD, Mark, Output, OutputOf, Row, Rows, Table, Tombstones, WordOf,
    agreement, millis, statement,
};
use crate::proto::node::{Incarnation, NodeName};
use crate::proto::seal::Seals;
use crate::proto::tests::network::{self, Moment, Network, Sent, name};
use crate::proto::tests::seals::Toy;

pub(crate) fn life(at: u64) -> Incarnation {
    Incarnation(at)
}

/// A row with the seal of its maker, without keys.
pub(crate) fn sealed<T: Table>(row: Row<T::Value>) -> Row<T::Value> {
    let mut maker = Toy(row.maker().clone());
    sealed_by::<T>(row, &mut maker)
}

/// A row with one of these seals.
pub(crate) fn sealed_by<T: Table>(row: Row<T::Value>, seals: &mut dyn Seals) -> Row<T::Value> {
    Row { seal: seals.make(&statement::<T>(&row)), ..row }
}

/// A machine around a table.
pub(crate) trait Machine {
    type Table: Table;

    fn table(&self) -> &Rows<Self::Table>;

    /// What a node states of a link that comes or goes.
    fn sees(_peer: NodeName, _up: bool, _wall: u64) -> Option<InputOf<Self::Table>> {
        None
    }

    fn handle(
        &mut self,
        input: InputOf<Self::Table>,
        now: Instant,
        out: &mut Vec<OutputOf<Self::Table>>,
    );
}

impl<T: Table> Machine for Rows<T> {
    type Table = T;

    fn table(&self) -> &Self {
        self
    }

    fn handle(&mut self, input: InputOf<T>, now: Instant, out: &mut Vec<OutputOf<T>>) {
        Rows::handle(self, input, now, out);
    }
}

/// One machine, driven by hand.
pub(crate) struct Alone<M> {
    pub(crate) machine: M,
    pub(crate) now: Instant,
}

impl<M: Machine> Alone<M> {
    /// That machine, linked to these in life 7.
    pub(crate) fn linked(machine: M, now: Instant, peers: &[&str]) -> Self {
        let mut alone = Self { machine, now };
        for peer in peers {
            alone.input(Input::Linked(name(peer), life(7)));
        }
        alone
    }

    pub(crate) fn input(&mut self, input: InputOf<M::Table>) -> Vec<OutputOf<M::Table>> {
        let mut out = Vec::new();
        self.machine.handle(input, self.now, &mut out);
        out
    }

    pub(crate) fn hears(&mut self, from: &str, word: WordOf<M::Table>) -> Vec<OutputOf<M::Table>> {
        self.input(Input::Received(name(from), word))
    }

    pub(crate) fn tick(&mut self, after: Duration) -> Vec<OutputOf<M::Table>> {
        self.now += after;
        let wall = self.machine.table().wall.0 + millis(after);
        self.input(Input::Tick { wall })
    }
}

impl<M: Machine> network::Machine for M
where
    WordOf<M::Table>: Serialize + DeserializeOwned,
{
    type Word = WordOf<M::Table>;
    const LONGEST: usize = MAX_WORD;

    fn kind(_word: &Self::Word) -> &'static str {
        "word"
    }

    fn up(&mut self, peer: NodeName, life: Incarnation, at: Moment, out: &mut Sent<Self>) {
        step(self, Input::Linked(peer.clone(), life), at, out);
        M::sees(peer, true, at.wall).into_iter().for_each(|input| step(self, input, at, out));
    }

    fn down(&mut self, peer: NodeName, at: Moment, out: &mut Sent<Self>) {
        step(self, Input::Unlinked(peer.clone()), at, out);
        M::sees(peer, false, at.wall).into_iter().for_each(|input| step(self, input, at, out));
    }

    fn hear(&mut self, from: NodeName, word: Self::Word, at: Moment, out: &mut Sent<Self>) {
        step(self, Input::Received(from, word), at, out);
    }

    fn tick(&mut self, at: Moment, out: &mut Sent<Self>) {
        step(self, Input::Tick { wall: at.wall }, at, out);
    }

    fn deadline(&self) -> Option<Instant> {
        self.table().deadline()
    }
}

/// A machine takes an input: no mark falls, and nobody is charged.
fn step<M: Machine>(
    machine: &mut M,
    input: InputOf<M::Table>,
    Moment { now, seed, nodes, .. }: Moment,
    sent: &mut Vec<(Option<NodeName>, WordOf<M::Table>)>,
) {
    let small = nodes < 20; // the check is dear
    let before = if small { marks(machine) } else { Vec::new() };
    let mut out = Vec::new();
    machine.handle(input, now, &mut out);
    if small {
        let table = machine.table();
        assert_eq!(table.agreement(), agreement::<M::Table>(table.rows()), "seed {seed}");
    }
    for (name, mark, certificate) in before {
        let ended = mark.gone && M::Table::TOMBSTONES == Tombstones::Final;
        let row = machine.table().row(&name);
        let after = row.map(|row| row.mark());
        let me = &machine.table().me;
        // A later key begins anew.
        let rekeyed = row.is_some_and(|row| certificate_of(row) != certificate);
        assert!(
            ended || rekeyed || after >= Some(mark),
            "seed {seed}: {name} fell from {mark:?} at {me}"
        );
    }
    for output in out {
        match output {
            Output::Send(to, word) => sent.push((Some(to), word)),
            Output::Changed(_) | Output::Gone { .. } | Output::Revived(_) => {}
            Output::Charge(..) | Output::Cut(_) | Output::Equivocation(..) => {
                panic!("seed {seed}: honest nodes, but {} outputs {output:?}", machine.table().me)
            }
        }
    }
}

impl<M: Machine> Network<M>
where
    WordOf<M::Table>: Serialize + DeserializeOwned,
{
    pub(crate) fn input(&mut self, at: usize, input: InputOf<M::Table>) {
        self.act(at, |machine, moment, out| step(machine, input, moment, out));
    }
}

fn certificate_of<V>(row: &Row<V>) -> Option<Vec<u8>> {
    row.seal.as_ref().map(|seal| seal.certificate.clone())
}

/// All marks that a machine has, and under which certificates.
fn marks<M: Machine>(machine: &M) -> Vec<(NodeName, Mark, Option<Vec<u8>>)> {
    let rows = machine.table().rows();
    rows.map(|row| (row.origin.clone(), row.mark(), certificate_of(row))).collect()
}
