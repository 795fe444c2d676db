//! The gate's code in a process that keeps its rights, with a spool or with a log that forgets: what recording costs.

use std::sync::Arc;

use jiff::Timestamp;
use ringfence_audit::{Event, Origin, Record, RecordError, Spool};
use ringfence_gate::Gate;
use ringfence_gate::accept::{self, Capture};
use ringfence_gate::budget::{Files, NUMBERS};
use ringfence_gate::config::GateConfig;
use ringfence_sys::shared::Counters;
use tokio::net::TcpListener;

use crate::{Done, HOST};

/// A log that forgets.
struct Nothing;

impl Record for Nothing {
    fn record(&self, _: Timestamp, event: Event) -> Result<u64, RecordError> {
        std::hint::black_box(&event);
        Ok(0)
    }
}

/// Serves for ever on `port`, for the one host.
pub fn main(port: u16, orders: &str, certificate: &str, spool: Option<&&str>) -> Done {
    let config: GateConfig = serde_json::from_slice(&std::fs::read(orders)?)?;
    let log: Arc<dyn Record> = match spool {
        None => Arc::new(Nothing),
        Some(path) => {
            let file = std::fs::File::options().create(true).read(true).append(true).open(path)?;
            let origin = Origin {
                source: format!("gate:{}", config.sandbox),
                agent: Some(config.agent.clone()),
                sandbox: Some(config.sandbox.clone()),
            };
            Arc::new(Spool::open(file, origin, 1)?)
        }
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let counted = rustix::fs::memfd_create("budget", rustix::fs::MemfdFlags::CLOEXEC)?;
        let own = Some(Arc::new(Counters::map(&counted.into(), NUMBERS)?));
        let gate = Gate::open_counting(&config, log, Files { own, shared: None })?;
        std::fs::write(certificate, gate.ca_pem())?;
        let to = (gate.names().assign(&HOST.parse()?).ok_or("the host got no address")?, 443).into();
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        Ok(accept::serve(gate, listener, Capture::Fixed(to)).await?)
    })
}
