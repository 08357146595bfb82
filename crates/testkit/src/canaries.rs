//! Kubeconfigs with a canary each: words that may show nowhere but in the Secret that holds them.

use k8s_openapi::ByteString;

/// Twenty-five kubeconfigs, each with its canary: a good one, tokens of servers that refuse or do not listen, and what is
/// done to a good one, or stands in it besides. `good`, `refuses` and `closed` are `127.0.0.1:port`; the authority is the
/// PEM of who signed for them.
///
/// # Panics
/// When an alteration meets nothing to alter.
pub fn canaries(good: &str, refuses: &str, closed: &str, authority: &[u8]) -> Vec<(String, String)> {
    let authority = serde_json::to_value(ByteString(authority.to_vec())).unwrap_or_default();
    let authority = authority.as_str().unwrap_or_default().to_owned();
    let of = |address: &str, token: &str| {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://{address}', certificate-authority-data: {authority}}}}}]\n\
             users: [{{name: u, user: {{token: {token}}}}}]\n"
        )
    };
    let number = std::cell::Cell::new(0);
    let canary = || {
        number.set(number.get() + 1);
        format!("canary-{:02}-5f3a9c", number.get())
    };
    let token = |address: &str| {
        let canary = canary();
        let text = of(address, &canary);
        (canary, text)
    };
    let user = |more: &str| {
        let canary = canary();
        let text = of(good, "t").replace("token: t", &more.replace("CANARY", &canary));
        (canary, text)
    };
    let with = |from: &str, to: &str| {
        let canary = canary();
        let text = of(good, &canary);
        assert!(text.contains(from), "{from}");
        let text = text.replace(from, &to.replace("CANARY", &canary));
        (canary, text)
    };
    vec![
        token(good),
        token(refuses),
        token(closed),
        with("server: 'https://", "server: 'http://"),
        with("https://127", "https://user:CANARY@127"),
        with("https://127.0.0.1", "https://127.0.0.1/a/../b?c#d"),
        with(
            "server: 'https",
            "proxy-url: 'http://user:CANARY@127.0.0.1', server: 'https",
        ),
        with("server: 'https", "tls-server-name: other.example, server: 'https"),
        with("server: 'https", "insecure-skip-tls-verify: true, server: 'https"),
        with("certificate-authority-data: ", "certificate-authority-data: CANARY"),
        with("kind: Config", "kind: Config\nkind: Other"),
        with("apiVersion: v1", "apiVersion: v2"),
        with("current-context: c", "current-context: d"),
        with("kind: Config", "kind: Config\nbroken: [CANARY"),
        with("contexts: [", "contexts: [{name: d, context: {cluster: k, user: u}}, "),
        with("user: {token: ", "user: {token: CANARY, token: "),
        user("username: u, password: CANARY"),
        user("exec: {command: /bin/true, args: [CANARY], env: [{name: A, value: CANARY}]}"),
        user("auth-provider: {name: oidc, config: {id-token: CANARY}}"),
        user("tokenFile: /tmp/CANARY"),
        user("client-certificate: /tmp/CANARY, client-key: /tmp/CANARY"),
        user("client-certificate-data: CANARY, client-key-data: CANARY"),
        user("token: \"CANARY\\nx\""),
        user("token: t, as: CANARY"),
        user("token: {CANARY: 1}"),
    ]
}
