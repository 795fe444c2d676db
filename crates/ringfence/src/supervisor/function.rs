//! Functional probes: before an agent counts as up, it must answer as people will use it, through its gate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use prost::Message as _;
use ringfence_fleet::api::ProbeView;
use ringfence_model::SecretText;
use ringfence_model::manifest::Kind;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};

#[path = "streamlit_proto.rs"]
mod streamlit_proto;
use streamlit_proto::{BackMsg, ClientState, ForwardMsg, ScriptFinishedStatus, delta, element, forward_msg};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of a page is read.
const PAGE_BYTES: u64 = 1 << 20;

/// Where and how an agent is reached.
#[derive(Clone)]
pub struct Entrance {
    address: SocketAddr,
    connector: TlsConnector,
    token: SecretText,
}

impl Entrance {
    /// The door at `address`, under the host's authority.
    pub fn new(address: SocketAddr, authority_pem: &str, token: &SecretText) -> Option<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
            roots.add(cert.ok()?).ok()?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A published wildcard is reached over loopback.
        let mut address = address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        Some(Self { address, connector: TlsConnector::from(Arc::new(config)), token: token.clone() })
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("localhost").map_err(std::io::Error::other)?;
        self.connector.connect(name, stream).await
    }

    /// GETs a path; gives status, content type and the page.
    async fn get(&self, path: &str) -> std::io::Result<(u16, String, String)> {
        self.ask(&format!("GET {path}"), "Accept: text/html,*/*\r\n", "").await
    }

    /// Asks for something; gives status, content type and the page.
    async fn ask(&self, line: &str, headers: &str, body: &str) -> std::io::Result<(u16, String, String)> {
        let mut stream = self.connect().await?;
        let request = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nX-Ringfence-Token: {}\r\nUser-Agent: ringfence-probe\r\nConnection: close\r\n{headers}\r\n{body}",
            self.address,
            self.token.reveal()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        match (&mut stream).take(PAGE_BYTES).read_to_end(&mut bytes).await {
            Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => return Err(e),
            _ => {}
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "no HTTP answer"))?;
        let kind = head
            .lines()
            .find_map(|l| l.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case("content-type")))
            .map_or_else(String::new, |(_, v)| v.trim().to_owned());
        Ok((status, kind, body.to_owned()))
    }

    /// Waits until the health path answers well, or `until`, or `gone` says that the agent ended.
    ///
    /// 2xx and 3xx are well, and of `/` whatever is no error of the server's: not every service has a page there.
    pub async fn wait_healthy(
        &self,
        path: &str,
        until: Instant,
        gone: &(dyn Fn() -> Option<String> + Sync),
    ) -> ProbeView {
        let name = "health";
        let mut pause = Duration::from_millis(25);
        loop {
            if let Some(why) = gone() {
                return view(name, Err(why));
            }
            let last = match tokio::time::timeout(PATIENCE, self.get(path)).await {
                Ok(Ok((status, _, _)))
                    if (200..400).contains(&status) || (path == "/" && (200..500).contains(&status)) =>
                {
                    return view(name, Ok(format!("GET {path} answered {status}")));
                }
                Ok(Ok((status, _, _))) => format!("GET {path} answered {status}"),
                Ok(Err(e)) => format!("GET {path}: {e}"),
                Err(_) => format!("GET {path} took longer than {} seconds", PATIENCE.as_secs()),
            };
            if Instant::now() > until {
                return view(name, Err(last));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    /// Whether the first page comes out without an error, for the agent's kind.
    pub async fn first_page(&self, kind: Kind, until: Instant) -> ProbeView {
        let name = "first-page";
        let left = until.saturating_duration_since(Instant::now()).max(PATIENCE);
        let result = match kind {
            Kind::Streamlit => match tokio::time::timeout(left, self.streamlit()).await {
                Ok(result) => result,
                Err(_) => Err(format!("the page was not drawn in {} seconds", left.as_secs())),
            },
            Kind::Mcp => match tokio::time::timeout(left, self.initialize()).await {
                Ok(result) => result,
                Err(_) => Err(format!("`initialize` was not answered in {} seconds", left.as_secs())),
            },
            _ => match tokio::time::timeout(left, self.get("/")).await {
                Ok(Ok((status, _, _))) if status >= 500 => Err(format!("GET / answered {status}")),
                Ok(Ok((status, content, body))) => {
                    Ok(format!("GET / answered {status}, {} bytes of {}", body.len(), first_word(&content)))
                }
                Ok(Err(e)) => Err(format!("GET /: {e}")),
                Err(_) => Err(format!("GET / took longer than {} seconds", left.as_secs())),
            },
        };
        view(name, result)
    }

    /// Begins a session with an MCP server, which starts its program.
    async fn initialize(&self) -> Result<String, String> {
        let body = serde_json::json!({
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": { "name": "ringfence-probe", "version": env!("CARGO_PKG_VERSION") },
            },
        })
        .to_string();
        let headers =
            format!("Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {}\r\n", body.len());
        let (status, _, answer) =
            self.ask("POST /mcp", &headers, &body).await.map_err(|e| format!("`initialize`: {e}"))?;
        let json = answer.find('{').and_then(|at| answer.get(at..)).unwrap_or_default();
        let mut values = serde_json::Deserializer::from_str(json).into_iter::<serde_json::Value>();
        let answer = values.next().and_then(Result::ok).unwrap_or_default();
        let text = |at: &str| answer.pointer(at).and_then(serde_json::Value::as_str);
        match (text("/result/serverInfo/name"), text("/error/message")) {
            (Some(name), _) => Ok(format!("`initialize` was answered by {name:?}")),
            (None, Some(why)) => Err(format!("`initialize` was answered with {why:?}")),
            _ => Err(format!("`initialize` was answered {status}, and not with what a server is")),
        }
    }

    /// Opens the page as a browser does, lets the script run once, and looks for exceptions among what it drew.
    async fn streamlit(&self) -> Result<String, String> {
        let say = |e: &dyn std::fmt::Display| format!("the page's WebSocket: {e}");
        let stream = self.connect().await.map_err(|e| say(&e))?;
        let mut request =
            format!("wss://{}/_stcore/stream", self.address).into_client_request().map_err(|e| say(&e))?;
        let value = |text: &str| tungstenite::http::HeaderValue::from_str(text).map_err(|e| e.to_string());
        request.headers_mut().insert("sec-websocket-protocol", value("streamlit")?);
        request.headers_mut().insert("x-ringfence-token", value(self.token.reveal())?);
        request.headers_mut().insert("origin", value(&format!("https://{}", self.address))?);
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.map_err(|e| say(&e))?;
        let run = BackMsg { rerun_script: Some(ClientState::default()) };
        socket.send(Message::binary(run.encode_to_vec())).await.map_err(|e| say(&e))?;
        let (mut drawn, mut problem) = (0, None);
        while let Some(message) = socket.next().await {
            let Message::Binary(bytes) = message.map_err(|e| say(&e))? else { continue };
            let message = ForwardMsg::decode(bytes).map_err(|e| say(&e))?;
            match message.r#type {
                Some(forward_msg::Type::Delta(delta)) => {
                    drawn += 1;
                    if let Some(delta::Type::NewElement(shown)) = delta.r#type
                        && let Some(element::Type::Exception(exception)) = shown.r#type
                    {
                        problem.get_or_insert(format!("the page shows {}: {}", exception.r#type, exception.message));
                    }
                }
                Some(forward_msg::Type::ScriptFinished(status)) => {
                    if status == ScriptFinishedStatus::FinishedWithCompileError as i32 {
                        return Err("the page's script does not compile".into());
                    }
                    if status == ScriptFinishedStatus::FinishedEarlyForRerun as i32 {
                        continue;
                    }
                    let _ = socket.close(None).await;
                    return match problem {
                        Some(problem) => Err(problem),
                        None => Ok(format!("the page drew {drawn} elements without an exception")),
                    };
                }
                _ => {}
            }
        }
        Err("the page closed its WebSocket".into())
    }
}

fn first_word(content: &str) -> &str {
    content.split(';').next().filter(|w| !w.is_empty()).unwrap_or("data")
}

/// A probe's result as it is shown and recorded.
pub fn view(name: &str, result: Result<String, String>) -> ProbeView {
    let held = result.is_ok();
    let detail = result.unwrap_or_else(|e| e);
    ProbeView { barrier: name.into(), held, detail: ringfence_model::report::one_line(&detail) }
}
