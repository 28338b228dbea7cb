//! Arguments as data: from one table both the JSON Schema that callers see and the check that they meet.
//!
//! What the schema declares is what is enforced. Every refusal names the argument. Nothing is accepted and ignored:
//! an argument that is not in the table is refused, and names that could leave their place in a path cannot pass.

use serde_json::{Map, Value, json};

use super::InvalidArguments;

/// One argument of a tool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Argument {
    /// Its key.
    pub(super) name: &'static str,
    /// What it means, for the model.
    pub(super) description: &'static str,
    /// What it may hold.
    pub(super) kind: Kind,
    /// Whether a call without it is refused.
    pub(super) required: bool,
}

/// What an argument may hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A label of RFC 1123: namespaces and containers.
    Label,
    /// A subdomain of RFC 1123: names of most objects.
    Name,
    /// The kind of an object, such as `Pod`.
    Type,
    /// Text without control characters, of so many characters at most.
    Text(usize),
    /// A whole number in a range, with what stands for it when it is left out.
    Integer {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
        /// Where there is one.
        default: Option<i64>,
    },
    /// True or false; false when it is left out.
    Boolean,
}

/// Words that other servers know and this one refuses, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("confirm", "a caller cannot confirm its own call, roles decide what it may do: leave it out"),
    ("force", "a Pod is always given time to stop: leave it out"),
];

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

impl Argument {
    /// One that a call must have.
    pub(super) const fn required(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self { name, description, kind, required: true }
    }

    /// One that may be left out.
    pub(super) const fn optional(name: &'static str, kind: Kind, description: &'static str) -> Self {
        Self { name, description, kind, required: false }
    }

    fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Label => json!({"type": "string", "pattern": format!("^{LABEL}$"), "maxLength": 63}),
            Kind::Name => {
                json!({"type": "string", "pattern": format!("^{LABEL}(\\.{LABEL})*$"), "maxLength": 253})
            }
            Kind::Type => {
                json!({"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9]*$", "maxLength": 63})
            }
            Kind::Text(max) => json!({"type": "string", "minLength": 1, "maxLength": max}),
            Kind::Integer { min, max, default: None } => {
                json!({"type": "integer", "minimum": min, "maximum": max})
            }
            Kind::Integer { min, max, default: Some(default) } => {
                json!({"type": "integer", "minimum": min, "maximum": max, "default": default})
            }
            Kind::Boolean => json!({"type": "boolean", "default": false}),
        };
        schema["description"] = self.description.into();
        schema
    }

    /// The value as it will be used: a whole number may be written `5.0`, all else stays.
    fn check(&self, value: &Value) -> Result<Value, InvalidArguments> {
        let refuse = |what: &str| Err(InvalidArguments(format!("argument {:?} must be {what}", self.name)));
        let text = |fits: &dyn Fn(&str) -> bool| value.as_str().is_some_and(fits);
        let fits = match self.kind {
            Kind::Label => text(&is_label),
            Kind::Name => text(&is_name),
            Kind::Type => text(&is_object_kind),
            Kind::Text(max) => text(&|text| {
                !text.is_empty() && text.chars().count() <= max && !text.chars().any(char::is_control)
            }),
            Kind::Integer { min, max, .. } => match whole(value) {
                Some(number) if (min..=max).contains(&number) => return Ok(number.into()),
                _ => return refuse(&format!("a whole number from {min} to {max}")),
            },
            Kind::Boolean => value.is_boolean(),
        };
        if fits {
            return Ok(value.clone());
        }
        match self.kind {
            Kind::Label => refuse("at most 63 lower-case letters, digits and '-', such as \"team-a\""),
            Kind::Name => refuse("at most 253 lower-case letters, digits, '-' and '.', such as \"web-1\""),
            Kind::Type => refuse("the kind of an object, such as \"Pod\""),
            Kind::Text(max) => refuse(&format!("text of 1 to {max} characters without control characters")),
            Kind::Integer { .. } | Kind::Boolean => refuse("true or false"),
        }
    }
}

fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15)?;
        Some(number as i64)
    })
}

