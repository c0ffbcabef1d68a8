//! The rules of the house that no compiler checks, as a plain text scan of `src` and `tests`. The tables below are the
//! rules; docs/ARCHITECTURE.md gives their reasons. A failure lists every offence at once, each with its place and the rule
//! it breaks in one sentence.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "tidy/closures.rs"]
mod closures;
#[path = "tidy/public.rs"]
mod public;
#[path = "tidy/tables.rs"]
mod tables;

use tables::{AHEAD, OWNERS, PROTO_CRATES, PROTO_NEVER};

/// The floors from the top. A file names only floors below its own; `main` and `lib` are the roof.
const FLOORS: [&str; 6] = ["cli", "node", "gateway", "actors", "io", "proto"];

/// Siblings on a floor are strangers, except: (floor, who, whom). `*` is any of them.
const NEIGHBOURS: &[(&str, &str, &[&str])] = &[
    ("*", "*", &["tests"]), // what the unit tests of a floor share, on its front page
    ("cli", "*", &["*"]),
    ("node", "*", &["*"]),
    ("gateway", "*", &["askers", "memory", "places", "refusal", "status", "view"]), // whose turn it is; what memory is left; what clients have, and are refused; the API; the node
    ("gateway", "view", &["clients", "rotation"]),
    ("gateway", "admin", &["gauges", "history", "issue", "rotation"]),
    ("gateway", "history", &["sight"]), // how other nodes are asked
    ("gateway", "channels", &["clients", "sight"]), // where clients are to be; what can be read of other nodes
    ("gateway", "http", &["channels", "gauges", "history", "sight"]), // which it serves
    ("actors", "*", &["supervisor", "timer", "news", "exchange", "link", "lists", "peers"]),
    ("actors", "channel_router", &["history_log"]), // where its topics are kept
    ("io", "*", &["clock", "modes"]),
    ("io", "tls", &["identity"]),
    ("io", "identity", &["seeds", "fetch"]), // an invitation says where nodes are; key sets are elsewhere
    ("io", "seals", &["identity"]),
    ("io", "enrolment", &["tls", "seeds"]),
    ("io", "beacon", &["identity", "seals"]),
    (
        "proto",
        "*",
        &["node", "topic", "event", "codec", "backoff", "quota", "wiring", "budget", "capability"],
    ),
    ("proto", "wiring", &["membership", "link", "talk", "seal"]), // whose output is whose input
    ("proto", "event", &["chain", "hlc", "share"]),
    ("proto", "membership", &["hello", "frame"]),
    ("proto", "hello", &["lists"]), // it carries their marks
    ("proto", "link", &["hello", "frame", "membership", "talk"]), // whose attempts these are
    ("proto", "discovery", &["beacon", "talk"]),
    ("proto", "processor", &["share"]),
    ("proto", "limits", &["channel", "share", "token"]),
    ("proto", "newcomers", &["admission", "share"]),
    ("proto", "presence", &["channel", "talk"]), // frames of those who see it; its test says why a link is down
    ("proto", "rows", &["seal"]),
    ("proto", "rotation", &["token"]), // whose key is waited for
    ("proto", "tests", &["seal"]),     // those of machines without keys
    ("proto", "registry", &["rows", "seal", "heartbeat", "membership"]),
    ("proto", "topology", &["rows", "seal", "heartbeat", "membership"]), // a cell shows what these know of a peer
    ("proto", "heartbeat", &["questions"]),
    ("proto", "channel", &["replay"]),
    ("proto", "history", &["replay"]),
    ("proto", "outbox", &["frame"]),
    ("proto", "budget", &["frame", "lists", "outbox"]), // whose bounds its table has too
    ("proto", "talk", &["interest", "outbox"]),
];

/// Names that say nothing about what a module holds.
const EMPTY_NAMES: &[&str] = &["utils", "common", "helpers"];

/// Where tests may sleep: the polling loop of the kit that runs real processes.
const SLEEPING_HOME: &str = "tests/kit";

/// The longest a file may be before its unit tests.
const MAX_LINES: usize = 600;

#[test]
fn the_house_is_tidy() {
    let root = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from);
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("Cargo.toml is readable");
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        sources(&root, folder, &mut files);
    }
    let mut found: Vec<_> =
        files.iter().flat_map(|(p, text)| offences(p, text, &manifest)).collect();
    found.extend(circles(&files));
    found.extend(closures::too_many(&files));
    sources(&root, "examples", &mut files);
    sources(&root, "fuzz", &mut files);
    found.extend(lonely_items(&files));
    assert!(found.is_empty(), "{} offences\n{}", found.len(), found.join("\n"));
}

