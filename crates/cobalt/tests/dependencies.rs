//! The crates depend on each other in one direction only (docs/ARCHITECTURE.md): a crate may use those that are listed for
//! it, and nothing else of this workspace. Below the gateway no crate knows HTTP or tokio.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may use, in the order of the layers, from the ground up.
const ALLOWED: [(&str, &[&str]); 16] = [
    ("base", &[]),
    ("dma", &["base"]),
    ("reactor", &["base", "dma"]),
    ("bdev", &["base", "dma", "reactor"]),
    ("nvme", &["base", "dma", "reactor", "bdev"]),
    ("fabric", &["base", "dma", "reactor"]),
    ("ec", &["base", "dma"]),
    ("store", &["base", "dma", "reactor", "bdev"]),
    ("rpc", &["base", "dma", "reactor", "fabric"]),
    ("ios", &["base", "dma", "reactor", "store", "rpc"]),
    ("cas", &["base", "dma", "reactor", "store", "rpc"]),
    ("client", &["base", "dma", "reactor", "rpc", "ec"]),
    ("gateway", &["base", "dma", "client", "rpc"]),
    // For tests only: the whole cluster in one thread. Nothing may use it, so it may use everything.
    (
        "sim",
        &["base", "dma", "reactor", "bdev", "nvme", "fabric", "ec", "store", "rpc", "ios", "cas", "client"],
    ),
    // Figures of the store; nothing uses it.
    ("bench-store", &["base", "dma", "reactor", "bdev", "store"]),
    ("bench-nvme", &["dma", "reactor", "bdev", "nvme"]),
];
/// The only home of the edge's crates, beside the binary.
const EDGE: [&str; 5] = ["tokio", "hyper", "hyper-util", "s3s", "axum"];

/// Normal dependencies of every package of the workspace.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let out = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let normal = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().unwrap().iter();
        all.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
    };
    packages.iter().map(|p| (p["name"].as_str().unwrap().to_owned(), normal(p))).collect()
}

#[test]
fn crates_depend_downward_only() {
    let dependencies = dependencies();
    let mut wrong = Vec::new();
    for (package, uses) in &dependencies {
        let Some(name) = package.strip_prefix("cobalt-") else {
            assert_eq!(package, "cobalt", "a package without a place in the layers");
            continue;
        };
        let allowed = ALLOWED.iter().find(|(n, _)| n == &name).map(|(_, a)| *a);
        let allowed = allowed.unwrap_or_else(|| panic!("cobalt-{name} has no place in the layers"));
        for used in uses.iter().filter_map(|u| u.strip_prefix("cobalt-")) {
            if !allowed.contains(&used) {
                wrong.push(format!("cobalt-{name} uses cobalt-{used}"));
            }
        }
        for edge in EDGE.iter().filter(|e| uses.contains(**e)) {
            if name != "gateway" {
                wrong.push(format!("cobalt-{name} uses {edge}, which belongs to the gateway"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(dependencies.len(), ALLOWED.len() + 1, "every crate of the list is there");
}

#[test]
fn no_bug_can_be_planted_in_the_product() {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    // Of each package that a build takes, the features that it is built with.
    let built = |arguments: &[&str]| {
        let out = Command::new(&cargo)
            .args(["tree", "--offline", "--prefix", "none", "--edges", "normal,build", "--format", "{p}|{f}"])
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let lines = String::from_utf8(out.stdout).unwrap();
        let proof = |line: &&str| line.split_once('|').unwrap().1.split([',', ' ']).any(|f| f == "proof");
        let of = |line: &str| line.split(' ').next().unwrap().to_owned();
        assert!(lines.lines().any(|line| of(line) == "cobalt-base"), "{lines}");
        lines.lines().filter(proof).map(of).collect::<BTreeSet<_>>()
    };
    let product = built(&["--package", "cobalt", "--all-features"]);
    assert!(product.is_empty(), "planted bugs can be switched on in {product:?}");
    // What this would see if it were there.
    let prove = built(&["--package", "cobalt-sim", "--features", "proof"]);
    let expected = ["base", "cas", "ios", "nvme", "sim", "store"].map(|name| format!("cobalt-{name}"));
    assert_eq!(prove, expected.into());
}

#[test]
fn the_list_itself_has_no_circle() {
    for (at, (name, allowed)) in ALLOWED.iter().enumerate() {
        for used in *allowed {
            let lower = ALLOWED.iter().position(|(n, _)| n == used).unwrap();
            assert!(lower < at, "{name} would use {used}, which is not below it");
        }
    }
}
