//! What the environment says of the object storage, looked through before its client sees it: that takes each value for what
//! it should be, and ends the process where one is not.

use std::io;
use std::path::Path;

use object_store::aws::AmazonS3ConfigKey;
use url::Url;

/// Files whose content goes into a header as it is.
const TOKEN_FILES: [&str; 1] = ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
/// What is the beginning of a URL.
const URLS: [&str; 7] = [
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_METADATA_ENDPOINT",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    RELATIVE,
];
/// What follows the address at which a container's credentials are.
const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";

/// What is wrong with one of the variables, and what helps. `read` reads a file.
pub fn fault(
    variables: impl IntoIterator<Item = (String, String)>,
    read: impl Fn(&Path) -> io::Result<String>,
) -> Option<(String, String)> {
    variables.into_iter().find_map(|(name, value)| {
        let used = name.starts_with("AWS_") && name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().is_ok();
        if !used {
            return None;
        }
        if TOKEN_FILES.contains(&name.as_str()) {
            // One that cannot be read is told of by whoever needs it.
            let token = read(Path::new(&value)).ok()?;
            return unfit(&format!("the content of {name}"), &token);
        }
        if name.ends_with("_FILE") {
            return None;
        }
        unfit(&name, &value).or_else(|| if URLS.contains(&name.as_str()) { no_url(&name, &value) } else { None })
    })
}

fn unfit(name: &str, value: &str) -> Option<(String, String)> {
    if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    if value.trim().bytes().all(|byte| byte.is_ascii_graphic()) {
        let remedy = "take it away: a Secret is made without by `printf`, or `kubectl create secret --from-literal`";
        return Some((format!("{name} begins or ends with a blank or a line end"), remedy.to_owned()));
    }
    Some((format!("{name} has a character in it that has no place there"), "correct it".to_owned()))
}

fn no_url(name: &str, value: &str) -> Option<(String, String)> {
    if name == RELATIVE {
        let whole = format!("http://169.254.170.2{value}");
        let fits = value.starts_with('/') && Url::parse(&whole).is_ok();
        return (!fits).then(|| (format!("{name} is no path"), "it begins with /".to_owned()));
    }
    // The client's errors name it whole.
    if value.contains('@') {
        let what = format!("{name} has a user or a password in it");
        let remedy = "name them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the endpoint is SCHEME://HOST:PORT";
        return Some((what, remedy.to_owned()));
    }
    let url = Url::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.is_none().then(|| {
        let remedy = "write SCHEME://HOST:PORT, such as https://minio.backups.svc:9000, or unset it";
        (format!("{name} is no URL with http:// or https://"), remedy.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault_of(name: &str, value: &str) -> Option<String> {
        let read = |path: &Path| match path.to_str() {
            Some("/token with blanks") => Ok("token\n".to_owned()),
            Some("/token") => Ok("token".to_owned()),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        fault([("PATH".to_owned(), " ".to_owned()), (name.to_owned(), value.to_owned())], read).map(|(what, _)| what)
    }

    #[test]
    fn what_would_end_the_process_is_named() {
        for (name, value, what) in [
            ("AWS_ACCESS_KEY_ID", "key\n", "AWS_ACCESS_KEY_ID begins or ends with"),
            ("AWS_SECRET_ACCESS_KEY", " secret", "AWS_SECRET_ACCESS_KEY begins or ends with"),
            ("AWS_SESSION_TOKEN", "to\nken", "AWS_SESSION_TOKEN has a character"),
            ("AWS_REGION", "eu\u{a0}1", "AWS_REGION has a character"),
            ("AWS_ENDPOINT_URL", "http://minio:9000\n", "AWS_ENDPOINT_URL begins or ends"),
            ("AWS_ENDPOINT_URL", "minio.backups.svc:9000", "AWS_ENDPOINT_URL is no URL"),
            ("AWS_ENDPOINT_URL", "", "AWS_ENDPOINT_URL is no URL"),
            ("AWS_ENDPOINT_URL_S3", "http://minio:99000", "AWS_ENDPOINT_URL_S3 is no URL"),
            ("AWS_ENDPOINT", "ftp://minio", "AWS_ENDPOINT is no URL"),
            ("AWS_ENDPOINT_URL_STS", "https://", "AWS_ENDPOINT_URL_STS is no URL"),
            ("AWS_ENDPOINT_URL", "https://user:secret@minio", "AWS_ENDPOINT_URL has a user"),
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                "http://a:b@h/x?token=c",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI has a user",
            ),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", ":x", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is no path"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token with blanks", "the content of AWS_CONTAINER_AUTHOR"),
        ] {
            let found = fault_of(name, value).unwrap_or_else(|| panic!("{name}={value:?} is taken"));
            assert!(found.starts_with(what) && !found.contains("secret@"), "{found}");
        }
        for (name, value) in [
            ("AWS_ACCESS_KEY_ID", "AKIA/+=%"),
            ("AWS_ENDPOINT_URL", "https://minio.backups.svc:9000/base"),
            ("AWS_ENDPOINT_URL_S3", "http://[fd00::1]:9000"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/x"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/token"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/none"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/a folder/token"),
            // Nobody reads it.
            ("AWS_PROFILE", "my profile"),
            ("AWS_SESSION_TOKEN", ""),
        ] {
            assert_eq!(fault_of(name, value), None, "{name}={value:?}");
        }
    }
}
