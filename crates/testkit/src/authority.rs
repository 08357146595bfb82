//! Certificates for TLS, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::TempDir;

/// An authority of one's own, with what it signs, in a folder that goes with the test.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

fn openssl(args: &[&str]) {
    let done = Command::new("openssl")
        .args(args)
        .output()
        .expect("openssl is installed: `make setup`");
    assert!(
        done.status.success(),
        "openssl {args:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

impl Authority {
    /// Makes one.
    ///
    /// # Panics
    /// When openssl is missing.
    pub fn new(name: &str) -> Authority {
        let authority = Authority {
            folder: TempDir::new("authority"),
        };
        let (certificate, key) = (text(&authority.certificate()), text(&authority.path("ca.key")));
        let subject = format!("/O=Umbel/CN={name}");
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "30",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]);
        authority
    }

    /// Its certificate: what those who trust it are given.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate for these names (`DNS:localhost,IP:127.0.0.1`), valid now or only in the past.
    ///
    /// # Panics
    /// When openssl refuses.
    pub fn issue(&self, file: &str, names: &str, is_valid: bool) -> Issued {
        let issued = Issued {
            certificate: self.path(&format!("{file}.pem")),
            key: self.path(&format!("{file}.key")),
        };
        let (request, extensions) = (text(&self.path("request")), text(&self.path("extensions")));
        std::fs::write(&extensions, format!("subjectAltName={names}\n")).expect("the folder is ours");
        openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &format!("/O=Umbel/CN={file}"),
            "-keyout",
            &text(&issued.key),
            "-out",
            &request,
        ]);
        // `ca` alone takes both ends of the time; it wants its books.
        let books = self.path("books");
        std::fs::create_dir_all(&books).expect("the folder is ours");
        std::fs::write(books.join("index.txt"), "").expect("the folder is ours");
        let config = format!(
            "[ca]\ndefault_ca=own\n[own]\ndatabase={0}/index.txt\nnew_certs_dir={0}\nrand_serial=yes\ndefault_md=sha256\n\
             policy=any\nunique_subject=no\n[any]\nO=optional\nCN=supplied\n",
            text(&books)
        );
        let settings = text(&self.path("ca.conf"));
        std::fs::write(&settings, config).expect("the folder is ours");
        let end = if is_valid { "20990101000000Z" } else { "20200102000000Z" };
        openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            &settings,
            "-cert",
            &text(&self.certificate()),
            "-keyfile",
            &text(&self.path("ca.key")),
            "-startdate",
            "20200101000000Z",
            "-enddate",
            end,
            "-extfile",
            &extensions,
            "-in",
            &request,
            "-out",
            &text(&issued.certificate),
        ]);
        issued
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("the folder's name is ours").to_owned()
}

impl Issued {
    /// What `redis-server` is told to speak TLS on this port with this certificate. Clients need one of their own where
    /// `asks` is set.
    pub fn settings(&self, authority: &Authority, port: u16, asks: bool) -> Vec<String> {
        let pairs = [
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", text(&self.certificate)),
            ("--tls-key-file", text(&self.key)),
            ("--tls-ca-cert-file", text(&authority.certificate())),
            ("--tls-auth-clients", if asks { "yes" } else { "no" }.to_owned()),
        ];
        pairs
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }
}
