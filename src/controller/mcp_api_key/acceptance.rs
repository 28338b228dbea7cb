//! Whether every ready replica of a key's servers accepts a generation. One that does not answer does not accept.

use std::collections::BTreeSet;

use futures::future::join_all;
use kube::ResourceExt;

use crate::api::McpApiKey;
use crate::api::replica::StateQuestion;

use crate::controller::{Context, replicas};

/// What the replicas answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Acceptance {
    /// Replicas that accept the generation.
    pub(super) accepting: usize,
    /// Replicas that are ready.
    pub(super) replicas: usize,
    /// Why one of them could not be asked, or did not answer.
    pub(super) silent: Option<String>,
}

impl Acceptance {
    /// Whether nobody is left who would refuse it.
    pub(super) fn is_complete(&self) -> bool {
        self.accepting == self.replicas && self.silent.is_none()
    }

    /// How many of how many, in words.
    pub(super) fn describe(&self) -> String {
        let Self { accepting, replicas, silent } = self;
        let count = format!("{accepting} of {replicas} ready replicas accept the new key");
        match silent {
            Some(silent) => format!("{count}; {silent}"),
            None => count,
        }
    }
}

/// Asks every ready replica of the key's servers. A server without ready replicas refuses nobody.
pub(super) async fn ask(context: &Context, key: &McpApiKey, id: &str) -> Acceptance {
    let namespace = key.namespace().unwrap_or_default();
    let question = StateQuestion { keys: vec![id.to_owned()] };
    let servers: BTreeSet<&str> = key.spec.servers.iter().map(String::as_str).collect();
    let asked = servers.into_iter().map(|server| replicas::ask_each(context, &namespace, server, &question));
    let mut acceptance = Acceptance::default();
    for answers in join_all(asked).await {
        let answers = match answers {
            Ok(answers) => answers,
            Err(error) => {
                acceptance.silent.get_or_insert(error.to_string());
                continue;
            }
        };
        for (pod, answer) in answers {
            acceptance.replicas += 1;
            match answer {
                Ok(state) => {
                    acceptance.accepting += usize::from(state.accepted_keys.iter().any(|key| key == id));
                }
                Err(error) => {
                    acceptance.silent.get_or_insert(format!("pod {:?}: {error}", pod.name));
                }
            }
        }
    }
    acceptance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_silent_accepts_nothing() {
        let all = Acceptance { accepting: 2, replicas: 2, silent: None };
        assert!(all.is_complete() && Acceptance::default().is_complete());
        assert!(!Acceptance { accepting: 1, ..all.clone() }.is_complete());
        let silent = Acceptance { silent: Some("pod \"ops-1\": did not answer".into()), ..all };
        assert!(!silent.is_complete());
        assert_eq!(
            silent.describe(),
            "2 of 2 ready replicas accept the new key; pod \"ops-1\": did not answer"
        );
    }
}
