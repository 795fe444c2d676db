//! A person at a browser: opens the link to a Streamlit page, reads it, asks it something and reads the answer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{ACCEPT, CONNECTION, COOKIE, HOST, HeaderValue, LOCATION, ORIGIN, SET_COOKIE, USER_AGENT};
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::ca::{self, CaError};
use crate::streamlit_proto::{
    AlertFormat, BackMsg, Block, ChatInputValue, ClientState, Delta, Element, Exception, ForwardMsg, NewSession,
    ScriptFinishedStatus, WidgetState, WidgetStates, block, delta, element, forward_msg,
};

/// How long one request, other than a run of the script, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Redirects that are followed.
const MAX_REDIRECTS: usize = 5;

const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64) ringfence-testkit";

/// Why a page cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamlitError {
    /// The link is not one of `https://…`.
    #[error("`{0}` is not a link to a page over https")]
    Link(String),
    /// The authority that the page's certificate should be from cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// No connection.
    #[error("cannot connect to {0}: {1}")]
    Connect(String, std::io::Error),
    /// No answer to a request.
    #[error("GET {0} failed: {1}")]
    Request(String, String),
    /// Another answer than a page should give.
    #[error("GET {0} was answered with {1}")]
    Status(String, String),
    /// The page's WebSocket does not open, or broke.
    #[error("the page's WebSocket: {0}")]
    WebSocket(#[from] tungstenite::Error),
    /// The page's WebSocket was closed.
    #[error("the page closed its WebSocket")]
    Closed,
    /// A message that cannot be read.
    #[error("the page sent what cannot be read: {0}")]
    Unreadable(String),
    /// It takes too long.
    #[error("{0} took longer than {1:?}")]
    Slow(&'static str, Duration),
    /// The page offers nowhere to type.
    #[error("the page has no chat input")]
    NoChatInput,
}

/// What the page shows when it is opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Its first heading, else the title of the browser's tab.
    pub title: String,
    /// Its texts outside the sidebar.
    pub markdowns: Vec<String>,
    /// Exceptions and errors that it shows.
    pub exceptions: Vec<String>,
    /// The widget that [`Session::ask`] types into.
    pub chat_input_id: Option<String>,
}

/// What the page shows after a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What the assistant said.
    pub text: String,
    /// Exceptions and errors that the page shows.
    pub exceptions: Vec<String>,
    /// The tools that the assistant used, in order.
    pub tools_seen: Vec<ToolSeen>,
}

/// A tool that was used, as the page shows it: an expander in the assistant's message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolSeen {
    /// What is written on the expander.
    pub label: String,
    /// What it was given: code in the expander.
    pub arguments: String,
    /// What it gave: text in the expander.
    pub result: String,
}

/// An open page.
pub struct Session {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    drawn: Drawn,
    /// Messages that the server may refer to by their hashes.
    kept: HashMap<String, ForwardMsg>,
    script: String,
}

impl Session {
    /// Follows a link, signs in by it, and opens the page's WebSocket. `ca_pem` is the only authority believed.
    ///
    /// # Errors
    /// [`StreamlitError`].
    pub async fn open(url_with_token: &str, ca_pem: &str) -> Result<Self, StreamlitError> {
        let (mut browser, path) = Browser::new(url_with_token, ca_pem)?;
        browser.follow(path).await?;
        let health = browser.get("/_stcore/health").await?;
        if !health.status().is_success() {
            return Err(StreamlitError::Status("/_stcore/health".into(), health.status().to_string()));
        }
        Ok(Self {
            socket: browser.websocket("/_stcore/stream").await?,
            drawn: Drawn::default(),
            kept: HashMap::new(),
            script: String::new(),
        })
    }

    /// Lets the page be drawn for the first time.
    ///
    /// # Errors
    /// [`StreamlitError`]; an exception that the page shows is none, it is in [`Page::exceptions`].
    pub async fn first_page(&mut self, timeout: Duration) -> Result<Page, StreamlitError> {
        self.run(None, "drawing the page", timeout).await?;
        Ok(self.drawn.page())
    }

