//! Prints how long a folder's static evidence takes (what it declares, imports, uses and is started by), beside plainly reading its files.

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Instant;

use ringfence_lock::{Options, look, requirements};

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:>7} {:>9} {:>12} {:>12} {:>8}", "files", "KiB", "evidence ms", "reading ms", "ratio");
    for count in [100, 1_000, 4_000] {
        let home = tempfile::tempdir()?;
        let bytes = lay(home.path(), count)?;
        let options = Options { entry: Some("app.py".into()), ..Options::default() };
        let evidence = best(|| {
            let found = look(home.path(), &options)?;
            assert_eq!(found.declared.requirements.len(), 3, "the folder is read");
            requirements(home.path(), &Default::default()).map(|declared| declared.requirements.len())
        })?;
        let reading = best(|| read(home.path()))?;
        let ratio = evidence / reading;
        println!("{count:>7} {:>9} {evidence:>12.1} {reading:>12.1} {ratio:>8.1}", bytes / 1024);
    }
    Ok(())
}

/// An agent of so many files, each like those that people write: imports, classes, calls, and some 4 KiB.
fn lay(home: &Path, count: usize) -> Result<usize, Box<dyn Error>> {
    let mut bytes = 0;
    let mut write = |path: String, text: &str| -> Result<(), Box<dyn Error>> {
        let path = home.join(path);
        fs::create_dir_all(path.parent().unwrap_or(home))?;
        bytes += text.len();
        Ok(fs::write(path, text)?)
    };
    write("requirements.txt".into(), "streamlit>=1.30\nopenai\nlangchain-openai==0.1.7\n")?;
    write("app.py".into(), "import streamlit as st\nfrom pkg0.module0 import Tool0\n\nst.title('x')\n")?;
    for at in 1..count {
        // Some files read the environment; most do not.
        let key = if at % 10 == 0 { "os.environ.get('OPENAI_API_KEY')" } else { "name.upper()" };
        let mut text =
            String::from("\"\"\"A tool.\"\"\"\nimport os\nimport json\nfrom langchain_openai import ChatOpenAI\n");
        for function in 0..18 {
            write!(
                text,
                "\n\nclass Tool{function}:\n    def __init__(self, name: str, limit: int = {at}):\n        self.name = name\n        \
                 self.key = {key}\n\n    def run(self, text):\n        model = ChatOpenAI(model='gpt-4o')\n        \
                 return json.dumps({{'text': text, 'answer': model.invoke(f'{{self.name}}: {{text}}')}})\n"
            )?;
        }
        write(format!("pkg{}/module{at}.py", at / 50), &text)?;
    }
    Ok(bytes)
}

fn read(folder: &Path) -> Result<usize, std::io::Error> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { read(&path)? } else { fs::read(&path)?.len() };
    }
    Ok(bytes)
}

/// Milliseconds, the best of five.
fn best<T, E>(mut call: impl FnMut() -> Result<T, E>) -> Result<f64, E> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let began = Instant::now();
        std::hint::black_box(call()?);
        best = best.min(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}
