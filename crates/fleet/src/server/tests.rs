use std::path::PathBuf;

use ringfence_model::Report;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::*;
use crate::api::*;

/// A supervisor that says hello, and fails at all else as each verb's name stands there.
struct Fake;

macro_rules! refuses {
    ($($name:ident($request:ty) -> $answer:ty;)*) => {$(
        async fn $name(&self, _: Caller, _: $request) -> Result<$answer, Report> {
            Err(Report::new("fake.refused", Fault::Caller, "refused"))
        }
    )*};
}

impl Control for Fake {
    refuses! {
        ps(Nothing) -> Vec<AgentView>;
        stop(StopRequest) -> AgentView;
        freeze(Named) -> AgentView;
        resume(Named) -> AgentView;
        apply(UpRequest) -> AgentView;
        down(DownRequest) -> Nothing;
        explain(ExplainRequest) -> Explanation;
        forget(Named) -> Forgotten;
        secret(SecretRequest) -> Nothing;
        shutdown(Nothing) -> Nothing;
    }

    async fn hello(&self, _: Caller, _: Nothing) -> Result<Hello, Report> {
        Ok(Hello { version: "1".into(), pid: 1, on_demand: false, log_key: String::new() })
    }

    async fn verify(&self, _: Caller, _: Nothing) -> Result<VerifyAnswer, Report> {
        panic!("as a verb with a fault in it would")
    }

    /// Keeps its sink for as long as the caller is there, as whoever waits for the caller to go away does.
    async fn up(&self, _: Caller, _: UpRequest, sink: Sink<UpEvent>) -> Result<(), Report> {
        let watched = sink.clone();
        tokio::spawn(async move { watched.closed().await });
        sink.send(&UpEvent::Built { image: "sha256:0".into() }).await;
        Ok(())
    }

    async fn build(&self, _: Caller, _: UpRequest, sink: Sink<UpEvent>) -> Result<(), Report> {
        sink.send(&UpEvent::Built { image: "sha256:0".into() }).await;
        Err(Report::new("fake.late", Fault::Peer, "too late for a status"))
    }

    async fn lock(&self, _: Caller, _: LockRequest, _: Sink<LockEvent>) -> Result<(), Report> {
        Ok(())
    }

    async fn start(&self, _: Caller, _: StartRequest, _: Sink<UpEvent>) -> Result<(), Report> {
        Err(Report::new("fake.host", Fault::Host, "the host lacks something"))
    }

    async fn logs(&self, _: Caller, _: LogsRequest, _: Sink<LogLine>) -> Result<(), Report> {
        Ok(())
    }

    async fn audit(&self, _: Caller, _: AuditRequest, sink: Sink<AuditLine>) -> Result<(), Report> {
        sink.begin().await;
        sink.closed().await;
        Ok(())
    }

    async fn body(&self, _: Caller, _: BodyRequest, _: Sink<BodyEvent>) -> Result<(), Report> {
        Ok(())
    }

    async fn exec(&self, _: Caller, _: ExecRequest, _: Sink<ExecEvent>) -> Result<(), Report> {
        Err(Report::new("fake.us", Fault::Us, "ours"))
    }

    fn ended(&self, _: Caller, _: &'static str, _: &str, _: Result<(), &Report>) {}
}

struct Served {
    socket: PathBuf,
    _folder: tempfile::TempDir,
    _quit: oneshot::Sender<()>,
}

fn served(admits: bool) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (quit, quits) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let quits = async { drop(quits.await) };
        serve(listener, Arc::new(Fake), move |_| admits, quits, Duration::ZERO).await;
    });
    Served { socket, _folder: folder, _quit: quit }
}

impl Served {
    async fn open(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Sends bytes as they are, and reads until the supervisor closes.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.open().await;
        stream.write_all(bytes).await.unwrap();
        rest(&mut stream).await
    }

    async fn post(&self, verb: &str, body: &str) -> String {
        let head = "host: s\r\nconnection: close\r\ncontent-type: application/json\r\n";
        let length = body.len();
        self.say(format!("POST /v1/{verb} HTTP/1.1\r\n{head}content-length: {length}\r\n\r\n{body}").as_bytes()).await
    }
}

