//! The Go programs in `tests/go`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// One of the programs, by the name of its folder: built at its first use.
pub(crate) fn program(name: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/go").join(name);
    if built.insert(name) {
        let build = Command::new("go")
            .args(["build", "-o"])
            .arg(&program)
            .arg(format!("./{name}"))
            .current_dir(root.join("tests/go"))
            .output()
            .expect("Go is installed");
        assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    }
    program
}
