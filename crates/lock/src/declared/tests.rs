use super::*;

fn declared(files: &[(&str, &str)]) -> Result<Declared, InferError> {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    find(home.path())
}

fn texts(files: &[(&str, &str)]) -> Vec<String> {
    declared(files).unwrap().requirements.into_iter().map(|r| r.text).collect()
}

#[test]
fn requirements_files_include_one_another() {
    let found = declared(&[
        (
            "requirements.txt",
            "# top\n-r base/more.txt\n-c limits.txt\n--extra-index-url https://wheels.example/cpu\nflask>=2 # web\n-e .\n\
             six==1.16 \\\n  --hash=sha256:aa\n",
        ),
        ("base/more.txt", "-r ../last.txt\nrequests[socks]; python_version < '4'\n"),
        ("last.txt", "\u{feff}idna\n"),
        ("limits.txt", "urllib3<2\n"),
    ])
    .unwrap();
    let texts: Vec<&str> = found.requirements.iter().map(|r| r.text.as_str()).collect();
    assert_eq!(texts, ["idna", "requests[socks]; python_version < '4'", "flask>=2", "six==1.16 --hash=sha256:aa"]);
    assert_eq!(found.requirements[3].seen, Seen::new("requirements.txt", 7));
    assert_eq!(found.constraints[0].text, "urllib3<2");
    assert_eq!(found.index_options, ["--extra-index-url https://wheels.example/cpu"]);
    assert_eq!(found.files, ["requirements.txt", "base/more.txt", "last.txt", "limits.txt"]);
    assert!(found.names("Requests"));
}

#[test]
fn broken_includes_are_named() {
    for (text, word) in [
        ("-r missing.txt", "no such file"),
        ("-r requirements.txt", "includes itself"),
        ("-r ../../etc/passwd", "outside"),
        ("--frobnicate x", "not known"),
    ] {
        let error = declared(&[("requirements.txt", text)]).unwrap_err();
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
}

#[test]
fn loops_of_includes_are_told_once() {
    let round = [("requirements.txt", "-r a.txt"), ("a.txt", "-c ./b.txt"), ("b.txt", "-r a.txt")];
    let error = declared(&round).unwrap_err().to_string();
    assert_eq!(error, "cannot read `a.txt`: it includes itself, by way of `b.txt`; take out one of these lines");
    let twice = [("requirements.txt", "-r a.txt\n-c a.txt\n-r ./a.txt\n"), ("a.txt", "six\n")];
    let found = declared(&twice).unwrap();
    assert_eq!((found.requirements.len(), found.constraints.len()), (1, 1));
}

#[test]
fn includes_are_bounded() {
    let lay = |home: &Path, files: usize, text: &dyn Fn(usize) -> String| {
        for at in 0..files {
            let name = if at == 0 { "requirements.txt".to_owned() } else { format!("f{at}.txt") };
            fs::write(home.join(name), text(at)).unwrap();
        }
        find(home)
    };
    let home = tempfile::tempdir().unwrap();
    let last = |at: usize| if at == 9 { "six\n".to_owned() } else { format!("-r f{}.txt\n", at + 1).repeat(50) };
    // Read anew each time, these would be 50^9 files.
    assert_eq!(lay(home.path(), 10, &last).unwrap().requirements.len(), 1);
    let deep = tempfile::tempdir().unwrap();
    let error = lay(deep.path(), 40, &|at| format!("-r f{}.txt\n", at + 1)).unwrap_err().to_string();
    assert!(error.contains("files deep"), "{error}");
    let wide = tempfile::tempdir().unwrap();
    let all = |at: usize| if at == 0 { (1..100).map(|n| format!("-r f{n}.txt\n")).collect() } else { String::new() };
    let error = lay(wide.path(), 100, &all).unwrap_err().to_string();
    assert!(error.contains("more than 64"), "{error}");
}

#[test]
fn what_is_no_file_is_not_read() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("requirements.txt"), "-r endless.txt\n").unwrap();
    std::os::unix::fs::symlink("/dev/zero", home.path().join("endless.txt")).unwrap();
    let error = find(home.path()).unwrap_err().to_string();
    assert!(error.contains("`endless.txt`: it is no file"), "{error}");
}

