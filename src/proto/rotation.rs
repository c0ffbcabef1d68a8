//! How far each node is when the cluster's authority or the key of its tokens is replaced.
//!
//! Pure. Invariant: a rotation goes on only when every node that the cluster knows has said itself that it is ready; one that
//! has not answered is not ready.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proto::node::{KeyId, NodeName};
use crate::proto::token::TokenKeyId;

/// What a node says of the certificate that it shows, and of the lists that it follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTrust {
    /// The number of the trust list that it follows; 0: there has been none.
    pub list: u64,
    /// The id of the key that signed its certificate, 32 hexadecimal digits.
    pub authority: String,
    /// Until when its certificate is valid, RFC 3339.
    pub until: String,
    /// The keys whose tokens count there, the one that signs first, as [`TokenKeyId`] shows them; none without a token list.
    #[serde(default)]
    pub token_keys: Vec<String>,
}

/// What all nodes are asked for before a rotation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To follow this trust list, or a later one.
    List(u64),
    /// To show a certificate that this key has signed.
    Signed(KeyId),
    /// To accept tokens of this key.
    Accepts(TokenKeyId),
}

impl Wanted {
    /// Whether a node is ready.
    fn is_met(self, node: Option<&NodeTrust>) -> bool {
        node.is_some_and(|node| match self {
            Self::List(number) => node.list >= number,
            Self::Signed(key) => node.authority == key.to_string(),
            Self::Accepts(key) => node.token_keys.contains(&key.to_string()),
        })
    }

    /// The nodes that are not ready.
    pub fn waits_for(self, nodes: &BTreeMap<NodeName, Option<NodeTrust>>) -> Vec<NodeName> {
        let behind = nodes.iter().filter(|(_, node)| !self.is_met(node.as_ref()));
        behind.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_waits_for_who_is_behind_and_for_who_does_not_answer() {
        let name = |text: &str| text.parse::<NodeName>().expect("valid");
        let (old, new) = (KeyId([1; 16]), KeyId([2; 16]));
        let node = |list: u64, key: KeyId| {
            let token_keys = vec![TokenKeyId([list as u8; 32]).to_string()];
            Some(NodeTrust { list, authority: key.to_string(), until: String::new(), token_keys })
        };
        let mut nodes = BTreeMap::from([(name("a@h"), node(7, old)), (name("b@h"), node(6, old))]);
        assert_eq!(Wanted::List(7).waits_for(&nodes), [name("b@h")]);
        nodes.insert(name("b@h"), node(8, new));
        assert_eq!(Wanted::List(7).waits_for(&nodes), []);
        assert_eq!(Wanted::Signed(new).waits_for(&nodes), [name("a@h")]);
        nodes.insert(name("c@h"), None);
        assert_eq!(Wanted::List(7).waits_for(&nodes), [name("c@h")]);
        nodes.insert(name("a@h"), node(8, new));
        nodes.remove(&name("c@h"));
        assert_eq!(Wanted::Signed(new).waits_for(&nodes), []);
        assert_eq!(Wanted::Accepts(TokenKeyId([8; 32])).waits_for(&nodes), []);
        let other = Wanted::Accepts(TokenKeyId([7; 32])).waits_for(&nodes);
        assert_eq!(other, [name("a@h"), name("b@h")]);
    }
}
