//! Takes secrets out of an event, and cuts it to size.
//!
//! It is the one way into the record, so nobody has to remember it. It would rather take too much: values under names
//! that promise a secret, Secret objects, and whatever looks like a key, a token or a private key, wherever it stands.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Map, Value};

use super::event::Event;

/// Stands where a secret was.
pub(super) const MASK: &str = "***REDACTED***";
/// Most bytes of parameters in a record.
const MAX_PARAMS: usize = 8 << 10;
/// Most bytes of parameters that are looked into; of larger ones only the size is recorded.
const MAX_LOOKED_INTO: usize = 64 << 10;
/// Most bytes of a free text.
const MAX_TEXT: usize = 1 << 10;
/// Most bytes of a name.
const MAX_NAME: usize = 256;
/// Most entries of metadata.
const MAX_METADATA: usize = 32;
/// Most bytes of the label of a PEM block that are looked at.
const MAX_LABEL: usize = 256;
/// Depth below which parameters are not looked into but masked; serde_json reads 128.
const MAX_DEPTH: usize = 64;

/// Takes secrets out of everything in the event that came from outside.
pub(super) fn redact(event: Event) -> Event {
    // Every field is named: a new one does not compile until somebody has thought of it here.
    let Event {
        event_id,
        timestamp,
        event_type,
        request_id,
        server,
        user,
        auth_type,
        credential_id,
        client_ip,
        action,
        tool,
        resource,
        namespace,
        params,
        result,
        reason,
        error_message,
        duration_ms,
        count,
        metadata,
    } = event;
    Event {
        event_id: name(event_id),
        timestamp,
        event_type,
        request_id: name(request_id),
        server: name(server),
        user: name(user),
        auth_type: name(auth_type),
        credential_id: credential_id.map(name),
        client_ip: client_ip.map(name),
        action: name(action),
        tool: tool.map(name),
        resource: resource.map(name),
        namespace: namespace.map(name),
        params: params.map(parameters),
        result,
        reason: reason.map(|reason| cut(text(reason), MAX_TEXT)),
        error_message: error_message.map(|message| cut(text(message), MAX_TEXT)),
        duration_ms,
        count,
        metadata: metadata.into_iter().take(MAX_METADATA).map(metadatum).collect::<BTreeMap<_, _>>(),
    }
}

fn name(text: String) -> String {
    cut(tokens(private_keys(text)), MAX_NAME)
}

fn metadatum((key, content): (String, String)) -> (String, String) {
    let content = if promises_secret(&key) { MASK.to_owned() } else { cut(text(content), MAX_TEXT) };
    (name(key), content)
}

/// Shortens a text that has been redacted; cutting first could leave half of a secret that is not recognized.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

/// Redacts parameters, unless they are so large that looking into them would cost more than the record is worth.
fn parameters(params: Value) -> Value {
    let size = json_size(&params);
    if size > MAX_LOOKED_INTO {
        return serde_json::json!({ "omitted_bytes": size });
    }
    capped(value(params, 0))
}

/// Bytes of a value as JSON, without making the text.
pub(crate) fn json_size(value: &Value) -> usize {
    let mut size = Size(0);
    serde_json::to_writer(&mut size, value)
        .expect("counting does not fail, and a value always has a JSON text");
    size.0
}

/// Counts the bytes that are written to it.
struct Size(usize);

