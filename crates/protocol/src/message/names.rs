//! Names of headers.

/// The headers that message format and transport write themselves; all others are the sender's own.
pub const OWN_HEADERS: [&str; 21] = [
    "lang",
    "task",
    "id",
    "shadow",
    "eta",
    "expires",
    "group",
    "group_index",
    "retries",
    "timelimit",
    "root_id",
    "parent_id",
    "argsrepr",
    "kwargsrepr",
    "origin",
    "ignore_result",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "compression",   // of the body
    "delivery_info", // kombu's, in a message that was put back
];
