//! TLS of https checks: what is trusted, and the words for what is not.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};

use crate::{health::check, units::format_duration};

/// The largest file of authorities; the system's have a quarter of a megabyte.
const LARGEST: u64 = 8 << 20;

/// When the system's authorities are looked for again, whether some were found or none.
const REREAD: Duration = Duration::from_secs(60);

/// The most files whose faults are kept.
const MOST_FAULTS: usize = 1_024;

/// What TLS connections are made with, kept between checks: one configuration for each file of
/// authorities, one with the system's, one that verifies nothing.
///
/// A file of authorities is read again when it has changed, and the system's authorities, which are
/// many files, once a minute. While it is missing or can't be read,
/// checks that need it have no outcome ([`super::Outcome::Unknown`]): that is no fault of a backend.
#[derive(Debug, Default)]
pub struct Cache {
    configs: Mutex<Configs>,
}

#[derive(Debug, Default)]
struct Configs {
    files: BTreeMap<PathBuf, (Stamp, Arc<ClientConfig>)>,
    /// What is wrong with files, as it was logged.
    faults: BTreeMap<PathBuf, String>,
    system: Option<Arc<ClientConfig>>,
    /// When the system's authorities were looked for last.
    system_read: Option<Instant>,
    insecure: Option<Arc<ClientConfig>>,
}

/// What tells one version of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
}

impl Cache {
    /// An empty one: the system's authorities are looked for when they are first needed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The configuration for a check, or why there is none.
    ///
    /// Whoever may change services names any file and reads the reason. So it is the same whatever is wrong with the
    /// file, or it would tell which files exist that only `lbd` may read; the log has the cause.
    pub(super) fn config(&self, tls: &check::Tls) -> Result<Arc<ClientConfig>, String> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        match &tls.ca_file {
            _ if tls.insecure => Ok(configs.insecure.get_or_insert_with(trusting_all).clone()),
            Some(file) => {
                let outcome = configs.of_file(file);
                configs.log(file, outcome.as_ref().err());
                outcome.map_err(|_| {
                    format!("ca_file {} can't be used; the log of lbd says why", file.display())
                })
            }
            None => configs.of_system(Instant::now(), system_roots),
        }
    }
}

impl Configs {
    /// Logs what is wrong with a file, once for each cause.
    fn log(&mut self, file: &Path, fault: Option<&String>) {
        match fault {
            None => drop(self.faults.remove(file)),
            Some(fault) if self.faults.get(file) == Some(fault) => {}
            Some(fault) => {
                // Files that nothing names any more. Those that are named are logged once more.
                if self.faults.len() == MOST_FAULTS {
                    self.faults.clear();
                }
                tracing::warn!("{fault}; checks with it have no outcome");
                self.faults.insert(file.to_owned(), fault.clone());
            }
        }
    }

    fn of_file(&mut self, file: &Path) -> Result<Arc<ClientConfig>, String> {
        let unreadable = |error: &std::io::Error| {
            format!("can't read ca_file {}: {}", file.display(), super::reason::text_of(error))
        };
        let metadata = fs::metadata(file).map_err(|error| unreadable(&error))?;
        // Opening a pipe would wait for its writer.
        if !metadata.is_file() || metadata.len() > LARGEST {
            return Err(format!("ca_file {} is no file of PEM certificates", file.display()));
        }
        let modified = metadata.modified().map_err(|error| unreadable(&error))?;
        let stamp = Stamp { modified, length: metadata.len() };
        if let Some((known, config)) = self.files.get(file)
            && *known == stamp
        {
            return Ok(config.clone());
        }
        let mut pem = Vec::new();
        fs::File::open(file)
            .and_then(|opened| opened.take(LARGEST).read_to_end(&mut pem))
            .map_err(|error| unreadable(&error))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem).flatten().collect();
        let mut roots = RootCertStore::empty();
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(format!("no certificate in ca_file {}; write them as PEM", file.display()));
        }
        let config = verifying(roots);
        self.files.insert(file.to_owned(), (stamp, config.clone()));
        Ok(config)
    }

    fn of_system(
        &mut self,
        now: Instant,
        read: impl FnOnce() -> RootCertStore,
    ) -> Result<Arc<ClientConfig>, String> {
        const MISSING: &str =
            "no authorities on this system; install ca-certificates, or set `ca_file` in the check";
        if self.system_read.is_none_or(|when| now.saturating_duration_since(when) >= REREAD) {
            self.system_read = Some(now);
            let roots = read();
            // While they are being replaced there may be none, and those from before go on.
            if !roots.is_empty() {
                self.system = Some(verifying(roots));
            }
        }
        self.system.clone().ok_or_else(|| MISSING.into())
    }
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn verifying(roots: RootCertStore) -> Arc<ClientConfig> {
    finished(builder().with_root_certificates(roots).with_no_client_auth())
}

