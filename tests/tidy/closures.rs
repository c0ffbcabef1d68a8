//! How many shared closures there are.

/// Shared closures hide who calls whom; an actor names a handle instead.
const MAX_CLOSURES: usize = 5;

/// No more of them than there are reasons for.
pub(super) fn too_many(files: &[(String, String)]) -> Option<String> {
    let lines = |(path, text): &(String, String)| {
        let lines = text.lines().enumerate().filter(|(_, line)| line.contains("Arc<dyn Fn"));
        lines.map(|(number, _)| format!("{path}:{}", number + 1)).collect::<Vec<_>>()
    };
    let own = files.iter().filter(|(path, _)| path.starts_with("src/"));
    let found: Vec<_> = own.flat_map(lines).collect();
    let most = MAX_CLOSURES;
    (found.len() > most)
        .then(|| format!("at most {most} shared closures, not {}", found.join(", ")))
}
