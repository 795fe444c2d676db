//! Small folders, and what is found in them.

use std::fs;

use ringfence_model::{Explain, Manifest, Report};

use super::*;

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let agent = home.path().join("my agent");
    fs::create_dir(&agent).unwrap();
    for (name, text) in files {
        let path = agent.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    home
}

fn looked(files: &[(&str, &str)], options: &Options) -> Result<Inference, InferError> {
    look(&folder(files).path().join("my agent"), options)
}

/// Looks, and checks that the manifest written says the same.
fn found(files: &[(&str, &str)]) -> Inference {
    let inference = looked(files, &Options::default()).unwrap();
    let text = inference.to_toml();
    let manifest = Manifest::parse(&text, &|_| Err("none".into())).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(manifest.entry, inference.entry);
    assert_eq!(manifest.kind, inference.kind);
    assert_eq!(manifest.env, inference.env);
    assert_eq!(manifest.ingress.map(|i| i.port), inference.port);
    assert!(manifest.grants.is_empty() && manifest.credentials.is_empty());
    // With its comments taken off, every suggestion must be a manifest too.
    let granted: String = text
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || rest.split_once(" = ").is_some_and(|(k, _)| !k.contains(' ')) => {
                rest
            }
            _ => l,
        })
        .map(|l| format!("{l}\n"))
        .collect();
    Manifest::parse(&granted, &|_| Err("none".into())).unwrap_or_else(|e| panic!("{e}\n{granted}"));
    inference
}

fn entry(files: &[(&str, &str)]) -> String {
    let inference = found(files);
    format!("{}: {}", inference.kind.word(), inference.entry.join(" "))
}

/// Files of a folder: name and text.
type Files<'a> = &'a [(&'a str, &'a str)];

const STREAMLIT: &str = "import streamlit as st\nst.title('x')\n";
const FASTAPI: &str = "from fastapi import FastAPI\napp = FastAPI()\n";
const FLASK: &str = "from flask import Flask\napp = Flask(__name__)\n";
const MAIN: &str = "def main(): pass\nif __name__ == '__main__':\n    main()\n";