    /// Types a text into the page's chat input and waits for the answer.
    ///
    /// # Errors
    /// [`StreamlitError`]; an exception that the page shows is none, it is in [`Answer::exceptions`].
    pub async fn ask(&mut self, text: &str, timeout: Duration) -> Result<Answer, StreamlitError> {
        let id = self.drawn.chat_input().ok_or(StreamlitError::NoChatInput)?;
        let typed = WidgetState { id, chat_input_value: Some(ChatInputValue { data: Some(text.to_owned()) }) };
        self.run(Some(typed), "the answer", timeout).await?;
        Ok(self.drawn.answer())
    }

    /// Says goodbye, as a closed tab does.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.socket.close(None)).await;
    }

    async fn run(
        &mut self,
        widget: Option<WidgetState>,
        what: &'static str,
        timeout: Duration,
    ) -> Result<(), StreamlitError> {
        let state = ClientState {
            query_string: String::new(),
            widget_states: widget.map(|widget| WidgetStates { widgets: vec![widget] }),
            page_script_hash: self.script.clone(),
        };
        let asked = BackMsg { rerun_script: Some(state) }.encode_to_vec();
        let run = async {
            self.socket.send(Message::binary(asked)).await?;
            while !self.take_one().await? {}
            Ok(())
        };
        tokio::time::timeout(timeout, run).await.map_err(|_| StreamlitError::Slow(what, timeout))?
    }

    /// Takes one message; says whether the run ended with it.
    async fn take_one(&mut self) -> Result<bool, StreamlitError> {
        let bytes = match self.socket.next().await.ok_or(StreamlitError::Closed)?? {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return Err(StreamlitError::Closed),
            _ => return Ok(false),
        };
        let mut message = ForwardMsg::decode(bytes).map_err(|e| StreamlitError::Unreadable(e.to_string()))?;
        if let Some(forward_msg::Type::RefHash(hash)) = &message.r#type {
            let kept = self.kept.get(hash);
            let kept = kept.ok_or_else(|| StreamlitError::Unreadable(format!("it refers to message {hash}")))?;
            // The place is that of the reference.
            message.r#type.clone_from(&kept.r#type);
        } else if message.metadata.as_ref().is_some_and(|m| m.cacheable) {
            self.kept.insert(message.hash.clone(), message.clone());
        }
        let path = message.metadata.map(|m| m.delta_path).unwrap_or_default();
        match message.r#type {
            Some(forward_msg::Type::NewSession(NewSession { page_script_hash, .. })) => {
                self.script = page_script_hash;
                self.drawn = Drawn { title: std::mem::take(&mut self.drawn.title), ..Drawn::default() };
            }
            Some(forward_msg::Type::Delta(Delta { r#type: Some(what) })) => self.drawn.draw(path, what),
            Some(forward_msg::Type::PageConfigChanged(config)) if !config.title.is_empty() => {
                self.drawn.title = config.title;
            }
            Some(forward_msg::Type::SessionEvent(event)) => {
                self.drawn.broken.extend(event.script_compilation_exception.as_ref().map(in_words));
            }
            Some(forward_msg::Type::ScriptFinished(status)) => {
                return Ok(matches!(
                    ScriptFinishedStatus::try_from(status),
                    Ok(ScriptFinishedStatus::FinishedSuccessfully | ScriptFinishedStatus::FinishedWithCompileError)
                ));
            }
            _ => {}
        }
        Ok(false)
    }
}

/// What the page shows by now.
#[derive(Default)]
struct Drawn {
    title: String,
    /// In the order in which it is read: a path sorts before the paths below it.
    nodes: BTreeMap<Vec<u32>, Node>,
    /// Why the script does not even compile.
    broken: Vec<String>,
}

