//! What a bad member still can do, until its mend is there.
//!
//! - *A node that is down is forgotten because one member says so*, at most 64 a minute of each member, until the node
//!   states anything later or the member is revoked.
