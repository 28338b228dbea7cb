use super::*;
use crate::authn::Verifier;
use crate::index::files::tests::{KEY, ROLE, SERVER, directory, read, source};
use crate::index::files::{Loaded, Source};

const STRONG: &str = "qW7-tZ3_xR9.mK5vB2pLd8";
const OTHER: &str = "Hn4.yU8-cJ6_gF1sVx3Tz0";

fn importing(name: &str, secret: &str) -> String {
    let import = "spec: {import: {secretRef: {name: SECRET}}, ".replace("SECRET", secret);
    KEY.replace("{name: ci}", &format!("{{name: {name}}}")).replace("spec: {", &import)
}

fn secret(name: &str, key: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{api-key: '{key}'}}\n"
    )
}

fn all(keys: &str) -> String {
    format!("{SERVER}---\n{ROLE}---\n{keys}")
}

fn hashes(loaded: &Loaded) -> ImportedKeys {
    let json = &loaded.materials["secret/ops-mcp-imported/imported.json"];
    ImportedKeys::from_json(json).expect("imported keys")
}

/// The id under which a text is accepted, by the steps of the Authenticator.
fn id(loaded: &Loaded, text: &str) -> Option<String> {
    let hashes = hashes(loaded);
    let held = hashes.candidates(text).find(|held| held.proves(text))?;
    let snapshot = loaded.subject.snapshot(&loaded.objects);
    let record = &snapshot.keys.get(&held.id)?.record;
    (record.verifier == Verifier::Imported(held.fingerprint())).then(|| held.id.clone())
}

fn load(source: &Source, kept: &mut Kept) -> Loaded {
    source.load(kept).expect("loads")
}

#[test]
fn a_key_of_a_secret_is_imported_and_keeps_its_id() {
    let text = all(&importing("ci", "mcp-secrets")) + &secret("mcp-secrets", "${CI_KEY}");
    let directory = directory(&[("a.yaml", &text)]);
    let source = source(directory.path(), &[("CI_KEY", STRONG)]);
    let mut kept = Kept::default();
    let loaded = load(&source, &mut kept);
    assert_eq!(loaded.imported, [("ci".to_owned(), "Secret mcp-secrets, api-key".to_owned())]);
    assert!(loaded.keys.is_empty(), "nothing is generated beside it");
    let first = id(&loaded, STRONG).expect("accepted");
    assert_eq!(id(&loaded, OTHER), None);
    assert_eq!(load(&source, &mut kept).materials, loaded.materials, "nothing is hashed again");
    let restarted = load(&source, &mut Kept::default());
    assert_eq!(id(&restarted, STRONG), Some(first), "nor after a restart");
    let stored = fs::read_to_string(directory.path().join(".portcullis/imported.json")).expect("there");
    assert!(!stored.contains(STRONG));
    assert!(!restarted.materials.contains_key("secret/mcp-secrets/api-key"), "only the hash goes further");
}

#[test]
fn a_changed_key_replaces_the_old_one_and_a_removed_one_leaves_nothing() {
    let directory =
        directory(&[("a.yaml", &(all(&importing("ci", "mcp-secrets")) + &secret("mcp-secrets", STRONG)))]);
    let (source, mut kept) = (source(directory.path(), &[]), Kept::default());
    let first = id(&load(&source, &mut kept), STRONG).expect("accepted");
    let write = |text: &str| fs::write(directory.path().join("a.yaml"), text).expect("written");
    write(&(all(&importing("ci", "mcp-secrets")) + &secret("mcp-secrets", OTHER)));
    let changed = load(&source, &mut kept);
    assert_eq!(id(&changed, STRONG), None);
    assert!(id(&changed, OTHER).is_some_and(|id| id != first));
    // Another object takes over the text: also after a restart it is that object's.
    write(&(all(&importing("new", "mcp-secrets")) + &secret("mcp-secrets", OTHER)));
    let moved = load(&source, &mut Kept::default());
    assert_eq!(hashes(&moved).iter().map(|key| key.key.clone()).collect::<Vec<_>>(), ["new"]);
    assert!(id(&moved, OTHER).is_some());
    write(SERVER);
    assert!(load(&source, &mut kept).materials.is_empty());
    assert!(!directory.path().join(".portcullis/imported.json").exists());
}

#[test]
fn two_objects_may_swap_their_keys() {
    let keys = importing("a", "one") + "---\n" + &importing("b", "two");
    let text = |one: &str, two: &str| all(&keys) + &secret("one", one) + &secret("two", two);
    let directory = directory(&[("a.yaml", &text(STRONG, OTHER))]);
    let (source, mut kept) = (source(directory.path(), &[]), Kept::default());
    load(&source, &mut kept);
    fs::write(directory.path().join("a.yaml"), text(OTHER, STRONG)).expect("written");
    let swapped = load(&source, &mut kept);
    let snapshot = swapped.subject.snapshot(&swapped.objects);
    let name = |text: &str| snapshot.keys[&id(&swapped, text).expect("accepted")].record.name.clone();
    assert_eq!((name(OTHER), name(STRONG)), ("a".to_owned(), "b".to_owned()));
    let same = read(&text(STRONG, STRONG), &[]).expect_err("refused");
    assert_eq!(same, "DIR: McpApiKeys a and b import the same key");
}

