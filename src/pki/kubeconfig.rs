//! Kubeconfigs with an embedded certificate and key (`k8s.io/client-go/tools/clientcmd/api/v1/types.go`).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// What a kubeconfig embeds, as PEM. Absent where it names files, a token or a program instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Embedded {
    /// URL of the API server.
    pub server: String,
    /// The CA of the API server.
    pub ca: Option<Vec<u8>>,
    /// The client's certificate.
    pub cert: Option<Vec<u8>>,
    /// The client's key.
    pub key: Option<Vec<u8>>,
}

/// A kubeconfig for one user of one cluster.
pub fn render(user: &str, server: &str, ca: &[u8], cert: &[u8], key: &[u8]) -> String {
    let (ca, cert, key) = (STANDARD.encode(ca), STANDARD.encode(cert), STANDARD.encode(key));
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: kubernetes
  cluster:
    certificate-authority-data: {ca}
    server: {server}
contexts:
- name: {user}@kubernetes
  context:
    cluster: kubernetes
    user: {user}
current-context: {user}@kubernetes
preferences: {{}}
users:
- name: {user}
  user:
    client-certificate-data: {cert}
    client-key-data: {key}
"
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    #[serde(default)]
    server: String,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Reads the current context of a kubeconfig. The error shows nothing of the file.
pub fn parse(bytes: &[u8]) -> Result<Embedded, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let file: File = serde_yaml::from_str(text).map_err(|_| "it is not YAML of a kubeconfig's form".to_owned())?;
    let context = file
        .contexts
        .iter()
        .find(|c| c.name == file.current_context)
        .ok_or_else(|| "its current-context is not among its contexts".to_owned())?;
    let cluster = file
        .clusters
        .iter()
        .find(|c| c.name == context.context.cluster)
        .ok_or_else(|| "the cluster of its current context is missing".to_owned())?;
    let user = file
        .users
        .iter()
        .find(|u| u.name == context.context.user)
        .ok_or_else(|| "the user of its current context is missing".to_owned())?;
    let decode = |data: &Option<String>, what: &str| match data.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(data) => STANDARD.decode(data).map(Some).map_err(|_| format!("its {what} is not base64")),
    };
    Ok(Embedded {
        server: cluster.cluster.server.clone(),
        ca: decode(&cluster.cluster.certificate_authority_data, "certificate-authority-data")?,
        cert: decode(&user.user.client_certificate_data, "client-certificate-data")?,
        key: decode(&user.user.client_key_data, "client-key-data")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rendered_is_parsed() {
        let text = render("system:kube-scheduler", "https://127.0.0.1:6443", b"ca", b"cert", b"key");
        let expected = Embedded {
            server: "https://127.0.0.1:6443".to_owned(),
            ca: Some(b"ca".to_vec()),
            cert: Some(b"cert".to_vec()),
            key: Some(b"key".to_vec()),
        };
        assert_eq!(parse(text.as_bytes()), Ok(expected));
    }

    #[test]
    fn a_kubeconfig_with_a_token_embeds_nothing() {
        let text = "clusters: [{name: c, cluster: {server: 'https://x'}}]\ncurrent-context: k\n\
                    contexts: [{name: k, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: t}}]\n";
        assert_eq!(parse(text.as_bytes()).unwrap(), Embedded { server: "https://x".to_owned(), ..Embedded::default() });
    }

    #[test]
    fn garbage_is_refused_without_showing_it() {
        let good = render("u", "https://127.0.0.1:1", b"ca", b"cert", b"key");
        for bad in [
            "".to_owned(),
            "secret".to_owned(),
            "{".to_owned(),
            good.replace("current-context: u@", "current-context: v@"),
            good.replace("    user: u", "    user: v"),
            good.replace("client-key-data: ", "client-key-data: [secret] #"),
            good.replace("client-key-data: ", "client-key-data: '%secret'\n    x: "),
        ] {
            let error = parse(bad.as_bytes()).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(parse(b"\xff").is_err());
    }
}
