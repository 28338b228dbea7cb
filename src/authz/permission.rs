//! Patterns of permissions, as roles write them: `k8s:<resource>[.<group>]:<verb>` and `mcp:tools:<name>` with wildcards.
//!
//! `*` stands for one whole segment, or at the end for all that follows: `k8s:pods:*`, `k8s:*:list`, `k8s:*`, `*`.
//! `k8s:resources:<verb>` stands for that verb on every resource that an administrator added to the catalogue.

use std::fmt;

use super::catalogue::{Entry, Permission};

/// Most characters of a pattern, as in the schema of the kinds.
pub(crate) const MAX_LENGTH: usize = 128;

/// What stands for every resource that an administrator added.
pub(super) const EXTRAS: &str = "resources";

/// A valid pattern: one to three segments. After the last one, which is then a wildcard, anything may follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Segment {
    Any,
    Extras,
    Literal(String),
}

impl Segment {
    fn matches(&self, text: &str, entry: &Entry) -> bool {
        match self {
            Segment::Any => true,
            Segment::Extras => entry.is_extra(),
            Segment::Literal(literal) => literal == text,
        }
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Segment::Any => "*",
            Segment::Extras => EXTRAS,
            Segment::Literal(literal) => literal,
        })
    }
}

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParsePattern {
    /// It is longer than [`MAX_LENGTH`].
    #[error("is longer than {MAX_LENGTH} characters")]
    TooLong,
    /// It begins with something else than a family of permissions.
    #[error("must begin with \"k8s:\" or \"mcp:\"")]
    Prefix,
    /// It has too few or too many segments.
    #[error("must have the form k8s:<resource>:<verb> or mcp:tools:<name>")]
    Segments,
    /// A segment has other characters than lower-case letters, digits, `-` and `_`, or mixes them with `*`.
    #[error("segment {0:?} must be lower-case letters, digits, '-' and '_', or '*' alone")]
    Segment(String),
    /// The group after the resource's dot is not the resource's.
    #[error("group {0:?} is not the group of {1:?}")]
    Group(String, String),
    /// Nothing in the catalogue matches it.
    #[error("is not in the catalogue of permissions")]
    Unknown,
}

impl Pattern {
    /// Parses a pattern and checks that it names at least one permission of the catalogue.
    ///
    /// # Errors
    /// [`ParsePattern`] says what is wrong with the text.
    pub(crate) fn parse(text: &str) -> Result<Self, ParsePattern> {
        Self::parse_among(text, Permission::all().map(Permission::entry))
    }

    /// As [`Pattern::parse`], with these rows for the catalogue.
    pub(super) fn parse_among<'a>(
        text: &str,
        catalogue: impl Iterator<Item = &'a Entry> + Clone,
    ) -> Result<Self, ParsePattern> {
        if text.len() > MAX_LENGTH {
            return Err(ParsePattern::TooLong);
        }
        let texts: Vec<&str> = text.split(':').collect();
        if !matches!(texts[0], "k8s" | "mcp" | "*") {
            return Err(ParsePattern::Prefix);
        }
        if texts.len() > 3 || texts.len() < 3 && texts.last() != Some(&"*") {
            return Err(ParsePattern::Segments);
        }
        let segments = texts.iter().enumerate().map(|(position, text)| match position {
            1 => resource_segment(text, catalogue.clone()),
            _ => segment(text),
        });
        let pattern = Self(segments.collect::<Result<_, _>>()?);
        if !catalogue.clone().any(|entry| pattern.stands_for(entry)) {
            return Err(ParsePattern::Unknown);
        }
        Ok(pattern)
    }

    /// Whether it names one permission.
    pub(crate) fn is_literal(&self) -> bool {
        self.0.iter().all(|segment| matches!(segment, Segment::Literal(_)))
    }

    /// Whether the permission is one of those that the pattern stands for.
    pub(crate) fn matches(&self, permission: Permission) -> bool {
        self.stands_for(permission.entry())
    }

    pub(super) fn stands_for(&self, entry: &Entry) -> bool {
        let names = [entry.family, entry.resource, entry.verb];
        self.0.iter().zip(names).all(|(segment, name)| segment.matches(name, entry))
    }
}

/// Whether one of the scopes of a credential stands for the permission. A scope that is no pattern stands for nothing.
pub(crate) fn within_scopes(scopes: &[String], permission: Permission) -> bool {
    scopes.iter().any(|scope| Pattern::parse(scope).is_ok_and(|pattern| pattern.matches(permission)))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            let colon = if position == 0 { "" } else { ":" };
            write!(f, "{colon}{segment}")?;
        }
        Ok(())
    }
}