/// Every `.rs` file below `root/folder`, in order, as (path from the root, text).
fn sources(root: &Path, folder: &str, files: &mut Vec<(String, String)>) {
    let entries = fs::read_dir(root.join(folder)).expect("a source folder is readable");
    let names: BTreeSet<_> =
        entries.map(|e| e.expect("an entry is readable").file_name()).collect();
    for name in names {
        let path = format!("{folder}/{}", name.display());
        if root.join(&path).is_dir() {
            sources(root, &path, files);
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(root.join(&path)).expect("a source file is readable");
            files.push((path, text));
        }
    }
}

/// What is wrong with the file `text` at `path`: one line an offence, with its place and its rule.
fn offences(path: &str, text: &str, manifest: &str) -> Vec<String> {
    let source = Source::read(text);
    let names: Vec<&str> = path.trim_end_matches(".rs").split('/').collect();
    let mut found = Vec::new();
    let mut say = |line: usize, rule: String| found.push(format!("{path}:{line}: {rule}"));
    if !text.starts_with("//!") {
        say(1, "a file starts with a `//!` head that says what it is for".into());
    }
    if source.tests_from > MAX_LINES + 1 {
        say(MAX_LINES + 1, format!("a file has at most {MAX_LINES} lines before its unit tests"));
    }
    if path.ends_with("/mod.rs") {
        say(1, "a module is `name.rs` beside its folder `name/`, never `mod.rs`".into());
    }
    let inline = source.code.windows(3).filter(|t| t[0].text == "mod" && t[2].text == "{");
    let modules = names.iter().map(|name| (1, *name)).chain(inline.map(|t| (t[1].line, t[1].text)));
    for (line, name) in modules.filter(|(_, name)| EMPTY_NAMES.contains(name)) {
        say(line, format!("a module is named after what it holds, not `{name}`"));
    }
    for line in doubled_causes(text).filter(|_| names[0] == "src") {
        say(
            line,
            "a cause is in an error's text or its `source`, not in both: it is printed twice"
                .into(),
        );
    }
    for t in source.code.windows(2).filter(|t| t[0].text == "[" && t[1].text == "ignore") {
        say(t[1].line, "a test runs or is removed, it is not ignored".into());
    }
    for note in source.comments.iter().filter(|comment| has_unowned_note(comment.text)) {
        say(note.line, "a note for later says who will see to it: `TODO(owner)`".into());
    }
    let lines = source.code.windows(2).filter(|t| t[0].text == "writeln" && t[1].text == "!");
    for t in lines.filter(|t| prints_for_people(&names) && t[0].line < source.tests_from) {
        say(t[0].line, "commands print through `cli::output`, which escapes text of others".into());
    }
    for named in source.paths() {
        let rule = if names[0] == "src" {
            let test = named.line >= source.tests_from || path.ends_with("/tests.rs");
            stray_import(&names[1..], &named)
                .or_else(|| stray_crate(&names[1..], &named, test, manifest))
        } else {
            stray_sleep(path, &named)
        };
        rule.into_iter().for_each(|rule| say(named.line, rule));
    }
    found
}

/// The lines of errors whose text holds what is their `source()` too.
fn doubled_causes(text: &str) -> impl Iterator<Item = usize> {
    text.match_indices("#[error(").filter_map(|(at, _)| {
        let (words, rest) = text[at..].split_once(")]")?;
        let variant = rest.split_once(",\n").map_or(rest, |(variant, _)| variant);
        let chained = variant.contains("#[from]") || variant.contains("#[source]");
        let doubled = words.contains("{source") || words.contains("{0") && chained;
        doubled.then(|| text[..at].lines().count() + 1)
    })
}

/// Whether a module prints what may be text of others. The benchmarks print figures.
fn prints_for_people(module: &[&str]) -> bool {
    module.starts_with(&["src", "cli"]) && !matches!(module.get(2), Some(&("output" | "bench")))
}

/// The path from the crate's root of what the file of `module` names, unless that is inside it or relative.
fn absolute<'a>(module: &[&'a str], named: &Named<'a>) -> Option<Vec<&'a str>> {
    let up = named.path.iter().take_while(|name| **name == "super").count();
    match *named.path.first()? {
        "crate" | "xpando_node" => {
            let inside = named.path[1..].iter().skip_while(|name| **name == "internals");
            Some(inside.copied().collect())
        }
        "super" if up > named.inline => {
            let outer = module.len().saturating_sub(up - named.inline);
            Some([&module[..outer], &named.path[up..]].concat())
        }
        _ => None,
    }
}

