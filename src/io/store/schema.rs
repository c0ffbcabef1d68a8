//! What is in the file, and how a file of an earlier version becomes one of this.
//!
//! Schema 1 had an incarnation among `meta` and peers without a checksum; it had no number. Schema 2 has its
//! number in `meta`, all else that changes with every write in one value of `state`, and the chain. Schema 3 has
//! `nodes` in the place of the peers: all that is known of each. Schema 4 has the seals of what nodes state; what schema 3
//! has without one stays, and is passed on to nobody. It also has `lasting` and `kept`: what outlasts the rest of the
//! chain, which the signature of the checkpoint covers. Invariant: a file is of one schema as a whole,
//! because it moves to the last one in one commit. The tables `proofs` and `lists` may be missing, since programs of this
//! schema were without them.
//!
//! A later schema says which is the oldest whose programs may go on with its file ([`READER_KEY`]). Such a step only adds:
//! tables, which stay as they are, and fields at the end of values, which an earlier program leaves out of what it writes; a
//! node of which it cannot read what is known it knows not. Without that key an earlier program does not open the file.

use std::net::SocketAddr;

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
    TableHandle,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Failure;
use crate::proto::chain::Tip;
use crate::proto::codec;
use crate::proto::event::{Reason, Status};
use crate::proto::lists::MAX_LIST;
use crate::proto::node::{Contact, Incarnation, NodeId, NodeName};
use crate::proto::registry::{self, Entry, Known, Profile};
use crate::proto::seal::Equivocation;

/// The schema that this version writes.
pub(super) const SCHEMA: u64 = 4;
pub(super) const SCHEMA_KEY: &str = "schema";
/// The oldest schema whose programs may use the file, in files of later schemas.
pub(super) const READER_KEY: &str = "oldest_reader";

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// What is known of each node by its name.
pub(super) const NODES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("nodes");
pub(super) const STATE_TABLE: TableDefinition<'_, (), &[u8]> = TableDefinition::new("state");
/// The chain's links by number.
pub(super) const LINKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("links");
/// Its signed heads by number.
pub(super) const HEADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("heads");
/// Its one checkpoint.
pub(super) const CHECKPOINT: TableDefinition<'_, (), &[u8]> = TableDefinition::new("checkpoint");
/// The links that outlast the rest by number, as `chain::kept_to_bytes` has them.
pub(super) const LASTING: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("lasting");
/// Where they begin and end.
pub(super) const KEPT: TableDefinition<'_, (), &[u8]> = TableDefinition::new("kept");
/// The certificates (DER) of the keys that signed them, by the id of the key.
pub(super) const SIGNERS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("signers");

/// Proofs that a node states different things to different peers, by its name and the key.
pub(super) const PROOFS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("proofs");

/// What the authority has signed, as it was in force last, by the word for its kind.
pub(super) const LISTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("lists");

/// Of what schema 1 had.
const INCARNATION: &str = "incarnation";
const OLD_PEER: u8 = 1;
/// Of what schemas 1 and 2 had.
const PEERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("peers");

const VERSION: u8 = 2;
const MAX_VALUE: usize = 4096;
/// A node may say much of itself.
const MAX_NODE: usize = 16 * 1024;
/// Two statements with their seals.
const MAX_PROOF: usize = 32 * 1024;
/// A signed list, and its length.
const MAX_SIGNED: usize = MAX_LIST + 16;
const SEAL: usize = 8;

/// What schemas 1 and 2 had of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    contact: Contact,
    /// Milliseconds since the Unix epoch.
    seen: u64,
}

impl From<Remembered> for Known {
    fn from(Remembered { contact, seen }: Remembered) -> Self {
        let met = Self::new(contact.name, seen);
        let (incarnation, addresses) = (contact.incarnation, vec![contact.address]);
        Self { incarnation, addresses, last_seen: Some(seen), ..met }
    }
}

/// What schema 3 had of a node.
#[derive(Serialize, Deserialize)]
struct Known3 {
    name: NodeName,
    id: Option<NodeId>,
    entry: Option<Entry3>,
    status: Option<Status>,
    reason: Option<Reason>,
    incarnation: Incarnation,
    first_seen: u64,
    last_seen: Option<u64>,
    last_heartbeat: Option<u64>,
    addresses: Vec<SocketAddr>,
    reputation: f64,
}

#[derive(Serialize, Deserialize)]
struct Entry3 {
    origin: NodeName,
    incarnation: Incarnation,
    version: u64,
    state: State3,
}