fn trusting_all() -> Arc<ClientConfig> {
    let verifier = Arc::new(TrustAll(provider()));
    finished(builder().dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has suites for the default versions")
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    // A resumed session shows no certificate, and its ticket may be of another backend with the
    // same name.
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// Takes any certificate, for `insecure = true`.
#[derive(Debug)]
struct TrustAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What went wrong, for people.
pub(super) fn words(error: &Error, ca_file: Option<&Path>) -> String {
    match error {
        Error::InvalidCertificate(error) => words_of_certificate(error, ca_file),
        Error::InvalidMessage(_) => "answers, but not with TLS".into(),
        Error::AlertReceived(alert) => format!("TLS alert {alert:?} from the backend"),
        Error::PeerIncompatible(why) => {
            format!("no TLS version, cipher or key exchange in common ({why:?})")
        }
        Error::NoCertificatesPresented => "shows no certificate".into(),
        other => format!("TLS: {other}"),
    }
}

fn words_of_certificate(error: &CertificateError, ca_file: Option<&Path>) -> String {
    let between = |from: &UnixTime, to: &UnixTime| {
        format_duration(Duration::from_secs(to.as_secs().saturating_sub(from.as_secs())))
    };
    match error {
        CertificateError::Expired => "certificate expired".into(),
        CertificateError::ExpiredContext { time, not_after } => {
            format!("certificate expired {} ago", between(not_after, time))
        }
        CertificateError::NotValidYet => "certificate not valid yet; compare the clocks".into(),
        CertificateError::NotValidYetContext { time, not_before } => {
            format!(
                "certificate not valid yet, only in {}; compare the clocks",
                between(time, not_before)
            )
        }
        CertificateError::NotValidForName => "certificate not valid for the name asked".into(),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = presented.iter().take(3).map(|name| plain(name)).collect::<Vec<_>>();
            let expected = expected.to_str();
            match &*names {
                [] => format!("certificate not valid for {expected}, nor for any other name"),
                names => {
                    format!("certificate not valid for {expected}, only for {}", names.join(", "))
                }
            }
        }
        CertificateError::UnknownIssuer => match ca_file {
            Some(file) => format!("certificate not issued by an authority in {}", file.display()),
            None => "certificate of an unknown issuer; set `ca_file` if the authority is your own"
                .into(),
        },
        CertificateError::Revoked => "certificate revoked".into(),
        CertificateError::BadEncoding => "certificate can't be read".into(),
        CertificateError::BadSignature => "certificate has a bad signature".into(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate is not one for servers".into()
        }
        other => {
            let other = other.to_string();
            if other.contains("CaUsedAsEndEntity") {
                "certificate is an authority's own, not a server's".into()
            } else {
                format!("certificate: {other}")
            }
        }
    }
}

/// A name as rustls shows it, `DnsName("a.example")`, without what is around it.
fn plain(name: &str) -> &str {
    name.split('"').nth(1).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{Der, TrustAnchor};

    use super::*;

    /// The log, as it is written.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Whoever may change services names any file, and is not to learn which of them exist.
    #[test]
    fn the_reason_is_the_same_whatever_is_wrong_with_a_file_of_authorities() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("ca.pem");
        let (cache, log) = (Cache::new(), Log::default());
        let tls = check::Tls { insecure: false, server_name: None, ca_file: Some(file.clone()) };
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let ask = || cache.config(&tls).expect_err("it can't be used");
        let reasons = tracing::subscriber::with_default(subscriber, || {
            let missing = [ask(), ask()];
            fs::create_dir(&file).expect("a folder");
            let folder = ask();
            fs::remove_dir(&file).expect("it is there");
            fs::write(&file, "no PEM").expect("a file");
            let empty = ask();
            [missing.as_slice(), &[folder, empty]].concat()
        });
        let same = format!("ca_file {} can't be used; the log of lbd says why", file.display());
        assert_eq!(reasons, vec![same; 4]);
        let log = String::from_utf8(log.0.lock().expect("nobody panics").clone()).expect("text");
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 3, "once for each cause: {log}");
        for (line, why) in lines.iter().zip(["no such file", "no file of PEM", "no certificate"]) {
            assert!(line.contains(why), "{log}");
        }
    }

    #[test]
    fn the_systems_authorities_are_read_again_and_kept_while_there_are_none() {
        let none = RootCertStore::empty;
        let some = || RootCertStore {
            roots: vec![TrustAnchor {
                subject: Der::from_slice(b"subject"),
                subject_public_key_info: Der::from_slice(b"key"),
                name_constraints: None,
            }],
        };
        let never = || -> RootCertStore { panic!("it is too early") };
        let (mut configs, start) = (Configs::default(), Instant::now());
        let just_before = REREAD - Duration::from_millis(1);
        configs.of_system(start, none).expect_err("there are none");
        configs.of_system(start + just_before, never).expect_err("there are still none");
        let first = configs.of_system(start + REREAD, some).expect("there are some by now");
        let same = configs.of_system(start + REREAD + just_before, never).expect("they are known");
        assert!(Arc::ptr_eq(&first, &same));
        let second = configs.of_system(start + 2 * REREAD, some).expect("there are others");
        assert!(!Arc::ptr_eq(&first, &second));
        let kept = configs.of_system(start + 3 * REREAD, none).expect("they were there before");
        assert!(Arc::ptr_eq(&second, &kept));
    }
}
