//! Where `hack/setup.sh` put what tests need.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::repository;

/// The file or folder that `hack/env.sh` exports as `variable`; the environment comes first.
///
/// # Panics
/// When it is not there; the message says how to make it.
pub(crate) fn made(variable: &str, part: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| exported(variable), PathBuf::from);
    assert!(
        path.exists(),
        "{variable}: nothing at {}: run `hack/setup.sh {part}`",
        path.display()
    );
    path
}

fn exported(variable: &str) -> PathBuf {
    static LINES: OnceLock<HashMap<String, String>> = OnceLock::new();
    let lines = LINES.get_or_init(|| {
        let script = repository().join("hack/env.sh");
        let output = std::process::Command::new(&script)
            .output()
            .unwrap_or_else(|err| panic!("{}: {err}", script.display()));
        let text = String::from_utf8_lossy(&output.stdout);
        let exports = text
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        exports
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect()
    });
    let value = lines.get(variable);
    PathBuf::from(value.unwrap_or_else(|| panic!("hack/env.sh exports no {variable}")))
}

/// A version of Celery that runs beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum CeleryVersion {
    /// 5.2.7 with kombu 5.2.4.
    V5_2,
    /// 5.6.2 with kombu 5.6.2.
    V5_6,
    /// 5.7.0 with kombu 5.7.0, which has Flower, too.
    #[default]
    V5_7,
}

impl CeleryVersion {
    /// The Python of its environment.
    ///
    /// # Panics
    /// When it is missing; the message says how to make it.
    pub fn python(self) -> PathBuf {
        let (variable, part) = match self {
            CeleryVersion::V5_2 => ("UMBEL_VENV_52", "peers"),
            CeleryVersion::V5_6 => ("UMBEL_VENV_56", "peers"),
            CeleryVersion::V5_7 => ("UMBEL_VENV", "venv"),
        };
        made(variable, part).join("bin/python")
    }
}
