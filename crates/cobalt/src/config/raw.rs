//! The file as serde reads it: every value keeps its place, every key must be known.

use cobalt_base::ByteSize;
use serde::Deserialize;
use toml::Spanned;

use super::layout::LayoutSpec;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawConfig {
    pub cluster: Option<RawCluster>,
    #[serde(default)]
    pub process: Vec<Spanned<RawProcess>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCluster {
    pub secret_file: Option<Spanned<String>>,
    pub layout: Option<Spanned<LayoutSpec>>,
    pub unit_size: Option<Spanned<ByteSize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProcess {
    pub name: Spanned<String>,
    #[serde(default)]
    pub listen: Vec<Spanned<String>>,
    pub admin: Option<Spanned<String>>,
    #[serde(default)]
    pub cas: Option<Spanned<bool>>,
    pub arena: Option<Spanned<ByteSize>>,
    pub cache: Option<Spanned<ByteSize>>,
    #[serde(default)]
    pub target: Vec<Spanned<RawTarget>>,
    pub s3: Option<Spanned<RawS3>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTarget {
    pub name: Spanned<String>,
    pub device: Option<Spanned<String>>,
    pub meta: Option<Spanned<String>>,
    pub data: Option<Spanned<String>>,
    pub reactor: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawS3 {
    pub listen: Option<Spanned<String>>,
    pub region: Option<Spanned<String>>,
    pub domain: Option<Spanned<String>>,
    pub tls: Option<Spanned<RawTls>>,
}

/// Read so that the refusal can name it; TLS is not there yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the keys are known, their values unused until TLS exists")]
pub(super) struct RawTls {
    pub cert: String,
    pub key: String,
}