/// The import rule.
fn stray_import(module: &[&str], named: &Named<'_>) -> Option<String> {
    let floor = |name: Option<&&str>| FLOORS.iter().position(|floor| Some(floor) == name);
    let here = floor(module.first())?; // the roof names what it likes
    let target = absolute(module, named)?;
    let there = floor(target.first());
    let to = target.join("::");
    if there.is_none_or(|there| there < here) {
        return Some(format!("`{}` names only the floors below it, not `crate::{to}`", module[0]));
    }
    let who = *module.get(1)?; // a floor's front page names what is on its floor
    let whom = *target.get(1).unwrap_or(&"");
    let allowed = NEIGHBOURS.iter().any(|(floor, from, to)| {
        ["*", module[0]].contains(floor)
            && ["*", who].contains(from)
            && (to.contains(&"*") || to.contains(&whom))
    });
    let stranger = there == Some(here) && who != whom && !allowed;
    stranger.then(|| format!("siblings are strangers: `{who}` may not name `crate::{to}`"))
}

/// Outside crates have owners, and `proto` has few of them.
fn stray_crate(module: &[&str], named: &Named<'_>, test: bool, manifest: &str) -> Option<String> {
    let (outside, module, full) = (named.path[0], module.join("::"), named.path.join("::"));
    let within = |path: &str, outer: &str| {
        path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    if test && dependencies(manifest, "[dev-dependencies]").any(|name| name == outside) {
        return None;
    }
    let owners = OWNERS.iter().find(|(name, _)| *name == outside).map(|(_, owners)| *owners);
    if let Some(owners) = owners.filter(|all| !all.iter().any(|owner| within(&module, owner))) {
        return Some(format!("crate `{outside}` is for {owners:?} only, not for `{module}`"));
    }
    let impure = PROTO_NEVER.iter().any(|never| within(&full, never))
        || !PROTO_CRATES.contains(&outside)
            && dependencies(manifest, "[dependencies]").any(|name| name == outside);
    (impure && within(&module, "proto")).then(|| {
        format!("`proto` is pure: nothing but plain `std` and {PROTO_CRATES:?}, not `{full}`")
    })
}

/// The files of each floor by their module paths, each with what it names. Tests name what they like.
struct House<'a> {
    files: BTreeMap<Vec<&'a str>, (&'a str, Vec<Named<'a>>)>,
}

impl<'a> House<'a> {
    fn read(files: &'a [(String, String)]) -> Self {
        let of_floor = |(path, text): &'a (String, String)| {
            let path = path.strip_prefix("src/")?.strip_suffix(".rs")?;
            let module: Vec<_> = path.split('/').collect();
            let counts = FLOORS.contains(&module[0]) && !module.contains(&"tests");
            let source = counts.then(|| Source::read(text))?;
            let mut named = source.paths();
            named.retain(|named| named.line < source.tests_from);
            Some((module, (path, named)))
        };
        House { files: files.iter().filter_map(of_floor).collect() }
    }

    /// The file of what the file of `module` names: where it is defined, not where it is passed on.
    fn definition(&self, module: &[&'a str], named: &Named<'a>) -> Option<&Vec<&'a str>> {
        let relative = named.path.iter().skip_while(|name| **name == "self").copied();
        let relative: Vec<_> = module.iter().copied().chain(relative).collect();
        let full = absolute(module, named).or_else(|| {
            self.files.contains_key(relative.get(..=module.len())?).then_some(relative)
        })?;
        let place = (1..=full.len()).rev().find(|end| self.files.contains_key(&full[..*end]))?;
        let (module, (_, names)) = self.files.get_key_value(&full[..place])?;
        let passed_on = full.get(place).and_then(|name| {
            let imports = names.iter().filter(|named| named.import == Some(*name));
            imports.filter_map(|named| self.definition(module, named)).next()
        });
        passed_on.or(Some(module))
    }

    /// Each file with those of its floor that it names, and where: (from, line, to). A file that others lie under
    /// uses them all; what lies under it may name what it defines, since they are one thing.
    fn uses(&self) -> Vec<(&'a str, usize, &'a str)> {
        let mut uses = Vec::new();
        for (module, (from, names)) in &self.files {
            let (path, outer) =
                self.files.get(&module[..module.len() - 1]).map_or(("", ""), |it| (it.0, it.0));
            if !path.is_empty() {
                uses.push((outer, 1, *from));
            }
            for named in names {
                let Some(to) = self.definition(module, named) else {
                    continue;
                };
                if to[0] == module[0] && !module.starts_with(to) {
                    uses.push((*from, named.line, self.files[to].0));
                }
            }
        }
        uses
    }
}

