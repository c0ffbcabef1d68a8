//! What a bad member still can do, until its mend is there.
//!
//! - *A profile or row of a node that is not linked here is what the last one said of it.* Nothing proves a word that is
//!   passed on; the node's own word overrules it as soon as it is linked. So does a tombstone hide one that is down.
//! - *Nodes that do not exist have profiles and rows.* They take no place of a node that was ever linked, are dialed
//!   within bounds, are no events and count for no majority, but fill what is free of 1,024 places, travel, and are
//!   remembered on disk.
//! - *Profile and tombstone of one node by turns* are written to disk at every turn.
