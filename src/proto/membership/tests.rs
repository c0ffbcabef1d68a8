//! Membership, alone and as a pair of machines that talk to each other.