#[test]
fn projects_of_the_folder_bring_what_they_depend_on() {
    let found = declared(&[
        ("requirements.txt", "-e .[dev]\n-r more/x.txt\n./gone\n./own.whl\n-e git+https://g.example/x#egg=x\n"),
        ("more/x.txt", "-e ./lib\n--editable=./lib\n-e flask\n"),
        ("pyproject.toml", "[project]\nname = 'x'\nrequires-python = '>=3.10'\ndependencies = ['six']\n"),
        ("lib/setup.py", "setup(install_requires=['idna'])"),
        ("own.whl", ""),
    ])
    .unwrap();
    let texts: Vec<&str> = found.requirements.iter().map(|r| r.text.as_str()).collect();
    assert_eq!(texts, ["six", "idna", "flask", "git+https://g.example/x#egg=x"]);
    assert_eq!(found.requirements[1].seen, Seen::new("lib/setup.py", 1));
    assert_eq!(found.python.len(), 1);
    let notes: Vec<String> = found.notes.iter().map(|n| format!("{}: {}", n.seen, n.text)).collect();
    assert_eq!(
        notes,
        [
            "requirements.txt:3: `./gone` is not there, and is left out",
            "requirements.txt:4: `./own.whl` is a file, which is not installed"
        ]
    );
}

#[test]
fn paths_that_leave_the_folder_are_refused() {
    for (line, word) in [
        ("-e ../..", "outside of the folder"),
        ("-e ..", "outside of the folder"),
        ("./a/../../b", "outside of the folder"),
        ("-e /srv/x", "one machine only"),
        ("/srv/x.whl", "one machine only"),
        ("file:///srv/x.whl", "one machine only"),
        ("--editable=../x", "outside of the folder"),
        ("-e ${HOME}/x", "environment variable `HOME`"),
        ("x @ https://${TOKEN}@g.example/x", "environment variable `TOKEN`"),
    ] {
        let text = format!("six\n{line}\n");
        let error = declared(&[("requirements.txt", &text)]).unwrap_err().to_string();
        assert!(error.contains("`requirements.txt`: line 2 ") && error.contains(word), "{line}: {error}");
    }
}

#[test]
fn ten_thousand_lines_are_read_quickly() {
    let text: String = (0..10_000).map(|n| format!("package-{n}>=1.{n},<2 ; python_version > '3.8'  # x\n")).collect();
    let began = std::time::Instant::now();
    assert_eq!(texts(&[("requirements.txt", &text)]).len(), 10_000);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

#[test]
fn other_files_declare_too() {
    let pep621 = "[project]\nname = 'x'\nrequires-python = '>=3.10'\ndependencies = ['flask', 'six>1']\n";
    assert_eq!(texts(&[("pyproject.toml", pep621)]), ["flask", "six>1"]);
    let poetry = "[tool.poetry.dependencies]\npython = '^3.10'\nflask = '^2.3'\nsix = '~1.16'\nidna = '*'\nzero = \
                  '^0.3.1'\nuvicorn = {version = '>=0.20', extras = ['standard']}\nme = {path = '.'}\nexact = '1.2'\n";
    assert_eq!(
        texts(&[("pyproject.toml", poetry)]),
        ["exact==1.2", "flask>=2.3,<3", "idna", "six>=1.16,<1.17", "uvicorn[standard]>=0.20", "zero>=0.3.1,<0.4"]
    );
    assert_eq!(declared(&[("pyproject.toml", poetry)]).unwrap().python[0].text, ">=3.10,<4");
    let pipfile = "[packages]\nflask = '*'\nsix = '==1.16'\n[requires]\npython_version = '3.11'\n";
    assert_eq!(texts(&[("Pipfile", pipfile)]), ["flask", "six==1.16"]);
    assert_eq!(declared(&[("Pipfile", pipfile)]).unwrap().python[0].text, "==3.11.*");
    let conda = "name: x\nchannels:\n  - defaults\ndependencies:\n  - python=3.11\n  - conda-forge::numpy=1.26=py_0\n  - \
                 pandas >=2\n  - pip\n  - pip:\n    - openai==1.0\nvariables:\n  - x\n";
    assert_eq!(texts(&[("environment.yml", conda)]), ["numpy==1.26.*", "pandas>=2", "openai==1.0"]);
    let cfg = "[options]\ninstall_requires =\n  flask\n  six>=1\npython_requires = >=3.9\n[other]\nx =\n  y\n";
    assert_eq!(texts(&[("setup.cfg", cfg)]), ["flask", "six>=1"]);
    let py = "from setuptools import setup\nREQS = [\n 'flask',  # x\n 'six']\nsetup(name='x', install_requires=REQS, \
              python_requires='>=3.9')\n";
    assert_eq!(texts(&[("setup.py", py)]), ["flask", "six"]);
    assert_eq!(texts(&[("setup.py", "setup(install_requires=['a', \"b\"] + more)")]), ["a", "b"]);
}

#[test]
fn what_uv_takes_from_elsewhere_is_not_taken_from_the_index() {
    let text = "[project]\nname = 'x'\ndependencies = [\n'six',\n'My_Lib[a]>=1 ; python_version > \"3\"',\n'near',\n'mate>1',\n\
                'wheel-of @ https://w.example/a.whl',\n'other==2']\n\
                [tool.uv.sources]\nmy-lib = {git = 'https://g.example/l', tag = 'v1', subdirectory = 'py'}\n\
                near = {path = '../near'}\nmate = [{workspace = true}]\nother = {index = 'own'}\n";
    let found = declared(&[("pyproject.toml", text)]).unwrap();
    let texts: Vec<&str> = found.requirements.iter().map(|r| r.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "six",
            "My_Lib[a] @ git+https://g.example/l@v1#subdirectory=py ; python_version > \"3\"",
            "wheel-of @ https://w.example/a.whl",
            "other==2"
        ]
    );
    let notes: Vec<String> = found.notes.iter().map(|n| format!("{}: {}", n.seen, n.text)).collect();
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("pyproject.toml:6: `near` is a folder"), "{notes:?}");
    assert!(notes[1].starts_with("pyproject.toml:7: `mate` is a folder"), "{notes:?}");
}