impl io::Write for Size {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps the beginning of parameters that are too large.
fn capped(params: Value) -> Value {
    let text = params.to_string();
    if text.len() <= MAX_PARAMS {
        return params;
    }
    // Half of it: quoting a text makes it longer again, at most twice as long here.
    let beginning = &text[..text.floor_char_boundary(MAX_PARAMS / 2 - 64)];
    serde_json::json!({ "truncated_bytes": text.len(), "beginning": beginning })
}

/// Redacts a value and everything in it.
fn value(content: Value, depth: usize) -> Value {
    match content {
        Value::Object(_) | Value::Array(_) if depth >= MAX_DEPTH => Value::String(MASK.to_owned()),
        Value::Object(fields) => Value::Object(object(fields, depth)),
        Value::Array(elements) => Value::Array(array(elements, depth)),
        Value::String(content) => Value::String(text(content)),
        Value::Null | Value::Bool(_) | Value::Number(_) => content,
    }
}

fn object(fields: Map<String, Value>, depth: usize) -> Map<String, Value> {
    let text_of = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
    let is_secret = text_of("kind").to_ascii_lowercase().starts_with("secret");
    // `{name: DB_PASSWORD, value: ...}`, as in the environment of a container.
    let is_pair = promises_secret(text_of("name")) || promises_secret(text_of("key"));
    let redacted = |(key, content): (String, Value)| {
        let masked = promises_secret(&key)
            || is_pair && key == "value"
            || is_secret && matches!(key.as_str(), "data" | "stringData" | "items");
        let content = match content {
            // A truth value or nothing is no secret, and `automountServiceAccountToken: false` says something.
            Value::Null | Value::Bool(_) => content,
            _ if masked => Value::String(MASK.to_owned()),
            content => value(content, depth + 1),
        };
        (tokens(key), content)
    };
    fields.into_iter().map(redacted).collect()
}

/// `["--token", "abc"]` is a name and its value too.
fn array(elements: Vec<Value>, depth: usize) -> Vec<Value> {
    let mut after_flag = false;
    let redacted = |element: Value| {
        let is_flag = element.as_str().is_some_and(|text| text.starts_with('-') && promises_secret(text));
        if std::mem::replace(&mut after_flag, is_flag) && element.is_string() && !is_flag {
            return Value::String(MASK.to_owned());
        }
        value(element, depth + 1)
    };
    elements.into_iter().map(redacted).collect()
}

/// Whether a field of this name holds a secret: `password`, `dbPassword`, `X-API-Key`, `refresh_token`...
fn promises_secret(name: &str) -> bool {
    const ANYWHERE: &[&str] = &[
        "password",
        "passwd",
        "passphrase",
        "apikey",
        "secretkey",
        "privatekey",
        "accesskey",
        "authorization",
        "cookie",
        "bearer",
        "dockerconfig",
        "kubeconfig",
    ];
    const AT_THE_END: &[&str] =
        &["token", "tokens", "secret", "credential", "credentials", "pwd", "signature", "jwt"];
    const WHOLE: &[&str] = &["secrets", "stringdata", "pass", "auth", "pin", "otp"];
    let plain: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    ANYWHERE.iter().any(|word| plain.contains(word))
        || AT_THE_END.iter().any(|word| plain.ends_with(word))
        || WHOLE.contains(&plain.as_str())
}

/// Redacts a free text: tokens, and what stands behind names that promise a secret.
pub(crate) fn text(content: String) -> String {
    if is_secret_manifest(&content) {
        return MASK.to_owned();
    }
    assignments(tokens(private_keys(content)))
}

/// A manifest of a Secret, as YAML or JSON.
fn is_secret_manifest(text: &str) -> bool {
    let says_data = text.contains("data:")
        || text.contains("data\"")
        || text.contains("stringData")
        || text.contains("items");
    let mut kinds = text.match_indices("kind");
    says_data
        && kinds.any(|(at, word)| {
            let rest = text[at + word.len()..].trim_start_matches(['"', '\'', ' ', ':', '\\']);
            let secret = rest.strip_prefix("SecretList").or_else(|| rest.strip_prefix("Secret"));
            secret.is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
        })
}

/// Takes out private keys in PEM, also where the end is missing.
fn private_keys(text: String) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    let mut redacted = String::new();
    let (mut copied, mut from) = (0, 0);
    while let Some(at) = text[from..].find(BEGIN) {
        let begin = from + at;
        from = begin + BEGIN.len();
        let label = &text[from..];
        // No label is longer, and a search to the end for each one would take too long.
        let label = &label[..label.floor_char_boundary(MAX_LABEL)];
        let label = label.find("-----").map_or(label, |end| &label[..end]);
        if !label.contains("PRIVATE KEY") {
            continue;
        }
        redacted.push_str(&text[copied..begin]);
        redacted.push_str(MASK);
        let end = text[from..].find(END).map(|at| from + at + END.len());
        let close = end.and_then(|end| text[end..].find("-----").map(|close| end + close + "-----".len()));
        copied = close.unwrap_or(text.len());
        from = copied;
    }
    if copied == 0 {
        return text;
    }
    redacted.push_str(&text[copied..]);
    redacted
}

/// Takes out words that look like a key or a token, and passwords in addresses.
fn tokens(text: String) -> String {
    const SIGNS: &[&str] = &[
        "pcl_",
        "eyJ",
        "AKIA",
        "ASIA",
        "ghp_",
        "gho_",
        "ghs_",
        "ghu_",
        "github_pat_",
        "glpat-",
        "xox",
        "://",
    ];
    let has_scheme = contains_ignoring_case(&text, "bearer") || contains_ignoring_case(&text, "basic");
    if !has_scheme && !SIGNS.iter().any(|sign| text.contains(sign)) {
        return text;
    }
    let mut redacted = String::with_capacity(text.len());
    let mut after_scheme = false;
    for piece in text.split_inclusive(|c: char| !is_token_character(c)) {
        let word = piece.trim_end_matches(|c: char| !is_token_character(c));
        let rest = &piece[word.len()..];
        if after_scheme && is_credential(word) {
            redacted.push_str(MASK);
        } else if let Some(start) = token_start(word) {
            redacted.push_str(&word[..start]);
            redacted.push_str(MASK);
        } else {
            redacted.push_str(word);
        }
        redacted.push_str(rest);
        if !word.is_empty() {
            after_scheme = word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic");
        }
    }
    passwords_in_addresses(redacted)
}

/// Whether what follows `Bearer` or `Basic` is a credential and not the next word of a sentence.
fn is_credential(word: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_uppercase() || byte == b'=';
    word.len() >= 16 || word.bytes().skip(1).any(inside)
}

fn is_token_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '/' | '~' | '=')
}