/// No circles of files on a floor.
fn circles(files: &[(String, String)]) -> Vec<String> {
    let house = House::read(files);
    let uses = house.uses();
    let mut ways: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, _, to) in &uses {
        ways.entry(from).or_default().insert(to);
    }
    let mut reached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for from in ways.keys() {
        let (found, mut open) = (reached.entry(from).or_default(), vec![*from]);
        while let Some(from) = open.pop() {
            open.extend(ways.get(from).into_iter().flatten().filter(|to| found.insert(**to)));
        }
    }
    let returns = |from: &str, to: &str| reached.get(to).is_some_and(|all| all.contains(from));
    let mut circles: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (from, line, to) in uses.iter().filter(|(from, _, to)| returns(from, to)) {
        let first = reached[from].iter().find(|other| returns(from, other)).unwrap_or(from);
        circles.entry(first).or_default().push(format!("{from}:{line} names {to}"));
    }
    let rule = |(first, uses): (&str, Vec<String>)| {
        format!(
            "src/{first}.rs:1: files of a floor name each other in no circle: {}",
            uses.join(", ")
        )
    };
    circles.into_iter().map(rule).collect()
}

/// Public functions and constants of a floor that nobody outside it names, but for those of types that `node` passes
/// on to services. (Of types the compiler sees to it that they are as public as what names them.)
fn lonely_items(files: &[(String, String)]) -> Vec<String> {
    fn floor(path: &str) -> Option<&str> {
        let name = path.strip_prefix("src/")?.split(['/', '.']).next()?;
        FLOORS.contains(&name).then_some(name)
    }
    let sources: Vec<_> = files.iter().map(|(path, text)| (path, Source::read(text))).collect();
    let (mut named, mut api) = (BTreeMap::<_, BTreeSet<_>>::new(), BTreeSet::new());
    for (path, source) in &sources {
        let words = source.code.iter().map(|token| token.text).filter(|text| is_word(text));
        named.entry(floor(path)).or_default().extend(words);
        if ["src/lib.rs", "src/node.rs"].contains(&path.as_str()) {
            for at in 1..source.code.len() {
                if (source.text(at - 1), source.text(at)) == ("pub", "use") {
                    let words = (at..).map(|at| source.text(at)).take_while(|text| *text != ";");
                    api.extend(words.filter(|text| text.starts_with(char::is_uppercase)));
                }
            }
        }
    }
    let mut found = Vec::new();
    let kit = |path: &str| path.contains("/tests") || path == "src/node/testkit.rs";
    for (path, source) in sources.iter().filter(|(path, _)| !kit(path)) {
        let Some(here) = floor(path) else { continue };
        let used =
            |name| named.iter().any(|(floor, words)| *floor != Some(here) && words.contains(name));
        let (mut open, mut served) = (0, false); // braces; whether the outermost `impl` is the API's
        for at in 0..source.code.len() {
            let Token { line, text, .. } = source.code[at];
            match text {
                "{" => open += 1,
                "}" => open -= 1,
                "impl" if open == 0 => {
                    let mut head = (at..).map(|at| source.text(at)).take_while(|text| *text != "{");
                    served = head.any(|text| api.contains(text));
                }
                _ => {}
            }
            let name = match [0, 1, 2, 3].map(|n| source.text(at + n)) {
                ["pub", "fn", name, _] | ["pub", "async" | "const", "fn", name] => name,
                ["pub", "const" | "static", name, _] => name,
                _ => continue,
            };
            let ahead = AHEAD.contains(&(path.as_str(), name));
            let known = (open > 0 && served) || ahead || used(name);
            if line < source.tests_from && !known {
                found.push(format!(
                    "{path}:{line}: `{name}` is public and nobody outside `{here}` names it"
                ));
            }
        }
    }
    found
}

/// Tests wait for conditions.
fn stray_sleep(path: &str, named: &Named<'_>) -> Option<String> {
    let sleeps = named.path.windows(2).any(|w| matches!(w, ["thread" | "time", "sleep"]));
    (sleeps && !path.starts_with(SLEEPING_HOME))
        .then(|| "a test waits for a condition with a deadline, never for a fixed time".into())
}

