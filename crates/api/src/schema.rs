//! Schema pieces that derive can't say.

use schemars::{Schema, SchemaGenerator, json_schema};

/// An object whose fields belong to somebody else: everything in it is kept.
pub(crate) fn opaque_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A list of any JSON values, replaced as a whole.
pub(crate) fn opaque_list(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 1000,
        // Without the mark a rule that compares what is around it is refused a null.
        "items": {"x-kubernetes-preserve-unknown-fields": true, "nullable": true},
        "x-kubernetes-list-type": "atomic",
    })
}

/// A quantity as Kubernetes writes it, number or text.
pub(crate) fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": true}})
}

/// A number or a text.
pub(crate) fn int_or_string(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true})
}
