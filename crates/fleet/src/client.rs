//! The verbs from outside.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ringfence_model::{Fault, Report};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::server::Line;

/// A client of the supervisor behind a Unix socket. Each call has a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Names the supervisor behind `socket`.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.into() }
    }

    /// Whether a supervisor listens there.
    pub async fn is_there(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    pub(crate) async fn once<T: DeserializeOwned>(&self, verb: &str, request: &impl Serialize) -> Result<T, Report> {
        let mut answer = None;
        self.each(verb, request, |item| {
            answer = Some(item);
            false
        })
        .await?;
        answer.ok_or_else(|| self.lost("it ended without an answer"))
    }

    pub(crate) async fn each<T: DeserializeOwned>(
        &self,
        verb: &str,
        request: &impl Serialize,
        mut take: impl FnMut(T) -> bool,
    ) -> Result<(), Report> {
        let mut body = self.post(verb, request).await?;
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| self.lost(e))?;
            let Ok(data) = frame.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                match serde_json::from_slice::<Line<T>>(&line).map_err(|e| self.lost(e))? {
                    Line::Item(item) => {
                        if !take(item) {
                            return Ok(());
                        }
                    }
                    Line::End => return Ok(()),
                    Line::Error(report) => return Err(report),
                }
            }
        }
        Err(self.lost("it ended in the middle of an answer"))
    }

    async fn post(&self, verb: &str, request: &impl Serialize) -> Result<Incoming, Report> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| self.unreachable(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| self.lost(e))?;
        tokio::spawn(connection);
        let text = serde_json::to_vec(request).map_err(|e| self.lost(e))?;
        let request = Request::post(format!("/v1/{verb}"))
            .header("host", "supervisor")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(|e| self.lost(e))?;
        Ok(sender.send_request(request).await.map_err(|e| self.lost(e))?.into_body())
    }

    fn unreachable(&self, error: &io::Error) -> Report {
        let report = Report::new(
            "supervisor.unreachable",
            Fault::Host,
            format!("no supervisor answers at `{}`", self.socket.display()),
        )
        .cause(error);
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                report.hint("run the command as root, or as the user that runs the supervisor")
            }
            _ => report.hint("start one with `ringfence serve`, or run `ringfence up`, which does"),
        }
    }

    fn lost(&self, why: impl std::fmt::Display) -> Report {
        Report::new("supervisor.lost", Fault::Us, "the supervisor ended the connection")
            .cause(why)
            .hint("see whether it still runs: `ringfence ps`")
    }
}
