//! `ringfence secret`

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use ringfence_fleet::api::SecretRequest;
use ringfence_model::{Fault, Report, SecretText};

use crate::args::{Secret, SecretVerb};
use crate::{connect, print};

/// The largest secret taken, in bytes.
const SECRET_BYTES: u64 = 64 << 10;

pub async fn run(args: Secret) -> Result<ExitCode, Report> {
    let (request, done) = match args.verb {
        SecretVerb::Put { name } => {
            if std::io::stdin().is_terminal() {
                eprintln!("type the secret, then Enter and Ctrl-D");
            }
            let mut text = String::new();
            std::io::stdin().lock().take(SECRET_BYTES + 1).read_to_string(&mut text).map_err(|e| {
                Report::new("secret.input", Fault::Caller, format!("cannot take secret `{name}`"))
                    .because(&e)
                    .hint(format!("give one line: `printf %s \"$KEY\" | ringfence secret put {name}`"))
            })?;
            let long = text.len() as u64 > SECRET_BYTES;
            let text = ringfence_secrets::one_line(text.strip_suffix('\n').unwrap_or(&text));
            let wrong = match &text {
                text if text.is_empty() => Some("there is nothing on standard input"),
                _ if long => Some("it is longer than 64 KiB"),
                text if ringfence_secrets::is_usable(text) => None,
                text if text.contains('\n') => Some("it has several lines, and is neither JSON nor PEM"),
                _ => Some("it has control characters"),
            };
            if let Some(wrong) = wrong {
                return Err(Report::new("secret.input", Fault::Caller, format!("cannot take secret `{name}`"))
                    .cause(wrong)
                    .hint(format!("give one line: `printf %s \"$KEY\" | ringfence secret put {name}`")));
            }
            let done = format!("sealed `{name}`; name it in a manifest as `vault:{name}`");
            (SecretRequest { name, value: Some(SecretText::new(text)) }, done)
        }
        SecretVerb::Rm { name } => {
            let done = format!("removed `{name}`");
            (SecretRequest { name, value: None }, done)
        }
    };
    connect::client_or_start().await?.secret(&request).await?;
    print::line(&done);
    Ok(ExitCode::SUCCESS)
}
