//! One process of the server, and who waits for what of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence_inspect::json::Value;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Notify, mpsc};

use crate::Server;
use crate::message::{self, Id, Kind, MAX_BATCH, MAX_BYTES, Message};
use crate::reap::Own;

/// Messages that wait for a server to read them.
const MAX_UNREAD: usize = 64;

/// Messages of a server that wait for its client to read them; and how many of these places only answers take, so that no
/// flood of other messages costs a client its answer.
pub const MAX_HELD: usize = 256;
const KEPT_FOR_ANSWERS: usize = MAX_BATCH;

/// How long a server may go on once nobody speaks to it any more.
const FAREWELL: Duration = Duration::from_secs(2);

/// The code of an error that a server could not give itself.
const SERVER_ERROR: i32 = -32000;

/// What goes to a client.
pub enum Said {
    /// A message; more come.
    More(Bytes),
    /// An answer that was waited for.
    Answer(Bytes),
}

/// A process of the server.
pub struct Process {
    input: mpsc::Sender<Bytes>,
    state: Mutex<State>,
    over: Notify,
}

struct State {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// Who gets what belongs to no request.
    listener: Option<mpsc::Sender<Said>>,
    /// What came while nobody listened.
    parked: VecDeque<Bytes>,
    /// Whether several clients share it, so that nobody can be asked anything.
    shared: bool,
    ended: bool,
    used: Instant,
}

struct Waiting {
    id: Id,
    token: Option<Id>,
    to: mpsc::Sender<Said>,
}

impl Process {
    /// Starts one.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn start(server: &Server, shared: bool) -> io::Result<Arc<Self>> {
        let mut argv = server.argv.iter();
        let mut command = Command::new(argv.next().map_or("", String::as_str));
        command
            .args(argv)
            .env_clear()
            .envs(server.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What it complains goes where the sandbox's output goes.
            .stderr(Stdio::inherit())
            .process_group(0)
            .kill_on_drop(true);
        let ((mut child, pid), own) = Own::claim(|| {
            let child = command.spawn()?;
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).ok_or(io::ErrorKind::NotFound)?;
            Ok(((child, pid), pid))
        })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let (sender, receiver) = mpsc::channel(MAX_UNREAD);
        let process = Arc::new(Self {
            input: sender,
            state: Mutex::new(State {
                next: 1,
                waiting: BTreeMap::new(),
                listener: None,
                parked: VecDeque::new(),
                shared,
                ended: false,
                used: Instant::now(),
            }),
            over: Notify::new(),
        });
        tokio::spawn(write(input, receiver, Arc::clone(&process)));
        tokio::spawn(Arc::clone(&process).live(child, pid, own, output));
        Ok(process)
    }

    /// Tells it something that is not answered.
    pub async fn tell(&self, mut message: Message) {
        self.state().used = Instant::now();
        if message.method() == Some("notifications/cancelled")
            && let Some(id) = message.param("requestId")
        {
            let known = self.state().waiting.iter().find(|(_, waiting)| waiting.id == *id).map(|(number, _)| *number);
            let Some(number) = known else { return };
            message.replace(&["params", "requestId"], Value::count(number));
        }
        self.send(message).await;
    }

    /// Asks it something; the answer and what belongs to it come to `to`.
    pub async fn ask(&self, mut message: Message, to: &mpsc::Sender<Said>) {
        let ended = {
            let mut state = self.state();
            state.used = Instant::now();
            let number = state.next;
            state.next += 1;
            let Some((id, token)) = message.renumber(number) else { return };
            if state.ended {
                Some(id)
            } else {
                state.waiting.insert(number, Waiting { id, token, to: to.clone() });
                None
            }
        };
        match ended {
            Some(id) => drop(to.try_send(Said::Answer(gone(&id)))),
            None => self.send(message).await,
        }
    }

    /// Takes what belongs to no request from now on.
    pub fn listen(&self) -> mpsc::Receiver<Said> {
        let (to, from) = mpsc::channel(MAX_HELD);
        let mut state = self.state();
        state.used = Instant::now();
        for held in std::mem::take(&mut state.parked) {
            let _ = to.try_send(Said::More(held));
        }
        if !state.ended {
            state.listener = Some(to);
        }
        from
    }

    /// Ends it.
    pub fn end(&self) {
        self.over.notify_one();
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.state().ended
    }

    /// For how long nobody had anything to do with it.
    pub fn idle(&self) -> Option<Duration> {
        let state = self.state();
        let listened = state.listener.as_ref().is_some_and(|listener| !listener.is_closed());
        (!listened && state.waiting.is_empty()).then(|| state.used.elapsed())
    }

    async fn send(&self, message: Message) {
        let mut line = message.to_line();
        line.push(b'\n');
        // If it has ended, whoever waits is told so.
        let _ = self.input.send(line.into()).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears the process until it ends, or is to end.
    async fn live(self: Arc<Self>, mut child: Child, pid: i32, own: Own, output: ChildStdout) {
        let group = Pid::from_raw(pid);
        tokio::select! {
            () = self.hear(output) => {}
            () = self.over.notified() => {}
        }
        self.fail_all();
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::TERM);
        }
        if tokio::time::timeout(FAREWELL, child.wait()).await.is_err()
            && let Some(group) = group
        {
            let _ = kill_process_group(group, Signal::KILL);
            let _ = child.wait().await;
        }
        drop(own);
    }

    fn fail_all(&self) {
        let mut state = self.state();
        state.ended = true;
        state.listener = None;
        for waiting in std::mem::take(&mut state.waiting).into_values() {
            let _ = waiting.to.try_send(Said::Answer(gone(&waiting.id)));
        }
    }

    async fn hear(&self, output: ChildStdout) {
        let mut output = BufReader::with_capacity(64 << 10, output);
        let mut line = Vec::new();
        loop {
            match line_of(&mut output, &mut line).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let Some((messages, _)) = Message::read_all(&line) else {
                eprintln_line(&line);
                continue;
            };
            for message in messages {
                if let Some(answer) = self.heard(message) {
                    // Not waited for: a server that does not read while it writes would wait for us in turn.
                    let _ = self.input.try_send(answer);
                }
            }
        }
    }

    /// Passes a message of the server on; returns what it is answered here.
    fn heard(&self, mut message: Message) -> Option<Bytes> {
        let mut state = self.state();
        match message.kind() {
            Kind::Response => {
                let waiting = message.id().and_then(Id::as_u64).and_then(|number| state.waiting.remove(&number))?;
                message.set_id(waiting.id);
                let _ = waiting.to.try_send(Said::Answer(message.to_line().into()));
                None
            }
            Kind::Notification if message.method() == Some("notifications/progress") => {
                let number = message.param("progressToken").and_then(Id::as_u64)?;
                let waiting = state.waiting.get(&number)?;
                message.replace(&["params", "progressToken"], waiting.token.clone()?);
                pass_on(&waiting.to, message.to_line().into());
                None
            }
            kind => {
                let line = Bytes::from(message.to_line());
                let listener = state.listener.clone().filter(|listener| !listener.is_closed());
                let only = (state.waiting.len() == 1 || !state.shared).then(|| state.waiting.values().next_back());
                let to = listener.or_else(|| only.flatten().map(|waiting| waiting.to.clone()));
                match to.map(|to| pass_on(&to, line.clone())) {
                    Some(true) => None,
                    _ if state.shared => {
                        let id = message.id().filter(|_| kind == Kind::Request)?;
                        let mut answer = message::error(id, SERVER_ERROR, "no client is there to be asked");
                        answer.push(b'\n');
                        Some(answer.into())
                    }
                    _ => {
                        state.parked.push_back(line);
                        if state.parked.len() > MAX_HELD {
                            state.parked.pop_front();
                        }
                        None
                    }
                }
            }
        }
    }
}

