//! What somebody may have meant who wrote a permission that the catalogue does not have.

use super::catalogue::Permission;

/// Edits in a slip; more make another word.
const MOST_EDITS: usize = 2;

/// What the writer may have meant, as the end of a sentence.
pub(crate) fn suggestion(text: &str) -> String {
    let plain = text.strip_prefix("k8s:").unwrap_or(text);
    let named = |permission: Permission| permission.to_string();
    let distance = |permission: &Permission| edits(plain, named(*permission).trim_start_matches("k8s:"));
    let nearest = Permission::all().min_by_key(distance);
    let is_slip = |edits: usize| edits <= MOST_EDITS && edits * 3 <= plain.chars().count();
    if let Some(nearest) = nearest.filter(|nearest| is_slip(distance(nearest))) {
        return format!("; the nearest there is {nearest}");
    }
    let resource = plain.split(':').next().unwrap_or_default();
    let verbs = Permission::all().filter(|permission| permission.entry().resource == resource);
    let verbs: Vec<&str> = verbs.map(|permission| permission.entry().verb).collect();
    match verbs.is_empty() {
        true => "; nothing there is like it".to_owned(),
        false => format!("; of {resource} there are {}", verbs.join(", ")),
    }
}

/// Characters to insert, remove or replace to make one text of the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_leads_to_the_nearest_permission_and_a_stranger_to_none() {
        for (text, meant) in [
            ("k8s:deployment:scale", "; the nearest there is k8s:deployments:scale"),
            ("pods:logs", "; the nearest there is k8s:pods:logs"),
            ("k8s:pods:exec", "; of pods there are get, list, watch, logs, restart, delete"),
            ("k8s:secrets:manage", "; nothing there is like it"),
            ("k8s:resources:create", "; nothing there is like it"),
            ("", "; nothing there is like it"),
        ] {
            assert_eq!(suggestion(text), meant, "{text}");
        }
    }

    #[test]
    fn edits_are_counted_as_levenshtein_did() {
        for (a, b, count) in
            [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("same", "same", 0), ("ab", "ba", 2)]
        {
            assert_eq!(edits(a, b), count, "{a} {b}");
        }
    }
}
