//! The serializer `auth`: whose signature a body has, and making one.
//!
//! A signed body is base64 of five fields joined by the bytes 00 01: base64 of the signer's id, base64 of the
//! signature, content type, content encoding, payload. Celery 5.2 and 5.3 have the first two raw; both are read, the
//! new form is written. The id is the values of the certificate's issuer joined by blanks, and the serial number. The
//! signature is RSA-PSS with MGF1 and the longest salt that fits.
//!
//! Only the payload is signed: not the headers, so not the task's name, its id, its queue, nor when it was sent. A
//! signed body can be sent again, or under another task's name; that is Celery's format, and no receiver can see it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _};
use rsa::rand_core::OsRng;
use rsa::sha2::{Digest as _, Sha256, Sha384, Sha512};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, Pss, RsaPrivateKey, RsaPublicKey};
use umbel_protocol::message::{Reason, quoted};
use x509_cert::Certificate;
use x509_cert::der::asn1::Any;
use x509_cert::der::{Encode as _, Tag, Tagged as _};

const SEPARATOR: &[u8] = &[0, 1];

/// Bits that a key must have. Shorter ones can be broken, so what they sign proves nothing.
const LEAST_BITS: usize = 2048;

/// Celery's `security_digest`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Digest {
    /// SHA-256, Celery's default.
    #[default]
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl std::str::FromStr for Digest {
    type Err = KeyError;

    fn from_str(name: &str) -> Result<Digest, KeyError> {
        match name.to_ascii_lowercase().as_str() {
            "sha256" => Ok(Digest::Sha256),
            "sha384" => Ok(Digest::Sha384),
            "sha512" => Ok(Digest::Sha512),
            _ => Err(KeyError::new(format!(
                "digest {name:?} is not one of sha256, sha384 and sha512"
            ))),
        }
    }
}

impl Digest {
    fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Digest::Sha256 => Sha256::digest(bytes).to_vec(),
            Digest::Sha384 => Sha384::digest(bytes).to_vec(),
            Digest::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    /// The scheme with the longest salt that fits a key of so many bits.
    fn scheme(self, bits: usize) -> Pss {
        let room = (bits - 1).div_ceil(8) - 2;
        match self {
            Digest::Sha256 => Pss::new_with_salt::<Sha256>(room - 32),
            Digest::Sha384 => Pss::new_with_salt::<Sha384>(room - 48),
            Digest::Sha512 => Pss::new_with_salt::<Sha512>(room - 64),
        }
    }
}

/// A key or certificate that cannot be used. Never quotes a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl KeyError {
    fn new(why: impl Into<String>) -> KeyError {
        KeyError(why.into())
    }
}

struct Known {
    key: RsaPublicKey,
    not_after: Timestamp,
}

/// Certificates that may sign.
pub struct Keyring {
    known: BTreeMap<String, Known>,
    digest: Digest,
    clock: fn() -> Timestamp,
}

impl Keyring {
    /// A keyring without certificates. `clock` says what time it is when a signature is looked at.
    pub fn new(digest: Digest, clock: fn() -> Timestamp) -> Keyring {
        Keyring {
            known: BTreeMap::new(),
            digest,
            clock,
        }
    }

    /// Adds all certificates of a PEM text; answers their ids. One that has expired is added, too: what it signed is
    /// refused with that reason.
    ///
    /// # Errors
    /// [`KeyError`]: no certificate in it, one that is no RSA certificate of 2048 bits or more, or one that is known.
    pub fn add(&mut self, pem: &[u8]) -> Result<Vec<String>, KeyError> {
        let chain =
            Certificate::load_pem_chain(pem).map_err(|err| KeyError::new(format!("no PEM certificate: {err}")))?;
        if chain.is_empty() {
            return Err(KeyError::new("no certificate in it"));
        }
        let mut ids = Vec::new();
        for certificate in chain {
            let id = id(&certificate)?;
            let not_after = certificate.tbs_certificate.validity.not_after.to_unix_duration();
            let not_after = i64::try_from(not_after.as_secs())
                .ok()
                .and_then(|seconds| Timestamp::from_second(seconds).ok())
                .unwrap_or(Timestamp::MAX);
            let key = public_key(&certificate)?;
            if self.known.insert(id.clone(), Known { key, not_after }).is_some() {
                return Err(KeyError::new(format!("certificate {id:?} is there twice")));
            }
            ids.push(id);
        }
        Ok(ids)
    }

