//! `setup` and `reset`: everything at once, in an order in which each step can be undone, and again without effect.

use super::binding::{Bound, bind, examine, unbind};
use super::state::{Pages, State};
use super::{HostError, files, pages};
use cobalt_nvme::vfio::PciAddress;
use nix::unistd::{Uid, User};
use std::path::Path;

/// Bytes of a hugepage.
const PAGE: u64 = 2 << 20;
/// Locked memory beside the hugepages: rings, and what is not in an arena.
const MEMLOCK_EXTRA: u64 = 64 << 20;

/// What a host is to be prepared for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Hugepages of each memory node; none are changed without it.
    pub pages: Option<u64>,
    /// Other figures for single nodes.
    pub nodes: Vec<(u32, u64)>,
    pub devices: Vec<PciAddress>,
    /// Who will run the daemon.
    pub user: Option<String>,
    /// Limit on locked memory, in bytes; without it, what the pages and devices come to.
    pub memlock: Option<u64>,
    pub persist: bool,
    pub dry_run: bool,
}

impl Request {
    /// The same as words of a command line, for the unit.
    fn arguments(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.pages.map(|pages| format!("--pages {pages}")));
        words.extend(self.nodes.iter().map(|(node, pages)| format!("--node {node}:{pages}")));
        words.extend(self.devices.iter().map(|device| format!("--device {device}")));
        words.extend(self.user.iter().map(|user| format!("--user {user}")));
        words.extend(self.memlock.map(|bytes| format!("--memlock {bytes}")));
        words.join(" ")
    }

    /// What is wanted of each node.
    fn wanted(&self) -> Result<Vec<(pages::Node, u64)>, HostError> {
        let nodes = pages::nodes();
        if let Some((node, _)) = self.nodes.iter().find(|(n, _)| nodes.iter().all(|known| known.node != *n)) {
            return Err(HostError::NoNode { node: *node });
        }
        let of = |node: u32| {
            let own = self.nodes.iter().find(|(n, _)| *n == node).map(|(_, pages)| *pages);
            own.or(self.pages)
        };
        Ok(nodes.into_iter().filter_map(|node| Some((node, of(node.node)?))).collect())
    }
}

fn root_needed(dry_run: bool) -> Result<(), HostError> {
    if dry_run || Uid::effective().is_root() {
        return Ok(());
    }
    Err(HostError::Root { what: "preparing a host" })
}

/// Prepares the host; `say` is told each change, or what would change. Everything that can be refused is, before the first change.
///
/// # Errors
/// The first step that failed. Those before it are done, and `reset` undoes them.
pub fn setup(request: &Request, say: &mut dyn FnMut(String)) -> Result<(), HostError> {
    root_needed(request.dry_run)?;
    let user = match &request.user {
        None => None,
        Some(name) => {
            let found = User::from_name(name).ok().flatten();
            Some(found.ok_or_else(|| HostError::NoUser { user: name.clone() })?)
        }
    };
    for device in &request.devices {
        examine(*device)?;
    }
    for file in [files::LIMITS, files::UNIT] {
        files::ours(Path::new(file))?;
    }
    let wanted = request.wanted()?;
    for (node, pages) in &wanted {
        one_node(*node, *pages, request.dry_run, say)?;
    }
    for device in &request.devices {
        let group = user.as_ref().map(|user| user.gid.as_raw());
        if bind(*device, group, request.dry_run)? == Bound::Changed {
            say(format!("{device}: given to vfio-pci"));
        }
    }
    if let Some(user) = &user {
        let pages: u64 = wanted.iter().map(|(_, pages)| pages).sum();
        // VFIO counts what it pins once for each controller.
        let counted = pages * PAGE * (request.devices.len() as u64).max(1) + MEMLOCK_EXTRA;
        let limit = request.memlock.unwrap_or(counted) >> 10;
        let line = format!("{} - memlock {limit}\n", user.name);
        if files::write(Path::new(files::LIMITS), &line, request.dry_run)? {
            say(format!("{}: may lock {} MiB ({})", user.name, limit >> 10, files::LIMITS));
        }
    }
    if request.persist {
        let program =
            std::env::current_exe().map_err(HostError::system("finding", Path::new("/proc/self/exe")))?;
        let unit = files::unit(&program, &request.arguments());
        if files::write(Path::new(files::UNIT), &unit, request.dry_run)? {
            say(format!("{}: runs at each boot", files::UNIT));
        }
        if !request.dry_run {
            files::enable(true)?;
        }
    }
    Ok(())
}

fn one_node(
    node: pages::Node,
    wanted: u64,
    dry_run: bool,
    say: &mut dyn FnMut(String),
) -> Result<(), HostError> {
    if node.pages == wanted {
        return Ok(());
    }
    say(format!("memory node {}: hugepages {} to {wanted}", node.node, node.pages));
    if dry_run {
        return Ok(());
    }
    let mut state = State::load()?;
    let before = state.pages.get(&node.node).map_or(node.pages, |known| known.before);
    state.pages.insert(node.node, Pages { before, set: wanted });
    state.store()?;
    let got = pages::set(node.node, wanted)?;
    if got != wanted {
        state.pages.insert(node.node, Pages { before, set: got });
        state.store()?;
        return Err(HostError::Pages { node: node.node, wanted, got });
    }
    Ok(())
}

/// Undoes what was done since boot, and removes what outlives it. What somebody has changed since is left, and said.
///
/// # Errors
/// The first step that failed; the others can be repeated.
pub fn reset(dry_run: bool, say: &mut dyn FnMut(String)) -> Result<(), HostError> {
    root_needed(dry_run)?;
    let known = State::load()?;
    for address in known.devices.keys() {
        let Ok(parsed) = address.parse::<PciAddress>() else { continue };
        match unbind(parsed, None, dry_run) {
            Ok(Bound::Changed) => {
                let driver = known.devices.get(address).and_then(|d| d.driver.as_deref());
                say(format!("{address}: given back to {}", driver.unwrap_or("nobody")));
            }
            Ok(Bound::Unchanged) => {}
            Err(HostError::Missing { .. }) => say(format!("{address}: gone, nothing to give back")),
            Err(error) => return Err(error),
        }
    }
    let now = pages::nodes();
    for (node, was) in &known.pages {
        let Some(current) = now.iter().find(|n| n.node == *node) else { continue };
        if current.pages != was.set {
            let text = "changed since by somebody else, left";
            say(format!("memory node {node}: hugepages {} {text}", current.pages));
        } else if was.before != was.set {
            say(format!("memory node {node}: hugepages {} to {}", was.set, was.before));
            if !dry_run {
                pages::set(*node, was.before)?;
            }
        }
        if !dry_run {
            let mut state = State::load()?;
            state.pages.remove(node);
            state.store()?;
        }
    }
    for file in [files::LIMITS, files::UNIT] {
        if files::remove(Path::new(file), dry_run)? {
            say(format!("{file}: removed"));
            if file == files::UNIT && !dry_run {
                files::enable(false)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Request;

    #[test]
    fn what_was_asked_for_is_asked_for_again_at_boot() {
        let request = Request {
            pages: Some(512),
            nodes: vec![(1, 64)],
            devices: vec!["0000:03:00.0".parse().unwrap()],
            user: Some("cobalt".to_owned()),
            memlock: Some(1 << 30),
            persist: true,
            dry_run: false,
        };
        let words = "--pages 512 --node 1:64 --device 0000:03:00.0 --user cobalt --memlock 1073741824";
        assert_eq!(request.arguments(), words);
    }
}
