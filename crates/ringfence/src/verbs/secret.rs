//! `ringfence secret`

use std::io::Read;
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
            let mut text = String::new();
            std::io::stdin().lock().take(SECRET_BYTES + 1).read_to_string(&mut text).map_err(|e| {
                Report::new("secret.input", Fault::Caller, "cannot read the secret from standard input").because(&e)
            })?;
            let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
            if text.is_empty() || text.len() as u64 > SECRET_BYTES || text.chars().any(char::is_control) {
                return Err(Report::new(
                    "secret.input",
                    Fault::Caller,
                    "the secret is empty, too long, or has control characters",
                )
                .hint(format!("give one line: `printf %s \"$KEY\" | ringfence secret put {name}`")));
            }
            let done = format!("sealed; name it in a manifest as `vault:{name}`");
            (SecretRequest { name, value: Some(SecretText::new(text)) }, done)
        }
        SecretVerb::Rm { name } => (SecretRequest { name, value: None }, "removed".to_owned()),
    };
    connect::client_or_start().await?.secret(&request).await?;
    print::line(&done);
    Ok(ExitCode::SUCCESS)
}
