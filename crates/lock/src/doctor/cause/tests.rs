use super::super::report::Imported;
use super::*;

const APP: &str = "/app/app.py";

fn package(name: &str) -> String {
    format!("/opt/venv/lib/python3.11/site-packages/{name}/core.py")
}

fn raised(kind: &str, message: &str, files: &[&str]) -> Raised {
    let frame = |file: &&str| Frame { file: (*file).into(), line: Some(3), ..Frame::default() };
    Raised {
        kind: kind.into(),
        message: message.into(),
        frames: files.iter().map(frame).collect(),
        ..Raised::default()
    }
}

fn own() -> BTreeSet<String> {
    ["app", "utils", "Agent"].map(str::to_owned).into()
}

fn verdict(errors: Vec<Raised>) -> Verdict {
    judge(&Probed { errors, exit: Some(1), ..Probed::default() }, &own())
}

fn cause(kind: &str, message: &str, files: &[&str]) -> Cause {
    match verdict(vec![raised(kind, message, files)]) {
        Verdict::Failed(mut causes) if causes.len() == 1 => causes.remove(0),
        other => panic!("{message}: {other:?}"),
    }
}

fn of(name: &str) -> Owner {
    Owner::Package(name.into())
}

#[test]
fn what_is_missing_and_who_wants_it() {
    let inside = package("langchain");
    let machinery = "/usr/lib/python3.11/importlib/__init__.py";
    for (message, files, want) in [
        ("No module named 'bs4'", vec![APP], Cause::NoModule { module: "bs4".into(), by: Owner::Agent, told: vec![] }),
        (
            "No module named 'langchain.chains'; 'langchain' is a package",
            vec![APP, inside.as_str(), machinery, "<frozen importlib._bootstrap>"],
            Cause::NoModule { module: "langchain.chains".into(), by: of("langchain"), told: vec![] },
        ),
        (
            "cannot import name 'url_quote' from 'werkzeug.urls' (/opt/venv/lib/python3.11/site-packages/werkzeug/urls.py)",
            vec![APP, inside.as_str()],
            Cause::NoName { module: "werkzeug.urls".into(), name: "url_quote".into(), by: of("langchain") },
        ),
        (
            "libGL.so.1: cannot open shared object file: No such file or directory",
            vec![APP, inside.as_str()],
            Cause::NoLibrary { file: "libGL.so.1".into(), by: of("langchain") },
        ),
        (
            "numpy.core.multiarray failed to import",
            vec![APP, inside.as_str()],
            Cause::Binary {
                of: "numpy".into(),
                by: of("langchain"),
                said: "numpy.core.multiarray failed to import".into(),
            },
        ),
        (
            "Could not import x python package. Please install it with `pip install -U duckduckgo-search`.",
            vec![APP, inside.as_str()],
            Cause::Told {
                distributions: vec!["duckduckgo-search".into()],
                by: of("langchain"),
                said: "Could not import x python package. Please install it with `pip install -U duckduckgo-search`."
                    .into(),
            },
        ),
    ] {
        assert_eq!(cause("ImportError", message, &files), want, "{message}");
    }
}

#[test]
fn names_and_calls_that_do_not_fit() {
    let inside = package("openai");
    assert_eq!(
        cause("AttributeError", "module 'streamlit' has no attribute 'experimental_rerun'", &[APP]),
        Cause::NoName { module: "streamlit".into(), name: "experimental_rerun".into(), by: Owner::Agent }
    );
    let said = "Client.__init__() got an unexpected keyword argument 'proxies'";
    assert_eq!(
        cause("TypeError", said, &[APP, &inside]),
        Cause::Call { callee: "Client.__init__".into(), said: said.into(), by: of("openai") }
    );
    let said = "Blocks.launch() got an unexpected keyword argument 'enable_queue'";
    assert_eq!(
        cause("TypeError", said, &[APP]),
        Cause::Call { callee: "Blocks.launch".into(), said: said.into(), by: Owner::Agent }
    );
    let said = "numpy.dtype size changed, may indicate binary incompatibility. Expected 96 from C header, got 88";
    assert!(matches!(cause("ValueError", said, &[APP, &package("pandas")]), Cause::Binary { of, .. } if of == "numpy"));
}

