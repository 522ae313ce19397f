//! HTTP over TLS: good certificates, and the reasons against others.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};

use lb_health::{
    probe::{self, Outcome, tls::Cache},
    vip,
};
use lb_model::check::{Http, Kind, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd,
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;

use crate::kit::{LONG, SHORT, answering, failure, make_probe, run, serve, unknown};

/// An authority of the tests' own, and the folder of its file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    folder: TempDir,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { certificate: certificate.der().clone(), issuer: Issuer::new(params, key), folder }
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn trusted(&self) -> Tls {
        Tls { ca_file: Some(self.file()), ..Tls::default() }
    }

    /// A server's configuration with a certificate for the loopback address and `www.example.com`.
    fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let mut params = CertificateParams::new(["www.example.com".into()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        config(certificate.der().clone(), &key)
    }
}

fn config(certificate: CertificateDer<'static>, key: &KeyPair) -> ServerConfig {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap()
}

fn builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
}

/// Serves `200 OK` over TLS; reports the name that each client requested.
fn serve_tls(config: ServerConfig) -> (SocketAddr, mpsc::Receiver<Option<String>>) {
    let (sender, names) = mpsc::channel();
    let config = Arc::new(config);
    let address = serve(move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        let mut request = Vec::new();
        let mut byte = [0];
        while !request.ends_with(b"\r\n\r\n") {
            if !stream.read(&mut byte).is_ok_and(|read| read == 1) {
                return;
            }
            request.push(byte[0]);
        }
        let _ = sender.send(stream.conn.server_name().map(str::to_owned));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nhealthy");
        stream.conn.send_close_notify();
        let _ = stream.flush();
    });
    (address, names)
}

fn get(tls: Tls) -> Kind {
    Kind::Https(Http { body: Some("healthy".into()), ..Http::default() }, tls)
}

#[tokio::test]
async fn a_certificate_of_the_authority_for_the_address_is_good() {
    let authority = Authority::new("one");
    let (address, names) = serve_tls(authority.server(|_| {}));
    assert_eq!(run(get(authority.trusted()), address, LONG).await, Outcome::Up);
    assert_eq!(names.recv().unwrap(), None);
}

