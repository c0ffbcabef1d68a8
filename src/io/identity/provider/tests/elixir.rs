//! Tokens that Elixir has made: elixir.txt, by elixir.exs.

use super::*;

/// The second in which they are shown.
const NOW: u64 = 1_000_010;

/// What a line expects: more of the settings, who the bearer is or why it is refused, and for how long.
struct Expected<'a> {
    settings: String,
    comes_to: Result<&'a str, &'a str>,
    max_age: u64,
}

fn read(words: &str) -> Expected<'_> {
    let (base, words) = match words.strip_prefix("ash ") {
        Some(rest) => (ASH, rest),
        None => (PHOENIX, words),
    };
    let (mut keys, mut subject) = (String::new(), String::new());
    let (mut comes_to, mut max_age) = (Err(words), 86_400);
    for (name, value) in words.split(' ').filter_map(|word| word.split_once('=')) {
        match name {
            "key" => keys = value.replace(':', " = ") + "\n",
            "max_age" => max_age = value.parse().unwrap(),
            "sub" => comes_to = Ok(value),
            claim => {
                subject = format!("[subject]\nclaim = \"{claim}\"\n");
                comes_to = Ok(value);
            }
        }
    }
    Expected { settings: format!("{base}{keys}{subject}"), comes_to, max_age }
}

#[test]
fn tokens_of_elixir_are_read_as_elixir_means_them() {
    let lines: Vec<_> = include_str!("elixir.txt").lines().collect();
    assert_eq!(lines.len(), 40);
    for line in lines {
        let [name, words, token] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let Expected { settings, comes_to, max_age } = read(words);
        let providers = Files::new(&settings).open().unwrap();
        let judged = providers.verify(token, at(NOW)).map(|it| it.map(|(claims, _)| claims));
        let found = match &judged {
            None => Err("nobody"),
            Some(Ok(claims)) => Ok(claims.sub.as_str()),
            Some(Err(error)) => Err(error.label()),
        };
        assert_eq!(found, comes_to, "{name}");
        if let (Some(Ok(claims)), PHOENIX) =
            (judged, &settings[..PHOENIX.len().min(settings.len())])
        {
            assert_eq!(claims.exp, 1_000_000 + max_age, "{name}");
            let last = |now| providers.verify(token, at(now)).unwrap().map(drop);
            assert_eq!(last(999_999 + max_age), Ok(()), "{name}");
            assert_eq!(last(1_000_000 + max_age), Err(TokenError::Expired), "{name}");
        }
    }
}