    /// Ids of the certificates, and whether each has expired.
    pub fn certificates(&self) -> impl Iterator<Item = (&str, bool)> {
        let now = (self.clock)();
        self.known
            .iter()
            .map(move |(id, known)| (id.as_str(), now >= known.not_after))
    }

    /// What was signed, with its content type, if the signature is good.
    pub(crate) fn open(&self, body: &[u8]) -> Result<Signed, Reason> {
        let refused = |why: &str| Reason::Signature(why.to_owned());
        let joined: Vec<u8> = body
            .iter()
            .copied()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        let fields = STANDARD
            .decode(joined)
            .map_err(|_| refused("the body is no base64, so it was not signed"))?;
        let Fields {
            signer,
            signature,
            content_type,
            content_encoding,
            payload,
        } = self
            .new_layout(&fields)
            .or_else(|| self.raw_layout(&fields))
            .ok_or_else(|| refused("the body has not the five fields of a signed one"))?;
        let known = self
            .known
            .get(&signer)
            .ok_or_else(|| Reason::Signature(format!("signer {} is not known", quoted(&signer))))?;
        if (self.clock)() >= known.not_after {
            return Err(Reason::Signature(format!(
                "the certificate of {} has expired",
                quoted(&signer)
            )));
        }
        let hashed = self.digest.of(payload);
        known
            .key
            .verify(self.digest.scheme(known.key.n().bits()), &hashed, &signature)
            .map_err(|_| Reason::Signature(format!("it is not that of {} on this body", quoted(&signer))))?;
        Ok(Signed {
            content_type: String::from_utf8_lossy(content_type).into_owned(),
            content_encoding: String::from_utf8_lossy(content_encoding).into_owned(),
            payload: payload.to_vec(),
        })
    }

    /// Celery 5.5 and later.
    #[allow(clippy::unused_self)]
    fn new_layout<'a>(&self, fields: &'a [u8]) -> Option<Fields<'a>> {
        let [signer, signature, content_type, content_encoding, payload] = split(fields)?;
        Some(Fields {
            signer: String::from_utf8(STANDARD.decode(signer).ok()?).ok()?,
            signature: STANDARD.decode(signature).ok()?,
            content_type,
            content_encoding,
            payload,
        })
    }

    /// Celery 5.2 and 5.3: the signature may hold the separator, so it is cut by the length of the signer's key.
    fn raw_layout<'a>(&self, fields: &'a [u8]) -> Option<Fields<'a>> {
        let at = find(fields)?;
        let signer = std::str::from_utf8(&fields[..at]).ok()?.to_owned();
        let rest = &fields[at + SEPARATOR.len()..];
        // An unknown signer is named as such, whatever its signature is.
        let length = self.known.get(&signer).map_or(0, |known| known.key.size());
        let (signature, rest) = rest.split_at_checked(length)?;
        if length == 0 {
            return signer.chars().any(|ch| ch == ' ').then(|| Fields {
                signer,
                signature: Vec::new(),
                content_type: &[],
                content_encoding: &[],
                payload: &[],
            });
        }
        let rest = rest.strip_prefix(SEPARATOR)?;
        let at = find(rest)?;
        let (content_type, rest) = (&rest[..at], &rest[at + SEPARATOR.len()..]);
        let at = find(rest)?;
        Some(Fields {
            signer,
            signature: signature.to_vec(),
            content_type,
            content_encoding: &rest[..at],
            payload: &rest[at + SEPARATOR.len()..],
        })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("certificates", &self.known.keys())
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

struct Fields<'a> {
    signer: String,
    signature: Vec<u8>,
    content_type: &'a [u8],
    content_encoding: &'a [u8],
    payload: &'a [u8],
}

/// What was inside of a good signature.
pub(crate) struct Signed {
    pub(crate) content_type: String,
    pub(crate) content_encoding: String,
    pub(crate) payload: Vec<u8>,
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(SEPARATOR.len()).position(|window| window == SEPARATOR)
}

