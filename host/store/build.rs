//! Embeds the migrations: a list of their versions, names and texts.

use std::{
    env,
    error::Error,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("migrations");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    files.sort();
    let mut list = String::from("&[");
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "sql")) {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let (version, name) = stem.split_once('_').ok_or_else(|| format!("`{stem}` must be VERSION_NAME"))?;
        let version: i64 = version.parse()?;
        writeln!(list, "({version}, {:?}, include_str!({:?})),", name.replace('_', " "), file)?;
    }
    list.push(']');
    Ok(fs::write(Path::new(&env::var("OUT_DIR")?).join("migrations.rs"), list)?)
}
