//! The rounds, the table, and what was promised.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringfence_model::manifest::Scheme;
use ringfence_policy::{HttpRequest, Policy, Request};

use crate::load::Work;
use crate::peers::{Peer, World};
use crate::{Done, Failure, HOST};

const HELP: &str = "\
Measures the gate beside other proxies that open TLS: all in one run, in turn, medians of the rounds.

  --gate PATH        program whose `gate-process` is the gate (default: this program, with the gate compiled in)
  --peers A,B        of direct, gate, secret (a gate that injects), strict (a gate that waits for the disk), hudsucker,
                     squid, mitmproxy (default: all but secret, strict and mitmproxy)
  --mitmdump PATH    the program of mitmproxy
  --rows A,B         of keep1, keep32, new, resumed, body64k, download, upload, sse, chat, chatsse, chatsse32, audit,
                     grants, many (default: all)
  --rounds N         how often each is measured (default: 3)
  --seconds N        how long each time (default: 2)
  --pause            start the peers, print their processes, and wait: for profiles";

/// How much goes down or up at once.
const BULK: u64 = 1 << 30;

struct Options {
    gate: PathBuf,
    peers: Vec<String>,
    rows: Option<Vec<String>>,
    mitmdump: String,
    rounds: usize,
    seconds: f64,
    pause: bool,
}

/// One row of the table.
struct Row {
    key: &'static str,
    what: &'static str,
    work: Work,
    connections: usize,
}

const ROWS: [Row; 11] = [
    Row { key: "keep1", what: "keep-alive, 1 connection, 1 KiB", work: Work::KeepAlive(1024), connections: 1 },
    Row { key: "keep32", what: "keep-alive, 32 connections, 1 KiB", work: Work::KeepAlive(1024), connections: 32 },
    Row { key: "new", what: "new connection per request, 8 at once", work: Work::Anew(false), connections: 8 },
    Row { key: "resumed", what: "the same, TLS resumed", work: Work::Anew(true), connections: 8 },
    Row { key: "body64k", what: "keep-alive, 8 connections, 64 KiB", work: Work::KeepAlive(65_536), connections: 8 },
    Row { key: "download", what: "download of 1 GiB", work: Work::Download(BULK), connections: 1 },
    Row { key: "upload", what: "upload of 1 GiB", work: Work::Upload(BULK), connections: 1 },
    Row { key: "sse", what: "first event of a stream", work: Work::FirstEvent, connections: 1 },
    Row { key: "chat", what: "language model, 32 connections", work: Work::Chat, connections: 32 },
    Row { key: "chatsse", what: "language model, first event", work: Work::ChatStream, connections: 1 },
    Row { key: "chatsse32", what: "the same, 32 streams", work: Work::ChatStream, connections: 32 },
];

/// Medians of one peer in one row.
#[derive(Clone, Copy, Default)]
struct Cell {
    per_second: f64,
    p50_us: f64,
    cpu_per_1000: f64,
    peak_mib: f64,
}

