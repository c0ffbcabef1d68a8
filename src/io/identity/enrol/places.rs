//! Where the cluster was when this node joined it: `peers` in the node's directory, so that its first start finds the others
//! without being told again.
//!
//! Lines of `HOST:PORT`. Whoever writes there can make the node dial, as with any seed; whom it links with, certificates decide.

use std::path::Path;

use super::asked::Granted;
use crate::io::identity::IdentityError;
use crate::io::identity::disk::{self, Layout};
use crate::io::seeds::Seed;
use crate::proto::node::NodeName;

/// Places that are kept.
const MAX_PLACES: usize = 32;

impl Granted {
    /// Where nodes of the cluster are: these places, which were asked, and those that the issuer named.
    pub fn places(&self, asked: &[Seed]) -> Vec<Seed> {
        let named = self.peers().iter().filter_map(|peer| peer.to_string().parse().ok());
        let mut places: Vec<Seed> = Vec::new();
        for place in asked.iter().cloned().chain(named) {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places.truncate(MAX_PLACES);
        places
    }
}

/// Keeps where nodes of the cluster are, for the first start of `name`.
///
/// # Errors
/// [`IdentityError::Io`].
pub fn keep_places(certs: &Path, name: &NodeName, places: &[Seed]) -> Result<(), IdentityError> {
    let lines: String = places.iter().map(|place| format!("{place}\n")).collect();
    disk::write(&Layout::new(certs).places(name), lines.as_bytes(), disk::PUBLIC)
}

/// The places that were kept, nothing where there is no such file. What is no place in it is left out.
pub fn kept_places(certs: &Path, name: &NodeName) -> Vec<Seed> {
    let bytes = disk::read_list(&Layout::new(certs).places(name)).ok().flatten();
    let text = String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).take(MAX_PLACES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_kept_and_rubbish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a@h".parse().unwrap();
        assert_eq!(kept_places(dir.path(), &name), []);
        std::fs::create_dir_all(dir.path().join("a@h")).unwrap();
        let places: Vec<Seed> =
            ["10.0.0.1:7", "db.example", "[::1]:9"].map(|text| text.parse().unwrap()).to_vec();
        keep_places(dir.path(), &name, &places).unwrap();
        assert_eq!(kept_places(dir.path(), &name), places);
        let file = dir.path().join("a@h/peers");
        std::fs::write(&file, "10.0.0.1:7\nnot a place\n\n0.0.0.0:1\ndb.example\n").unwrap();
        assert_eq!(kept_places(dir.path(), &name), places[..2]);
        std::fs::write(&file, [0xff; 9]).unwrap();
        assert_eq!(kept_places(dir.path(), &name), []);
        std::fs::write(&file, "h:1\n".repeat(1000)).unwrap();
        assert_eq!(kept_places(dir.path(), &name).len(), MAX_PLACES);
    }
}