#[derive(Serialize, Deserialize)]
enum State3 {
    Live(Profile),
    Gone { at: u64 },
}

impl From<Entry3> for Entry {
    fn from(Entry3 { origin, incarnation, version, state }: Entry3) -> Self {
        let state = match state {
            State3::Live(profile) => registry::State::Live(profile),
            State3::Gone { at } => registry::State::Gone { at, by: origin.clone() },
        };
        Self { origin, incarnation, version, state, seal: None }
    }
}

impl From<Known3> for Known {
    fn from(old: Known3) -> Self {
        let Known3 { id, status, reason, incarnation, last_seen, last_heartbeat, .. } = old;
        let new = Self::new(old.name, old.first_seen);
        let entry = old.entry.map(Entry::from);
        let (addresses, reputation) = (old.addresses, old.reputation);
        let seen = Self { status, reason, incarnation, last_seen, last_heartbeat, ..new };
        Self { id, entry, addresses, reputation, ..seen }
    }
}

/// Where the node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) incarnation: Incarnation,
    pub(super) trail: Option<TrailState>,
}

/// Where its chain stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TrailState {
    pub(super) node: NodeName,
    pub(super) tip: Tip,
    /// Bytes of the links that are kept.
    pub(super) bytes: u64,
}

impl State {
    pub(super) fn read(table: &impl ReadableTable<(), &'static [u8]>) -> Result<Self, Failure> {
        let value =
            table.get(())?.ok_or_else(|| Failure::Damaged("it does not say where it is".into()))?;
        opened(value.value())
    }

    pub(super) fn write(&self, table: &mut Table<'_, (), &'static [u8]>) -> Result<(), Failure> {
        table.insert((), sealed(self)?.as_slice())?;
        Ok(())
    }
}

/// A value behind its version and in front of its checksum: redb checks no page that it reads in passing.
pub(super) fn sealed<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    let mut bytes =
        codec::encode_versioned(VERSION, value).map_err(|error| Failure::Refused(error.into()))?;
    bytes.extend_from_slice(&Sha256::digest(&bytes)[..SEAL]);
    Ok(bytes)
}

/// The value of [`sealed`] bytes.
pub(super) fn opened<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    unsealed(bytes, MAX_VALUE)
}

fn unsealed<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, Failure> {
    checked(bytes, cap)?.ok_or_else(damaged)
}

fn damaged() -> Failure {
    Failure::Damaged("a value is not as it was written".to_owned())
}

/// The value of bytes that are as they were written, if this program can read it; a later one may have more fields.
fn checked<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<Option<T>, Failure> {
    let (value, seal) = bytes.split_last_chunk::<SEAL>().ok_or_else(damaged)?;
    if !Sha256::digest(value).starts_with(seal) {
        return Err(damaged());
    }
    let fields = value.split_first().filter(|(version, _)| **version == VERSION);
    Ok(fields.and_then(|(_, fields)| codec::decode_open(fields, cap).ok()))
}

/// All that is known of nodes, without those that only a later program can read.
pub(super) fn nodes(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<Known>, Failure> {
    let nodes = table.iter()?.map(|entry| checked(entry?.1.value(), MAX_NODE));
    nodes.filter_map(Result::transpose).collect()
}

/// All proofs.
pub(super) fn proofs(read: &ReadTransaction) -> Result<Vec<Equivocation>, Failure> {
    let table = match read.open_table(PROOFS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table?,
    };
    table.iter()?.map(|entry| unsealed(entry?.1.value(), MAX_PROOF)).collect()
}

/// The list of this kind.
pub(super) fn list(read: &ReadTransaction, kind: &str) -> Result<Option<Vec<u8>>, Failure> {
    let table = match read.open_table(LISTS) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        table => table?,
    };
    let Some(list) = table.get(kind)? else { return Ok(None) };
    unsealed(list.value(), MAX_SIGNED).map(Some)
}

/// What the file's schema is; `None` while it is empty.
fn schema(database: &Database) -> Result<Option<u64>, Failure> {
    let read = database.begin_read()?;
    let mut tables = read.list_tables()?.map(|table| table.name().to_owned()).collect::<Vec<_>>();
    tables.sort_unstable();
    let tables: Vec<_> = tables.iter().map(String::as_str).collect();
    match tables.as_slice() {
        [] => Ok(None),
        ["meta"] | ["meta", "peers"] => Ok(Some(1)),
        _numbered => {
            let number = read.open_table(META)?.get(SCHEMA_KEY)?.map(|value| value.value());
            number.map(Some).ok_or_else(|| Failure::Damaged("it has no schema".to_owned()))
        }
    }
}

