//! The users of basic authentication: a line each, `name:$argon2id$...`, optionally followed by `:group,group`.
//!
//! Either every line is understood or none counts: a server with half of its users is a riddle to everybody.

use std::collections::HashMap;

use super::password::{self, InvalidHash};

/// Most users of a server; beyond it people have an identity provider.
const MAX_USERS: usize = 10_000;
/// Bytes of the longest name.
const MAX_NAME: usize = 256;

/// The users of a server, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Users(HashMap<String, User>);

/// One user.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// The name.
    pub(crate) name: String,
    /// The salted hash of the password.
    pub(crate) phc: String,
    /// The groups, in the order of the line.
    pub(crate) groups: Vec<String>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "User({}, {:?})", self.name, self.groups)
    }
}

/// Which line is wrong, and why. It repeats nothing of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub(crate) struct InvalidUsers {
    /// Its number, from 1.
    pub(crate) line: usize,
    /// What is wrong with it.
    pub(crate) problem: Problem,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    /// It is not `name:hash` or `name:hash:groups`.
    #[error("expected name:$argon2id$... or name:$argon2id$...:group,group")]
    Form,
    /// The name is empty, too long, or has blanks around it or control characters.
    #[error("the name must have 1 to 256 bytes, no colon, no control characters and no blanks around it")]
    Name,
    /// The hash proves nothing.
    #[error("the second part is {0}")]
    Hash(InvalidHash),
    /// A group is empty or has control characters.
    #[error("the third part must be names of groups, separated by commas")]
    Group,
    /// An earlier line has the same name.
    #[error("an earlier line has the same name")]
    Duplicate,
    /// There are too many lines before it.
    #[error("more than {MAX_USERS} users")]
    TooMany,
}

impl Users {
    /// Reads the text of a Secret. Empty lines and those that begin with `#` are passed over.
    ///
    /// # Errors
    /// [`InvalidUsers`] names the first line that cannot be understood.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidUsers> {
        let mut users = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let at = |problem| InvalidUsers { line: index + 1, problem };
            if line.trim().is_empty() || line.trim_start().starts_with('#') {
                continue;
            }
            let user = User::parse(line).map_err(at)?;
            if users.len() == MAX_USERS {
                return Err(at(Problem::TooMany));
            }
            if users.insert(user.name.clone(), user).is_some() {
                return Err(at(Problem::Duplicate));
            }
        }
        Ok(Self(users))
    }

    /// The user of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&User> {
        self.0.get(name)
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl User {
    fn parse(line: &str) -> Result<Self, Problem> {
        let mut parts = line.splitn(3, ':');
        let (Some(name), Some(phc), groups) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Problem::Form);
        };
        let groups =
            groups.map_or(vec![], |groups| groups.split(',').map(|group| group.trim().into()).collect());
        Self::new(name, phc.trim(), groups)
    }

    /// Checks the parts of a line.
    ///
    /// # Errors
    /// [`Problem`] says which part cannot stand.
    pub(crate) fn new(name: &str, phc: &str, groups: Vec<String>) -> Result<Self, Problem> {
        if name.is_empty()
            || name.len() > MAX_NAME
            || name.trim() != name
            || !plain(name)
            || name.contains(':')
        {
            return Err(Problem::Name);
        }
        password::check(phc).map_err(Problem::Hash)?;
        if groups.iter().any(|group| group.is_empty() || group.contains(',') || !plain(group)) {
            return Err(Problem::Group);
        }
        Ok(Self { name: name.to_owned(), phc: phc.to_owned(), groups })
    }

    /// The line of this user.
    pub(crate) fn line(&self) -> String {
        let groups = match self.groups.is_empty() {
            true => String::new(),
            false => format!(":{}", self.groups.join(",")),
        };
        format!("{}:{}{groups}", self.name, self.phc)
    }
}

fn plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::super::password::NOBODY;
    use super::*;

    fn problem(text: &str) -> (usize, Problem) {
        let InvalidUsers { line, problem } = Users::parse(text).expect_err("it is refused");
        (line, problem)
    }

    #[test]
    fn a_file_as_people_write_it_is_understood() {
        let text = format!("# people\r\nann:{NOBODY}\r\n\n  # bots\nci bot:{NOBODY}:ops, team a\n");
        let users = Users::parse(&text).expect("it is understood");
        assert_eq!(users.len(), 2);
        assert_eq!(users.get("ann").expect("there").groups, [""; 0]);
        assert_eq!(users.get("ann").expect("there").phc, NOBODY);
        assert_eq!(users.get("ci bot").expect("there").groups, ["ops", "team a"]);
        assert_eq!(users.get("Ann"), None, "names are compared exactly");
        assert_eq!(Users::parse("").expect("it is empty").len(), 0);
    }

    #[test]
    fn a_line_reads_back() {
        for groups in [vec![], vec!["ops".to_owned(), "dev".to_owned()]] {
            let user = User::new("ann", NOBODY, groups).expect("a user");
            let users = Users::parse(&user.line()).expect("it is understood");
            assert_eq!(users.get("ann"), Some(&user));
        }
    }

    #[test]
    fn the_first_wrong_line_is_named_with_what_is_wrong() {
        let ann = format!("ann:{NOBODY}");
        assert_eq!(problem(&format!("{ann}\n\n{ann}")), (3, Problem::Duplicate));
        assert_eq!(problem("ann"), (1, Problem::Form));
        assert_eq!(problem(&format!("# x\n:{NOBODY}")), (2, Problem::Name));
        assert_eq!(problem(&format!("an\tn:{NOBODY}")), (1, Problem::Name));
        assert_eq!(problem(&format!(" ann:{NOBODY}")), (1, Problem::Name));
        assert_eq!(problem(&format!("{ann}:ops,,dev")), (1, Problem::Group));
        assert_eq!(problem(&format!("{ann}:")), (1, Problem::Group));
    }

    #[test]
    fn a_password_in_the_place_of_its_hash_is_refused_and_not_repeated() {
        let error = Users::parse("ann:hunter22").expect_err("it is refused").to_string();
        assert_eq!(error, "line 1: the second part is not a hash in the PHC format ($argon2id$...)");
        let users = Users::parse(&format!("ann:{NOBODY}")).expect("it is understood");
        assert!(!format!("{users:?}").contains("argon2"));
    }

    #[test]
    fn the_group_part_may_hold_colons_as_groups_of_kubernetes_do() {
        let users = Users::parse(&format!("ann:{NOBODY}:oidc:ops,dev")).expect("it is understood");
        assert_eq!(users.get("ann").expect("there").groups, ["oidc:ops", "dev"]);
    }
}
