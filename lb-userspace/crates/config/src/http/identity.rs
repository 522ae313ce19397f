//! The certificate and the key of the TLS listener.

use std::{fmt, sync::Arc};

use ring::digest::{SHA256, digest};
use rustls::{
    ServerConfig,
    client::verify_server_name,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::ParsedCertificate,
};

/// A certificate and its key, ready for use.
#[derive(Clone)]
pub struct Identity {
    config: Arc<ServerConfig>,
    certificate: CertificateDer<'static>,
    /// Of both, to detect another one.
    digest: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Which of the two files makes no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrongIdentity {
    /// The certificate: its mistake.
    Certificate(String),
    /// The key: its mistake.
    Key(String),
}

impl Identity {
    /// Of PEM files: a certificate with those that lead to its authority, and its key.
    ///
    /// # Errors
    ///
    /// One of them is none, or they do not belong together.
    pub fn new(certificate: &[u8], key: &[u8]) -> Result<Self, WrongIdentity> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
        let chain = chain.map_err(|_| WrongIdentity::Certificate("it is no PEM file".into()))?;
        let Some(first) = chain.first().cloned() else {
            return Err(WrongIdentity::Certificate(
                "no certificate in it; it begins with -----BEGIN CERTIFICATE-----".into(),
            ));
        };
        // Its error could contain parts of the key.
        let private = PrivateKeyDer::from_pem_slice(key).map_err(|_| {
            WrongIdentity::Key(
                "no private key in it; it begins with -----BEGIN PRIVATE KEY-----".into(),
            )
        })?;
        let wrong = |error: rustls::Error| match error {
            rustls::Error::InconsistentKeys(_) => {
                WrongIdentity::Key("it is not the key of the certificate".into())
            }
            rustls::Error::InvalidCertificate(why) => {
                WrongIdentity::Certificate(format!("the certificate can't be used: {why:?}"))
            }
            _ => WrongIdentity::Key(
                "no key that TLS is spoken with: RSA, ECDSA or Ed25519 in PKCS#8".into(),
            ),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(wrong)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let both = [certificate, &[0], key].concat();
        let digest = digest(&SHA256, &both).as_ref().try_into().expect("SHA-256 has 32 bytes");
        Ok(Self { config: Arc::new(config), certificate: first, digest })
    }

    /// Whether the certificate is for a host of this name.
    #[must_use]
    pub fn is_for(&self, name: &str) -> bool {
        let certificate = ParsedCertificate::try_from(&self.certificate);
        let (Ok(certificate), Ok(name)) = (certificate, ServerName::try_from(name)) else {
            return false;
        };
        verify_server_name(&certificate, &name).is_ok()
    }

    /// For a listener.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["lb".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_certificate_goes_with_its_key_only() {
        let ((certificate, key), (other, other_key)) = (made(), made());
        let identity =
            |certificate: &str, key: &str| Identity::new(certificate.as_bytes(), key.as_bytes());
        let first = identity(&certificate, &key).expect("they belong together");
        assert_eq!(first, identity(&certificate, &key).expect("as before"));
        assert_ne!(first, identity(&other, &other_key).expect("they belong together"));
        assert_eq!(format!("{first:?}"), "Identity(..)");
        for (certificate, key, wrong) in [
            (&*certificate, &*other_key, "Key(\"it is not the key of the certificate\")"),
            (
                &key,
                &key,
                "Certificate(\"no certificate in it; it begins with -----BEGIN CERTIFICATE-----\")",
            ),
            (
                &certificate,
                &certificate,
                "Key(\"no private key in it; it begins with -----BEGIN PRIVATE KEY-----\")",
            ),
            (
                "",
                &key,
                "Certificate(\"no certificate in it; it begins with -----BEGIN CERTIFICATE-----\")",
            ),
        ] {
            assert_eq!(format!("{:?}", identity(certificate, key).expect_err("they don't")), wrong);
        }
    }
}
