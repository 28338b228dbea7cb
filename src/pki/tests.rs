//! What certificates say, read back from the certificates themselves.

use jiff::ToSpan;

use super::leaf::InvalidHost;
use super::*;

fn now() -> Timestamp {
    "2026-11-23T10:00:00Z".parse().expect("a time")
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn authority() -> Authority {
    Authority::generate("test", key(), now()).expect("an authority").0
}

fn endpoint(hosts: &[&str]) -> Purpose {
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    Purpose::Endpoint { names: endpoint_names("agents", "ops", &hosts) }
}

fn read(issued: &Issued) -> Leaf {
    read_leaf(issued.certificate_pem.as_bytes(), issued.key_pem.as_bytes()).expect("a leaf")
}

fn usages(issued: &Issued) -> (bool, bool, bool) {
    let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate_pem.as_bytes()).expect("PEM");
    let (_, certificate) = X509Certificate::from_der(&pem.contents).expect("a certificate");
    let usage = certificate.extended_key_usage().expect("one").expect("present").value;
    (usage.server_auth, usage.client_auth, certificate.is_ca())
}

#[test]
fn the_leaf_of_an_endpoint_carries_the_names_of_its_service_and_the_hosts_of_the_spec() {
    let issued =
        authority().issue(&endpoint(&["mcp.example.com", "10.0.0.7"]), &key(), now()).expect("a leaf");
    let mut names = vec![
        "10.0.0.7",
        "127.0.0.1",
        "::1",
        "localhost",
        "mcp.example.com",
        "ops-mcp",
        "ops-mcp.agents",
        "ops-mcp.agents.svc",
        "ops-mcp.agents.svc.cluster.local",
    ];
    names.sort_unstable();
    assert_eq!(read(&issued).names, names);
    assert_eq!(usages(&issued), (true, false, false));
}

#[test]
fn an_internal_leaf_is_server_and_client_and_names_its_server() {
    let purpose = Purpose::Internal { namespace: "agents".into(), server: "ops".into() };
    let issued = authority().issue(&purpose, &key(), now()).expect("a leaf");
    assert_eq!(read(&issued).names, ["ops.agents.internal.portcullis.dev", "portcullis://server/agents/ops"]);
    assert_eq!(usages(&issued), (true, true, false));
}

#[test]
fn the_operators_leaf_is_a_client_only() {
    let issued = authority().issue(&Purpose::Operator, &key(), now()).expect("a leaf");
    assert_eq!(read(&issued).names, ["portcullis://operator"]);
    assert_eq!(usages(&issued), (false, true, false));
}

#[test]
fn an_authority_reads_back_and_keeps_its_leaves() {
    let (authority, pem) = Authority::generate("test", key(), now()).expect("an authority");
    let again = Authority::from_pem(&pem.certificate_pem, &pem.key_pem).expect("reads back");
    let issued = authority.issue(&endpoint(&[]), &key(), now()).expect("a leaf");
    assert!(!again.must_replace(&read(&issued), &endpoint(&[]), "agents/ops", now()));
    assert!(Authority::from_pem(&pem.certificate_pem, &key().serialize_pem()).is_err());
    assert!(Authority::from_pem(&issued.certificate_pem, &issued.key_pem).is_err(), "a leaf may not sign");
}

#[test]
fn rustls_accepts_the_chain() {
    let authority = authority();
    let issued = authority.issue(&endpoint(&[]), &key(), now()).expect("a leaf");
    let der = |pem: &str| {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        rustls::pki_types::CertificateDer::from(pem.contents)
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der(authority.certificate_pem())).expect("a root");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), provider)
        .build()
        .expect("a verifier");
    let time = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        now().as_second().unsigned_abs(),
    ));
    let check = |name: &'static str| {
        let name = rustls::pki_types::ServerName::try_from(name).expect("a name");
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            verifier.as_ref(),
            &der(&issued.certificate_pem),
            &[],
            &name,
            &[],
            time,
        )
        .is_ok()
    };
    assert!(check("ops-mcp.agents.svc"));
    assert!(check("127.0.0.1"));
    assert!(!check("other-mcp.agents.svc"));
}

#[test]
fn a_leaf_is_renewed_before_two_thirds_of_its_life_and_not_much_before() {
    let leaf = read(&authority().issue(&endpoint(&[]), &key(), now()).expect("a leaf"));
    for seed in ["agents/ops", "a/b", "c/d", "e/f"] {
        let renewal = leaf.renewal(seed);
        assert!(renewal <= now() + (60 * 24).hours(), "{seed}: {renewal}");
        assert!(renewal >= now() + (52 * 24).hours(), "{seed}: {renewal}");
        assert_eq!(renewal, leaf.renewal(seed));
    }
    assert_ne!(leaf.renewal("agents/ops"), leaf.renewal("a/b"), "not all at once");
}

#[test]
fn a_leaf_is_replaced_when_its_names_its_authority_or_its_time_do_not_fit() {
    let authority = authority();
    let leaf = read(&authority.issue(&endpoint(&[]), &key(), now()).expect("a leaf"));
    assert!(!authority.must_replace(&leaf, &endpoint(&[]), "agents/ops", now()));
    assert!(authority.must_replace(&leaf, &endpoint(&["mcp.example.com"]), "agents/ops", now()));
    assert!(authority.must_replace(&leaf, &endpoint(&[]), "agents/ops", now() + (61 * 24).hours()));
    assert!(self::authority().must_replace(&leaf, &endpoint(&[]), "agents/ops", now()));
}

#[test]
fn a_leaf_ends_no_later_than_its_authority() {
    let authority = authority();
    let late = now() + (10 * 365 * 24 - 48).hours();
    let leaf = read(&authority.issue(&endpoint(&[]), &key(), late).expect("a leaf"));
    assert_eq!(leaf.not_after, authority.not_after);
}

#[test]
fn a_key_that_is_not_the_certificates_makes_no_leaf() {
    let issued = authority().issue(&endpoint(&[]), &key(), now()).expect("a leaf");
    assert_eq!(read_leaf(issued.certificate_pem.as_bytes(), key().serialize_pem().as_bytes()), None);
    assert_eq!(read_leaf(b"nothing", b"nothing"), None);
}

#[test]
fn a_tenant_gets_no_certificate_for_another_server() {
    let own = endpoint_names("agents", "ops", &[]);
    let check = |host: &str| host_name(host, &own, |name| name == "billing");
    assert_eq!(check("mcp.example.com"), Ok("mcp.example.com".into()));
    assert_eq!(check("MCP.Example.COM"), Ok("mcp.example.com".into()));
    assert_eq!(check("192.0.2.7"), Ok("192.0.2.7".into()));
    assert_eq!(check("ops-mcp.agents.svc"), Ok("ops-mcp.agents.svc".into()));
    for inside in [
        "pay-mcp.billing.svc",
        "pay-mcp.billing.SVC",
        "pay-mcp.billing.svc.cluster.local",
        "x.cluster.local",
        "pay-mcp.billing.svc.corp.example",
        "pay-mcp.billing",
        "pay-mcp",
    ] {
        assert_eq!(check(inside), Err(InvalidHost::InsideCluster), "{inside}");
    }
    assert_eq!(check("ops.billing.internal.portcullis.dev"), Err(InvalidHost::Reserved));
    for malformed in ["*.example.com", "pay-mcp.billing.svc.", "", "a..b", "-a.b", "host:443", "1.2.3.999"] {
        assert_eq!(check(malformed), Err(InvalidHost::Malformed), "{malformed}");
    }
}
