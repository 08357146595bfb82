//! No core files: memory holds what nobody else may read.

/// Keeps this process's memory out of core files and from other processes of the same user, also where the container
/// allows core files or pipes them to a program. Programs that it starts are not bound by it.
///
/// To be called before any credential is read. A kernel that refuses is warned of in the log.
pub fn off() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "core files may hold credentials: the kernel does not turn them off");
        }
    }
}
