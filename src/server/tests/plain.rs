//! The endpoint without TLS: for clients of the same machine, and never for passwords.

use std::io::{Read, Write};
use std::net::TcpStream;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::fixture::{Fixture, start};
use crate::server::listen_without_tls;

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}"#;

/// The whole answer to a message in plain HTTP.
async fn posted(fixture: &Fixture, credential: String) -> String {
    let (address, length) = (fixture.plain, LIST.len());
    let request = format!(
        "POST /mcp HTTP/1.1\r\nhost: {address}\r\n{credential}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{LIST}"
    );
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).expect("connects");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    });
    asked.await.expect("no panic")
}

#[tokio::test]
async fn a_client_of_this_machine_needs_a_key_and_no_certificate() {
    let fixture = start().await;
    let answer = posted(&fixture, format!("x-api-key: {}", fixture.key)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("\"tools\""), "{answer}");
    let answer = posted(&fixture, "x-other: none".to_owned()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn a_password_is_not_taken_where_others_could_read_it() {
    let fixture = start().await;
    let basic = format!("authorization: Basic {}", BASE64_STANDARD.encode("ann:a password of hers"));
    let answer = posted(&fixture, basic).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let reasons = fixture.events().into_iter().filter_map(|event| event.reason);
    assert_eq!(reasons.collect::<Vec<_>>(), ["insecure"]);
}

#[tokio::test]
async fn only_a_loopback_address_is_served_without_tls() {
    let listen = |address: &str| listen_without_tls(address.parse().expect("an address"));
    let error = listen("0.0.0.0:0").await.expect_err("others could read it");
    let text = "0.0.0.0:0 is not a loopback address, and without TLS nothing else is served";
    assert_eq!(error.to_string(), text);
    assert!(listen("127.0.0.1:0").await.is_ok());
}