/// Passes on what is no answer; `false` if there is no place for it.
fn pass_on(to: &mpsc::Sender<Said>, line: Bytes) -> bool {
    to.capacity() > KEPT_FOR_ANSWERS && to.try_send(Said::More(line)).is_ok()
}

fn gone(id: &Id) -> Bytes {
    message::error(id, SERVER_ERROR, "the MCP server has ended").into()
}

async fn write(mut input: ChildStdin, mut lines: mpsc::Receiver<Bytes>, process: Arc<Process>) {
    while let Some(line) = lines.recv().await {
        if input.write_all(&line).await.is_err() {
            process.end();
            return;
        }
    }
}

/// Reads a line into `line`; `false` at the end, and for one that is too long.
async fn line_of(output: &mut BufReader<ChildStdout>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    loop {
        let have = output.fill_buf().await?;
        if have.is_empty() {
            return Ok(false);
        }
        let end = have.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(have.len(), |end| end + 1);
        line.extend_from_slice(have.get(..taken).unwrap_or_default());
        output.consume(taken);
        if line.len() > MAX_BYTES {
            complain("the server wrote a message that is too long, and was ended");
            return Ok(false);
        }
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn eprintln_line(line: &[u8]) {
    let start = String::from_utf8_lossy(line.get(..line.len().min(200)).unwrap_or_default());
    complain(&format!("the server wrote what is no message: {}", start.trim_end().escape_debug()));
}

/// Says a line where the server's own complaints go.
pub fn complain(text: &str) {
    use std::io::Write;
    // WHY: not `eprintln`, which panics where nobody reads.
    let _ = writeln!(io::stderr(), "ringfence: {text}");
}