/// Whether the text is a label of RFC 1123.
pub(super) fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(|byte| plain(*byte))
        && bytes.last().is_some_and(|byte| plain(*byte))
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
}

/// Whether the text is a subdomain of RFC 1123. Each part may be as long as the whole, as in Kubernetes.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let part = |part: &str| {
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|byte| plain(*byte))
            && bytes.last().is_some_and(|byte| plain(*byte))
            && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

fn is_object_kind(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// The JSON Schema of a table of arguments.
pub(super) fn schema(table: &[Argument]) -> Map<String, Value> {
    let properties: Map<String, Value> =
        table.iter().map(|argument| (argument.name.to_owned(), argument.schema())).collect();
    let required: Vec<&str> = table.iter().filter(|a| a.required).map(|a| a.name).collect();
    let Value::Object(schema) = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    }) else {
        unreachable!("the literal above is an object")
    };
    schema
}

/// Arguments that passed their table.
#[derive(Debug)]
pub(super) struct Arguments {
    table: &'static [Argument],
    values: Map<String, Value>,
}

impl Arguments {
    /// Checks the arguments of a call. `null` stands for an argument that was left out.
    ///
    /// # Errors
    /// [`InvalidArguments`] names the first argument that is unknown, missing or wrong.
    pub(super) fn check(
        given: &Map<String, Value>,
        table: &'static [Argument],
    ) -> Result<Self, InvalidArguments> {
        if let Some(unknown) = given.keys().find(|key| !table.iter().any(|a| a.name == key.as_str())) {
            return Err(refuse_unknown(unknown, table));
        }
        let mut values = Map::new();
        for argument in table {
            match given.get(argument.name) {
                None | Some(Value::Null) if argument.required => {
                    return Err(InvalidArguments(format!("argument {:?} is missing", argument.name)));
                }
                None | Some(Value::Null) => {}
                Some(value) => {
                    values.insert(argument.name.to_owned(), argument.check(value)?);
                }
            }
        }
        Ok(Self { table, values })
    }

    /// Takes a text, if it was given.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        match self.values.remove(name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Takes a text that the table requires.
    pub(super) fn required_text(&mut self, name: &str) -> String {
        self.text(name).expect("the table requires it, and the check has seen it")
    }

    /// Takes a whole number, or its default.
    pub(super) fn integer(&mut self, name: &str) -> Option<i64> {
        let given = self.values.remove(name).and_then(|value| value.as_i64());
        given.or_else(|| match self.table.iter().find(|a| a.name == name)?.kind {
            Kind::Integer { default, .. } => default,
            _ => None,
        })
    }

    /// Takes a number of things: the table keeps it from being negative.
    pub(super) fn count(&mut self, name: &str) -> Option<u32> {
        self.integer(name).and_then(|number| u32::try_from(number).ok())
    }

    /// Takes a yes or no.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.values.remove(name) == Some(Value::Bool(true))
    }
}

