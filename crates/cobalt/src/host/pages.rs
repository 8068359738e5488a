//! Hugepages of 2 MiB, per memory node.

use super::{HostError, word};
use std::fs;
use std::path::{Path, PathBuf};

const NODES: &str = "/sys/devices/system/node";
const POOL: &str = "hugepages/hugepages-2048kB";

/// A memory node and its hugepages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub node: u32,
    pub pages: u64,
    pub free: u64,
}

fn pool(node: u32) -> PathBuf {
    Path::new(NODES).join(format!("node{node}")).join(POOL)
}

fn number(path: &Path) -> Option<u64> {
    word(path)?.parse().ok()
}

/// All memory nodes that have such pages, in order.
pub fn nodes() -> Vec<Node> {
    let Ok(entries) = fs::read_dir(NODES) else { return Vec::new() };
    let numbers = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse::<u32>().ok());
    let mut nodes: Vec<Node> = numbers
        .filter_map(|node| {
            let pool = pool(node);
            let (pages, free) = (number(&pool.join("nr_hugepages"))?, number(&pool.join("free_hugepages"))?);
            Some(Node { node, pages, free })
        })
        .collect();
    nodes.sort_by_key(|n| n.node);
    nodes
}

/// Asks for `pages` on a node. Answers with those that there are.
///
/// # Errors
/// What the system said.
pub fn set(node: u32, pages: u64) -> Result<u64, HostError> {
    let path = pool(node).join("nr_hugepages");
    fs::write(&path, pages.to_string()).map_err(HostError::system("writing", &path))?;
    number(&path).ok_or(HostError::NoNode { node })
}
