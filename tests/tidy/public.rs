//! What the crate promises: the items that `src/lib.rs` exports, as docs/PUBLIC-API.txt lists them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{env, fs};

use super::{House, Named, Source, is_word, sources};

const LIST: &str = "docs/PUBLIC-API.txt";
/// The module of `src/lib.rs` in which nothing is promised.
const HIDDEN: &str = "internals";
/// Public enums that services match as a whole, and structs that they make: all other ones may grow.
const CLOSED: &[&str] = &[
    "Address",
    "Broken",
    "Grant",
    "Pattern",
    "Payload",
    "Received",
    "Revocable",
    "Role",
    "Status",
    "Verb",
    "Verbs",
    "config::Limits",
];

#[test]
fn what_may_grow_is_non_exhaustive() {
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let listed = fs::read_to_string(root.join(LIST)).expect("a list");
    let (mut closed, mut item) = (Vec::new(), "");
    for line in listed.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["enum" | "struct", name] => item = name,
            ["", "", "", "", "field" | "variant", _] if !item.is_empty() => {
                closed.push(std::mem::take(&mut item));
            }
            ["", ..] => {}
            _ => item = "",
        }
    }
    closed.sort_unstable();
    assert_eq!(closed, CLOSED, "without #[non_exhaustive], and what may be");
}

/// What public items may name besides each other: of std and of other crates.
const OUTSIDE: &str = "\
    ActorRef Arc BTreeMap BTreeSet Box Deserialize DeserializeOwned Duration Error Fn FnOnce \
    Future Instant Into IntoIterator InvalidDnsNameError IpAddr Item Iterator KeyId Map Option \
    Output Path PathBuf Pin RactorMessage Range Receiver Result RpcReplyPort Self Send Serialize \
    Sized SocketAddr State String Sync SystemTime Value Vec VerifierBuilderError";

#[test]
fn what_public_items_name_is_public() {
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut files = Vec::new();
    sources(&root, "src", &mut files);
    let mut named = BTreeSet::new();
    let found = items(&files, &mut named);
    let promised = |line: &String| {
        let kinds = ["struct", "enum", "trait", "type", "mod", "const", "non_exhaustive"];
        let mut words = line.split_whitespace().skip_while(|word| kinds.contains(word));
        words.next().and_then(|path| path.rsplit("::").next()).map(str::to_owned)
    };
    let public: BTreeSet<_> = found.iter().filter_map(promised).collect();
    named.retain(|(name, _)| !OUTSIDE.split(' ').any(|it| it == name) && !public.contains(name));
    assert!(named.is_empty(), "named by public items, and not public: {named:#?}");
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut files = Vec::new();
    sources(&root, "src", &mut files);
    let found = items(&files, &mut BTreeSet::new());
    let listed = fs::read_to_string(root.join(LIST)).unwrap_or_default();
    let listed: Vec<_> = listed.lines().filter(|line| !line.starts_with('#')).collect();
    let missing: Vec<_> = found.iter().filter(|line| !listed.contains(&line.as_str())).collect();
    let gone: Vec<_> = listed.iter().filter(|line| !found.iter().any(|it| it == *line)).collect();
    assert!(
        listed == found,
        "{LIST} is not what the code shows: new {missing:#?}, gone {gone:#?}; as a whole it is\n{}",
        found.join("\n")
    );
}

/// Types that public items name: each with the item that does.
type Names = BTreeSet<(String, String)>;

/// Each exported item with what is public of it, one a line.
fn items(files: &[(String, String)], names: &mut Names) -> Vec<String> {
    let house = House::read(files);
    let lib = files.iter().find(|(path, _)| path == "src/lib.rs").expect("a library");
    let lib = Source::read(&lib.1);
    let (mut found, mut module) = (Vec::new(), String::new());
    for at in 0..lib.code.len() {
        match [0, 1, 2].map(|n| lib.text(at + n)) {
            ["mod", name, "{"] => module = format!("{name}::"),
            ["}", ..] if lib.code[at].inline == 0 => module.clear(),
            ["pub", "use", _] if module != format!("{HIDDEN}::") => {
                let mut named = Vec::new();
                lib.tree(at + 2, &[], &mut named);
                named.iter().for_each(|it| item(files, &house, &module, it, names, &mut found));
            }
            _ => {}
        }
    }
    found
}

