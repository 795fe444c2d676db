//! A server that speaks over its standard input and output, reached over HTTP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ringfence_bridge::{HEALTH, PATH, Server, serve_on};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A server of a few lines. It numbers the lines that it hears, and says its process id.
const SERVER: &str = r#"
n=0
while read -r line; do
    n=$((n + 1))
    id=$(printf %s "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
    case $line in
        *'"method":"say"'*) echo "no message" ;;
        *'"method":"die"'*) exit 3 ;;
        *'"method":"silent"'*) continue ;;
        *'"method":"wide"'*) head -c 17000000 /dev/zero | tr '\0' x ;;
        *'"method":"progress"'*)
            token=$(printf %s "$line" | sed -n 's/.*"progressToken":\([0-9]*\).*/\1/p')
            echo '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":'"$token"',"progress":1}}' ;;
        *'"method":"ask"'*) echo '{"jsonrpc":"2.0","id":"s1","method":"sampling/createMessage"}' ;;
        *'"method":"notifications/cancelled"'*) echo "$line" > cancelled ;;
        *'"method":"news"'*) echo '{"jsonrpc":"2.0","method":"notifications/message","params":{"n":'$n'}}' ;;
    esac
    case $line in *'"result"'* | *'"error"'*) echo "$line" > answered ;; esac
    if [ -n "$id" ]; then echo '{"jsonrpc":"2.0","id":'"$id"',"result":{"pid":'$$',"n":'$n'}}'; fi
done
"#;

struct Up {
    address: SocketAddr,
    folder: tempfile::TempDir,
}

async fn up() -> Up {
    let folder = tempfile::tempdir().unwrap();
    let script = format!("cd '{}'\n{SERVER}", folder.path().display());
    let server = Server {
        argv: vec!["/bin/sh".into(), "-c".into(), script],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve_on(server, listener));
    Up { address, folder }
}

struct Got {
    status: u16,
    head: String,
    body: String,
}

impl Got {
    fn session(&self) -> String {
        let line = self.head.lines().find_map(|line| line.strip_prefix("mcp-session-id: "));
        line.unwrap_or_else(|| panic!("no session: {}", self.head)).to_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    fn events(&self) -> Vec<Value> {
        self.body.lines().filter_map(|l| l.strip_prefix("data: ")).map(|d| serde_json::from_str(d).unwrap()).collect()
    }
}

impl Up {
    /// HTTP/1.0, so that the end of the body is that of the connection.
    async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
        stream
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Got {
        let mut stream = self.open(method, path, headers, body).await;
        let mut bytes = Vec::new();
        let read = stream.read_to_end(&mut bytes);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("an end").unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Got { status, head: head.to_owned(), body: body.to_owned() }
    }

    async fn post(&self, session: Option<&str>, message: &Value) -> Got {
        let headers: Vec<(&str, &str)> = session.map(|name| ("Mcp-Session-Id", name)).into_iter().collect();
        self.send("POST", PATH, &headers, &message.to_string()).await
    }

    async fn begin(&self) -> String {
        self.post(None, &json!({"jsonrpc": "2.0", "id": "i", "method": "initialize"})).await.session()
    }

