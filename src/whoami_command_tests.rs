//! `portcullis whoami` against a real TLS server that answers one request.

use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::thread::JoinHandle;

use clap::Parser;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    whoami: Whoami,
}

/// An endpoint that answers once, its address, and its certificate. It gives back what it was asked.
struct Endpoint {
    url: String,
    ca: String,
    asked: JoinHandle<String>,
}

fn endpoint(status: &'static str, body: &'static str) -> Endpoint {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let private = PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], private)
        .expect("they fit");
    let listener = TcpListener::bind("localhost:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let asked = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config)).expect("a server"), stream);
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
            request.push(byte[0]);
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nlocation: /\r\n\r\n{body}");
        // A client that does not trust the server has gone.
        let _ = stream.write_all(answer.as_bytes());
        String::from_utf8(request).expect("text").to_ascii_lowercase()
    });
    Endpoint { url: format!("https://localhost:{port}/mcp"), ca: cert.pem(), asked }
}

/// Runs the command against the endpoint, trusting it, with files of these names and contents.
fn run(
    endpoint: Endpoint,
    arguments: &[&str],
    file: &str,
    environment: Option<&str>,
) -> (anyhow::Result<String>, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    fs::write(path("ca"), endpoint.ca).expect("it is written");
    fs::write(path("file"), file).expect("it is written");
    let (ca, file) = (path("ca"), path("file"));
    let mut line = vec!["whoami", "--url", &endpoint.url, "--ca", &ca];
    line.extend(arguments.iter().map(|argument| if *argument == "FILE" { file.as_str() } else { argument }));
    let whoami = Line::try_parse_from(line).expect("a command").whoami;
    let mut output = Vec::new();
    let result = whoami.run(environment.map(str::to_owned), &mut output);
    let asked = endpoint.asked.join().expect("the endpoint ends");
    (result.map(|()| String::from_utf8(output).expect("text")), asked)
}

const ANSWER: &str = r#"{"method":"apikey","subject":"ci-bot","groups":[],"tenant":"blue","scopes":null,
    "credentialId":"0123456789abcdef","key":"ci","expiresAt":null,"roles":["agents/viewer","operator"],
    "server":"agents/ops\u001b"}"#;

#[test]
fn a_person_sees_whom_the_endpoint_takes_the_key_for() {
    let (answer, asked) = run(endpoint("200 OK", ANSWER), &["--key-file", "FILE"], "pcl_the-key\n", None);
    let expected = "\
SUBJECT      ci-bot
METHOD       apikey
ISSUER       -
GROUPS       none
TENANT       blue
API KEY      ci
CREDENTIAL   0123456789abcdef
EXPIRES      -
SCOPES       -
ROLES        agents/viewer, operator
SERVER       agents/ops\u{fffd}
";
    assert_eq!(answer.expect("it is known"), expected);
    assert!(asked.starts_with("get /auth/whoami http/1.1\r\n"), "{asked}");
    assert!(asked.contains("\r\nx-api-key: pcl_the-key\r\n"), "{asked}");
    assert!(!asked.contains("authorization"));
}

#[test]
fn each_source_of_a_credential_goes_into_its_header() {
    for (arguments, file, environment, expected) in [
        (&["--json", "--token-file", "FILE"][..], "a.b.c\n", None, Some("authorization: bearer a.b.c")),
        (&["--json", "--basic-file", "FILE"], "a:ba", None, Some("authorization: basic ytpiyq==")),
        (&["--json"], "", Some("from-the-environment"), Some("authorization: bearer from-the-environment")),
        (&["--json", "--anonymous"], "", Some("from-the-environment"), None),
    ] {
        let (answer, asked) = run(endpoint("200 OK", ANSWER), arguments, file, environment);
        let answer: Value = serde_json::from_str(&answer.expect("it is known")).expect("JSON");
        assert_eq!(answer["subject"], "ci-bot");
        match expected {
            Some(header) => assert!(asked.contains(&format!("\r\n{header}\r\n")), "{asked}"),
            None => assert!(!asked.contains("authorization") && !asked.contains("x-api-key"), "{asked}"),
        }
    }
}

#[test]
fn a_refusal_says_what_to_check_and_never_the_credential() {
    let refused = |arguments: &[&str]| {
        let (answer, _) = run(endpoint("401 Unauthorized", "{}"), arguments, "s3cret:s3cret", None);
        let error = format!("{:#}", answer.expect_err("it is refused"));
        assert!(error.starts_with("the endpoint does not accept this caller (401)"), "{error}");
        assert!(error.contains("audit query") && !error.contains("s3cret"), "{error}");
        error
    };
    assert!(refused(&["--key-file", "FILE"]).contains("portcullis key check"));
    assert!(refused(&["--token-file", "FILE"]).contains("portcullis token inspect"));
    assert!(refused(&["--basic-file", "FILE"]).contains("portcullis key hash"));
    assert!(refused(&["--anonymous"]).contains("unsafeEnabled"));
}

#[test]
fn other_answers_are_explained() {
    for (status, body, expected) in [
        ("404 Not Found", "", "is this an endpoint of Portcullis?"),
        ("302 Found", "", "a credential does not follow"),
        ("429 Too Many Requests", "", "wait a minute"),
        ("500 Internal Server Error", "", "answered 500"),
        ("200 OK", "<html>", "does not answer as an endpoint of Portcullis does"),
    ] {
        let (answer, _) = run(endpoint(status, body), &["--anonymous"], "", None);
        let error = format!("{:#}", answer.expect_err("it is no answer"));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_endpoint_that_is_not_trusted_gets_no_credential() {
    let other = generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
    let endpoint = Endpoint { ca: other.cert.pem(), ..endpoint("200 OK", ANSWER) };
    let (answer, asked) = run(endpoint, &["--key-file", "FILE"], "pcl_the-key", None);
    let error = format!("{:#}", answer.expect_err("it is not trusted"));
    assert!(error.contains("name it with --ca"), "{error}");
    assert_eq!(asked, "", "nothing was sent");
}

#[test]
fn what_cannot_be_asked_is_refused_before_anything_is_sent() {
    let parse = |arguments: &[&str]| Line::try_parse_from([&["whoami"], arguments].concat()).map(|_| ());
    assert!(parse(&["--url", "https://ops.example.org/mcp"]).is_ok());
    for wrong in [
        &["--url", "http://ops.example.org/mcp"][..],
        &["--url", "ops.example.org"],
        &["--url", "https://ann:s3cret@ops.example.org/mcp"],
        &[],
        &["--url", "https://a/mcp", "pcl_a-key-as-an-argument"],
        &["--url", "https://a/mcp", "--key-file", "a", "--token-file", "b"],
        &["--url", "https://a/mcp", "--cert", "a"],
    ] {
        assert!(parse(wrong).is_err(), "{wrong:?}");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("basic").to_string_lossy().into_owned();
    fs::write(&path, "no-password:").expect("it is written");
    let line = ["whoami", "--url", "https://localhost/mcp", "--basic-file", &path];
    let whoami = Line::try_parse_from(line).expect("a command").whoami;
    let error = whoami.run(None, &mut Vec::new()).expect_err("it is no pair");
    assert!(error.to_string().ends_with("does not hold user:password"), "{error}");
}