fn refuse_unknown(unknown: &str, table: &[Argument]) -> InvalidArguments {
    let shown: String = unknown.chars().take(64).collect();
    let known: Vec<&str> = table.iter().map(|a| a.name).collect();
    let why = match REFUSED.iter().find(|(name, _)| *name == unknown) {
        Some((_, why)) => format!(" ({why})"),
        None => String::new(),
    };
    InvalidArguments(format!("argument {shown:?} is not known{why}; known are: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Argument] = &[
        Argument::required("namespace", Kind::Label, "n"),
        Argument::optional("name", Kind::Name, "n"),
        Argument::optional("kind", Kind::Type, "k"),
        Argument::optional("labelSelector", Kind::Text(10), "l"),
        Argument::optional("limit", Kind::Integer { min: 1, max: 500, default: Some(100) }, "l"),
        Argument::optional("previous", Kind::Boolean, "p"),
    ];

    fn check(given: Value) -> Result<Arguments, String> {
        let Value::Object(given) = given else { panic!("an object") };
        Arguments::check(&given, TABLE).map_err(|error| error.to_string())
    }

    #[test]
    fn what_was_left_out_has_its_default() {
        let mut arguments = check(json!({"namespace": "team-a", "name": null})).expect("valid");
        assert_eq!(arguments.required_text("namespace"), "team-a");
        assert_eq!(arguments.text("name"), None);
        assert_eq!(arguments.count("limit"), Some(100));
        assert!(!arguments.flag("previous"));
    }

    #[test]
    fn a_whole_number_may_be_written_with_a_point() {
        assert_eq!(check(json!({"namespace": "a", "limit": 5.0})).expect("valid").count("limit"), Some(5));
    }

    #[test]
    fn every_refusal_names_the_argument() {
        for (given, text) in [
            (json!({}), "argument \"namespace\" is missing"),
            (json!({"namespace": null}), "argument \"namespace\" is missing"),
            (json!({"namespace": ""}), "argument \"namespace\" must be at most 63"),
            (json!({"namespace": "Team"}), "argument \"namespace\" must be"),
            (json!({"namespace": "../secrets"}), "argument \"namespace\" must be"),
            (json!({"namespace": ["a"]}), "argument \"namespace\" must be"),
            (json!({"namespace": "a".repeat(64)}), "argument \"namespace\" must be"),
            (json!({"namespace": "a", "name": ".."}), "argument \"name\" must be"),
            (json!({"namespace": "a", "name": "web/log"}), "argument \"name\" must be"),
            (json!({"namespace": "a", "name": "web%2f"}), "argument \"name\" must be"),
            (json!({"namespace": "a", "name": "web?x=1"}), "argument \"name\" must be"),
            (json!({"namespace": "a", "name": "-web"}), "argument \"name\" must be"),
            (json!({"namespace": "a", "kind": "Pod,x=y"}), "argument \"kind\" must be the kind"),
            (json!({"namespace": "a", "labelSelector": ""}), "argument \"labelSelector\" must be text of 1"),
            (json!({"namespace": "a", "labelSelector": "a\nb"}), "argument \"labelSelector\" must be"),
            (json!({"namespace": "a", "labelSelector": "12345678901"}), "argument \"labelSelector\" must be"),
            (
                json!({"namespace": "a", "limit": 0}),
                "argument \"limit\" must be a whole number from 1 to 500",
            ),
            (json!({"namespace": "a", "limit": 501}), "argument \"limit\" must be"),
            (json!({"namespace": "a", "limit": 1.5}), "argument \"limit\" must be"),
            (json!({"namespace": "a", "limit": "5"}), "argument \"limit\" must be"),
            (json!({"namespace": "a", "limit": 1e300}), "argument \"limit\" must be"),
            (json!({"namespace": "a", "previous": "yes"}), "argument \"previous\" must be true or false"),
        ] {
            let error = check(given.clone()).expect_err("refused");
            assert!(error.starts_with(text), "{given}: {error}");
        }
    }

    #[test]
    fn an_unknown_argument_is_refused_and_the_known_ones_are_listed() {
        assert_eq!(
            check(json!({"namespace": "a", "replica": 3})).expect_err("refused"),
            "argument \"replica\" is not known; known are: namespace, name, kind, labelSelector, limit, previous"
        );
    }

    #[test]
    fn a_confirmation_by_the_caller_itself_is_refused_with_its_reason() {
        let error = check(json!({"namespace": "a", "confirm": true})).expect_err("refused");
        assert!(error.starts_with("argument \"confirm\" is not known (a caller cannot confirm"), "{error}");
    }

    #[test]
    fn what_would_be_dangerous_elsewhere_is_refused_and_not_cleaned() {
        for text in [
            "web;rm -rf /",
            "$(id)",
            "`id`",
            "a|b",
            "<script>alert(1)</script>",
            "javascript:alert(1)",
            "' OR '1'='1",
            "web--'; DROP TABLE events",
            "/* a */",
        ] {
            let error = check(json!({"namespace": "a", "name": text})).expect_err(text);
            assert!(error.starts_with("argument \"name\" must be"), "{error}");
        }
    }

    #[test]
    fn names_of_kubernetes_pass() {
        for name in ["web", "web-6d4cf56db6-x2x7q", "a.b.c", "1", &"a".repeat(253)] {
            assert!(check(json!({"namespace": "a", "name": name})).is_ok(), "{name}");
        }
    }
}
