//! Writes the CustomResourceDefinitions into a folder: `crdgen crds`.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let folder = PathBuf::from(env::args().nth(1).unwrap_or_else(|| "crds".to_owned()));
    fs::create_dir_all(&folder)?;
    for (file, definition) in umbel_api::definitions() {
        fs::write(folder.join(file), umbel_api::to_yaml(&definition))?;
    }
    Ok(())
}