enum Node {
    Block(Option<block::Type>),
    Element(element::Type),
}

impl Drawn {
    fn draw(&mut self, path: Vec<u32>, what: delta::Type) {
        match what {
            delta::Type::AddBlock(Block { r#type }) => {
                self.nodes.insert(path, Node::Block(r#type));
            }
            delta::Type::NewElement(Element { r#type }) => {
                self.nodes.retain(|place, _| place.len() <= path.len() || !place.starts_with(&path));
                match r#type {
                    Some(element) => self.nodes.insert(path, Node::Element(element)),
                    None => self.nodes.remove(&path),
                };
            }
        }
    }

    fn elements(&self) -> impl Iterator<Item = (&[u32], &element::Type)> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Block(_) => None,
            Node::Element(element) => Some((path.as_slice(), element)),
        })
    }

    fn blocks(&self) -> impl DoubleEndedIterator<Item = (&[u32], &block::Type)> {
        self.nodes.iter().filter_map(|(path, node)| match node {
            Node::Block(Some(block)) => Some((path.as_slice(), block)),
            _ => None,
        })
    }

    fn chat_input(&self) -> Option<String> {
        self.elements().find_map(|(_, element)| match element {
            element::Type::ChatInput(input) if !input.disabled => Some(input.id.clone()),
            _ => None,
        })
    }

    fn exceptions(&self) -> Vec<String> {
        let shown = self.elements().filter_map(|(_, element)| match element {
            element::Type::Exception(exception) if !exception.is_warning => Some(in_words(exception)),
            element::Type::Alert(alert) if alert.format == AlertFormat::Error as i32 => Some(alert.body.clone()),
            _ => None,
        });
        self.broken.iter().cloned().chain(shown).collect()
    }

    fn page(&self) -> Page {
        let heading = self.elements().find_map(|(_, element)| match element {
            element::Type::Heading(heading) => Some(heading.body.clone()),
            _ => None,
        });
        let in_main = self.elements().filter(|(path, _)| path.first() != Some(&1));
        Page {
            title: heading.unwrap_or_else(|| self.title.clone()),
            markdowns: in_main.filter_map(|(_, element)| markdown(element)).collect(),
            exceptions: self.exceptions(),
            chat_input_id: self.chat_input(),
        }
    }

    fn answer(&self) -> Answer {
        let last = self.blocks().rev().find_map(|(path, block)| match block {
            block::Type::ChatMessage(message) if message.name == "assistant" => Some(path),
            _ => None,
        });
        // A page without chat messages answers with all of its main part.
        let place = last.unwrap_or(&[0]);
        let mut tools: Vec<(&[u32], ToolSeen)> = Vec::new();
        for (path, block) in self.blocks().filter(|(path, _)| path.starts_with(place)) {
            if let block::Type::Expandable(expander) = block {
                tools.push((path, ToolSeen { label: expander.label.clone(), ..ToolSeen::default() }));
            }
        }
        let mut said = Vec::new();
        for (path, element) in self.elements().filter(|(path, _)| path.starts_with(place)) {
            match (tools.iter_mut().rfind(|(tool, _)| path.starts_with(tool)), element) {
                (Some((_, tool)), element::Type::Code(code)) => tool.arguments.push_str(&code.code_text),
                (Some((_, tool)), element::Type::Text(text)) => tool.result.push_str(&text.body),
                (Some(_), _) => {}
                (None, element) => said.extend(markdown(element).filter(|text| !text.trim().is_empty())),
            }
        }
        Answer {
            text: said.join("\n\n"),
            exceptions: self.exceptions(),
            tools_seen: tools.into_iter().map(|(_, tool)| tool).collect(),
        }
    }
}

fn markdown(element: &element::Type) -> Option<String> {
    match element {
        element::Type::Markdown(markdown) => Some(markdown.body.clone()),
        _ => None,
    }
}