/// Makes the file one of this schema; its incarnation, at least `incarnation` when the file is new. `Err` with the
/// number when it is of a later schema.
pub(super) fn prepare(
    database: &Database,
    incarnation: Incarnation,
) -> Result<Result<Incarnation, u64>, Failure> {
    match schema(database)? {
        None => write_tables(database, Some(&State { incarnation, trail: None }), Vec::new())?,
        Some(1) => {
            let (state, peers) = read_1(database)?;
            write_tables(database, Some(&state), peers)?;
        }
        Some(2) => write_tables(database, None, read_2(database)?)?,
        Some(3) => write_tables(database, None, read_3(database)?)?,
        Some(SCHEMA) => {}
        Some(later) => {
            let oldest = database.begin_read()?.open_table(META)?.get(READER_KEY)?;
            if oldest.is_none_or(|oldest| oldest.value() > SCHEMA) {
                return Ok(Err(later));
            }
        }
    }
    let read = database.begin_read()?;
    // A damaged value shows now, while there is a good moment to set the file aside.
    nodes(&read.open_table(NODES)?)?;
    for table in [LINKS, HEADS, LASTING] {
        read.open_table(table)?;
    }
    for table in [CHECKPOINT, KEPT] {
        read.open_table(table)?;
    }
    read.open_table(SIGNERS)?;
    Ok(Ok(State::read(&read.open_table(STATE_TABLE)?)?.incarnation))
}

/// A peer of schema 1 that cannot be read is left out, as that version did.
fn read_1(database: &Database) -> Result<(State, Vec<Known>), Failure> {
    let read = database.begin_read()?;
    let stored = read.open_table(META)?.get(INCARNATION)?.map_or(0, |value| value.value());
    let state = State { incarnation: Incarnation(stored), trail: None };
    let mut peers = Vec::new();
    let has_peers = read.list_tables()?.any(|table| table.name() == PEERS.name());
    if has_peers {
        for entry in read.open_table(PEERS)?.iter()? {
            let (_, bytes) = entry?;
            let peer = codec::decode_versioned::<Remembered>(OLD_PEER, bytes.value(), MAX_VALUE);
            peers.extend(peer.map(Known::from));
        }
    }
    Ok((state, peers))
}

fn read_2(database: &Database) -> Result<Vec<Known>, Failure> {
    let read = database.begin_read()?;
    let peers = read.open_table(PEERS)?;
    peers.iter()?.map(|entry| opened::<Remembered>(entry?.1.value()).map(Known::from)).collect()
}

fn read_3(database: &Database) -> Result<Vec<Known>, Failure> {
    let read = database.begin_read()?;
    let nodes = read.open_table(NODES)?;
    let node = |bytes: &[u8]| unsealed::<Known3>(bytes, MAX_NODE).map(Known::from);
    nodes.iter()?.map(|entry| node(entry?.1.value())).collect()
}

/// The tables of this schema, in the place of those of an earlier one. Its state stays unless there is another.
fn write_tables(
    database: &Database,
    state: Option<&State>,
    nodes: Vec<Known>,
) -> Result<(), Failure> {
    let mut write = database.begin_write()?;
    write.set_quick_repair(true);
    {
        let mut meta = write.open_table(META)?;
        meta.remove(INCARNATION)?;
        meta.insert(SCHEMA_KEY, SCHEMA)?;
        let mut table = write.open_table(NODES)?;
        for node in nodes {
            table.insert(node.name.as_str(), sealed(&node)?.as_slice())?;
        }
        write.delete_table(PEERS)?;
        let mut table = write.open_table(STATE_TABLE)?;
        if let Some(state) = state {
            state.write(&mut table)?;
        }
        write.open_table(LINKS)?;
        write.open_table(HEADS)?;
        write.open_table(LASTING)?;
        write.open_table(CHECKPOINT)?;
        write.open_table(KEPT)?;
        write.open_table(SIGNERS)?;
    }
    write.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_of_a_value_is_damage() {
        let state = State { incarnation: Incarnation(300), trail: None };
        let bytes = sealed(&state).ok().expect("plain");
        assert_eq!(opened::<State>(&bytes).ok(), Some(state));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(matches!(opened::<State>(&changed), Err(Failure::Damaged(_))), "byte {at}");
            assert!(opened::<State>(&bytes[..at]).is_err(), "{at} bytes");
        }
    }
}
