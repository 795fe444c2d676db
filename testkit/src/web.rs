//! A web server for clients of many kinds: what came, echoes, streams, redirects, WebSockets, files in pieces, the
//! indexes of packages, and repositories of git.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_RANGE, HeaderValue, LOCATION, RANGE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::git;
use crate::https::{Body, Server, events, text};

/// The server's name.
pub const HOST: &str = "web.clients.example";

/// The pause before each event of a stream.
const PAUSE: Duration = Duration::from_millis(20);

/// The server.
pub struct Web {
    server: Server,
}

impl Web {
    /// Starts it. `folder` holds the files that it serves below `/files/`, and below `/git/` the repositories.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start(tls: Arc<ServerConfig>, folder: PathBuf) -> std::io::Result<Self> {
        let handler = move |request: Request<Bytes>| answer(&folder, request);
        Ok(Self { server: Server::start(tls, Arc::new(handler)).await? })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

fn answer(folder: &Path, request: Request<Bytes>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/git/") {
        return git::answer(folder, &path, &request);
    }
    if path.starts_with("/files/") {
        return file(folder, &path, &request);
    }
    match path.rsplit('/').next().unwrap_or_default() {
        "echo" => text(StatusCode::OK, "application/octet-stream", request.into_body()),
        "redirect" => {
            let mut response = text(StatusCode::FOUND, "text/plain", "");
            response.headers_mut().insert(LOCATION, HeaderValue::from_static("json"));
            response
        }
        "stream" => events((0..5).map(|n| format!("data: {n}\n\n")).collect(), PAUSE),
        "ws" => socket(request),
        _ => came(&request),
    }
}

/// What came, as JSON.
fn came(request: &Request<Bytes>) -> Response<Body> {
    let body = json!({
        "method": request.method().as_str(),
        "path": request.uri().path(),
        "query": request.uri().query(),
        "version": format!("{:?}", request.version()),
        "bytes": request.body().len(),
    });
    text(StatusCode::OK, "application/json", body.to_string())
}

/// A file of the folder, or the piece of it that is asked for. An index is a folder's `index`; `.gz` is a coding.
fn file(folder: &Path, path: &str, request: &Request<Bytes>) -> Response<Body> {
    let missing = || text(StatusCode::NOT_FOUND, "text/plain", "there is no such file\n");
    if path.contains("..") {
        return missing();
    }
    let mut at = folder.join(path.trim_matches('/'));
    if at.is_dir() {
        at.push("index");
    }
    let Ok(all) = fs::read(&at) else { return missing() };
    let kind = match at.extension().and_then(|e| e.to_str()) {
        Some("json") => "application/json",
        None => "text/html",
        Some(_) => "application/octet-stream",
    };
    let mut response = match first(request) {
        Some(first) if first < all.len() => {
            let range = format!("bytes {first}-{}/{}", all.len() - 1, all.len());
            let piece = all.get(first..).unwrap_or_default().to_vec();
            let mut response = text(StatusCode::PARTIAL_CONTENT, kind, piece);
            response.headers_mut().extend(HeaderValue::try_from(range).map(|range| (CONTENT_RANGE, range)));
            response
        }
        Some(_) => text(StatusCode::RANGE_NOT_SATISFIABLE, kind, ""),
        None if request.method() == Method::HEAD => text(StatusCode::OK, kind, ""),
        None => text(StatusCode::OK, kind, all),
    };
    if path.ends_with(".gz") {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// The first byte that is asked for, where only the rest is.
fn first(request: &Request<Bytes>) -> Option<usize> {
    request.headers().get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// A WebSocket that says again what it is told.
fn socket(mut request: Request<Bytes>) -> Response<Body> {
    let Some(key) = request.headers().get(SEC_WEBSOCKET_KEY).cloned() else {
        return text(StatusCode::BAD_REQUEST, "text/plain", "this is a WebSocket\n");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
        // An end in order, below the WebSocket too.
        let _ = socket.into_inner().shutdown().await;
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "text/plain", "");
    let headers = response.headers_mut();
    headers.clear();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes()));
    headers.extend(accept.map(|accept| (SEC_WEBSOCKET_ACCEPT, accept)));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str, range: Option<&str>) -> Request<Bytes> {
        let mut request = Request::get(path).body(Bytes::new()).unwrap();
        request.headers_mut().extend(range.map(|r| (RANGE, HeaderValue::from_str(r).unwrap())));
        request
    }

    #[tokio::test]
    async fn files_come_whole_or_from_where_one_asks() {
        use http_body_util::BodyExt;
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("files")).unwrap();
        fs::write(folder.path().join("files/ten.bin"), b"0123456789").unwrap();
        for (range, status, body) in
            [(None, 200, "0123456789"), (Some("bytes=7-"), 206, "789"), (Some("bytes=10-"), 416, "")]
        {
            let answer = answer(folder.path(), get("/files/ten.bin", range));
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
        }
        assert_eq!(answer(folder.path(), get("/files/../ten.bin", None)).status(), 404);
    }
}