fn in_words(exception: &Exception) -> String {
    let mut text = format!("{}: {}", exception.r#type, exception.message);
    if let Some(last) = exception.stack_trace.last() {
        text.push_str(" (");
        text.push_str(last.split_whitespace().collect::<Vec<_>>().join(" ").as_str());
        text.push(')');
    }
    text
}

/// Cookies, and the one place that they are for.
struct Browser {
    authority: String,
    host: String,
    port: u16,
    tls: Arc<ClientConfig>,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    /// A browser for the host of a link, and the link's path and query.
    fn new(url: &str, ca_pem: &str) -> Result<(Self, String), StreamlitError> {
        let bad = || StreamlitError::Link(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(bad)?;
        let browser = Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(443),
            tls: ca::client_config(ca_pem)?,
            cookies: BTreeMap::new(),
        };
        Ok((browser, uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()))
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>, StreamlitError> {
        let failed = |error| StreamlitError::Connect(self.authority.clone(), error);
        let name = ServerName::try_from(self.host.clone()).map_err(|_| StreamlitError::Link(self.host.clone()))?;
        let connecting = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
            stream.set_nodelay(true)?;
            TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await
        };
        tokio::time::timeout(PATIENCE, connecting)
            .await
            .map_err(|_| StreamlitError::Slow("connecting", PATIENCE))?
            .map_err(failed)
    }

    /// Gets a path and follows where it leads, as far as that is the same host.
    async fn follow(&mut self, mut path: String) -> Result<(), StreamlitError> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get(&path).await?;
            if response.status().is_success() {
                return Ok(());
            }
            let shown = without_query(&path);
            if !response.status().is_redirection() {
                return Err(StreamlitError::Status(shown, response.status().to_string()));
            }
            let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or_default();
            let here = format!("https://{}", self.authority);
            let to = to.strip_prefix(&here).unwrap_or(to);
            if !to.starts_with('/') || to.starts_with("//") {
                return Err(StreamlitError::Status(shown, format!("a redirect to `{to}`")));
            }
            path = to.to_owned();
        }
        Err(StreamlitError::Status(without_query(&path), "redirects without end".into()))
    }

    async fn get(&mut self, path: &str) -> Result<Response<Bytes>, StreamlitError> {
        let shown = without_query(path);
        let failed = |error: &dyn std::error::Error| StreamlitError::Request(shown.clone(), chain(error));
        let stream = self.connect().await?;
        let asking = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
            let connection = tokio::spawn(connection);
            let mut request = Request::get(path)
                .header(HOST, &self.authority)
                .header(USER_AGENT, AGENT)
                .header(ACCEPT, "*/*")
                .header(CONNECTION, "close");
            if !self.cookies.is_empty() {
                request = request.header(COOKIE, self.cookie_header());
            }
            let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
            let (parts, body) = sender.send_request(request).await.map_err(|e| failed(&e))?.into_parts();
            let body = body.collect().await.map_err(|e| failed(&e))?.to_bytes();
            connection.abort();
            Ok::<_, StreamlitError>(Response::from_parts(parts, body))
        };
        let response =
            tokio::time::timeout(PATIENCE, asking).await.map_err(|_| StreamlitError::Slow("a request", PATIENCE))??;
        for cookie in response.headers().get_all(SET_COOKIE) {
            let pair = cookie.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.trim().to_owned(), value.trim().to_owned());
            }
        }
        Ok(response)
    }

    async fn websocket(&self, path: &str) -> Result<WebSocketStream<TlsStream<TcpStream>>, StreamlitError> {
        let header = |text: String| {
            HeaderValue::try_from(text).map_err(|e| StreamlitError::Request(path.to_owned(), e.to_string()))
        };
        let mut request = format!("wss://{}{path}", self.authority).into_client_request()?;
        // The second word is where Streamlit's own page puts its cross-site token, or this in its stead.
        let token = self.cookies.get("_streamlit_xsrf").filter(|token| is_token(token));
        let token = token.map_or("PLACEHOLDER_AUTH_TOKEN", String::as_str);
        let headers = request.headers_mut();
        headers.insert("Sec-WebSocket-Protocol", header(format!("streamlit, {token}"))?);
        headers.insert(ORIGIN, header(format!("https://{}", self.authority))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if !self.cookies.is_empty() {
            headers.insert(COOKIE, header(self.cookie_header())?);
        }
        let stream = self.connect().await?;
        let opening = tokio_tungstenite::client_async(request, stream);
        let opened =
            tokio::time::timeout(PATIENCE, opening).await.map_err(|_| StreamlitError::Slow("opening", PATIENCE))?;
        Ok(opened?.0)
    }

    fn cookie_header(&self) -> String {
        self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("; ")
    }
}

