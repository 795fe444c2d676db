//! Measures the gate beside other proxies that open TLS, in one run on one machine: see `--help`.

mod hud;
mod library;
mod load;
mod peers;
mod pki;
mod table;
mod upstream;
mod wire;

use std::process::ExitCode;

/// What breaks a run.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
/// What a step comes to.
pub type Done = Result<(), Failure>;

/// The one host of the run.
pub const HOST: &str = "api.example.org";
/// The core of whatever is measured.
pub const PROXY_CORE: usize = 0;
/// The core of client and upstream.
pub const WORLD_CORE: usize = 1;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["load", order] => load::main(order),
        ["upstream", port, dir] => port.parse().map_err(Failure::from).and_then(|port| upstream::main(port, dir)),
        ["hudsucker", port, dir] => port.parse().map_err(Failure::from).and_then(|port| hud::main(port, dir)),
        ["gate-in-library", port, orders, certificate, spool @ ..] => {
            port.parse().map_err(Failure::from).and_then(|port| library::main(port, orders, certificate, spool.first()))
        }
        // For profiles: the gate's code in this program, whose symbols are kept.
        ["gate-process"] => return ringfence_gate::process::main(3),
        options => table::main(options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(1)
        }
    }
}