#[test]
fn a_key_of_our_own_form_is_imported_by_its_digest() {
    let own = ApiKey::generate([3; 10], [4; 32]);
    let text = all(&importing("ci", "mcp-secrets")) + &secret("mcp-secrets", own.expose());
    let loaded = read(&text, &[]).expect("loads");
    assert!(loaded.materials.is_empty(), "there is no hash to prove");
    let snapshot = loaded.subject.snapshot(&loaded.objects);
    assert_eq!(snapshot.keys[own.id()].record.verifier, Verifier::Sha256(own.digest()));
}

#[test]
fn weak_and_published_keys_are_refused_where_they_are_written() {
    for (key, error) in [
        ("short", "has 5 characters; at least 16 are needed"),
        ("Abc123!@#Xyz789!@#", "is, or holds, an example that a document has published"),
        ("pcl_damaged", "is damaged: length, alphabet or checksum do not fit"),
    ] {
        let text = all(&importing("ci", "mcp-secrets")) + &secret("mcp-secrets", key);
        let expected =
            format!("DIR/a.yaml, document 4: stringData.api-key: {error} (McpApiKey ci imports it)");
        assert_eq!(read(&text, &[]).expect_err("refused"), expected);
    }
    let text = all(&importing("ci", "absent"));
    let expected = "DIR/a.yaml, document 3: spec.import.secretRef: there is no document of Secret \"absent\" in the directory";
    assert_eq!(read(&text, &[]).expect_err("refused"), expected);
    let token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.kZ3vQ9xW7tR2mB5nL8pD4sF6gH1jK0";
    let outcome = judge(token).expect_err("a token");
    assert!(outcome.starts_with("has the form of a token, "), "{outcome}");
    assert!(judge("eyJq.vB2-Lw8_zT5xR9mK7pQ3").is_err(), "nor what looks like a damaged one");
}

#[test]
fn expiry_addresses_tenant_and_switch_of_a_key_count() {
    let here = "10.0.0.7".parse().expect("an address");
    let usable = |spec: &str, annotations: &str| {
        let key = KEY.replace("{name: ci}", &format!("{{name: ci, annotations: {annotations}}}"));
        let loaded = read(&all(&key.replace("spec: {", &format!("spec: {{{spec}, "))), &[]).expect("loads");
        let snapshot = loaded.subject.snapshot(&loaded.objects);
        let record = snapshot.keys.values().next().expect("a key").record.clone();
        record.usable(here, Timestamp::from_second(1_900_000_000).expect("a time")).map(|()| record.tenant)
    };
    let at = |text: &str| format!("expiresAt: '{text}'");
    assert_eq!(usable("tenant: red, allowedCidrs: [10.0.0.0/8]", "{}"), Ok(Some("red".to_owned())));
    assert_eq!(usable(&at("2030-03-17T17:46:41Z"), "{}"), Ok(None));
    assert_eq!(usable(&at("2030-03-17T17:46:40Z"), "{}"), Err(Reason::Expired));
    assert_eq!(usable("allowedCidrs: [10.1.0.0/16]", "{}"), Err(Reason::Address));
    assert_eq!(usable("enabled: false", "{}"), Err(Reason::Disabled));
    assert_eq!(usable("tenant: red", "{portcullis.dev/revoke: now}"), Err(Reason::Revoked));
}

#[test]
fn what_only_the_operator_can_do_is_refused() {
    let key = |spec: &str| read(&all(&KEY.replace("spec: {", spec)), &[]).expect_err("refused");
    let rotation = "DIR/a.yaml, document 3: spec.rotation: keys are rotated by the operator in a cluster; here, \
                    delete the file of a generated key for a new one, or import another";
    assert_eq!(key("spec: {rotation: {}, "), rotation);
    let network =
        "DIR/a.yaml, document 3: spec.allowedCidrs[0]: \"here\" is not a network such as 10.0.0.0/8";
    assert_eq!(key("spec: {allowedCidrs: [here], "), network);
    let annotated = KEY.replace("{name: ci}", "{name: ci, annotations: {portcullis.dev/rotate: now}}");
    let expected = "DIR/a.yaml, document 3: metadata.annotations.portcullis.dev/rotate: rotation is the work of the operator in a cluster";
    assert_eq!(read(&all(&annotated), &[]).expect_err("refused"), expected);
}
