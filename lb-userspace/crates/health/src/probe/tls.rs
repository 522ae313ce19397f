//! TLS of https checks: what is trusted, and the words for what is not.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use lb_model::{check, units::format_duration};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};

/// The largest file of authorities; the system's have a quarter of a megabyte.
const LARGEST: u64 = 8 << 20;

/// When the system's authorities are looked for again, whether some were found or none.
const REREAD: Duration = Duration::from_secs(60);

/// The most files whose faults are kept.
const MOST_FAULTS: usize = 1_024;

/// How long a check waits for a read while there is something that was read before.
const PATIENCE: Duration = Duration::from_millis(100);

/// What TLS connections are made with, kept between checks: one configuration for each file of
/// authorities, one with the system's, one that verifies nothing.
///
/// A file of authorities is read again when it has changed, and the system's authorities, which are
/// many files, once a minute. While it is missing or can't be read,
/// checks that need it have no outcome ([`super::Outcome::Unknown`]): that is no fault of a backend.
///
/// Threads of their own read, one for each source at a time, since a disk may take any time over it. While a read
/// hangs, what was read before holds.
#[derive(Debug, Default)]
pub struct Cache {
    sources: Sources,
    /// What is wrong with files, as it was logged.
    faults: Mutex<BTreeMap<PathBuf, String>>,
    insecure: OnceLock<Arc<ClientConfig>>,
}

/// What is known of each file of authorities; none: of the system's.
type Sources = Arc<Mutex<BTreeMap<Option<PathBuf>, Known>>>;

type Answer = Result<Arc<ClientConfig>, String>;

#[derive(Clone, Debug, Default)]
struct Known {
    /// What was read last and can be used, and of which version of the file.
    config: Option<(Option<Stamp>, Arc<ClientConfig>)>,
    /// When it was looked for last.
    looked: Option<Instant>,
    /// The read that is under way: when it began, and where its outcome comes.
    reading: Option<(Instant, watch::Receiver<Option<Answer>>)>,
}

