//! `ringfence audit body` and `ringfence audit forget`

use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ringfence_audit::age::{self, Identity};
use ringfence_audit::capture::Way;
use ringfence_fleet::api::{BodyEvent, BodyRequest};
use ringfence_model::{Bytes, Fault, Report};

use crate::args::{Body, Named};
use crate::{connect, print};

pub async fn run(args: Body) -> Result<ExitCode, Report> {
    let identity = args.identity.as_deref().map(identity).transpose()?;
    let terminal = args.output.is_none() && std::io::stdout().is_terminal();
    if terminal && identity.is_none() {
        let report = Report::new("capture.terminal", Fault::Caller, "an encrypted file is nothing for a terminal");
        return Err(report.hint("write it into a file with `-o FILE`, or pass it on: `… | age -d -i KEY`"));
    }
    let way = if args.response { Way::Response } else { Way::Request };
    let request = BodyRequest { call: args.call, way };
    let (mut file, mut told, mut broken) = (Vec::new(), None, false);
    let client = connect::client_or_start().await?;
    client
        .body(&request, |event| {
            match event {
                BodyEvent::Found(found) => told = Some(found),
                BodyEvent::Part(part) => match STANDARD.decode(part) {
                    Ok(part) => file.extend(part),
                    Err(_) => broken = true,
                },
            }
            !broken
        })
        .await?;
    let told = told.filter(|told| !broken && told.bytes == file.len() as u64);
    let told = told.ok_or_else(|| Report::new("capture.broken", Fault::Us, "the supervisor's answer broke off"))?;
    let out = match &identity {
        None => file,
        Some(identity) => age::open(identity, &file).map_err(|e| {
            Report::new("capture.decrypt", Fault::Caller, format!("cannot decrypt what call `{}` has", request.call))
                .because(&e)
                .hint("the grant's `capture` named the recipients at the time of the call")
        })?,
    };
    let written = match &args.output {
        Some(path) => {
            let options = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
            options.and_then(|mut to| to.write_all(&out))
        }
        // What an agent or an upstream wrote may steer a terminal.
        None if terminal => {
            String::from_utf8_lossy(&out).lines().for_each(|line| print::line(&print::safe(line)));
            Ok(())
        }
        None => std::io::stdout().lock().write_all(&out),
    };
    written.map_err(|e| Report::new("capture.output", Fault::Caller, "cannot write what was captured").because(&e))?;
    if told.cut {
        eprintln!("the {} went on or broke off: this is the first {} of it", way.word(), Bytes(told.holds));
    }
    Ok(ExitCode::SUCCESS)
}

fn identity(path: &std::path::Path) -> Result<Identity, Report> {
    let wrong =
        || Report::new("capture.identity", Fault::Caller, format!("`{}` holds no identity of age", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong().because(&e))?;
    Identity::from_text(&text).ok_or_else(|| wrong().hint("`age-keygen -o key.txt` makes one, `AGE-SECRET-KEY-1…`"))
}

pub async fn forget(args: Named) -> Result<ExitCode, Report> {
    let forgotten =
        connect::client_or_start().await?.forget(&ringfence_fleet::api::Named { agent: args.agent.clone() }).await?;
    if args.output.json {
        print::json(&forgotten);
    } else {
        print::line(&format!("removed {} of captured bodies of `{}`", Bytes(forgotten.bytes), args.agent));
    }
    Ok(ExitCode::SUCCESS)
}
