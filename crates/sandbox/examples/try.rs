use std::path::PathBuf;
use ringfence_sandbox::{launch, control, probe, spec::*};
fn main() {
    if std::env::args().nth(1).as_deref() == Some("shim-process") {
        std::process::exit(if ringfence_sandbox::shim::main() == std::process::ExitCode::SUCCESS {0} else {1});
    }
    let fence = Fence { network: false, ..Fence::default() };
    let id = ringfence_model::SandboxId::from_parts(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64, [1;8]);
    let spec = SandboxSpec {
        id: id.clone(), agent: "try".parse().unwrap(), slot: 1, layers: vec![PathBuf::from("/")],
        argv: std::env::args().skip(1).collect(), env: vec![("PATH".into(), "/usr/bin:/bin".into())], cwd: "/tmp".into(),
        limits: ringfence_model::manifest::Limits { memory: ringfence_model::Bytes::mib(256), cpus: 1.0, pids: 64, disk: ringfence_model::Bytes::mib(64), tmp: ringfence_model::Bytes::mib(16), files: 1024 },
        mounts: vec![], state: Some(StateVolume { file: "/tmp/rf-try/state.img".into(), size: ringfence_model::Bytes::mib(64), quota: true }),
        trust_stores: vec![], host_roots: None, run_dir: PathBuf::from(format!("/tmp/rf-try/{id}")), mount_dir: "/tmp/rf-try/mnt".into(), log: "/tmp/rf-try/agent.log".into(),
        spools: "/tmp/rf-try/spools".into(), gate_program: "/bin/false".into(), fence,
    };
    std::fs::create_dir_all("/tmp/rf-try").unwrap();
    let t = std::time::Instant::now();
    match launch::launch(&spec, b"{}", None, &std::env::current_exe().unwrap()) {
        Err(r) => println!("{r}"),
        Ok(l) => {
            println!("{:?} in {:?}", l.status, t.elapsed());
            let shim = control::Shim::at(&spec.control());
            let t = std::time::Instant::now();
            match control::probe(&shim, probe::Targets { names: vec!["nope.invalid".into()], sockets: vec!["/run/x".into()], ..Default::default() }) {
                Ok(f) => for f in f { println!("{:5} {:22} {}", f.held, f.barrier, f.detail) },
                Err(e) => println!("{e:?}"),
            }
            println!("probes in {:?}", t.elapsed());
            println!("{:?}", control::exec(&shim, &["/usr/bin/id".into()], &[], [std::io::stdin().lock().as_fd_owned(), std::io::stdout().as_fd_owned(), std::io::stderr().as_fd_owned()]));
            println!("{:?}", shim.ask(&control::Request::Kill, &[], std::time::Duration::from_secs(5)));
            std::thread::sleep(std::time::Duration::from_millis(300));
            println!("{:?}", launch::exit_of(&spec.run_dir));
        }
    }
}
trait F { fn as_fd_owned(&self) -> std::os::fd::OwnedFd; }
impl<T: std::os::fd::AsFd> F for T { fn as_fd_owned(&self) -> std::os::fd::OwnedFd { self.as_fd().try_clone_to_owned().unwrap() } }