/// The attributes that distinguish one version of a file from another.
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

    /// The configuration for a check, or why there is none by its `deadline`.
    ///
    /// A user that may change services names any file and reads the reason. So it is the same whatever is wrong with the
    /// file, or it would show which files exist that only `lbd` may read; the log has the cause.
    pub(super) async fn config(&self, tls: &check::Tls, deadline: Instant) -> Answer {
        match &tls.ca_file {
            _ if tls.insecure => Ok(self.insecure.get_or_init(trusting_all).clone()),
            Some(file) => {
                let answer = self.of_file(file, deadline).await;
                self.log(file, answer.as_ref().err());
                answer.map_err(|_| {
                    format!("ca_file {} can't be used; the log of lbd says why", file.display())
                })
            }
            None => self.of_system(Instant::now(), deadline, system_roots).await,
        }
    }

    /// Logs what is wrong with a file, once for each cause.
    fn log(&self, file: &Path, fault: Option<&String>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            None => drop(faults.remove(file)),
            Some(fault) if faults.get(file) == Some(fault) => {}
            Some(fault) => {
                // Files that nothing names any more. Those that are named are logged once more.
                if faults.len() == MOST_FAULTS {
                    faults.clear();
                }
                tracing::warn!("{fault}; checks with it have no outcome");
                faults.insert(file.to_owned(), fault.clone());
            }
        }
    }

    async fn of_file(&self, file: &Path, deadline: Instant) -> Answer {
        let path = file.to_owned();
        let read = move |known: &mut Known| {
            let (stamp, config) = read_file(&path, known.config.take())?;
            known.config = Some((Some(stamp), config.clone()));
            Ok(config)
        };
        let late = || {
            let file = file.display();
            format!("can't read ca_file {file}: the disk does not answer")
        };
        self.read(Some(file.to_owned()), Instant::now(), deadline, read)
            .await
            .unwrap_or_else(|| Err(late()))
    }

    async fn of_system(
        &self,
        now: Instant,
        deadline: Instant,
        read: impl FnOnce() -> RootCertStore + Send + 'static,
    ) -> Answer {
        const MISSING: &str =
            "no authorities on this system; install ca-certificates, or set `ca_file` in the check";
        let known = self.lock().get(&None).cloned().unwrap_or_default();
        let config = known.config.map(|(_, config)| config).ok_or_else(|| MISSING.into());
        let is_fresh =
            known.looked.is_some_and(|when| now.saturating_duration_since(when) < REREAD);
        if is_fresh && known.reading.is_none() {
            return config;
        }
        let read = move |known: &mut Known| {
            let roots = read();
            // While they are being replaced there may be none, and those from before go on.
            if !roots.is_empty() {
                known.config = Some((None, verifying(roots)));
            }
            known.config.as_ref().map(|(_, config)| config.clone()).ok_or_else(|| MISSING.into())
        };
        let late = "can't read the authorities of this system: the disk does not answer";
        self.read(None, now, deadline, read).await.unwrap_or_else(|| Err(late.into()))
    }

    /// What a read finds, which is begun if none of the source is under way. If it takes long: what was known
    /// before, or nothing at the `deadline`.
    async fn read(
        &self,
        source: Option<PathBuf>,
        now: Instant,
        deadline: Instant,
        read: impl FnOnce(&mut Known) -> Answer + Send + 'static,
    ) -> Option<Answer> {
        let (began, mut outcome, before) = {
            let mut sources = self.lock();
            let known = sources.entry(source.clone()).or_default();
            let before = known.config.clone();
            // The sender of a read that broke off is gone.
            let under_way = known.reading.clone().filter(|(_, it)| it.has_changed().is_ok());
            let (began, outcome) = under_way.unwrap_or_else(|| {
                known.looked = Some(now);
                self.begin(source, Known { config: before.clone(), ..Known::default() }, read)
            });
            known.reading = Some((began, outcome.clone()));
            (began, outcome, before)
        };
        let until = match &before {
            Some(_) => began + PATIENCE.min(deadline.saturating_duration_since(began) / 4),
            None => deadline,
        };
        match timeout_at(until, outcome.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone(),
            Ok(Err(_)) | Err(_) => before.map(|(_, config)| Ok(config)),
        }
    }

    /// Has a thread read a source.
    fn begin(
        &self,
        source: Option<PathBuf>,
        mut found: Known,
        read: impl FnOnce(&mut Known) -> Answer + Send + 'static,
    ) -> (Instant, watch::Receiver<Option<Answer>>) {
        let (sender, outcome) = watch::channel(None);
        let sources = Arc::clone(&self.sources);
        spawn_blocking(move || {
            let answer = read(&mut found);
            let mut sources = sources.lock().unwrap_or_else(PoisonError::into_inner);
            let known = sources.entry(source).or_default();
            known.config = found.config;
            known.reading = None;
            drop(sources);
            sender.send_replace(Some(answer));
        });
        (Instant::now(), outcome)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Option<PathBuf>, Known>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a file of authorities, unless it is the one that is known.
fn read_file(
    file: &Path,
    known: Option<(Option<Stamp>, Arc<ClientConfig>)>,
) -> Result<(Stamp, Arc<ClientConfig>), String> {
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
    if let Some((Some(known), config)) = known
        && known == stamp
    {
        return Ok((stamp, config));
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
    Ok((stamp, verifying(roots)))
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
    use std::sync::mpsc;

    use rustls::pki_types::{Der, TrustAnchor};

    use super::*;

    /// A user that may change services names any file, and is not to learn which of them exist.
    #[tokio::test]
    async fn the_reason_is_the_same_whatever_is_wrong_with_a_file_of_authorities() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("ca.pem");
        let (cache, log) = (Cache::new(), dir.path().join("log"));
        let tls = check::Tls { insecure: false, server_name: None, ca_file: Some(file.clone()) };
        let written = fs::File::create(&log).expect("a file");
        let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(written)).finish();
        let run = async || {
            let deadline = Instant::now() + Duration::from_secs(10);
            cache.config(&tls, deadline).await.expect_err("it can't be used")
        };
        let _logged = tracing::subscriber::set_default(subscriber);
        let missing = [run().await, run().await];
        fs::create_dir(&file).expect("a folder");
        let folder = run().await;
        fs::remove_dir(&file).expect("it is there");
        fs::write(&file, "no PEM").expect("a file");
        let reasons = [missing.as_slice(), &[folder, run().await]].concat();
        let same = format!("ca_file {} can't be used; the log of lbd says why", file.display());
        assert_eq!(reasons, vec![same; 4]);
        let log = fs::read_to_string(&log).expect("the log");
        let lines: Vec<_> = log.lines().collect();
        assert_eq!(lines.len(), 3, "once for each cause: {log}");
        for (line, why) in lines.iter().zip(["no such file", "no file of PEM", "no certificate"]) {
            assert!(line.contains(why), "{log}");
        }
    }

    fn some() -> RootCertStore {
        RootCertStore {
            roots: vec![TrustAnchor {
                subject: Der::from_slice(b"subject"),
                subject_public_key_info: Der::from_slice(b"key"),
                name_constraints: None,
            }],
        }
    }

    /// The system's authorities as a check of 2 s finds them at `now`.
    async fn of_system(
        cache: &Cache,
        now: Instant,
        read: impl FnOnce() -> RootCertStore + Send + 'static,
    ) -> Answer {
        cache.of_system(now, Instant::now() + Duration::from_secs(2), read).await
    }

    #[tokio::test]
    async fn the_systems_authorities_are_read_again_and_kept_while_there_are_none() {
        let none = RootCertStore::empty;
        let never = || -> RootCertStore { panic!("it is too early") };
        let (cache, start) = (Cache::new(), Instant::now());
        let just_before = REREAD - Duration::from_millis(1);
        of_system(&cache, start, none).await.expect_err("there are none");
        of_system(&cache, start + just_before, never).await.expect_err("there are still none");
        let first = of_system(&cache, start + REREAD, some).await.expect("there are some by now");
        let same = of_system(&cache, start + REREAD + just_before, never).await;
        assert!(Arc::ptr_eq(&first, &same.expect("they are known")));
        let second = of_system(&cache, start + 2 * REREAD, some).await.expect("there are others");
        assert!(!Arc::ptr_eq(&first, &second));
        let kept = of_system(&cache, start + 3 * REREAD, none).await;
        assert!(Arc::ptr_eq(&second, &kept.expect("they were there before")));
    }

    #[tokio::test]
    async fn a_read_that_hangs_leaves_the_authorities_from_before_and_holds_nobody_up() {
        let (cache, start) = (Cache::new(), Instant::now());
        let (release, hang) = mpsc::channel::<()>();
        let frozen = move || {
            let _ = hang.recv();
            some()
        };
        let first = of_system(&cache, start, some).await.expect("there are some");
        let again = start + REREAD;
        let begun = Instant::now();
        // The runtime has this one thread: what blocks it is never over.
        let kept = of_system(&cache, again, frozen).await.expect("they were there before");
        assert!(Arc::ptr_eq(&first, &kept));
        for _ in 0..100 {
            let never = || -> RootCertStore { panic!("a read is under way") };
            let kept = of_system(&cache, again + REREAD, never).await.expect("they are known");
            assert!(Arc::ptr_eq(&first, &kept));
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        drop(release);
        while cache.lock()[&None].reading.is_some() {
            tokio::task::yield_now().await;
        }
        let second = of_system(&cache, again, some).await.expect("they are read");
        assert!(!Arc::ptr_eq(&first, &second));
    }

    #[tokio::test]
    async fn a_first_read_that_hangs_is_no_fault_of_the_backend() {
        let (cache, now) = (Cache::new(), Instant::now());
        let (release, hang) = mpsc::channel::<()>();
        let frozen = move || {
            let _ = hang.recv();
            some()
        };
        let deadline = now + Duration::from_millis(50);
        let error = cache.of_system(now, deadline, frozen).await.expect_err("nothing is known");
        assert!(error.contains("the disk does not answer"), "{error}");
        drop(release);
    }
}
