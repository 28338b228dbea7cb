//! What `portcullis token inspect` shows and minds.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    token: Token,
}

const SAMPLE: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ.SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c";

fn token(header: &str, claims: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", encode(header), encode(claims), encode("a signature of some bytes"))
}

fn inspect(arguments: &[&str], token: &str) -> anyhow::Result<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("token").to_string_lossy().into_owned();
    std::fs::write(&path, token).expect("it is written");
    let line = [&["token", "inspect", "--file", &path], arguments].concat();
    let mut output = Vec::new();
    let now = "2026-11-23T10:00:00Z".parse().expect("a time");
    Line::try_parse_from(line)?.token.run(now, &mut output)?;
    Ok(String::from_utf8(output).expect("text"))
}

fn good() -> String {
    token(
        r#"{"alg":"EdDSA","kid":"k1","typ":"at+jwt"}"#,
        r#"{"iss":"https://id.example.org","sub":"ann","aud":["https://ops-mcp.agents.svc/mcp"],
            "iat":1795427700,"exp":1795431300,"jti":"t1","groups":["ops"],"note":"\u001b[2J"}"#,
    )
}

#[test]
fn a_person_sees_a_table_that_says_first_that_nothing_was_verified() {
    let expected = "\
NOT VERIFIED: anybody can write this. It does not say that the token is genuine.

ALGORITHM    EdDSA
KEY ID       k1
TYPE         at+jwt
ISSUER       https://id.example.org
SUBJECT      ann
AUDIENCE     https://ops-mcp.agents.svc/mcp
EXPIRES      2026-11-23T10:55:00Z (in 55m)
NOT BEFORE   -
ISSUED       2026-11-23T09:55:00Z (5m ago)
LIFETIME     1h
TOKEN ID     t1
groups       [\"ops\"]
note         \u{fffd}[2J
";
    assert_eq!(inspect(&[], &good()).expect("it is shown"), expected);
    assert_eq!(inspect(&[], &format!("Bearer {}\n", good())).expect("it is shown"), expected);
}

#[test]
fn a_script_reads_every_claim_and_that_nothing_was_verified() {
    let json = inspect(&["--json"], &good()).expect("it is shown");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["verified"], false);
    assert_eq!((&json["expiresInSeconds"], &json["lifetimeSeconds"]), (&3300.into(), &3600.into()));
    assert_eq!(json["claims"]["groups"][0], "ops");
    assert_eq!(json["warnings"], serde_json::json!([]));
    assert!(!json.to_string().contains(good().rsplit('.').next().expect("a signature")));
}

#[test]
fn the_published_sample_is_shown_with_all_that_is_wrong_with_it() {
    let text = inspect(&[], SAMPLE).expect("it is shown");
    for warning in ["alg is HS256", "exp is missing", "aud is missing", "iss is missing"] {
        assert!(text.contains(&format!("\nwarning: {warning}")), "{text}");
    }
    assert!(!text.contains("SflKx"), "the signature is not shown");
}

#[test]
fn what_an_endpoint_would_mind_is_said() {
    let warned = |header: &str, claims: &str, expected: &str| {
        let text = inspect(&[], &token(header, claims)).expect("it is shown");
        assert!(text.contains(&format!("\nwarning: {expected}")), "{expected} is not in {text}");
    };
    let claims = r#"{"iss":"i","sub":"s","aud":"a","exp":1795431300}"#;
    warned(r#"{"alg":"none"}"#, claims, "alg is none");
    warned(r#"{"alg":"NonE"}"#, claims, "alg is none");
    warned("{}", claims, "alg is missing");
    warned(r#"{"alg":"RS256","jku":"https://evil"}"#, claims, "the header brings its own key (jku)");
    warned(r#"{"alg":"RS256","crit":["b64"]}"#, claims, "the header has crit");
    warned(r#"{"alg":"RS256","typ":"logout+jwt"}"#, claims, "typ is not JWT");
    let header = r#"{"alg":"RS256"}"#;
    warned(header, r#"{"iss":"i","sub":"s","aud":"a","exp":1795420800}"#, "it expired 2h ago");
    warned(header, r#"{"iss":"i","sub":"s","aud":"a","exp":"soon"}"#, "exp is missing or no time");
    warned(
        header,
        r#"{"iss":"i","sub":"s","aud":"a","iat":1795427700,"exp":1795600500}"#,
        "it lasts longer than",
    );
    warned(
        header,
        r#"{"iss":"i","sub":"s","aud":"a","nbf":1795431300,"exp":1795434900}"#,
        "it is not valid yet: in 55m",
    );
    warned(
        header,
        r#"{"iss":"i","sub":"s","aud":"a","iat":1795434900,"exp":1795431300}"#,
        "it ends before it begins",
    );
}

#[test]
fn a_malformed_token_is_refused_with_the_part_that_is_wrong() {
    let refused = |token: &str| format!("{:#}", inspect(&[], token).expect_err("it is refused"));
    let (two, signature) = SAMPLE.rsplit_once('.').expect("parts");
    assert_eq!(refused(two), "the token has 2 parts; expected header.payload.signature");
    assert_eq!(refused("abcdefgh12345678"), "the token has 1 part; expected header.payload.signature");
    assert!(refused("a.b.c.d.e").contains("encrypted"));
    assert!(refused(&format!("{two}.{}$", &signature[..42])).starts_with("the signature is not base64url"));
    assert!(refused(&format!("{two}.ab+d")).contains("+ and / belong to plain base64"));
    assert!(refused(&format!("{two}.abc=")).contains("no padding"));
    assert!(refused(&format!("eyJ.{two}")).starts_with("the header is "));
    assert_eq!(refused(".e30.abcd"), "the header is empty");
    assert!(refused("e30.eyJ9.abcd").starts_with("the payload is base64url, but not of JSON"));
    assert_eq!(refused("e30.W10.abcd"), "the payload is JSON, but not an object");
    assert!(refused("pcl_0123").contains("portcullis key check"));
}

#[test]
fn distances_have_the_two_largest_units() {
    let of = |seconds| distance(SignedDuration::from_secs(seconds));
    assert_eq!([of(0), of(59), of(3_600), of(3_661), of(90_061)], ["0s", "59s", "1h", "1h 1m", "1d 1h"]);
    assert_eq!(of(-61), "-1m 1s");
}
