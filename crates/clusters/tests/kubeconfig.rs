//! What a kubeconfig may hold, and what is refused with which words.

#![allow(clippy::unwrap_used)] // Helpers of tests fail as tests do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use umbel_clusters::kubeconfig::{MAX_BYTES, parse};

const CA: &str = include_str!("fixtures/ca.pem");
/// Stands for a credential: no message may repeat it.
const CANARY: &str = "canary-7f3a9c";

fn ca() -> String {
    STANDARD.encode(CA)
}

fn key() -> String {
    STANDARD.encode("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
}

/// A good kubeconfig with these lines as its cluster and its user.
fn file(cluster: &str, user: &str) -> String {
    let indent = |lines: &str| format!("    {}\n", lines.replace('\n', "\n    "));
    format!(
        "apiVersion: v1\nkind: Config\npreferences: {{}}\ncurrent-context: here\n\
         contexts:\n- name: here\n  context: {{cluster: c, user: u, namespace: default}}\n\
         clusters:\n- name: c\n  cluster:\n{}\
         users:\n- name: u\n  user:\n{}",
        indent(cluster),
        indent(user)
    )
}

fn cluster(extra: &str) -> String {
    format!(
        "server: https://192.0.2.10:6443\ncertificate-authority-data: {}\n{extra}",
        ca()
    )
}

fn user() -> String {
    format!("token: {CANARY}")
}

fn server(address: &str) -> String {
    file(
        &format!("server: \"{address}\"\ncertificate-authority-data: {}", ca()),
        &user(),
    )
}

fn refusal(text: &str) -> String {
    match parse(text.as_bytes()) {
        Ok(_) => "accepted".to_owned(),
        Err(why) => why.to_string(),
    }
}

#[test]
fn a_token_or_an_inline_client_certificate_is_accepted() {
    let certificate = format!("client-certificate-data: {}\nclient-key-data: {}", ca(), key());
    for text in [
        file(&cluster(""), &user()),
        file(&cluster(""), &certificate),
        file(
            &cluster("tls-server-name: api.example.com\ndisable-compression: true"),
            &user(),
        ),
        file(&cluster("insecure-skip-tls-verify: false\nproxy-url: \"\""), &user()),
        file(
            &cluster("extensions:\n- name: minikube\n  extension: {version: v1}"),
            &user(),
        ),
        server("https://api.example.com/k8s/clusters/c-1"),
        server("https://[2001:db8::1]:6443"),
    ] {
        assert_eq!(refusal(&text), "accepted", "{text}");
    }
}

#[test]
fn json_is_yaml_too() {
    let text = serde_json::json!({
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://h.example:1", "certificate-authority-data": ca()}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    });
    assert_eq!(
        parse(text.to_string().as_bytes())
            .map(|accepted| accepted.server())
            .unwrap(),
        "https://h.example:1/"
    );
}

#[test]
fn d01_what_would_start_a_program_or_read_a_file_is_refused_by_name() {
    let cases = [
        (
            "exec: {command: /bin/sh, apiVersion: client.authentication.k8s.io/v1}",
            "`exec` is not allowed: a worker starts no program",
        ),
        (
            "auth-provider: {name: gcp}",
            "`auth-provider` is not allowed: a worker runs no login plugin",
        ),
        (
            "tokenFile: /var/run/secrets/token",
            "`tokenFile` is not allowed: a worker reads no file",
        ),
        (
            "client-certificate: /etc/cert.pem",
            "`client-certificate` is not allowed: a worker reads no file",
        ),
        (
            "client-key: /etc/key.pem",
            "`client-key` is not allowed: a worker reads no file",
        ),
        (
            "as: admin",
            "`as` is not allowed: a target's user is who the credential says",
        ),
        ("as-uid: \"0\"", "`as-uid` is not allowed"),
        ("as-groups: [system:masters]", "`as-groups` is not allowed"),
        ("as-user-extra: {a: [b]}", "`as-user-extra` is not allowed"),
        (
            "username: root",
            "`username` is not allowed: passwords are not accepted",
        ),
        ("password: x", "`password` is not allowed: passwords are not accepted"),
        ("surprise: 1", "`surprise` is not allowed: it is not known"),
    ];
    for (line, words) in cases {
        // Beside a good token, so that nothing else could be the reason.
        let said = refusal(&file(&cluster(""), &format!("{}\n{line}", user())));
        assert!(said.starts_with("user: ") && said.contains(words), "{line}: {said}");
    }
}

#[test]
fn d01_what_would_weaken_the_connection_is_refused_by_name() {
    let cases = [
        (
            "insecure-skip-tls-verify: true",
            "`insecure-skip-tls-verify` is not allowed: the server's certificate is always",
        ),
        (
            "certificate-authority: /etc/ca.pem",
            "`certificate-authority` is not allowed: a worker reads no file",
        ),
        (
            "proxy-url: http://127.0.0.1:3128",
            "`proxy-url` is not allowed: a proxy would see",
        ),
        ("surprise: yes", "`surprise` is not allowed: it is not known"),
    ];
    for (line, words) in cases {
        let said = refusal(&file(&cluster(line), &user()));
        assert!(said.starts_with("cluster: ") && said.contains(words), "{line}: {said}");
    }
}

#[test]
fn d02_the_server_is_https_without_credentials_and_no_metadata_service() {
    let cases = [
        ("http://192.0.2.10:6443", "is not https"),
        ("192.0.2.10:6443", "is not https"),
        ("unix:///run/api.sock", "is not a URL"),
        ("https://", "is not a URL"),
        ("https://admin:canary-7f3a9c@192.0.2.10", "holds credentials"),
        ("https://canary-7f3a9c@192.0.2.10", "holds credentials"),
        ("https://192.0.2.10/?token=canary-7f3a9c", "has a query or a fragment"),
        ("https://192.0.2.10/#x", "has a query or a fragment"),
        ("https://169.254.169.254", "is a link-local"),
        ("https://[::ffff:169.254.169.254]", "is a link-local"),
        ("https://[fe80::1]", "is a link-local"),
        ("https://0.0.0.0", "is a link-local, multicast or unspecified"),
        ("https://2852039166", "is an address in disguise"),
        ("https://0xa9fea9fe", "is an address in disguise"),
        ("https://169.254.43518", "is an address in disguise"),
        ("https://0251.0376.0251.0376", "is an address in disguise"),
    ];
    for (address, words) in cases {
        let said = refusal(&server(address));
        assert!(
            said.starts_with("cluster: `server` ") && said.contains(words),
            "{address}: {said}"
        );
    }
}

#[test]
fn exactly_one_context_that_uses_what_is_there() {
    let good = file(&cluster(""), &user());
    let cases = [
        (
            good.replace("current-context: here\n", ""),
            "kubeconfig: `current-context` is missing",
        ),
        (
            good.replace("current-context: here", "current-context: there"),
            "current-context names a context",
        ),
        (good.replace("{cluster: c,", "{cluster: d,"), "context names a cluster"),
        (good.replace("user: u,", "user: v,"), "context names a user"),
        (
            good.replace("users:\n", "users:\n- {name: w, user: {exec: {command: x}}}\n"),
            "exactly one user, which its current context uses; it holds 2",
        ),
        (
            good.replace(
                "contexts:\n",
                "contexts:\n- {name: b, context: {cluster: c, user: u}}\n",
            ),
            "exactly one context, which its current context uses; it holds 2",
        ),
        (
            good.replace(
                "clusters:\n",
                "clusters:\n- {name: e, cluster: {server: https://e.example}}\n",
            ),
            "exactly one cluster, which its current context uses; it holds 2",
        ),
        (
            "current-context: here\ncontexts: []\n".to_owned(),
            "exactly one context, which its current context uses; it holds 0",
        ),
        ("{}".to_owned(), "exactly one context"),
    ];
    for (text, words) in cases {
        let said = refusal(&text);
        assert!(said.contains(words), "{said}\n{text}");
    }
}

#[test]
fn credentials_and_authorities_must_be_inline_and_whole() {
    let cases = [
        (
            file("server: https://192.0.2.10", &user()),
            "`certificate-authority-data` is missing",
        ),
        (
            file(
                "server: https://192.0.2.10\ncertificate-authority-data: \"%%\"",
                &user(),
            ),
            "`certificate-authority-data` is not base64",
        ),
        (
            file(
                "server: https://192.0.2.10\ncertificate-authority-data: aGVsbG8=",
                &user(),
            ),
            "`certificate-authority-data` holds no certificate",
        ),
        (file(&cluster(""), ""), "`user` is not a mapping"),
        (file(&cluster(""), "token: \"\""), "has no credential"),
        (
            file(&cluster(""), "token: \"canary-7f3a9c\\nX-Evil: 1\""),
            "`token` holds characters that no token has",
        ),
        (file(&cluster(""), "token: 12"), "`token` is not text"),
        (
            file(&cluster(""), &format!("token: t\nclient-key-data: {}", key())),
            "has a token and a client certificate",
        ),
        (
            file(&cluster(""), &format!("client-key-data: {}", key())),
            "`client-certificate-data` is missing",
        ),
        (
            file(&cluster(""), &format!("client-certificate-data: {}", ca())),
            "`client-key-data` is missing",
        ),
        (
            file(
                &cluster(""),
                &format!("client-certificate-data: {}\nclient-key-data: aGk=", ca()),
            ),
            "`client-key-data` holds no PEM private key",
        ),
    ];
    for (text, words) in cases {
        let said = refusal(&text);
        assert!(said.contains(words), "{said}\n{text}");
    }
}

#[test]
fn text_that_is_no_plain_yaml_is_refused_with_its_place_and_without_its_content() {
    let bomb = "a: &a [x, x]\nb: &b [*a, *a]\ncurrent-context: *b\n";
    let cases: [&[u8]; 7] = [
        b"\x00\xff\xfe",
        b"a: [1, 2",
        b"current-context: canary-7f3a9c\n\tcontexts: []",
        bomb.as_bytes(),
        b"a: 1\n---\nb: 2\n",
        b"a: 1\na: canary-7f3a9c\n",
        b"",
    ];
    for bytes in cases {
        let said = match parse(bytes) {
            Ok(_) => "accepted".to_owned(),
            Err(why) => why.to_string(),
        };
        assert!(
            said.starts_with("the kubeconfig is not plain YAML") || said.contains("is not a mapping"),
            "{said}"
        );
    }
    assert!(refusal(bomb).contains("(line 1, column"), "{}", refusal(bomb));
    assert!(refusal(&"[".repeat(100_000)).starts_with("the kubeconfig is not plain YAML"));
    assert!(refusal(&"x".repeat(MAX_BYTES + 1)).starts_with("the kubeconfig has 1048577 bytes"));
}

#[test]
fn no_refusal_repeats_a_credential() {
    let texts = [
        server(&format!("https://admin:{CANARY}@192.0.2.10")),
        server(&format!("https://192.0.2.10/?token={CANARY}")),
        file(&cluster(""), &format!("token: \"{CANARY} \"")),
        file(&cluster(""), &format!("token: {CANARY}\npassword: {CANARY}")),
        format!("token: {CANARY}\ntoken: {CANARY}\n"),
        format!("token: *{CANARY}\n"),
        format!("- {CANARY}: [\n"),
    ];
    for text in texts {
        let refused = parse(text.as_bytes()).err().expect("refused");
        assert!(!refused.to_string().contains(CANARY), "{refused}");
        assert!(!format!("{refused:?}").contains(CANARY), "{refused:?}");
    }
}