/// The crates that one table of the manifest lists, as code spells them.
fn dependencies(manifest: &str, table: &str) -> impl Iterator<Item = String> {
    let lines = manifest.lines().skip_while(move |line| *line != table).skip(1);
    let rows = lines.take_while(|line| !line.starts_with('[')).filter_map(|l| l.split_once('='));
    rows.map(|(name, _)| name.trim().replace('-', "_"))
}

/// Whether a comment holds a note for later that names nobody.
fn has_unowned_note(comment: &str) -> bool {
    ["TODO", "FIXME"].iter().any(|note| {
        comment.split(note).skip(1).any(|rest| !rest.starts_with('(') || rest.starts_with("()"))
    })
}

/// One word or mark of a file. `inline` counts the `mod … {}` of the file that are open around it.
struct Token<'a> {
    line: usize,
    inline: usize,
    text: &'a str,
}

/// One path the code names, with `use` trees spelled out, at the line of its last word.
struct Named<'a> {
    line: usize,
    inline: usize,
    path: Vec<&'a str>,
    /// The name by which a `use` makes it known in the file.
    import: Option<&'a str>,
}

/// A file as the rules see it: literals and white space are gone, comments stand apart.
struct Source<'a> {
    code: Vec<Token<'a>>,
    comments: Vec<Token<'a>>,
    /// The line of the `#[cfg(test)]` that opens the unit tests, or one past the end.
    tests_from: usize,
}

impl<'a> Source<'a> {
    fn read(text: &'a str) -> Self {
        let (mut code, mut comments): (Vec<Token<'a>>, Vec<Token<'a>>) = (Vec::new(), Vec::new());
        let mut braces = Vec::new(); // of a module, or of anything else
        let (mut line, mut rest) = (1, text);
        while !rest.is_empty() {
            let (kind, len) = piece(rest);
            let (text, tail) = rest.split_at(len);
            match text {
                "{" => braces.push(matches!(&code[..], [.., t, _] if t.text == "mod")),
                "}" => drop(braces.pop()),
                _ => {}
            }
            let inline = braces.iter().filter(|module| **module).count();
            match kind {
                Kind::Code => code.push(Token { line, inline, text }),
                Kind::Comment => comments.push(Token { line, inline, text }),
                Kind::Nothing => {}
            }
            line += text.matches('\n').count();
            rest = tail;
        }
        let opens = |at: &usize| {
            let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
            let item = code[*at..].iter().position(|t| ["{", ";"].contains(&t.text));
            code[*at..].iter().map(|t| t.text).take(attribute.len()).eq(attribute)
                && item.is_some_and(|n| code[at + n].text == "{" && code[at + n - 2].text == "mod")
        };
        let tests_from =
            (0..code.len()).find(opens).map_or(text.lines().count() + 1, |at| code[at].line);
        Source { code, comments, tests_from }
    }

