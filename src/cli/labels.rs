//! Short names for nodes where columns are narrow: the shortest that still tell them apart.

use std::collections::BTreeSet;

use xpando_node::internals::proto::node::NodeName;

/// A label of at most `width` characters for each node: the part before the `@` where that is enough, else the host,
/// else the whole name. Long ones lose their middle; where that makes two of them equal, they are numbers.
pub(super) fn labels(nodes: &[&NodeName], width: usize) -> Vec<String> {
    let parts: [fn(&NodeName) -> &str; 3] = [NodeName::short, NodeName::host, NodeName::as_str];
    let texts = parts.iter().map(|part| nodes.iter().map(|node| cut(part(node), width)));
    let texts = texts.map(Iterator::collect::<Vec<_>>).find(|texts| are_distinct(texts));
    texts.unwrap_or_else(|| (1..=nodes.len()).map(|number| number.to_string()).collect())
}

/// A name in at most `width` characters.
pub(super) fn cut(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let kept = width.saturating_sub(1);
    let head = name.chars().take(kept - kept / 2);
    head.chain(['…']).chain(name.chars().skip(length - kept / 2)).collect()
}

fn are_distinct(texts: &[String]) -> bool {
    texts.iter().collect::<BTreeSet<_>>().len() == texts.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(nodes: &[&str], width: usize) -> Vec<String> {
        let nodes: Vec<NodeName> = nodes.iter().map(|node| node.parse().unwrap()).collect();
        labels(&nodes.iter().collect::<Vec<_>>(), width)
    }

    #[test]
    fn labels_are_short_and_tell_nodes_apart() {
        assert_eq!(labelled(&["n0@127.0.0.1", "n1@127.0.0.1"], 12), ["n0", "n1"]);
        assert_eq!(labelled(&["app@h1", "app@h2", "app@h3"], 12), ["h1", "h2", "h3"]);
        assert_eq!(labelled(&["app@h1", "db@h1", "app@h2"], 12), ["app@h1", "db@h1", "app@h2"]);
        let long = ["frontend-production-1@h", "frontend-production-2@h"];
        assert_eq!(labelled(&long, 12), ["fronte…ion-1", "fronte…ion-2"]);
        let middle = ["frontend-a-production@h", "frontend-b-production@h"];
        assert_eq!(labelled(&middle, 12), ["1", "2"], "never two of one label");
        assert_eq!(labelled(&["only@h"], 12), ["only"]);
    }
}