/// Runs as the options say.
pub fn main(options: &[&str]) -> Done {
    let Some(options) = parse(options)? else {
        println!("{HELP}");
        return Ok(());
    };
    let wanted = |key: &str| options.rows.as_ref().is_none_or(|rows| rows.iter().any(|row| row == key));
    // Others may use this machine; what is measured comes first, all of it alike.
    // Both: where the kernel shares time among sessions first, niceness counts only within one.
    let first = rustix::process::nice(-20).is_ok();
    if !first || std::fs::write("/proc/self/autogroup", "-20").is_err() {
        eprintln!("note: whatever else runs on this machine is measured too");
    }
    let dir = tempfile::tempdir()?;
    let world = World::new(dir.path())?;
    let mut peers = Vec::new();
    for name in &options.peers {
        peers.push(match name.as_str() {
            "direct" => world.direct(),
            "gate" => world.gate("gate", &options.gate, false, false)?,
            "hudsucker" => world.hudsucker()?,
            "mitmproxy" => world.mitmproxy(&options.mitmdump)?,
            "secret" => world.gate("gate with a secret", &options.gate, true, false)?,
            "strict" => world.gate("gate, strict audit", &options.gate, false, true)?,
            "squid" => world.squid()?,
            other => return Err(format!("no peer is called `{other}`").into()),
        });
    }
    std::thread::sleep(TO_REST);
    let idle: Vec<(String, f64)> = peers.iter().map(|peer| (peer.name.clone(), peer.memory("VmRSS"))).collect();
    if options.pause {
        peers.iter().for_each(|peer| println!("{}: {:?}", peer.name, peer.processes()));
        std::thread::sleep(Duration::from_secs(600));
        return Ok(());
    }
    let mut cells: BTreeMap<(&str, String), Cell> = BTreeMap::new();
    println!(
        "{:<20} {:>10} {:>9} {:>11} {:>9} {:>9} {:>12}",
        "", "requests/s", "p50 µs", "CPU s/1,000", "peak MiB", "of squid", "of hudsucker"
    );
    for row in ROWS.iter().filter(|row| wanted(row.key)) {
        println!("{}", row.what);
        let all = measure(row, &peers, &options)?;
        for (peer, cell) in peers.iter().zip(&all) {
            let of = |other: &str| {
                let other = peers.iter().position(|p| p.name == other).and_then(|at| all.get(at));
                other.map_or(String::new(), |o| format!("{:.2}", cell.per_second / o.per_second))
            };
            let speed = match row.work {
                Work::Download(bytes) | Work::Upload(bytes) => {
                    format!("{:.2} GB/s", cell.per_second * bytes as f64 / 1e9)
                }
                _ => format!("{:.0}", cell.per_second),
            };
            println!(
                "  {:<18} {speed:>10} {:>9.0} {:>11.4} {:>9.1} {:>9} {:>12}",
                peer.name,
                cell.p50_us,
                cell.cpu_per_1000,
                cell.peak_mib,
                of("squid"),
                of("hudsucker")
            );
            cells.insert((row.key, peer.name.clone()), *cell);
        }
    }
    let audit = if wanted("audit") { Some(audit(&world, &options)?) } else { None };
    let grants = if wanted("grants") { Some(grants(&world)?) } else { None };
    drop(peers);
    let many = if wanted("many") { Some(many(&world, &options)?) } else { None };
    promises(&cells, &idle, audit, grants, many);
    Ok(())
}

fn parse(words: &[&str]) -> Result<Option<Options>, Failure> {
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut options = Options {
        gate: std::env::current_exe()?,
        peers: list("direct,gate,hudsucker,squid"),
        rows: None,
        mitmdump: "mitmdump".into(),
        rounds: 3,
        seconds: 2.0,
        pause: false,
    };
    let mut words = words.iter().copied();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("`{word}` wants a value"));
        match word {
            "--gate" => options.gate = std::path::absolute(value()?)?,
            "--help" => return Ok(None),
            "--mitmdump" => options.mitmdump = value()?.to_owned(),
            "--pause" => options.pause = true,
            "--peers" => options.peers = list(value()?),
            "--rounds" => options.rounds = value()?.parse()?,
            "--rows" => options.rows = Some(list(value()?)),
            "--seconds" => options.seconds = value()?.parse()?,
            other => return Err(format!("no option `{other}`; see --help").into()),
        }
    }
    Ok(Some(options))
}