#[tokio::test]
async fn the_name_is_that_of_the_host_or_the_one_configured() {
    let authority = Authority::new("one");
    let (address, names) = serve_tls(authority.server(|params| {
        params.subject_alt_names.truncate(1);
    }));
    let outcome_of = |host: Option<&str>, server_name: Option<&str>| {
        let http = Http { host: host.map(Into::into), ..Http::default() };
        let tls = Tls { server_name: server_name.map(Into::into), ..authority.trusted() };
        run(Kind::Https(http, tls), address, LONG)
    };
    assert_eq!(outcome_of(Some("www.example.com:8443"), None).await, Outcome::Up);
    assert_eq!(names.recv().unwrap().as_deref(), Some("www.example.com"));
    assert_eq!(outcome_of(Some("other.example.com"), Some("www.example.com")).await, Outcome::Up);
    assert_eq!(names.recv().unwrap().as_deref(), Some("www.example.com"));
    assert_eq!(
        failure(outcome_of(None, None).await),
        "certificate not valid for 127.0.0.1, only for www.example.com"
    );
    assert_eq!(
        failure(outcome_of(None, Some("other.example.com")).await),
        "certificate not valid for other.example.com, only for www.example.com"
    );
    assert!(unknown(outcome_of(None, Some("no name")).await).contains("set `server_name`"));
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_bad_and_says_by_how_much() {
    let authority = Authority::new("one");
    let (expired, _) = serve_tls(authority.server(|params| {
        params.not_after = (SystemTime::now() - Duration::from_secs(3 * 86_400 + 60)).into();
    }));
    let reason = failure(run(get(authority.trusted()), expired, LONG).await);
    assert_eq!(reason, "certificate expired 3d ago");
    let (early, _) = serve_tls(authority.server(|params| {
        params.not_before = date_time_ymd(4000, 1, 1);
    }));
    let reason = failure(run(get(authority.trusted()), early, LONG).await);
    assert!(reason.starts_with("certificate not valid yet, only in 7"), "{reason}");
    assert!(reason.ends_with("; compare the clocks"), "{reason}");
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_bad() {
    let (authority, other) = (Authority::new("one"), Authority::new("two"));
    let (address, _) = serve_tls(other.server(|_| {}));
    let reason = failure(run(get(authority.trusted()), address, LONG).await);
    let file = authority.file();
    assert_eq!(reason, format!("certificate not issued by an authority in {}", file.display()));
    // The system knows none of them, or has none.
    let reason = match run(get(Tls::default()), address, LONG).await {
        Outcome::Failed { reason, .. } | Outcome::Unknown { reason } => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason.contains("unknown issuer") || reason.contains("no authorities"), "{reason}");
    assert!(reason.contains("set `ca_file`"), "{reason}");
}

#[tokio::test]
async fn a_certificate_that_is_its_own_authority_can_be_trusted() {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["127.0.0.1".into()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("self.pem");
    fs::write(&file, certificate.pem()).unwrap();
    let (address, _) = serve_tls(config(certificate.der().clone(), &key));
    let tls = Tls { ca_file: Some(file), ..Tls::default() };
    assert_eq!(run(get(tls), address, LONG).await, Outcome::Up);
}

#[tokio::test]
async fn insecure_takes_any_certificate() {
    let authority = Authority::new("one");
    let (address, _) = serve_tls(authority.server(|params| {
        params.not_after = date_time_ymd(2001, 1, 1);
        params.subject_alt_names.clear();
    }));
    let missing = Some("/nonexistent/ca.pem".into());
    let tls = Tls { insecure: true, ca_file: missing, ..Tls::default() };
    assert_eq!(run(get(tls), address, LONG).await, Outcome::Up);
    assert!(failure(run(get(authority.trusted()), address, LONG).await).starts_with("certificate"));
}

async fn outcome_with(cache: &Cache, tls: &Tls, address: SocketAddr) -> Outcome {
    let make_probe = make_probe(get(tls.clone()), address, LONG);
    probe::run(&make_probe, &vip::Network::new(), cache).await
}

#[tokio::test]
async fn a_changed_file_of_authorities_is_read_again() {
    let (authority, other) = (Authority::new("one"), Authority::new("a longer name"));
    let (address, _) = serve_tls(other.server(|_| {}));
    let (cache, tls) = (Cache::new(), authority.trusted());
    failure(outcome_with(&cache, &tls, address).await);
    fs::copy(other.file(), authority.file()).unwrap();
    assert_eq!(outcome_with(&cache, &tls, address).await, Outcome::Up);
    assert_eq!(outcome_with(&cache, &tls, address).await, Outcome::Up);
    fs::remove_file(authority.file()).unwrap();
    unknown(outcome_with(&cache, &tls, address).await);
    fs::copy(other.file(), authority.file()).unwrap();
    assert_eq!(outcome_with(&cache, &tls, address).await, Outcome::Up);
}

#[tokio::test]
async fn a_file_of_authorities_that_is_none_is_no_fault_of_the_backend() {
    let authority = Authority::new("one");
    let (address, _) = serve_tls(authority.server(|_| {}));
    let outcome_of =
        |file: &Path| run(get(Tls { ca_file: Some(file.into()), ..Tls::default() }), address, LONG);
    // Which of them it is, only the log shows: a user that may change services is not to learn which files exist.
    let reason =
        |file: &Path| format!("ca_file {} can't be used; the log of lbd says why", file.display());
    let missing = authority.folder.path().join("missing.pem");
    assert_eq!(unknown(outcome_of(&missing).await), reason(&missing));
    let empty = authority.folder.path().join("empty.pem");
    for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(&empty, text).unwrap();
        assert_eq!(unknown(outcome_of(&empty).await), reason(&empty), "{text}");
    }
    for special in [authority.folder.path(), Path::new("/dev/zero")] {
        assert_eq!(unknown(outcome_of(special).await), reason(special));
    }
}

#[tokio::test]
async fn a_server_without_tls_is_named() {
    let authority = Authority::new("one");
    let plain = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 4_096]);
    });
    let reason = failure(run(get(authority.trusted()), plain, LONG).await);
    assert_eq!(reason, "answers, but not with TLS");
    let silent = answering("");
    let reason = failure(run(get(authority.trusted()), silent, SHORT).await);
    assert_eq!(reason, "connects, but no TLS handshake within 200ms");
    let closing = serve(|mut stream| {
        let _ = stream.read(&mut [0; 4_096]);
    });
    let reason = failure(run(get(authority.trusted()), closing, LONG).await);
    assert!(
        ["closed the connection in the TLS handshake", "connection reset"].contains(&&*reason),
        "{reason}"
    );
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_of_the_client_is_named() {
    let authority = Authority::new("one");
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".into()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "server");
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate.clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let (address, _) = serve_tls(config);
    let reason = failure(run(get(authority.trusted()), address, LONG).await);
    assert_eq!(reason, "TLS alert CertificateRequired from the backend");
}

#[tokio::test]
async fn every_question_sees_the_certificate() {
    let authority = Authority::new("one");
    let (address, names) = serve_tls(authority.server(|_| {}));
    let (cache, tls) = (Cache::new(), authority.trusted());
    for _ in 0..3 {
        assert_eq!(outcome_with(&cache, &tls, address).await, Outcome::Up);
        names.recv().unwrap();
    }
}