fn contains_ignoring_case(text: &str, word: &str) -> bool {
    text.as_bytes().windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

/// Where a key or a token begins in a word.
fn token_start(word: &str) -> Option<usize> {
    // Prefix, characters that must follow it, and whether they are capitals and digits only.
    const FORMS: &[(&str, usize, bool)] = &[
        ("pcl_", 8, false),
        ("eyJ", 16, false),
        ("AKIA", 16, true),
        ("ASIA", 16, true),
        ("ghp_", 20, false),
        ("gho_", 20, false),
        ("ghs_", 20, false),
        ("ghu_", 20, false),
        ("github_pat_", 20, false),
        ("glpat-", 16, false),
        ("xoxb-", 10, false),
        ("xoxp-", 10, false),
    ];
    let found = |(prefix, length, capitals): &(&str, usize, bool)| {
        let fits = |at: usize| {
            let follows = &word.as_bytes()[at + prefix.len()..];
            let fitting = |byte: &&u8| !capitals || byte.is_ascii_uppercase() || byte.is_ascii_digit();
            follows.iter().take_while(fitting).count() >= *length
        };
        word.match_indices(prefix).map(|(at, _)| at).find(|at| fits(*at))
    };
    FORMS.iter().filter_map(found).min()
}

/// `https://user:password@host` keeps the user.
fn passwords_in_addresses(text: String) -> String {
    let mut redacted = String::new();
    let (mut copied, mut from) = (0, 0);
    while let Some(at) = text[from..].find("://") {
        let start = from + at + "://".len();
        let authority = &text[start..];
        let end = authority
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\''))
            .unwrap_or(authority.len());
        // What is before the end holds no slash; another address begins at its last colon or later.
        let looked_at = &authority[..end];
        from = start + looked_at.strip_suffix(':').unwrap_or(looked_at).len();
        if let Some(at) = authority[..end].rfind('@')
            && let Some(colon) = authority[..at].find(':')
        {
            redacted.push_str(&text[copied..=start + colon]);
            redacted.push_str(MASK);
            copied = start + at;
        }
    }
    if copied == 0 {
        return text;
    }
    redacted.push_str(&text[copied..]);
    redacted
}

/// Takes out what is assigned to a name that promises a secret: `token=...`, `"password": "..."`,
/// `Authorization: ...`, `--password ...`.
fn assignments(text: String) -> String {
    let mut redacted = String::new();
    let mut copied = 0;
    let mut from = 0;
    while let Some((name, after)) = next_name(&text, from) {
        from = after;
        if matches!(name, "k8s" | "mcp") && text[after..].starts_with(':') {
            // A permission: `k8s:secrets:get` gives nothing away.
            let in_permission =
                |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '-' | '_' | '*' | '/');
            from += text[after..].find(|c| !in_permission(c)).unwrap_or(text.len() - after);
            continue;
        }
        if !promises_secret(name) {
            continue;
        }
        let Some(range) = assigned(&text, name, after) else { continue };
        redacted.push_str(&text[copied..range.start]);
        redacted.push_str(MASK);
        copied = range.end;
        from = range.end;
    }
    if copied == 0 {
        return text;
    }
    redacted.push_str(&text[copied..]);
    redacted
}

/// The next word that can be a name, and where it ends.
fn next_name(text: &str, from: usize) -> Option<(&str, usize)> {
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let start = from + text[from..].find(in_name)?;
    let end = text[start..].find(|c| !in_name(c)).map_or(text.len(), |length| start + length);
    Some((&text[start..end], end))
}

/// What stands behind a name: in quotes, up to the end of the line after a colon, or up to the next blank or `&`.
fn assigned(text: &str, name: &str, after: usize) -> Option<std::ops::Range<usize>> {
    let skip = |at: usize, skipped: &[char]| {
        let rest = &text[at..];
        at + rest.len() - rest.trim_start_matches(skipped).len()
    };
    // Quotes may be escaped, in JSON inside of JSON.
    let sign = skip(after, &['"', '\'', '\\', ' ', '\t']);
    let rest = &text[sign..];
    let is_colon = rest.starts_with(':');
    let start = if is_colon || rest.starts_with('=') {
        // YAML allows the value on the next line.
        skip(sign + 1, if is_colon { &[' ', '\t', '\r', '\n'] } else { &[' ', '\t'] })
    } else if name.starts_with("--") && sign > after {
        sign
    } else {
        return None;
    };
    let content = &text[start..];
    let quoted = content.trim_start_matches('\\');
    let start = start + content.len() - quoted.len();
    let end = match quoted.chars().next()? {
        // A block of YAML: its lines follow, and where they end is not known here.
        '|' | '>' => quoted.len(),
        // The content of a JSON list or object.
        '[' | '{' => quoted.len(),
        quote @ ('"' | '\'') => closing_quote(quoted, quote),
        _ if is_colon => quoted.find(['\n', '\r']).unwrap_or(quoted.len()),
        _ => quoted.find(|c: char| c.is_whitespace() || c == '&').unwrap_or(quoted.len()),
    };
    (end > 0).then_some(start..start + end)
}

/// Length of a quoted text with its quotes; all of the text where the end is missing.
fn closing_quote(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
#[path = "redact_tests.rs"]
mod tests;