#[test]
fn what_the_agent_s_own_code_does_wrong_is_its_own() {
    for (kind, message) in [
        ("NameError", "name 'undefined' is not defined"),
        ("TypeError", "Agent.__init__() missing 1 required positional argument: 'x'"),
        ("AttributeError", "'NoneType' object has no attribute 'get'"),
        ("AttributeError", "module 'utils' has no attribute 'gone'"),
        ("ModuleNotFoundError", "No module named 'utils.gone'"),
        ("ImportError", "cannot import name 'gone' from 'utils' (/app/utils.py)"),
        ("SyntaxError", "invalid syntax"),
        ("ZeroDivisionError", "division by zero"),
    ] {
        let verdict = verdict(vec![raised(kind, message, &[APP])]);
        assert!(matches!(verdict, Verdict::Broken(_)), "{kind} {message}: {verdict:?}");
    }
    let theirs = verdict(vec![raised("SyntaxError", "invalid syntax", &[APP, &package("old")])]);
    assert!(matches!(theirs, Verdict::Failed(_)), "{theirs:?}");
}

#[test]
fn what_it_only_waits_for_is_no_failure() {
    let inside = package("openai");
    for (kind, message, what) in [
        ("openai.OpenAIError", "The api_key client option must be set", Blocked::Secret),
        ("KeyError", "'OPENAI_API_KEY'", Blocked::Secret),
        ("StreamlitSecretNotFoundError", "No secrets found.", Blocked::Secret),
        ("ValueError", "Please set the GROQ token", Blocked::Secret),
        ("httpx.ConnectError", "[Errno -3] Temporary failure in name resolution", Blocked::Network),
        ("requests.exceptions.ConnectionError", "HTTPSConnectionPool: Max retries exceeded", Blocked::Network),
        (
            "redis.exceptions.ConnectionError",
            "Error 111 connecting to localhost:6379. Connection refused.",
            Blocked::Service,
        ),
        ("FileNotFoundError", "[Errno 2] No such file or directory: 'data/x.csv'", Blocked::Data),
        ("EOFError", "EOF when reading a line", Blocked::Input),
    ] {
        let verdict = verdict(vec![raised(kind, message, &[APP, &inside])]);
        assert_eq!(verdict, Verdict::Blocked(what), "{kind} {message}");
    }
}

#[test]
fn a_cause_below_counts_and_a_way_around_it_does_not() {
    let mut outer = raised("RuntimeError", "could not load the backend", &[APP, &package("lib")]);
    outer.chain = vec![raised("ModuleNotFoundError", "No module named 'torch'", &[APP, &package("lib")])];
    assert_eq!(
        verdict(vec![outer]),
        Verdict::Failed(vec![Cause::NoModule { module: "torch".into(), by: of("lib"), told: vec![] }])
    );
    let mut around = raised("AuthenticationError", "No API key provided", &[APP, &package("lib")]);
    around.chain = vec![raised("ModuleNotFoundError", "No module named 'ujson'", &[APP, &package("lib")])];
    assert_eq!(verdict(vec![around]), Verdict::Blocked(Blocked::Secret));
    // A failed dependency counts more than what it waits for.
    let both = verdict(vec![
        raised("KeyError", "'API_KEY'", &[APP]),
        raised("ModuleNotFoundError", "No module named 'bs4'", &[APP]),
    ]);
    assert!(matches!(both, Verdict::Failed(causes) if causes.len() == 1));
}