/// A path as it may be shown: its query may hold a token.
fn without_query(path: &str) -> String {
    path.split('?').next().unwrap_or_default().to_owned()
}

/// Whether a text is a token in the sense of RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streamlit_proto::{ChatMessage, Code, Expandable, Markdown, Text};

    fn say(drawn: &mut Drawn, path: &[u32], body: &str) {
        let markdown = element::Type::Markdown(Markdown { body: body.into(), ..Markdown::default() });
        drawn.draw(path.to_vec(), delta::Type::NewElement(Element { r#type: Some(markdown) }));
    }

    fn block(drawn: &mut Drawn, path: &[u32], block: block::Type) {
        drawn.draw(path.to_vec(), delta::Type::AddBlock(Block { r#type: Some(block) }));
    }

    #[test]
    fn the_answer_is_what_the_assistant_said_last() {
        let mut drawn = Drawn::default();
        say(&mut drawn, &[0, 0], "a title");
        for (at, name, text) in [(1, "user", "one?"), (2, "assistant", "One."), (3, "user", "two?")] {
            block(&mut drawn, &[0, at], block::Type::ChatMessage(ChatMessage { name: name.into() }));
            say(&mut drawn, &[0, at, 0], text);
        }
        block(&mut drawn, &[0, 4], block::Type::ChatMessage(ChatMessage { name: "assistant".into() }));
        say(&mut drawn, &[0, 4, 0], "I look");
        say(&mut drawn, &[0, 4, 0], "I look it up.");
        block(&mut drawn, &[0, 4, 2], block::Type::Expandable(Expandable { label: "🔧 lookup".into() }));
        let code = element::Type::Code(Code { code_text: "{}".into(), ..Code::default() });
        drawn.draw(vec![0, 4, 2, 0], delta::Type::NewElement(Element { r#type: Some(code) }));
        let text = element::Type::Text(Text { body: "nothing".into() });
        drawn.draw(vec![0, 4, 2, 1], delta::Type::NewElement(Element { r#type: Some(text) }));
        say(&mut drawn, &[0, 4, 3], "Two.");
        say(&mut drawn, &[1, 0], "in the sidebar");
        let answer = drawn.answer();
        assert_eq!(answer.text, "I look it up.\n\nTwo.");
        let tool = ToolSeen { label: "🔧 lookup".into(), arguments: "{}".into(), result: "nothing".into() };
        assert_eq!(answer.tools_seen, [tool]);
        assert!(!drawn.page().markdowns.contains(&"in the sidebar".to_owned()));
    }

    #[test]
    fn a_link_is_taken_apart() {
        let ca = ca::Ca::generate("test").unwrap().pem();
        let (browser, path) = Browser::new("https://127.0.0.1:8501/?token=abc", &ca).unwrap();
        assert_eq!((browser.host.as_str(), browser.port, path.as_str()), ("127.0.0.1", 8501, "/?token=abc"));
        assert!(Browser::new("http://127.0.0.1:8501/", &ca).is_err());
        assert_eq!(without_query(&path), "/");
    }
}