/// A B A B: every peer in turn, so many rounds; the median of each number.
fn measure(row: &Row, peers: &[Peer], options: &Options) -> Result<Vec<Cell>, Failure> {
    let mut seen: Vec<Vec<Cell>> = peers.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.rounds {
        for (peer, cells) in peers.iter().zip(&mut seen) {
            peer.forget_peak();
            let before = peer.cpu();
            let load = match peer.load(row.work, row.connections, options.seconds) {
                Ok(load) => load,
                Err(error) => {
                    eprintln!("note: {error}");
                    continue;
                }
            };
            let used = peer.cpu() - before;
            if matches!(row.work, Work::Anew(true)) && load.resumed * 10 < load.requests * 9 {
                eprintln!("note: {} resumed {} of {} TLS sessions", peer.name, load.resumed, load.requests);
            }
            cells.push(Cell {
                per_second: load.requests as f64 / load.seconds,
                p50_us: load.p50_us,
                cpu_per_1000: used * 1e3 / load.requests.max(1) as f64,
                peak_mib: peer.memory("VmHWM"),
            });
        }
    }
    Ok(seen
        .iter()
        .map(|cells| {
            let of = |pick: fn(&Cell) -> f64| median(cells.iter().map(pick).collect());
            Cell {
                per_second: of(|c| c.per_second),
                p50_us: of(|c| c.p50_us),
                cpu_per_1000: of(|c| c.cpu_per_1000),
                peak_mib: of(|c| c.peak_mib),
            }
        })
        .collect())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Requests per second with the spool and with a log that forgets, in otherwise the same process.
fn audit(world: &World, options: &Options) -> Result<f64, Failure> {
    let row = Row { key: "audit", what: "", work: Work::KeepAlive(1024), connections: 32 };
    let on = world.gate_in_library("gate, recorded", true)?;
    let off = world.gate_in_library("gate, unrecorded", false)?;
    let both = [on, off];
    let cells = measure(&row, &both, options)?;
    println!("audit: keep-alive, 32 connections, 1 KiB; the gate's code without its process");
    for (peer, cell) in both.iter().zip(&cells) {
        println!("  {:<18} {:>10.0} {:>9.0} {:>11.4}", peer.name, cell.per_second, cell.p50_us, cell.cpu_per_1000);
    }
    let [on, off] = cells.as_slice() else { return Err("two were measured".into()) };
    println!("  recording takes {:.1} % of the CPU time", 100.0 * (1.0 - off.cpu_per_1000 / on.cpu_per_1000));
    Ok(1.0 - on.per_second / off.per_second)
}

/// How long until a gate that was asked something, be it one name, is idle.
const TO_REST: Duration = Duration::from_secs(7);

/// What a gate takes of memory among so many that do nothing, in MiB: resident, and its share of what is shared.
fn many(world: &World, options: &Options) -> Result<f64, Failure> {
    const GATES: usize = 50;
    let gates = (0..GATES).map(|nth| world.gate(&format!("gate {nth}"), &options.gate, false, false));
    let gates = gates.collect::<Result<Vec<_>, _>>()?;
    std::thread::sleep(TO_REST);
    let resident = median(gates.iter().map(|gate| gate.memory("VmRSS")).collect());
    let share = median(gates.iter().map(Peer::share).collect());
    println!("{GATES} gates that do nothing, each: {resident:.1} MiB resident, {share:.1} MiB its share");
    Ok(resident)
}

/// Microseconds per decision, with 10 and 1,000 grants: of requests all different, and of one again and again.
fn grants(world: &World) -> Result<[f64; 4], Failure> {
    println!("decision, µs{:>24} {:>9}", "all different", "the same");
    let mut found = [f64::NAN; 4];
    for (at, count) in [10, 1000].into_iter().enumerate() {
        let config = world.config(count, false)?;
        let policy = Policy::compile(&config.agent, &config.grants, &[])?;
        let host = HOST.parse()?;
        let paths: Vec<String> = (0..20_000).map(|n| format!("/bytes/{n}")).collect();
        let ask = |path: &str| {
            let request = HttpRequest {
                host: &host,
                port: 443,
                scheme: Scheme::Https,
                method: "GET",
                path,
                websocket: false,
                model: None,
                llm: None,
            };
            assert!(black_box(policy.decide(black_box(&Request::Http(request)))).allows());
        };
        // The best of many short runs: it waits for nothing, so whatever is longer is somebody else's.
        let cost = |one: &dyn Fn(usize)| {
            let runs = (0..20).map(|run| {
                let started = Instant::now();
                (run * 1000..(run + 1) * 1000).for_each(one);
                started.elapsed().as_secs_f64() * 1e6 / 1e3
            });
            runs.fold(f64::INFINITY, f64::min)
        };
        let different = cost(&|n| ask(paths.get(n).map_or("", String::as_str)));
        let same = cost(&|_| ask("/bytes/1024"));
        println!("  {:<18} {different:>17.2} {same:>9.2}", format!("{count} grants"));
        found[at * 2] = different;
        found[at * 2 + 1] = same;
    }
    Ok(found)
}

/// What was promised, and whether it holds.
fn promises(
    cells: &BTreeMap<(&str, String), Cell>,
    idle: &[(String, f64)],
    audit: Option<f64>,
    grants: Option<[f64; 4]>,
    many: Option<f64>,
) {
    println!("\npromises");
    let cell = |row: &'static str, peer: &str| cells.get(&(row, peer.to_owned())).copied();
    let say = |what: &str, value: Option<f64>, bound: f64, at_most: bool| {
        let Some(value) = value.filter(|v| v.is_finite()) else { return };
        let held = if at_most { value <= bound } else { value >= bound };
        let sign = if at_most { "≤" } else { "≥" };
        println!("  {:<6} {what:<58} {value:>9.4} {sign} {bound}", if held { "held" } else { "MISSED" });
    };
    let ratio = |row, peer| Some(cell(row, "gate")?.per_second / cell(row, peer)?.per_second);
    let gate = |row, pick: fn(Cell) -> f64| cell(row, "gate").map(pick);
    say("keep-alive, 32: CPU s per 1,000", gate("keep32", |c| c.cpu_per_1000), 0.025, true);
    say("keep-alive, 32: requests/s of squid's", ratio("keep32", "squid"), 2.0, false);
    say("keep-alive, 32: requests/s of hudsucker's", ratio("keep32", "hudsucker"), 0.8, false);
    let hud = cell("keep1", "hudsucker").map_or(f64::NAN, |c| c.p50_us);
    say("keep-alive, 1: p50 µs beside hudsucker's", gate("keep1", |c| c.p50_us).filter(|_| hud.is_finite()), hud, true);
    say("new connection: CPU s per 1,000", gate("new", |c| c.cpu_per_1000), 0.2, true);
    say("new connection: requests/s of squid's", ratio("new", "squid"), 10.0, false);
    say("new connection: requests/s of hudsucker's", ratio("new", "hudsucker"), 0.8, false);
    say("new connection, resumed: requests/s of hudsucker's", ratio("resumed", "hudsucker"), 0.8, false);
    say("64 KiB: requests/s of squid's", ratio("body64k", "squid"), 2.0, false);
    let gigabytes = |row| gate(row, |c| c.per_second * BULK as f64 / 1e9);
    say("download, GB/s", gigabytes("download"), 1.0, false);
    say("upload, GB/s", gigabytes("upload"), 1.0, false);
    say("idle gate, MiB", idle.iter().find(|(name, _)| name == "gate").map(|(_, rss)| *rss), 8.0, true);
    say("idle gate among 50, MiB", many, 8.0, true);
    say("gate at 32 connections, MiB", gate("keep32", |c| c.peak_mib), 32.0, true);
    say("gate in 1 GiB down, MiB", gate("download", |c| c.peak_mib), 32.0, true);
    say("gate in 1 GiB up, MiB", gate("upload", |c| c.peak_mib), 32.0, true);
    let sse = cell("sse", "gate").zip(cell("sse", "direct")).map(|(g, d)| g.p50_us - d.p50_us);
    say("first event: added to direct, p50 µs", sse, 250.0, true);
    let secret = |row, pick: fn(Cell) -> f64| cell(row, "gate with a secret").or(cell(row, "gate")).map(pick);
    say("language model, 32: CPU s per 1,000", secret("chat", |c| c.cpu_per_1000), 0.06, true);
    let chat =
        secret("chatsse", |c| c.p50_us).zip(cell("chatsse", "direct")).map(|(gate, direct)| gate - direct.p50_us);
    say("language model: first event, added to direct, p50 µs", chat, 300.0, true);
    say("audit: share of requests/s", audit, 0.15, true);
    say("decision with 10 grants, µs", grants.map(|g| g[0]), 10.0, true);
    say("decision with 1,000 grants beside 10", grants.map(|g| g[2] / g[0]), 1.3, true);
}
