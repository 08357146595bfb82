//! Which fields of an object a field manager owns.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

/// Whether an entry owns a field, or a part of it: a JSON pointer such as `/f:spec/f:replicas`.
pub(crate) fn holds(entry: &ManagedFieldsEntry, field: &str) -> bool {
    let fields = entry.fields_v1.as_ref();
    fields.is_some_and(|fields| fields.0.pointer(field).is_some())
}

/// Whether an entry owns an annotation.
pub(crate) fn holds_annotation(entry: &ManagedFieldsEntry, name: &str) -> bool {
    // A slash within a name is `~1` in a pointer.
    holds(
        entry,
        &format!("/f:metadata/f:annotations/f:{}", name.replace('/', "~1")),
    )
}