#[test]
fn python_versions_are_found() {
    for (name, text) in [(".python-version", "3.12.4\n"), ("runtime.txt", "python-3.12.1")] {
        assert_eq!(declared(&[(name, text)]).unwrap().python[0].text, "==3.12.*");
    }
    assert!(declared(&[(".python-version", "pypy3.9\n")]).unwrap().python.is_empty());
}

#[test]
fn names_have_one_form() {
    assert_eq!(normalise("Foo__Bar.baz"), "foo-bar-baz");
    for (text, name) in [
        ("Flask[async]>=2", Some("flask")),
        ("a.b ; x", Some("a-b")),
        ("https://x.example/y.whl", None),
        ("./here", None),
        ("x @ https://x.example", Some("x")),
    ] {
        assert_eq!(name_of(text).as_deref(), name, "{text}");
    }
}

#[test]
fn lines_that_are_no_requirements_are_mended_or_left_out() {
    for (line, text, noted) in [
        ("six", Some("six"), false),
        ("six>=1.2 , <2 ; python_version > '3.8'", Some("six>=1.2 , <2 ; python_version > '3.8'"), false),
        ("six (>=1.2)", Some("six (>=1.2)"), false),
        ("uvicorn[standard]==0.30.1 --hash=sha256:aa", Some("uvicorn[standard]==0.30.1 --hash=sha256:aa"), false),
        ("six @ https://f.example/six.whl", Some("six @ https://f.example/six.whl"), false),
        ("git+https://g.example/six", Some("git+https://g.example/six"), false),
        ("six @ file:///home/conda/six", Some("six"), true),
        ("six=1.16.0=py_0", Some("six==1.16.0"), true),
        ("six 1.16.0", Some("six==1.16.0"), true),
        ("six=1.16.0 ; python_version > '3'", Some("six==1.16.0 ; python_version > '3'"), true),
        ("six==latest", Some("six"), true),
        ("pip install six", None, true),
        ("===== tools =====", None, true),
        ("Package    Version", None, true),
    ] {
        let (got, note) = readable(line);
        assert_eq!((got.as_deref(), note.is_some()), (text, noted), "{line}: {note:?}");
    }
}

#[test]
fn windows_text_is_read() {
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain("six\r\n".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    assert_eq!(decode(&wide).unwrap(), "six\r\n");
    assert_eq!(decode(&wide[2..]).unwrap(), "six\r\n");
    let big: Vec<u8> = "six\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert_eq!(decode(&big).unwrap(), "six\n");
    assert_eq!(decode(b"six  # caf\xe9 \x9b31m\n").unwrap(), "six  # caf\u{e9} \u{fffd}31m\n");
    assert_eq!(decode("six  # café\n".as_bytes()).unwrap(), "six  # café\n");
    for none in [&b"\x7fELF\0\0"[..], b"\xff\xfe\x00\xd8", b"a\0\0\0"] {
        assert_eq!(decode(none), None, "{none:?}");
    }
}