    async fn wait_for(&self, file: &str) -> String {
        let path = self.folder.path().join(file);
        for _ in 0..500 {
            match std::fs::read_to_string(&path) {
                Ok(text) if text.ends_with('\n') => return text,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("no {file}");
    }
}

fn ask(id: impl Into<Value>, method: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": method})
}

fn is_alive(pid: &Value) -> bool {
    // One that nobody has reaped yet is over as well.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn each_session_has_a_process_of_its_own_and_ends_with_it() {
    let up = up().await;
    assert_eq!(up.send("GET", HEALTH, &[], "").await.status, 200);
    let (one, other) = (up.begin().await, up.begin().await);
    assert_ne!(one, other);
    let first = up.post(Some(&one), &ask("a", "x")).await.json();
    let second = up.post(Some(&other), &ask("a", "x")).await.json();
    assert_eq!((&first["id"], &first["result"]["n"]), (&json!("a"), &json!(2)), "{first}");
    assert_ne!(first["result"]["pid"], second["result"]["pid"]);

    let gone = up.send("DELETE", PATH, &[("Mcp-Session-Id", &one)], "").await;
    assert_eq!(gone.status, 204);
    assert_eq!(up.post(Some(&one), &ask(1, "x")).await.status, 404);
    for _ in 0..300 {
        if !is_alive(&first["result"]["pid"]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!is_alive(&first["result"]["pid"]), "its process goes on");
    assert!(is_alive(&second["result"]["pid"]));
}

#[tokio::test]
async fn calls_without_a_session_share_a_process_and_keep_their_ids_apart() {
    let up = up().await;
    let asked = (0..20).map(|nth| {
        let message = ask(nth % 2, "x");
        let up = &up;
        async move { up.post(None, &message).await.json() }
    });
    let mut all = Vec::new();
    let mut pids = Vec::new();
    for (nth, call) in asked.enumerate() {
        let answer = call.await;
        assert_eq!(answer["id"], json!(nth % 2));
        all.push(answer["result"]["n"].as_u64().unwrap());
        pids.push(answer["result"]["pid"].clone());
    }
    assert_eq!(all, (1..=20).collect::<Vec<_>>());
    assert!(pids.windows(2).all(|two| two[0] == two[1]));
    // The same id at the same time: each client gets its own answer.
    let (a, b) = (ask("same", "x"), ask("same", "x"));
    let (a, b) = tokio::join!(up.post(None, &a), up.post(None, &b));
    assert_ne!(a.json()["result"]["n"], b.json()["result"]["n"]);
}

#[tokio::test]
async fn a_stream_carries_what_belongs_to_the_call_and_ends_with_its_answer() {
    let up = up().await;
    let session = up.begin().await;
    let headers = [("Mcp-Session-Id", session.as_str()), ("Accept", "application/json, text/event-stream")];
    let call = json!({"jsonrpc": "2.0", "id": 9, "method": "progress", "params": {"_meta": {"progressToken": "p"}}});
    let got = up.send("POST", PATH, &headers, &call.to_string()).await;
    let events = got.events();
    assert_eq!(events.len(), 2, "{}", got.body);
    assert_eq!(events[0]["params"]["progressToken"], "p");
    assert_eq!(events[1]["id"], 9);

    // The server asks, and is answered.
    let got = up.send("POST", PATH, &headers, &ask(10, "ask").to_string()).await;
    assert_eq!(got.events()[0]["method"], "sampling/createMessage");
    let answer = up.post(Some(&session), &json!({"jsonrpc": "2.0", "id": "s1", "result": {"role": "user"}})).await;
    assert_eq!(answer.status, 202);
    assert!(up.wait_for("answered").await.contains(r#""id":"s1""#));

    // Nobody stands behind calls without a session who could be asked.
    let headers = [("Accept", "text/event-stream")];
    std::fs::remove_file(up.folder.path().join("answered")).unwrap();
    let batch = json!([ask(1, "silent"), ask(2, "ask")]).to_string();
    let told = tokio::select! {
        _ = up.send("POST", PATH, &headers, &batch) => panic!("the first is never answered"),
        told = up.wait_for("answered") => told,
    };
    assert!(told.contains("-32000"), "{told}");
}

#[tokio::test]
async fn what_belongs_to_no_call_comes_to_who_listens_even_later() {
    let up = up().await;
    let session = up.begin().await;
    let told = up.post(Some(&session), &json!({"jsonrpc": "2.0", "method": "news"})).await;
    assert_eq!((told.status, told.body.as_str()), (202, ""));
    let mut stream = up.open("GET", PATH, &[("Mcp-Session-Id", session.as_str())], "").await;
    let mut text = String::new();
    let mut chunk = [0; 4096];
    while !text.contains("notifications/message") {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut chunk)).await.expect("news").unwrap();
        assert!(read > 0, "{text}");
        text += &String::from_utf8_lossy(&chunk[..read]);
    }
    assert!(text.contains(r#""n":2"#), "{text}");
}

#[tokio::test]
async fn a_call_is_cancelled_by_the_id_that_the_client_gave_it() {
    let up = up().await;
    let session = up.begin().await;
    let silent = ask("mine", "silent");
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "mine"}});
    let waiting = up.post(Some(&session), &silent);
    let told = async {
        for _ in 0..100 {
            assert_eq!(up.post(Some(&session), &cancel).await.status, 202);
            if up.folder.path().join("cancelled").exists() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let heard = up.wait_for("cancelled").await;
        assert!(heard.contains(r#""requestId":2"#), "{heard}");
        // The call is never answered; with the session its waiting ends.
        up.send("DELETE", PATH, &[("Mcp-Session-Id", &session)], "").await
    };
    let (answer, _) = tokio::join!(waiting, told);
    assert_eq!(answer.json()["error"]["code"], -32000);
}

#[tokio::test]
async fn a_server_that_dies_or_babbles_is_told_and_another_comes_up() {
    let up = up().await;
    let answer = up.post(None, &ask(1, "say")).await.json();
    assert_eq!(answer["result"]["n"], 1, "what is no message is passed over");
    let died = up.post(None, &ask(2, "die")).await.json();
    assert_eq!((&died["id"], &died["error"]["code"]), (&json!(2), &json!(-32000)));
    let again = up.post(None, &ask(3, "x")).await.json();
    assert_eq!(again["result"]["n"], 1, "another process");
    assert_ne!(again["result"]["pid"], answer["result"]["pid"]);
    let wide = up.post(None, &ask(4, "wide")).await.json();
    assert_eq!(wide["error"]["code"], -32000, "a line without end is not kept");
}

#[tokio::test]
async fn what_is_no_call_is_refused() {
    let up = up().await;
    for (method, path, headers, body, status) in [
        ("POST", PATH, vec![], "", 400),
        ("POST", PATH, vec![], "{}", 400),
        ("POST", PATH, vec![], "[]", 400),
        ("POST", PATH, vec![("Mcp-Session-Id", "made-up")], r#"{"id":1,"method":"x"}"#, 404),
        ("GET", PATH, vec![], "", 405),
        ("GET", PATH, vec![("Mcp-Session-Id", "made-up")], "", 404),
        ("DELETE", PATH, vec![], "", 405),
        ("DELETE", PATH, vec![("Mcp-Session-Id", "made-up")], "", 404),
        ("PUT", PATH, vec![], "", 405),
        ("GET", "/", vec![], "", 404),
    ] {
        assert_eq!(up.send(method, path, &headers, body).await.status, status, "{method} {path} {headers:?} {body}");
    }
    let batch = up.post(None, &json!([ask(1, "x"), ask("b", "x")])).await.json();
    assert_eq!((&batch[0]["id"], &batch[1]["id"]), (&json!(1), &json!("b")));
    let no_program = Server { argv: vec!["/nowhere".into()], env: vec![] };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let nowhere = Up { address: listener.local_addr().unwrap(), folder: tempfile::tempdir().unwrap() };
    tokio::spawn(serve_on(no_program, listener));
    assert!(!Path::new("/nowhere").exists());
    assert_eq!(nowhere.post(None, &ask(1, "x")).await.status, 503);
}