#[test]
fn ends_without_a_word_are_told_apart() {
    let probed = |phase, answered, exit, stderr: &str| Probed {
        phase,
        answered,
        exit,
        stderr: stderr.into(),
        ..Probed::default()
    };
    let judge = |probed| judge(&probed, &own());
    assert_eq!(judge(probed(Phase::Settled, true, None, "")), Verdict::Started);
    assert_eq!(judge(probed(Phase::Settled, false, Some(0), "")), Verdict::Started);
    assert_eq!(
        judge(probed(Phase::Settled, false, Some(2), "usage: app.py [-h] name\n")),
        Verdict::Blocked(Blocked::Input)
    );
    assert_eq!(
        judge(probed(Phase::Spawn, false, Some(1), "Please set OPENAI_API_KEY\n")),
        Verdict::Blocked(Blocked::Secret)
    );
    let told = judge(probed(Phase::Spawn, false, Some(1), "Run `pip install 'uvicorn[standard]'`\n"));
    assert!(
        matches!(told, Verdict::Failed(causes) if matches!(&causes[0], Cause::Told { distributions, .. } if distributions == &["uvicorn[standard]"]))
    );
    for silent in [probed(Phase::Spawn, false, Some(3), "odd\n"), probed(Phase::Spawn, false, None, "")] {
        assert!(matches!(judge(silent), Verdict::Failed(causes) if matches!(causes[0], Cause::Silent { .. })));
    }
    let unseen =
        Probed { probe_error: Some("stuck".into()), answered: true, phase: Phase::Settled, ..Probed::default() };
    let said = format!("{:?}", judge(unseen));
    assert!(said.starts_with("Failed") && said.contains("the probe that starts it failed: stuck"), "{said}");
    let waiting = Probed { waits_for_input: true, phase: Phase::Settled, ..Probed::default() };
    assert_eq!(judge(waiting), Verdict::Blocked(Blocked::Input));
    let imports = vec![Imported {
        name: "a.b".into(),
        ok: false,
        error: Some(raised("ModuleNotFoundError", "No module named 'a'", &[])),
        missing_attribute: false,
    }];
    let settled = Probed { imports: imports.clone(), phase: Phase::Settled, ..Probed::default() };
    assert_eq!(judge(settled), Verdict::Started, "not all that is imported is reached");
    let silent = Probed { imports, exit: Some(1), ..Probed::default() };
    assert!(matches!(judge(silent), Verdict::Failed(causes) if causes.len() == 2));
}

#[test]
fn commands_in_sentences_are_read() {
    for (text, want) in [
        ("Please run `pip install -U a-b`", vec!["a-b"]),
        ("pip install 'a[x]>=1' b\nmore", vec!["a[x]>=1", "b"]),
        ("run pip install foo to use it", vec!["foo"]),
        ("pip install -r requirements.txt", vec![]),
        ("nothing of the kind", vec![]),
    ] {
        assert_eq!(told(text), want, "{text}");
    }
}

#[test]
fn floors_are_read() {
    let library = ["/opt/venv/lib/python3.11/site-packages/pandas/compat/_optional.py"];
    for (said, frames, of, least, by) in [
        ("pyarrow requires NumPy 2.0 or newer, found 1.26.4", &["/app/app.py"][..], "numpy", "2.0", "pyarrow"),
        (
            "Pandas requires version '3.1.0' or newer of 'openpyxl' (version '3.0.9' currently installed).",
            &library[..],
            "openpyxl",
            "3.1.0",
            "pandas",
        ),
        (
            "tokenizers>=0.14 is required for a normal functioning of this module",
            &library[..],
            "tokenizers",
            "0.14",
            "pandas",
        ),
    ] {
        let wanted = Cause::Floor { of: of.into(), least: least.into(), by: self::of(by), said: said.into() };
        assert_eq!(cause("ImportError", said, frames), wanted);
    }
}

#[test]
fn libraries_of_the_system_are_read() {
    for (said, file) in [
        ("libGL.so.1: cannot open shared object file: No such file or directory", Some("libGL.so.1")),
        ("/opt/x/_y.so: libpq.so.5: cannot open shared object file: No such file", Some("libpq.so.5")),
        ("PortAudio library not found", Some("libportaudio.so")),
        ("no library called \"cairo-2\" was found", Some("libcairo-2.so")),
        ("failed to find libmagic.  Check your installation", Some("libmagic.so")),
        ("the book was not found in the library", None),
    ] {
        assert_eq!(library(said).as_deref(), file, "{said}");
    }
}
