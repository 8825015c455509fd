//! Makes the certificates between operator and agents, and reads their dates and keys back.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::rotation::Dates;

/// How far back a certificate's life begins: the clocks of two nodes are never the same.
const BACKDATED: SignedDuration = SignedDuration::from_hours(1);

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be made, or its key is none.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// What should be a certificate is none.
    #[error("reading a certificate: {0}")]
    Read(String),
}

/// A certificate and its key, in PEM. No `Debug`: it holds the key.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// What is said in a certificate that matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Its life.
    pub dates: Dates,
    /// Stands for its own key, where it is a CA's (RFC 5280 §4.2.1.2).
    pub key: Vec<u8>,
    /// Stands for the key that signed it (RFC 5280 §4.2.1.1).
    pub signed_by: Vec<u8>,
}

/// Reads the first certificate of a PEM text.
pub fn read(pem: &str) -> Result<Facts, Error> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| Error::Read(error.to_string()))?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| Error::Read(error.to_string()))?;
    let second = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| Error::Read(error.to_string()))
    };
    let validity = certificate.validity();
    let mut facts = Facts {
        dates: Dates {
            made: second(validity.not_before)?.saturating_add(BACKDATED).unwrap_or(Timestamp::MAX),
            expires: second(validity.not_after)?,
        },
        key: Vec::new(),
        signed_by: Vec::new(),
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => facts.key = id.0.to_vec(),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                facts.signed_by = id.key_identifier.as_ref().map(|id| id.0.to_vec()).unwrap_or_default();
            }
            _ => {}
        }
    }
    Ok(facts)
}

/// A new CA with this life.
pub fn authority(dates: Dates) -> Result<Identity, Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    // Each has a name of its own: a certificate then tells which of two CAs signed it.
    params.distinguished_name = name(&format!("Kiln builders {}", dates.made));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid(&mut params, dates)?;
    let certificate = params.self_signed(&key)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new certificate for `host` with this life, signed by a CA.
pub fn sign(authority: &Identity, host: &str, usage: ExtendedKeyUsagePurpose, dates: Dates) -> Result<Identity, Error> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.distinguished_name = name(host);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params, dates)?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // A common name has at most 64 characters; what counts is the alternative name.
    name.push(DnType::CommonName, text.chars().take(64).collect::<String>());
    name
}

fn valid(params: &mut CertificateParams, dates: Dates) -> Result<(), Error> {
    let date = |at: Timestamp| {
        OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|error| Error::Read(error.to_string()))
    };
    params.not_before = date(dates.made.saturating_sub(BACKDATED).unwrap_or(Timestamp::MIN))?;
    params.not_after = date(dates.expires)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::{ServerName, UnixTime};
    use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
    use rustls::{RootCertStore, client::verify_server_cert_signed_by_trust_anchor};
    use std::sync::Arc;
    use std::time::Duration;

    fn dates(made: i64, life: i64) -> Dates {
        Dates { made: Timestamp::from_second(made).unwrap(), expires: Timestamp::from_second(made + life).unwrap() }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let life = dates(1_800_000_000, 240);
        let ca = authority(life).unwrap();
        let facts = read(&ca.certificate).unwrap();
        assert_eq!(facts.dates, life);
        let short = dates(1_800_000_010, 60);
        let leaf = sign(&ca, "builder-0", ExtendedKeyUsagePurpose::ServerAuth, short).unwrap();
        let read_back = read(&leaf.certificate).unwrap();
        assert_eq!((read_back.dates, read_back.signed_by), (short, facts.key));
        assert!(read("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").is_err());
    }

    /// rustls takes a certificate from an hour before it was made until the second in which it expires, and of two CAs
    /// finds the one that signed it.
    #[test]
    fn rustls_agrees_on_dates_and_signers() {
        let made = 1_800_000_000;
        let [old, new] = [dates(made, 240), dates(made + 200, 240)].map(|dates| authority(dates).unwrap());
        let mut roots = RootCertStore::empty();
        for ca in [&old, &new] {
            roots.add(CertificateDer::from_pem_slice(ca.certificate.as_bytes()).unwrap()).unwrap();
        }
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        for ca in [&old, &new] {
            let leaf = sign(ca, "builder-0", ExtendedKeyUsagePurpose::ServerAuth, dates(made, 60)).unwrap();
            let der = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
            let parsed = ParsedCertificate::try_from(&der).unwrap();
            let name = ServerName::try_from("builder-0").unwrap();
            rustls::client::verify_server_name(&parsed, &name).unwrap();
            for (second, valid) in [(made - 3601, false), (made - 3600, true), (made + 60, true), (made + 61, false)] {
                let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(second).unwrap()));
                let verified = verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms.all);
                assert_eq!(verified.is_ok(), valid, "{}: {verified:?}", second - made);
            }
        }
    }

    /// Who has stolen a builder's key can be that builder, and nobody else: no other builder, not the operator, no CA.
    #[test]
    fn a_stolen_builder_key_serves_its_one_name() {
        let made = 1_800_000_000;
        let ca = authority(dates(made, 240)).unwrap();
        let der = |of: &Identity| CertificateDer::from_pem_slice(of.certificate.as_bytes()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(der(&ca)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(made).unwrap()));
        let issue = |by: &Identity, name: &str, usage| sign(by, name, usage, dates(made, 60)).unwrap();
        let stolen = issue(&ca, "pool-amd64-1a2b-0", ExtendedKeyUsagePurpose::ServerAuth);
        let stolen_der = der(&stolen);

        let as_server = ParsedCertificate::try_from(&stolen_der).unwrap();
        for (name, taken) in [
            ("pool-amd64-1a2b-0", true),
            ("pool-amd64-1a2b-1", false),
            ("pool-amd64-1a2b-0.kiln-builders", false),
            ("kiln-operator", false),
            ("10.1.2.3", false),
        ] {
            let name = ServerName::try_from(name).unwrap();
            assert_eq!(rustls::client::verify_server_name(&as_server, &name).is_ok(), taken, "{name:?}");
        }

        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider).build().unwrap();
        let operator = issue(&ca, "kiln-operator", ExtendedKeyUsagePurpose::ClientAuth);
        assert!(clients.verify_client_cert(&der(&operator), &[], at).is_ok());
        assert!(clients.verify_client_cert(&stolen_der, &[], at).is_err(), "it is no client's");

        let forged = der(&issue(&stolen, "pool-amd64-1a2b-1", ExtendedKeyUsagePurpose::ServerAuth));
        let forged = ParsedCertificate::try_from(&forged).unwrap();
        let verified = verify_server_cert_signed_by_trust_anchor(
            &forged,
            &roots,
            std::slice::from_ref(&stolen_der),
            at,
            algorithms.all,
        );
        assert!(verified.is_err(), "it is no CA's");
    }
}