    fn text(&self, at: usize) -> &'a str {
        self.code.get(at).map_or("", |token| token.text)
    }

    fn paths(&self) -> Vec<Named<'a>> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.code.len() {
            let [before, last] = [2, 1].map(|n| at.checked_sub(n).map_or("", |at| self.text(at)));
            let starts = is_word(self.text(at)) && self.text(at) != "use";
            if starts && (last == "use" || self.text(at + 1) == "::") {
                let known = found.len();
                at = self.tree(at, &[], &mut found);
                if last != "use" {
                    found[known..].iter_mut().for_each(|named| named.import = None);
                }
                if (before, last) == ("(", "in") {
                    found.truncate(known); // pub(in path) opens a door, it names nothing
                }
            } else {
                at += 1;
            }
        }
        found
    }

    /// Spells out the tree at `at` below `prefix` (a plain path is a tree); returns where it ends.
    fn tree(&self, mut at: usize, prefix: &[&'a str], found: &mut Vec<Named<'a>>) -> usize {
        let mut path = prefix.to_vec();
        loop {
            if self.text(at) == "{" {
                at += 1;
                while !["}", ""].contains(&self.text(at)) {
                    at = self.tree(at, &path, found).max(at + 1);
                }
                return at + 1;
            }
            if !is_word(self.text(at)) && self.text(at) != "*" {
                break;
            }
            path.push(self.text(at));
            at += 1;
            if self.text(at) != "::" {
                break;
            }
            at += 1;
        }
        let renamed = self.text(at) == "as" && path.len() > prefix.len();
        if path.len() > prefix.len() {
            let Token { line, inline, .. } = self.code[at - 1];
            path.truncate(path.len() - usize::from(path.len() > 1 && path.ends_with(&["self"])));
            let import = if renamed { Some(self.text(at + 1)) } else { path.last().copied() };
            found.push(Named { line, inline, path, import });
        }
        let renamed = renamed && !prefix.is_empty();
        at + if renamed { 2 } else { 0 }
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

enum Kind {
    Code,
    Comment,
    Nothing,
}

/// What `text` starts with, and how many bytes of it that is.
fn piece(text: &str) -> (Kind, usize) {
    let until = |from: usize, end: &str| {
        text.get(from..).and_then(|t| t.find(end)).map_or(text.len(), |at| from + at + end.len())
    };
    let word = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let hashes = text[word..].bytes().take_while(|b| *b == b'#').count();
    let first = text.chars().next().unwrap_or(' ');
    if first.is_whitespace() {
        (Kind::Nothing, first.len_utf8())
    } else if text.starts_with("//") {
        (Kind::Comment, until(0, "\n"))
    } else if text.starts_with("/*") {
        (Kind::Comment, until(2, "*/"))
    } else if first == '"' {
        let mut escaped = false;
        let end = text[1..].find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        (Kind::Nothing, end.map_or(text.len(), |at| at + 2))
    } else if text.starts_with("'\\") {
        (Kind::Nothing, until(3, "'"))
    } else if first == '\'' && text.chars().nth(2) == Some('\'') {
        (Kind::Nothing, until(2, "'"))
    } else if ["r", "br", "cr"].contains(&&text[..word]) && text[word + hashes..].starts_with('"') {
        (Kind::Nothing, until(word + hashes + 1, &format!("\"{}", "#".repeat(hashes))))
    } else if text.starts_with("::") {
        (Kind::Code, 2)
    } else {
        (Kind::Code, word.max(first.len_utf8()))
    }
}

/// Each rule on small files: what breaks it, and the nearest thing that does not.
#[cfg(test)]
mod tests {
    use super::{MAX_LINES, offences};

    const MANIFEST: &str = "[dependencies]\ntokio = \"1\"\ntracing-subscriber = { version = \"1\" }\n\
                            \n[dev-dependencies]\nproptest = \"1\"\n";

    fn scan(path: &str, body: &str) -> Vec<String> {
        offences(path, &format!("//! Head.\n{body}\n"), MANIFEST)
    }

    /// `body`, below a head, breaks exactly one rule, and the report names its place: line 2.
    #[track_caller]
    fn bad(rule: &str, path: &str, body: &str) {
        let found = scan(path, body);
        assert!(
            matches!(&found[..], [o] if o.starts_with(&format!("{path}:2: ")) && o.contains(rule)),
            "expected {rule:?} at line 2 of {body:?}, found {found:#?}"
        );
    }

    #[track_caller]
    fn good(path: &str, body: &str) {
        assert_eq!(scan(path, body), Vec::<String>::new(), "{body:?}");
    }

    #[test]
    fn a_file_names_only_the_floors_below_it() {
        let rule = "names only the floors below it";
        bad(rule, "src/proto/topic.rs", "use crate::io::tls::Tls;");
        bad(rule, "src/io.rs", "fn run() { crate::cli::run() }");
        bad(rule, "src/io/tls.rs", "use super::super::actors::link;");
        bad(rule, "src/io/tls.rs", "use crate::VERSION;");
        bad(rule, "src/io/tls.rs", "#[cfg(test)] mod tests { use xpando_node::internals::node; }");
        bad(rule, "src/actors/link.rs", "use crate::{io::{tls, store as s}, node::Node};");
        good("src/actors/link/dial.rs", "use crate::{io::tls::{self, Tls}, proto::hello};");
        good("src/cli/run.rs", "use crate::proto::node::NodeName;");
        good("src/lib.rs", "pub use crate::node::Node;");
        good("src/main.rs", "fn main() { xpando_node::cli::run() }");
    }

    #[test]
    fn siblings_are_strangers_but_for_the_table() {
        let rule = "siblings are strangers";
        bad(rule, "src/proto/membership.rs", "use crate::proto::{hello, gate::Gate};");
        bad(rule, "src/proto/membership.rs", "use super::gate::Gate;");
        bad(rule, "src/io/tls.rs", "mod inner { use super::super::store; }");
        bad(rule, "src/io/store.rs", "use crate::io;");
        bad(rule, "src/actors/discovery.rs", "use super::node_manager::NodeManager;");
        good("src/proto/membership.rs", "use super::{hello::Hello, node::NodeName as Name};");
        good("src/io/tls.rs", "use crate::io::{clock, identity::Identity};");
        good("src/io/tls.rs", "mod inner { use super::Tls; pub(in crate::io) struct S; }");
        good("src/actors/link/dial.rs", "use super::super::link::{self, accept};");
        good("src/actors.rs", "use crate::actors::link::Link;");
        good("src/proto/gate.rs", "#[cfg(test)] mod tests { use crate::proto::tests::start; }");
        good("src/node/tree.rs", "use super::config::Config; use crate::node::Node;");
    }

    #[test]
    fn outside_crates_have_owners() {
        bad("crate `redb` is for", "src/io/tls.rs", "use ::redb::Database;");
        bad("crate `redb` is for", "src/io/store_view.rs", "use redb as r;");
        bad("crate `ractor` is for", "src/gateway.rs", "fn f(a: Option<ractor::ActorCell>) {}");
        bad("crate `clap` is for", "src/node.rs", "#[cfg(test)] mod tests { use clap::Parser; }");
        bad("crate `prost` is for", "src/proto/hello.rs", "#[derive(prost::Message)] struct S;");
        good("src/proto/gate.rs", "#[derive(prost::Message)] struct S;");
        good("src/io/store/batch.rs", "use redb::Database;");
        good("src/actors/link.rs", "use {ractor::Actor, ractor_cluster::NodeServer};");
    }

    #[test]
    fn proto_is_pure() {
        let rule = "`proto` is pure";
        bad(rule, "src/proto/hello.rs", "use tokio::sync::watch;");
        bad(rule, "src/proto/hello.rs", "fn f() { tracing_subscriber::fmt() }");
        bad(rule, "src/proto/hello.rs", "use std::{collections::BTreeMap, thread};");
        bad(rule, "src/proto/hello.rs", "#[cfg(test)] mod tests { use tokio::test; }");
        good("src/proto/hello.rs", "#[cfg(test)] mod tests { use proptest::prelude::*; }");
        good("src/proto/hello.rs", "use std::net::IpAddr; use serde::Serialize;");
        good("src/io/seeds.rs", "use tokio::net::lookup_host; use std::fs;");
    }

    #[test]
    fn files_are_short_and_have_a_head() {
        let long = format!("//! Head.{}", "\n//".repeat(MAX_LINES - 1));
        let tests = "\n#[cfg(test)]\n#[rustfmt::skip]\nmod tests {}\n";
        assert!(offences("src/io.rs", &format!("{long}{tests}"), "").is_empty());
        let longer = offences("tests/cli.rs", &format!("{long}\n//{tests}"), "");
        assert!(longer[0].starts_with("tests/cli.rs:601: a file has at most 600 lines"));
        assert_eq!(longer.len(), 1);
        let bare = offences("src/main.rs", "fn main() {}\n", "");
        assert_eq!(
            bare,
            ["src/main.rs:1: a file starts with a `//!` head that says what it is for"]
        );
    }

    #[test]
    fn modules_have_telling_names() {
        bad("named after what it holds", "src/io.rs", "mod utils { fn f() {} }");
        good("src/io.rs", "/// In common: `utils`.\nfn helpers() {}");
        let found = scan("tests/common/mod.rs", "");
        assert_eq!(found.len(), 2, "{found:#?}");
        assert!(found[0].contains("never `mod.rs`") && found[1].contains("not `common`"));
    }

    #[test]
    fn tests_neither_sleep_nor_are_ignored() {
        bad("not ignored", "src/io.rs", "#[ignore = \"slow\"]");
        bad("never for a fixed time", "tests/cli.rs", "use std::{thread::sleep};");
        bad("never for a fixed time", "tests/cluster/main.rs", "fn f() { time::sleep(SECOND) }");
        good("tests/kit/kit.rs", "use std::thread; fn poll() { thread::sleep(TICK) }");
        good("src/io.rs", "async fn f() { tokio::time::sleep(SECOND).await }");
    }

    #[test]
    fn a_cause_is_printed_once() {
        let rule = "printed twice";
        bad(rule, "src/io.rs", "#[error(\"x: {0}\")] X(#[from] Y),");
        bad(rule, "src/io.rs", "#[error(\"x: {source}\")] X { source: Y },");
        good("src/io.rs", "#[error(\"x: {0}\")] X(Y),");
        good("src/io.rs", "#[error(transparent)] X(#[from] Y),");
    }

    #[test]
    fn commands_escape_what_they_print() {
        bad("through `cli::output`", "src/cli/why.rs", "fn f() { writeln!(out, \"x\") }");
        good("src/cli/why.rs", "fn f() { write_line!(out, \"x\") }");
        good("src/cli/output.rs", "fn f() { writeln!(out, \"x\") }");
        good("src/cli/bench/idle.rs", "fn f() { writeln!(out, \"x\") }");
    }

    #[test]
    fn notes_for_later_have_an_owner() {
        bad("TODO(owner)", "src/io.rs", "// TODO: later");
        bad("TODO(owner)", "tests/cli.rs", "fn f() {} /* FIXME() */");
        good("src/io.rs", "// TODO(ada): later");
    }

    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        super::circles(&files.iter().map(owned).collect::<Vec<_>>())
    }

    #[test]
    fn files_of_a_floor_name_each_other_in_no_circle() {
        let found = circles(&[
            ("src/io.rs", "mod a; mod b; mod c;"),
            ("src/io/a.rs", "\nuse super::b::B;"),
            ("src/io/b.rs", "use crate::io::{c::C as D};"),
            ("src/io/c.rs", "fn f() { crate::io::a::f() }"),
        ]);
        let [circle] = &found[..] else { panic!("{found:#?}") };
        assert!(circle.starts_with("src/io/a.rs:1: files of a floor name each other in no circle"));
        assert!(
            circle.contains("io/a:2 names io/b, io/b:1 names io/c, io/c:1 names io/a"),
            "{circle}"
        );
        let under = circles(&[
            ("src/io/a.rs", "mod inner;"),
            ("src/io/a/inner.rs", "use crate::io::b::B;"),
            ("src/io/b.rs", "use crate::io::a::A;"),
        ]);
        assert!(under[0].contains("io/a/inner:1 names io/b"), "{under:#?}");
    }

    #[test]
    fn what_is_passed_on_is_where_it_is_defined() {
        let passed_on = |page| {
            circles(&[
                ("src/io/a.rs", page),
                ("src/io/a/x.rs", "use super::Y; use super::A;"),
                ("src/io/a/y.rs", "use crate::io::a::X;"),
            ])
        };
        assert_eq!(passed_on("pub use x::X; pub use self::y::Y; struct A;").len(), 1);
        assert!(passed_on("pub use x::X; struct Y; use x::f; use y::g;").is_empty());
        let tests = [
            ("src/io/a.rs", "#[cfg(test)] mod tests { use super::super::b::B; }"),
            ("src/io/b.rs", "use super::a::A;"),
            ("src/io/b/tests.rs", "use crate::io::a::A;"),
        ];
        assert!(circles(&tests).is_empty());
    }

    #[test]
    fn what_is_public_is_named_outside_its_floor() {
        let files = [
            ("src/io/a.rs", "pub fn used() {}\npub const LONELY: u8 = 1;\npub(crate) fn f() {}"),
            (
                "src/io/b.rs",
                "impl Api { pub async fn served() {} }\nimpl B { pub const fn lonely() {} }",
            ),
            ("src/io.rs", "fn g() { LONELY + B::lonely() + f() } mod tests { pub fn t() {} }"),
            ("src/io/c.rs", "#[cfg(test)]\nmod tests { pub fn alone() {} }"),
            ("src/node.rs", "pub use crate::io::b::Api; fn h() { used() }"),
            ("tests/cli.rs", "fn i() { t() }"),
        ];
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let found = super::lonely_items(&files);
        let [constant, method] = &found[..] else { panic!("{found:#?}") };
        assert!(constant.starts_with("src/io/a.rs:2: `LONELY` is public"), "{constant}");
        assert!(method.starts_with("src/io/b.rs:2: `lonely` is public"), "{method}");
    }

    #[test]
    fn literals_and_comments_name_nothing() {
        good(
            "src/node.rs",
            "// use redb::Database; /*\n/* redb::A */ const A: &str = \"redb::x\";",
        );
        good("src/node.rs", "const A: char = '\"'; const B: &str = \"\\\" redb::x TODO\";");
        good("src/node.rs", "const A: &str = r#\"redb::\"x\" #[ignore]\"#; const B: u8 = b'\\'';");
        bad("`redb`", "src/node.rs", "fn f<'a>(a: &'a str) -> char { '\\'' } use redb::Database;");
    }
}