fn segment(text: &str) -> Result<Segment, ParsePattern> {
    if text == "*" {
        return Ok(Segment::Any);
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if text.is_empty() || !text.chars().all(plain) {
        return Err(ParsePattern::Segment(text.to_owned()));
    }
    Ok(Segment::Literal(text.to_owned()))
}

/// A resource, with its group where the writer gave one: `deployments.apps` is `deployments`. Those that an
/// administrator added have their groups in their names.
fn resource_segment<'a>(
    text: &str,
    catalogue: impl Iterator<Item = &'a Entry> + Clone,
) -> Result<Segment, ParsePattern> {
    if text == EXTRAS {
        return Ok(Segment::Extras);
    }
    let Some((name, group)) = text.split_once('.') else {
        return segment(text);
    };
    if catalogue.clone().any(|entry| entry.resource == text) {
        return Ok(Segment::Literal(text.to_owned()));
    }
    let mut rules = catalogue.filter(|entry| entry.resource == name).flat_map(|entry| entry.rules).peekable();
    if rules.peek().is_none() {
        return Err(ParsePattern::Unknown);
    }
    // The core group has no name, so nothing may follow the dot for it: `pods.` is a slip, not a group.
    if group.is_empty() || !rules.all(|rule| rule.group == group) {
        return Err(ParsePattern::Group(group.to_owned(), name.to_owned()));
    }
    segment(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(pattern: &str) -> Vec<String> {
        let pattern = Pattern::parse(pattern).expect(pattern);
        Permission::all().filter(|p| pattern.matches(*p)).map(|p| p.to_string()).collect()
    }

    #[test]
    fn a_literal_permission_stands_for_itself_alone() {
        assert_eq!(names("k8s:pods:logs"), ["k8s:pods:logs"]);
        assert_eq!(names("k8s:deployments.apps:scale"), ["k8s:deployments:scale"]);
    }

    #[test]
    fn a_pattern_that_names_one_permission_is_told_from_one_with_wildcards() {
        let is_literal = |text: &str| Pattern::parse(text).expect(text).is_literal();
        assert!(["k8s:pods:list", "k8s:deployments.apps:scale"].into_iter().all(is_literal));
        assert!(!["k8s:pods:*", "k8s:*:list", "*:pods:list", "k8s:*", "*"].into_iter().any(is_literal));
    }

    #[test]
    fn the_longest_pattern_is_read() {
        let of_length = |length: usize| format!("k8s:{}:list", "a".repeat(length - "k8s::list".len()));
        assert_eq!(Pattern::parse(&of_length(MAX_LENGTH)), Err(ParsePattern::Unknown));
        assert_eq!(Pattern::parse(&of_length(MAX_LENGTH + 1)), Err(ParsePattern::TooLong));
    }

    #[test]
    fn a_wildcard_stands_for_one_segment_or_for_all_that_follow() {
        let all = |holds: fn(&str) -> bool| -> Vec<String> {
            Permission::all().map(|p| p.to_string()).filter(|name| holds(name)).collect()
        };
        let of_pods = names("k8s:pods:*");
        assert!(of_pods.contains(&"k8s:pods:logs".to_owned()) && of_pods.len() > 3, "{of_pods:?}");
        assert_eq!(of_pods, all(|name| name.starts_with("k8s:pods:")));
        assert_eq!(names("k8s:*:list"), all(|name| name.starts_with("k8s:") && name.ends_with(":list")));
        let of_cluster = Permission::all().filter(|permission| permission.entry().family == "k8s");
        assert_eq!(names("k8s:*").len(), of_cluster.count());
        assert_eq!(names("k8s:*:*"), names("k8s:*"));
        assert_eq!(names("mcp:*"), ["mcp:tools:access_whoami"]);
        for everything in ["*", "*:*", "*:*:*"] {
            assert_eq!(names(everything).len(), Permission::all().count(), "{everything}");
        }
        assert_eq!(names("*:pods:list"), ["k8s:pods:list"]);
    }

    #[test]
    fn what_is_not_in_the_catalogue_is_refused() {
        for text in ["k8s:secrets:manage", "k8s:secrets:*", "k8s:pods:exec", "k8s:resources:create"] {
            assert_eq!(Pattern::parse(text), Err(ParsePattern::Unknown), "{text}");
        }
        assert_eq!(
            Pattern::parse("k8s:pods.apps:list"),
            Err(ParsePattern::Group("apps".into(), "pods".into()))
        );
        assert_eq!(Pattern::parse("k8s:pods.:list"), Err(ParsePattern::Group(String::new(), "pods".into())));
    }

    #[test]
    fn a_broken_pattern_is_refused_with_its_reason() {
        assert_eq!(Pattern::parse("pods:list"), Err(ParsePattern::Prefix));
        assert_eq!(Pattern::parse("aws:pods:list"), Err(ParsePattern::Prefix));
        assert_eq!(Pattern::parse("k8s:pods"), Err(ParsePattern::Segments));
        assert_eq!(Pattern::parse("k8s:pods:list:now"), Err(ParsePattern::Segments));
        assert_eq!(Pattern::parse("k8s:po*:list"), Err(ParsePattern::Segment("po*".into())));
        assert_eq!(Pattern::parse("k8s:Pods:list"), Err(ParsePattern::Segment("Pods".into())));
        assert_eq!(Pattern::parse("k8s::list"), Err(ParsePattern::Segment(String::new())));
        assert_eq!(Pattern::parse(&format!("k8s:{}", "a".repeat(200))), Err(ParsePattern::TooLong));
    }

    #[test]
    fn scopes_narrow_by_the_patterns_that_roles_are_written_with() {
        let within = |scopes: &[&str]| {
            let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
            within_scopes(&scopes, Permission::of("pods", "list"))
        };
        assert!(
            within(&["k8s:services:list", "k8s:pods:list"]) && within(&["k8s:*:list"]) && within(&["k8s:*"])
        );
        assert!(
            !within(&[])
                && !within(&["k8s:pods:get"])
                && !within(&["mcp:tools", "mcp:*", "openid", "k8s:po*:list"])
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_what_parses_reads_back(text in "(k8s:|mcp:)?[a-z*:._]{0,20}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }
    }
}
