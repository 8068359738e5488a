//! Every way to get the file wrong has its line and its hint.

use super::{Config, ConfigError, EXAMPLE, Fault, Origin};
use std::path::Path;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/cobalt/cobalt.toml"), text)
}

/// The example with one line changed.
fn changed(from: &str, to: &str) -> ConfigError {
    assert!(EXAMPLE.contains(from), "the example has no line `{from}`");
    match parse(&EXAMPLE.replacen(from, to, 1)) {
        Ok(_) => panic!("`{to}` was accepted"),
        Err(e) => e,
    }
}

fn line_of(needle: &str) -> usize {
    1 + EXAMPLE.lines().position(|l| l.starts_with(needle)).unwrap()
}

#[test]
fn the_example_is_valid_and_relative_paths_count_from_the_file() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.processes.len(), 4);
    assert_eq!(config.cluster.secret_file.value, Path::new("/etc/cobalt/cluster.secret"));
    let uri = config.processes[0].targets[0].device.uris()[0].to_string();
    assert_eq!(uri, "file:/etc/cobalt/data/t0?size=8GiB");
    assert_eq!(config.catalogue().unwrap().name, "p0");
    assert_eq!(config.cluster.layout.origin, Origin::File(line_of("layout")));
    assert_eq!(config.processes[1].arena.origin, Origin::Default);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let e = changed("unit_size = \"1MiB\"", "unitsize = \"1MiB\"");
    assert!(matches!(&e.fault, Fault::UnknownKey(k) if k.contains("unitsize")), "{e}");
    assert_eq!(e.line, Some(line_of("unit_size")));
    assert!(e.hint.contains("unit_size"), "{}", e.hint);
}

#[test]
fn bad_sizes_are_refused_where_they_stand() {
    for bad in ["12", "3MiB", "2MiB", "1 MiBs", "0"] {
        let e = changed("unit_size = \"1MiB\"", &format!("unit_size = \"{bad}\""));
        assert!(matches!(e.fault, Fault::BadValue(_)), "{e}");
        assert_eq!(e.line, Some(line_of("unit_size")), "{bad}");
    }
    let e = changed("t0?size=8GiB", "t0?size=8Gigs");
    assert!(e.line.is_some() && e.to_string().contains("8Gigs"), "{e}");
    let e = changed("t0?size=8GiB", "t0?sze=8GiB");
    assert!(e.to_string().contains("sze"), "{e}");
    let e = changed("layout = \"2+1\"", "layout = \"2-1\"");
    assert_eq!(e.line, Some(line_of("layout")));
    let e = changed("layout = \"2+1\"", "layout = \"4+2\"");
    assert!(e.to_string().contains("needs 6 targets"), "{e}");
}

#[test]
fn nothing_is_there_twice() {
    let e = changed("name = \"p1\"", "name = \"p0\"");
    assert!(matches!(&e.fault, Fault::Duplicate { kind: "process", first, .. } if *first > 0), "{e}");
    let e = changed("name = \"t1\"", "name = \"t0\"");
    assert!(matches!(&e.fault, Fault::Duplicate { kind: "target", .. }), "{e}");
    let e = changed("127.0.0.1:7001", "127.0.0.1:7000");
    assert!(matches!(&e.fault, Fault::Duplicate { kind: "address", .. }), "{e}");
    let e = changed("data/t1?size", "./data/../data/t0?size");
    assert!(matches!(&e.fault, Fault::SameDevice { .. }), "{e}");
    let e = changed("[[process]]\nname = \"p1\"", "[[process]]\ncas = true\nname = \"p1\"");
    assert!(e.to_string().contains("catalogue"), "{e}");
}

#[test]
fn two_names_of_one_file_are_one_device() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), b"").unwrap();
    std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("c")).unwrap();
    for other in ["b", "c"] {
        let text = EXAMPLE.replace("data/t0", "a").replace("data/t1", other);
        let e = Config::parse(&dir.path().join("cobalt.toml"), &text).unwrap_err();
        assert!(matches!(&e.fault, Fault::SameDevice { .. }), "{e}");
    }
}

#[test]
fn what_is_not_there_yet_says_so() {
    let e = changed("reactor = 0", "reactor = 1");
    assert_eq!((e.fault, e.line), (Fault::Reactor(1), Some(line_of("reactor"))));
    for scheme in ["rdma://127.0.0.1:7000", "shm:run/p0.sock"] {
        let e = changed("tcp://127.0.0.1:7000", scheme);
        assert!(matches!(e.fault, Fault::NotBuiltIn(_)), "{e}");
    }
    let e = changed("region =", "tls = { cert = \"a\", key = \"b\" }\nregion =");
    assert!(matches!(e.fault, Fault::NotBuiltIn(_)), "{e}");
    for addr in ["127.0.0.1:9000", "127.0.0.1:9001", "tcp://127.0.0.1:7000"] {
        let e = changed(addr, &addr.replace("127.0.0.1", "0.0.0.0"));
        assert!(matches!(e.fault, Fault::NotLoopback { .. }), "{e}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(cut in 0..EXAMPLE.len(), byte in proptest::num::u8::ANY) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        bytes[cut] = byte;
        drop(parse(&String::from_utf8_lossy(&bytes)));
        drop(parse(&EXAMPLE[..cut]));
    }
}
