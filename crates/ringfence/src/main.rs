//! `ringfence`: takes an agent from a source folder to production, and keeps it inside a fence there.
//!
//! This binary parses arguments, wires effects to the core, prints and exits. It is also the program of our helper
//! processes: the supervisor (`serve`), the shim and the gate.

mod args;
mod connect;
mod env;
mod paths;
mod print;
mod supervisor;
mod upstream_proxy;
mod verbs;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Helper processes come first: nothing else of this program may run in them.
    match std::env::args().nth(1).as_deref() {
        Some("shim-process") => return ringfence_sandbox::shim::main(),
        Some("gate-process") => return ringfence_gate::process::main(ringfence_sandbox::spec::fds::GATE_CONFIG),
        _ => {}
    }
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match verbs::run(args) {
        Ok(code) => code,
        Err(report) => {
            print::report(&report);
            ExitCode::from(report.exit_code())
        }
    }
}