async fn rest(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn assert_refused(answer: &str, status: u16, code: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    assert!(answer.contains(&format!("{{\"error\":{{\"code\":\"{code}\"")), "{answer}");
}

const UP: &str = r#"{"folder":"/","manifest":"","ca_files":{},"secrets":{},"replace":false}"#;

#[tokio::test]
async fn the_status_says_whose_doing_it_is() {
    let served = served(true);
    let hello = served.post("hello", "{}").await;
    assert!(
        hello.starts_with("HTTP/1.1 200 OK\r\n") && hello.contains("content-type: application/json\r\n"),
        "{hello}"
    );
    assert_refused(&served.post("ps", "{}").await, 422, "fake.refused");
    assert_refused(&served.post("start", r#"{"agent":"a"}"#).await, 503, "fake.host");
    assert_refused(&served.post("exec", r#"{"agent":"a","argv":[],"stdin":[]}"#).await, 500, "fake.us");
    assert_refused(&served.post("verify", "{}").await, 500, "api.lost");
    assert_refused(&served.post("nothing", "{}").await, 404, "api.unknown_verb");
    assert_refused(&served.post("ps", "{").await, 400, "api.request");
}

#[tokio::test]
async fn a_body_ends_with_its_last_line_whoever_still_holds_a_sink() {
    let served = served(true);
    let up = served.post("up", UP).await;
    assert!(up.starts_with("HTTP/1.1 200 OK\r\n") && up.contains("content-type: application/x-ndjson\r\n"), "{up}");
    assert!(up.contains("\r\n\"end\"\n\r\n0\r\n\r\n"), "{up}");
    let late = served.post("build", UP).await;
    assert!(late.starts_with("HTTP/1.1 200 OK\r\n") && late.contains("{\"error\":{\"code\":\"fake.late\""), "{late}");
    assert!(late.ends_with("\r\n0\r\n\r\n"), "{late}");
    // The client takes an error for one, with a status and without.
    let client = Client::at(&served.socket);
    let request = UpRequest {
        folder: "/".into(),
        manifest: String::new(),
        ca_files: [].into(),
        secrets: [].into(),
        replace: false,
    };
    assert_eq!(client.build(&request, |_| true).await.unwrap_err().code, "fake.late");
    assert_eq!(client.ps(&Nothing {}).await.unwrap_err().code, "fake.refused");
    assert_eq!(client.hello(&Nothing {}).await.unwrap().pid, 1);
}

#[tokio::test]
async fn only_json_is_taken_and_only_by_post() {
    let served = served(true);
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let request = format!("{method} /v1/ps HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n");
        let answer = served.say(request.as_bytes()).await;
        assert_refused(&answer, 405, "api.method");
        assert!(answer.contains("allow: POST\r\n"), "{answer}");
    }
    for kind in ["", "content-type: text/plain\r\n", "content-type: application/json-patch+json\r\n"] {
        let head = "POST /v1/hello HTTP/1.1\r\nhost: s\r\nconnection: close\r\ncontent-length: 2\r\n";
        assert_refused(&served.say(format!("{head}{kind}\r\n{{}}").as_bytes()).await, 415, "api.media_type");
        let charset = "content-type: Application/JSON; charset=utf-8\r\n";
        let answer = served.say(format!("{head}{charset}\r\n{{}}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test]
async fn a_request_is_taken_up_to_its_bound() {
    let served = served(true);
    let fits = format!("{{}}{}", " ".repeat(MAX_REQUEST - 2));
    assert!(served.post("hello", &fits).await.starts_with("HTTP/1.1 200 "));
    assert_refused(&served.post("hello", &format!("{fits} ")).await, 413, "api.too_large");
    let mut chunked = b"POST /v1/hello HTTP/1.1\r\nhost: s\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..9 {
        chunked.extend_from_slice(format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20)).as_bytes());
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_refused(&served.say(&chunked).await, 413, "api.too_large");
}

#[tokio::test]
async fn a_body_without_end_is_cut_off() {
    let served = served(true);
    let mut stream = served.open().await;
    let head =
        "POST /v1/hello HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let mut sent = 0;
    while stream.write_all(chunk.as_bytes()).await.is_ok() {
        sent += 1 << 20;
        assert!(sent < 2 * MAX_TAKEN, "it takes what comes");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_slow_is_cut_off() {
    let served = served(true);
    let began = tokio::time::Instant::now();
    let head = "POST /v1/hello HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\n";
    assert_eq!(served.say(b"").await, "");
    served.say(head.as_bytes()).await;
    assert!(began.elapsed() < 3 * HEAD_PATIENCE, "{:?}", began.elapsed());
    // A byte now and then does not help.
    let mut stream = served.open().await;
    stream.write_all(format!("{head}connection: close\r\ncontent-length: 1000\r\n\r\n").as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let dripping = tokio::spawn(async move {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = Vec::new();
    let _ = reader.read_to_end(&mut answer).await;
    assert_refused(&String::from_utf8(answer).unwrap(), 408, "api.slow");
    assert!(began.elapsed() < 3 * HEAD_PATIENCE + 2 * BODY_PATIENCE, "{:?}", began.elapsed());
    dripping.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn too_many_callers_are_told_so_and_idle_ones_make_room() {
    let served = served(true);
    let mut idle = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        idle.push(served.open().await);
    }
    assert_refused(&served.post("hello", "{}").await, 503, "api.busy");
    tokio::time::sleep(HEAD_PATIENCE * 2).await;
    assert!(served.post("hello", "{}").await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_stranger_is_turned_away_before_anything_is_read() {
    let served = served(false);
    assert_refused(&served.post("hello", "{}").await, 403, "api.peer");
    assert_refused(&served.post("nothing", "not json").await, 403, "api.peer");
}

#[tokio::test]
async fn what_is_followed_begins_before_there_is_an_item_and_ends_with_its_caller() {
    let served = served(true);
    let mut stream = served.open().await;
    let body = r#"{"follow":true,"from":0}"#;
    let head = "POST /v1/audit HTTP/1.1\r\nhost: s\r\ncontent-type: application/json\r\n";
    stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
    let mut begun = [0; 15];
    stream.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200 OK");
}
