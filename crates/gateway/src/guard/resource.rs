//! Sub-resources: which go with which method. s3s routes a PUT with a sub-resource that it does not know to PutObject,
//! and would overwrite the object; so each name is on a list.

use super::{Level, Query};
use crate::refusal::Refusal;
use http::{Method, StatusCode};

/// Sub-resources of S3 that are not there.
const LACKING: [&str; 47] = [
    "abac",
    "accelerate",
    "accessPoint",
    "acl",
    "analytics",
    "annotation",
    "append",
    "attributes",
    "cors",
    "domain",
    "encryption",
    "encryption-type",
    "intelligent-tiering",
    "inventory",
    "legal-hold",
    "lifecycle",
    "logging",
    "metadataConfiguration",
    "metadataInventoryTable",
    "metadataJournalTable",
    "metadataTable",
    "metrics",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "policyStatus",
    "position",
    "publicAccessBlock",
    "qosInfo",
    "renameObject",
    "replication",
    "replication-metrics",
    "requestPayment",
    "resourcePolicy",
    "restore",
    "retention",
    "select",
    "select-type",
    "session",
    "torrent",
    "versioning",
    "versions",
    "website",
    "object",
    "events",
    "directory-buckets",
];

/// Those that are, with where.
const PRESENT: [(&str, &[(&str, Level)]); 6] = [
    ("delete", &[("POST", Level::Bucket)]),
    ("location", &[("GET", Level::Bucket)]),
    ("partNumber", &[("PUT", Level::Object), ("GET", Level::Object), ("HEAD", Level::Object)]),
    ("tagging", &[("GET", Level::Object)]),
    (
        "uploadId",
        &[("PUT", Level::Object), ("GET", Level::Object), ("POST", Level::Object), ("DELETE", Level::Object)],
    ),
    ("uploads", &[("GET", Level::Bucket), ("POST", Level::Object)]),
];

/// Refuses what is not there (501), and what is there for another method (405).
pub fn check(method: &Method, level: Level, query: &Query) -> Result<(), Refusal> {
    for name in query.names() {
        if LACKING.contains(&name) {
            return Err(Refusal::lacking(&format!("The sub-resource {name}")));
        }
        if name == "tagging" && method != Method::GET {
            return Err(Refusal::lacking("Tagging"));
        }
        if name == "versionId" && query.get(name) != Some("null") {
            return Err(Refusal::lacking("Versioning (a versionId other than null)"));
        }
        let Some((_, places)) = PRESENT.iter().find(|(present, _)| *present == name) else { continue };
        if name == "tagging" && level != Level::Object {
            return Err(Refusal::lacking("Tagging of buckets"));
        }
        if !places.iter().any(|(m, l)| *m == method.as_str() && *l == level) {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                format!("The sub-resource {name} does not go with {method} here."),
            ));
        }
    }
    if *method == Method::PUT && level == Level::Object && query.has("partNumber") != query.has("uploadId") {
        return Err(Refusal::bad("InvalidArgument", "partNumber and uploadId go together."));
    }
    if query.has("uploads") && query.has("uploadId") {
        return Err(Refusal::bad("InvalidArgument", "uploads and uploadId exclude each other."));
    }
    let known = [Method::GET, Method::HEAD, Method::PUT, Method::POST, Method::DELETE];
    if !known.contains(method) {
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            format!("{method} is not a method of this service."),
        ));
    }
    Ok(())
}
