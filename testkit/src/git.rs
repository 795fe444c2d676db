//! Repositories over HTTP, as `git http-backend` of this machine serves them.
//!
//! # Source
//! git-http-backend(1); RFC 3875.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use crate::https::{Body, text};

/// Answers a request for a repository below `root`, whose path in the request is `path`.
#[must_use]
pub fn answer(root: &Path, path: &str, request: &Request<Bytes>) -> Response<Body> {
    run(root, path, request).unwrap_or_else(|why| text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", why))
}

fn run(root: &Path, path: &str, request: &Request<Bytes>) -> Result<Response<Body>, String> {
    let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("REMOTE_USER", "anybody")
        .env("REQUEST_METHOD", request.method().as_str())
        .env("PATH_INFO", path)
        .env("QUERY_STRING", request.uri().query().unwrap_or_default())
        .env("CONTENT_TYPE", header(CONTENT_TYPE.as_str()))
        .env("CONTENT_LENGTH", request.body().len().to_string())
        .env("HTTP_CONTENT_ENCODING", header(CONTENT_ENCODING.as_str()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("cannot start git: {e}"))?;
    let (body, stdin) = (request.body().clone(), child.stdin.take());
    // Written beside reading: git answers before it has read all.
    let writer = std::thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(&body)));
    let output = child.wait_with_output().map_err(|e| format!("cannot read from git: {e}"))?;
    drop(writer.join());
    response(&output.stdout).ok_or_else(|| "git gave no answer".into())
}

/// The answer of a CGI program: headers, of which `Status` is one, and the body.
fn response(output: &[u8]) -> Option<Response<Body>> {
    let end = memchr::memmem::find(output, b"\r\n\r\n")?;
    let (head, body) = (std::str::from_utf8(output.get(..end)?).ok()?, output.get(end + 4..)?);
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(body)).boxed_unsync());
    for line in head.lines() {
        let (name, value) = line.split_once(": ")?;
        if name == "Status" {
            *response.status_mut() = value.get(..3)?.parse().ok()?;
        } else {
            response.headers_mut().insert(name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?);
        }
    }
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_headers_are_those_of_the_program() {
        let answer = response(b"Status: 403 Forbidden\r\nContent-Type: text/plain\r\n\r\nno").unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain");
        assert!(response(b"Content-Type: text/plain\r\n").is_none());
    }
}