/// Split at most four times, from the left: the payload may hold anything.
fn split(bytes: &[u8]) -> Option<[&[u8]; 5]> {
    let mut fields: [&[u8]; 5] = [&[]; 5];
    let mut rest = bytes;
    for field in fields.iter_mut().take(4) {
        let at = find(rest)?;
        *field = &rest[..at];
        rest = &rest[at + SEPARATOR.len()..];
    }
    fields[4] = rest;
    Some(fields)
}

/// A private key and the id of its certificate.
pub struct Signer {
    key: RsaPrivateKey,
    id: String,
    digest: Digest,
}

impl Signer {
    /// From PEM texts: a key without a password (PKCS#8 or PKCS#1), and its certificate.
    ///
    /// # Errors
    /// [`KeyError`]: not readable, or not belonging together.
    pub fn new(key: &str, certificate: &[u8], digest: Digest) -> Result<Signer, KeyError> {
        if key.contains("ENCRYPTED") {
            return Err(KeyError::new(
                "the private key has a password; keys without one, in a Secret, are read",
            ));
        }
        // The errors of the parsers say what, never which bytes.
        let key = RsaPrivateKey::from_pkcs8_pem(key)
            .or_else(|_| RsaPrivateKey::from_pkcs1_pem(key))
            .map_err(|err| KeyError::new(format!("no RSA private key in PEM: {err}")))?;
        let chain = Certificate::load_pem_chain(certificate)
            .map_err(|err| KeyError::new(format!("no PEM certificate: {err}")))?;
        let certificate = chain.first().ok_or_else(|| KeyError::new("no certificate in it"))?;
        if public_key(certificate)? != key.to_public_key() {
            return Err(KeyError::new("the private key is not that of the certificate"));
        }
        Ok(Signer {
            id: id(certificate)?,
            key,
            digest,
        })
    }

    /// The signed body, as Celery 5.5 and later write it.
    ///
    /// # Errors
    /// No random numbers from the system.
    pub(crate) fn seal(&self, payload: &[u8], content_type: &str, content_encoding: &str) -> Result<Vec<u8>, String> {
        let hashed = self.digest.of(payload);
        let signature = self
            .key
            .sign_with_rng(&mut OsRng, self.scheme(), &hashed)
            .map_err(|err| format!("not signed: {err}"))?;
        let fields = [
            STANDARD.encode(&self.id).as_bytes(),
            STANDARD.encode(signature).as_bytes(),
            content_type.as_bytes(),
            content_encoding.as_bytes(),
            payload,
        ]
        .join(SEPARATOR);
        Ok(STANDARD.encode(fields).into_bytes())
    }

    /// Blinded: the time that signing takes says less about the key.
    fn scheme(&self) -> Pss {
        let mut scheme = self.digest.scheme(self.key.n().bits());
        scheme.blinded = true;
        scheme
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

fn public_key(certificate: &Certificate) -> Result<RsaPublicKey, KeyError> {
    let der = certificate
        .tbs_certificate
        .subject_public_key_info
        .to_der()
        .map_err(|err| KeyError::new(format!("no public key: {err}")))?;
    let key = RsaPublicKey::from_public_key_der(&der)
        .map_err(|err| KeyError::new(format!("its key is no RSA key: {err}")))?;
    match key.n().bits() {
        bits if bits < LEAST_BITS => Err(KeyError::new(format!(
            "its key has {bits} bits; {LEAST_BITS} is the least"
        ))),
        _ => Ok(key),
    }
}

/// The name under which Celery knows a certificate.
fn id(certificate: &Certificate) -> Result<String, KeyError> {
    let certificate = &certificate.tbs_certificate;
    let mut words = Vec::new();
    for attribute in certificate.issuer.0.iter().flat_map(|name| name.0.iter()) {
        words.push(value(&attribute.value)?);
    }
    words.push(BigUint::from_bytes_be(certificate.serial_number.as_bytes()).to_string());
    Ok(words.join(" "))
}

fn value(value: &Any) -> Result<String, KeyError> {
    let bytes = value.value();
    match value.tag() {
        Tag::BmpString => {
            let units: Vec<u16> = bytes
                .chunks_exact(2)
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect();
            String::from_utf16(&units).map_err(|_| KeyError::new("its issuer is no text"))
        }
        Tag::TeletexString => Ok(bytes.iter().map(|byte| char::from(*byte)).collect()),
        _ => String::from_utf8(bytes.to_vec()).map_err(|_| KeyError::new("its issuer is no text")),
    }
}