#[test]
fn every_kind_is_found_and_started() {
    let cases: &[(Files<'_>, &str)] = &[
        (&[("app.py", STREAMLIT)], "streamlit: streamlit run app.py --server.port=8501 --server.address=127.0.0.1"),
        (
            &[("Home.py", STREAMLIT), ("pages/1_x.py", STREAMLIT), ("util.py", STREAMLIT)],
            "streamlit: streamlit run Home.py --server.port=8501 --server.address=127.0.0.1",
        ),
        (
            &[("app.py", STREAMLIT), (".streamlit/config.toml", "[server]\nport = 9000\n")],
            "streamlit: streamlit run app.py --server.port=9000 --server.address=127.0.0.1",
        ),
        (&[("main.py", FASTAPI)], "asgi: uvicorn main:app --host 127.0.0.1 --port 8000"),
        (
            &[("main.py", "import fastapi\napi = fastapi.FastAPI(title='x')\nuvicorn.run(api, port=9001)\n")],
            "asgi: uvicorn main:api --host 127.0.0.1 --port 9001",
        ),
        (
            &[
                ("svc/main.py", "from fastapi import FastAPI\nfrom helpers import x\napp = FastAPI()\n"),
                ("svc/helpers.py", ""),
            ],
            "asgi: uvicorn main:app --host 127.0.0.1 --port 8000 --app-dir svc",
        ),
        (
            &[
                ("svc/main.py", "from fastapi import FastAPI\nfrom svc.helpers import x\napp = FastAPI()\n"),
                ("svc/helpers.py", ""),
            ],
            "asgi: uvicorn svc.main:app --host 127.0.0.1 --port 8000",
        ),
        (
            &[(
                "src/pkg/api.py",
                "from fastapi import FastAPI\ndef create_app():\n    app = FastAPI()\n    return app\n",
            )],
            "asgi: uvicorn pkg.api:create_app --host 127.0.0.1 --port 8000 --factory --app-dir src",
        ),
        (&[("app.py", FLASK)], "wsgi: flask --app app:app run --host 127.0.0.1 --port 5000"),
        (
            &[("app.py", FLASK), ("requirements.txt", "flask\ngunicorn\n")],
            "wsgi: gunicorn --bind 127.0.0.1:5000 --worker-tmp-dir /dev/shm --workers 1 --threads 8 app:app",
        ),
        (&[("app.py", "import gradio as gr\ndemo = gr.Blocks()\ndemo.launch()\n")], "gradio: python3 app.py"),
        (
            &[("app.py", "import chainlit as cl\n@cl.on_message\nasync def f(m): pass\n")],
            "chainlit: chainlit run app.py --headless --host 127.0.0.1 --port 8000",
        ),
        (
            &[(
                "app.py",
                "import gradio as gr\nfrom fastapi import FastAPI\napp = FastAPI()\napp = gr.mount_gradio_app(app, d, path='/')\n",
            )],
            "asgi: uvicorn app:app --host 127.0.0.1 --port 8000",
        ),
        (&[("agent.py", MAIN), ("tools.py", "x = 1")], "script: python3 agent.py"),
        (&[("pkg/__main__.py", "print(1)"), ("pkg/__init__.py", "")], "script: python3 -m pkg"),
        (&[("only.py", "print(1)")], "script: python3 only.py"),
        (
            &[("main.py", MAIN), ("lib/deep.py", MAIN), ("tests/main.py", MAIN), ("test_x.py", MAIN)],
            "script: python3 main.py",
        ),
        (&[("main.py", "import worker\n"), ("worker.py", MAIN)], "script: python3 main.py"),
        (
            &[("a.py", FASTAPI), ("b.py", FASTAPI), ("Procfile", "web: uvicorn b:app --port $PORT\n")],
            "asgi: uvicorn b:app --host 127.0.0.1 --port 8000",
        ),
        (
            &[("a.py", MAIN), ("b.py", MAIN), ("Dockerfile", "FROM x\nCMD [\"python\", \"a.py\"]\n")],
            "script: python3 a.py",
        ),
    ];
    for (files, want) in cases {
        assert_eq!(entry(files), *want, "{files:?}");
    }
}

#[test]
fn what_cannot_be_told_is_asked() {
    let refused = |files: &[(&str, &str)], options: &Options| looked(files, options).unwrap_err();
    let plain = Options::default();
    let error = refused(&[("app.py", STREAMLIT), ("main.py", STREAMLIT)], &plain);
    assert_eq!(
        Report::from(error).to_string().replace(|c: char| c.is_ascii_digit(), "").lines().last().unwrap().trim(),
        "hint: say which with `--entry`, such as `--entry app.py`"
    );
    for (files, code) in [
        (&[("x.py", STREAMLIT), ("y.py", FASTAPI)][..], "infer.ambiguous_entry"),
        (&[("x.py", MAIN), ("y.py", MAIN)], "infer.ambiguous_entry"),
        (&[], "infer.empty"),
        (&[("README.md", "x")], "infer.no_python"),
        (&[("x.py", "a = 1"), ("y.py", "b = 1")], "infer.no_entry"),
    ] {
        assert_eq!(refused(files, &plain).code(), code, "{files:?}");
    }
    assert_eq!(look(Path::new("/nonexistent/x"), &plain).unwrap_err().code(), "infer.missing_folder");
    let files = [("x.py", STREAMLIT), ("y.py", FASTAPI)];
    for (entry, want) in [("x.py", "streamlit"), ("y.py", "uvicorn"), ("y", "uvicorn"), ("y:app", "uvicorn")] {
        let options = Options { entry: Some(entry.into()), ..Options::default() };
        assert_eq!(looked(&files, &options).unwrap().entry[0], want);
    }
    let options = Options { entry: Some("z.py".into()), ..Options::default() };
    assert_eq!(refused(&files, &options).code(), "infer.unknown_entry");
    let options = Options { kind: Some(Kind::Asgi), ..Options::default() };
    assert_eq!(looked(&files, &options).unwrap().entry[1], "y:app");
}

#[test]
fn what_is_not_declared_is_added() {
    let added =
        |files: &[(&str, &str)]| -> Vec<String> { found(files).added.into_iter().map(|a| a.requirement).collect() };
    let cases: &[(Files<'_>, &[&str])] = &[
        (&[("app.py", STREAMLIT)], &["streamlit"]),
        (&[("main.py", FASTAPI)], &["fastapi", "uvicorn"]),
        (&[("main.py", FASTAPI), ("requirements.txt", "fastapi[standard]\n")], &[]),
        (&[("main.py", FASTAPI), ("requirements.txt", "FastAPI==0.1\n")], &["uvicorn"]),
        (&[("app.py", "import streamlit\nimport pandas\n"), ("requirements.txt", "streamlit\n")], &[]),
        (&[("app.py", "import streamlit\nimport sklearn\n"), ("requirements.txt", "streamlit\n")], &["scikit-learn"]),
        (&[("app.py", "import yaml, utils, os\n"), ("utils/__init__.py", "")], &["PyYAML"]),
        (&[("app.py", "import odd_name\n")], &["odd-name"]),
        (&[("app.py", "import odd_name\n"), ("requirements.txt", "six\n")], &[]),
    ];
    for (files, want) in cases {
        assert_eq!(added(files), *want, "{files:?}");
    }
    assert_eq!(found(&[("app.py", "import odd_name\n"), ("requirements.txt", "six\n")]).undeclared.len(), 1);
}

#[test]
fn requirements_follow_the_manifest() {
    let home = folder(&[("app.py", "import yaml\n"), ("requirements.txt", "six\n"), ("other.txt", "idna\n")]);
    let agent = home.path().join("my agent");
    let texts = |files: &[&str], add: &[&str]| -> Vec<String> {
        let wanted = Dependencies {
            files: files.iter().map(|f| (*f).to_owned()).collect(),
            add: add.iter().map(|a| (*a).to_owned()).collect(),
            ..Dependencies::default()
        };
        requirements(&agent, &wanted).unwrap().requirements.into_iter().map(|r| r.text).collect()
    };
    assert_eq!(texts(&[], &[]), ["six"]);
    assert_eq!(texts(&[], &["rich"]), ["six", "rich"]);
    assert_eq!(texts(&["other.txt"], &[]), ["idna"]);
    fs::remove_file(agent.join("requirements.txt")).unwrap();
    fs::remove_file(agent.join("other.txt")).unwrap();
    assert_eq!(texts(&[], &[]), ["PyYAML"]);
    assert_eq!(texts(&[], &["rich"]), ["rich"]);
}

#[test]
fn the_manifest_reads_well() {
    let app = "import os\nimport streamlit as st\nfrom openai import OpenAI\nimport requests\n\nMODEL = \
               os.getenv(\"MODEL\", \"gpt\")\nkey = os.environ[\"CRM_TOKEN\"]\nrequests.get(\"https://crm.acme.io/v1\")\n";
    let inference =
        found(&[("app.py", app), ("requirements.txt", "streamlit\nopenai\n"), (".python-version", "3.7\n")]);
    insta::assert_snapshot!(inference.to_toml());
}

#[test]
fn a_script_without_anything_reads_well() {
    insta::assert_snapshot!(found(&[("hello.py", "print('hi')\n")]).to_toml());
}

#[test]
fn modules_beside_the_entry_s_folder_are_found() {
    let app = "import streamlit as st\nfrom src.core.config import KEY\nfrom near import x\nst.title(KEY)\n";
    let files = [
        ("src/streamlit/app.py", app),
        ("src/streamlit/near.py", "x = 1\n"),
        ("src/core/config.py", "from helpers import y\nKEY = 'k'\n"),
        ("helpers.py", "y = 2\n"),
        ("requirements.txt", "streamlit\n"),
    ];
    let paths = |files: Files<'_>, entry: &str| {
        let options = Options { entry: Some(entry.into()), ..Options::default() };
        looked(files, &options).unwrap().env.remove("PYTHONPATH")
    };
    assert_eq!(paths(&files, "src/streamlit/app.py").as_deref(), Some("/app"));
    let below = [("jobs/run.py", MAIN), ("jobs/a.py", ""), ("src/lib/b.py", ""), ("requirements.txt", "six\n")];
    assert_eq!(paths(&below, "jobs/run.py"), None);
    let main = format!("import a\nfrom lib import b\n{MAIN}");
    let below =
        [("jobs/run.py", main.as_str()), ("jobs/a.py", ""), ("src/lib/b.py", ""), ("requirements.txt", "six\n")];
    assert_eq!(paths(&below, "jobs/run.py").as_deref(), Some("/app/src"));
}

#[test]
fn a_program_whose_neighbour_hides_a_library_is_started_as_a_module() {
    let main = format!("from dspy.teleprompt import Few\n{MAIN}");
    let options = Options { entry: Some("src/tool/run.py".into()), ..Options::default() };
    let files = [("src/tool/run.py", main.as_str()), ("src/tool/dspy.py", ""), ("src/tool/__init__.py", "")];
    let found = looked(&files, &options).unwrap();
    assert_eq!(found.entry, ["python3", "-m", "tool.run"]);
    assert_eq!(found.env["PYTHONPATH"], "/app/src");
    let files = [("src/tool/run.py", main.as_str()), ("src/tool/other.py", ""), ("src/tool/__init__.py", "")];
    assert_eq!(looked(&files, &options).unwrap().entry, ["python3", "src/tool/run.py"]);
}

#[test]
fn a_program_that_imports_relatively_is_started_as_a_module() {
    let main = |import: &str| format!("{import}\n{MAIN}");
    for (files, entry, module, root) in [
        (&["agent.py", "util.py", "__init__.py"][..], "agent.py", "app.agent", "/"),
        (&["pkg/agent.py", "pkg/util.py", "pkg/__init__.py"][..], "pkg/agent.py", "pkg.agent", "/app"),
        (&["pkg/agent.py", "pkg/util.py"][..], "pkg/agent.py", "pkg.agent", "/app"),
        (&["a/b/agent.py", "a/b/__init__.py", "a/__init__.py"][..], "a/b/agent.py", "a.b.agent", "/app"),
    ] {
        let text = main("from .util import x");
        let files: Vec<(&str, &str)> =
            files.iter().map(|name| (*name, if *name == entry { text.as_str() } else { "" })).collect();
        let options = Options { entry: Some(entry.into()), ..Options::default() };
        let found = looked(&files, &options).unwrap();
        assert_eq!(found.entry, ["python3", "-m", module]);
        assert_eq!(found.env["PYTHONPATH"], root);
    }
}