/// One export of the library, and what is public of it.
fn item<'a>(
    files: &'a [(String, String)],
    house: &House<'a>,
    module: &str,
    named: &Named<'a>,
    names: &mut Names,
    found: &mut Vec<String>,
) {
    let name = *named.path.last().expect("a path has a last word");
    let shown = format!("{module}{}", named.import.unwrap_or(name));
    let Some(home) = house.definition(&["lib"], named) else {
        let from = if name == named.path[0] { "" } else { named.path[0] };
        found
            .push(format!("{shown} {}", if from == "crate" { "" } else { from }).trim().to_owned());
        return;
    };
    let prefix = format!("src/{}", home.join("/"));
    let own =
        |path: &str| path == format!("{prefix}.rs") || path.starts_with(&format!("{prefix}/"));
    let mut inside = Vec::new();
    let (mut kind, mut types) = ("mod", Vec::new());
    let is_module = home.last() == Some(&name);
    for (_, text) in files.iter().filter(|(path, _)| own(path) && !path.contains("/tests")) {
        let source = Source::read(text);
        parts(&source, (!is_module).then_some(name), &mut kind, &mut types, &mut inside);
    }
    names.extend(types.iter().map(|it: &&str| ((*it).to_owned(), shown.clone())));
    found.push(format!("{kind} {shown}"));
    inside.sort_unstable();
    found.extend(inside.iter().map(|part| format!("    {part}")));
}

/// The public parts of the type `name` in a file, or, of a module, all that is public there.
fn parts<'a>(
    source: &Source<'a>,
    name: Option<&str>,
    kind: &mut &'a str,
    types: &mut Vec<&'a str>,
    found: &mut Vec<String>,
) {
    let (mut open, mut within) = (0, ""); // braces; what the outermost ones are of
    let mut attribute = 0; // brackets of an attribute
    let code = source.code.iter().take_while(|token| token.line < source.tests_from).count();
    for at in 0..code {
        let words = [0, 1, 2, 3].map(|n| source.text(at + n));
        match words {
            ["[", ..] if attribute > 0 || at > 0 && source.text(at - 1) == "#" => attribute += 1,
            ["]", ..] if attribute > 0 => attribute -= 1,
            _ if attribute > 0 => {}
            ["pub", ..] if at > 2 && source.text(at - 3) == "hidden" => {}
            ["{", ..] => open += 1,
            ["}", ..] => {
                open -= 1;
                if open == 0 {
                    within = "";
                }
            }
            ["pub", what @ ("struct" | "enum" | "trait" | "type"), it, _] if open == 0 => {
                if name == Some(it) {
                    within = what;
                    *kind = match (what, at > 1 && source.text(at - 2) == "non_exhaustive") {
                        ("enum", true) => "non_exhaustive enum",
                        ("struct", true) => "non_exhaustive struct",
                        _ => what,
                    };
                    if what == "type" {
                        types.extend(signature(source, at + 3, &[";"]));
                    }
                } else if name.is_none() {
                    found.push(format!("{what} {it}"));
                }
            }
            ["impl", ..] if open == 0 => {
                let head: Vec<_> =
                    (at..).map(|at| source.text(at)).take_while(|text| *text != "{").collect();
                let of = head.iter().position(|text| name.is_none_or(|name| *text == name));
                within = if of.is_some() && !head.contains(&"for") { "impl" } else { "" };
            }
            ["pub", "fn", it, _] | ["pub", "async" | "const", "fn", it]
                if within == "impl" || name.is_none() && open == 0 =>
            {
                found.push(format!("fn {it}"));
                types.extend(signature(source, at, &["{", ";"]));
            }
            ["pub", "const", it, ":"] if name == Some(it) => *kind = "const",
            ["pub", it, ":", _] if open == 1 && within == "struct" => {
                found.push(format!("field {it}"));
                types.extend(signature(source, at + 2, &[",", "}"]));
            }
            ["fn", it, ..] if open == 1 && within == "trait" => {
                found.push(format!("fn {it}"));
                types.extend(signature(source, at, &["{", ";"]));
            }
            [it, ..] if open == 1 && within == "enum" && is_word(it) => {
                let before = source.text(at - 1);
                if ["{", ",", "]"].contains(&before) && [",", "{", "(", "}"].contains(&words[1]) {
                    found.push(format!("variant {it}"));
                    let end = if words[1] == "{" { "}" } else { "," };
                    types.extend(signature(source, at + 1, &[end]));
                }
            }
            _ => {}
        }
    }
}

/// The types that stand from a place to one of these ends, outside of brackets.
fn signature<'a>(source: &Source<'a>, at: usize, ends: &[&str]) -> Vec<&'a str> {
    let mut depth = 0;
    let mut inside = |text: &str| {
        depth += match text {
            "(" | "[" | "<" => 1,
            ")" | "]" | ">" => -1,
            _ => 0,
        };
        depth > 0 || !ends.contains(&text)
    };
    let texts = (at..source.code.len()).map(|at| source.text(at)).take_while(|text| inside(text));
    texts
        .filter(|text| text.len() > 1 && text.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect()
}
