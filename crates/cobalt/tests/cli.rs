//! What people and scripts rely on: exit codes, where output goes, `error:`, `cause:` and `hint:`.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use std::path::Path;
use std::process::{Command, Output};

fn cobalt(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cobalt"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("COBALT_")) {
        command.env_remove(name);
    }
    command.args(args).current_dir(dir).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn example(dir: &Path) -> String {
    let out = cobalt(dir, &["config", "example"]);
    assert!(out.status.success());
    text(&out.stdout)
}

#[test]
fn a_faulty_configuration_exits_with_2_and_names_file_line_and_hint() {
    let dir = tempfile::tempdir().unwrap();
    let faulty = example(dir.path()).replace("unit_size", "unit_sise");
    let line = 1 + faulty.lines().position(|l| l.starts_with("unit_sise")).unwrap();
    std::fs::write(dir.path().join("c.toml"), faulty).unwrap();
    for command in
        [&["config", "check"][..], &["config", "show"], &["format"], &["server", "--process", "p0"]]
    {
        let out = cobalt(dir.path(), &[command, &["--config", "c.toml"]].concat());
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{command:?}: {said}");
        assert!(said.contains(&format!("error: the configuration c.toml:{line} ")), "{said}");
        assert!(
            said.contains("cause: ") && said.contains("unit_sise") && said.contains("hint: known here: "),
            "{said}"
        );
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn show_says_where_each_value_came_from() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), example(dir.path())).unwrap();
    assert!(cobalt(dir.path(), &["config", "check", "--config", "c.toml"]).status.success());
    let args =
        ["config", "show", "--config", "c.toml", "--origin", "--s3-listen", "127.0.0.1:9555", "-o", "json"];
    let out = Command::new(env!("CARGO_BIN_EXE_cobalt"))
        .args(args)
        .env("COBALT_REGION", "eu-north-1")
        .env("COBALT_S3_LISTEN", "127.0.0.1:9444")
        .current_dir(dir.path())
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(shown["schema_version"], 1);
    let row = |key: &str| {
        let rows = shown["settings"].as_array().unwrap();
        let row = rows.iter().find(|r| r["key"] == key).unwrap_or_else(|| panic!("no {key}"));
        (row["value"].as_str().unwrap().to_owned(), row["origin"].as_str().unwrap().to_owned())
    };
    assert_eq!(
        row("process.s3.s3.listen"),
        ("127.0.0.1:9555".into(), "flag".into()),
        "a flag is above a variable"
    );
    assert_eq!(
        row("process.s3.s3.region"),
        ("eu-north-1".into(), "environment".into()),
        "a variable is above the file"
    );
    assert!(row("cluster.layout").1.starts_with("file:"));
    assert_eq!(row("process.p1.arena"), ("128MiB".into(), "default".into()));
}

#[test]
fn commands_without_a_store_or_a_process_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let out = cobalt(dir.path(), &["status"]);
    assert_eq!(out.status.code(), Some(2), "{}", text(&out.stderr));
    assert!(text(&out.stderr).contains("holds no store"));
    std::fs::write(dir.path().join("c.toml"), example(dir.path())).unwrap();
    for command in [&["status"][..], &["health"], &["df", "-o", "json"], &["key", "list"]] {
        let out = cobalt(dir.path(), &[command, &["--config", "c.toml"]].concat());
        assert_eq!(out.status.code(), Some(3), "{command:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains("hint: "));
    }
    let out = cobalt(dir.path(), &["server", "--config", "c.toml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("--process: p0, p1, p2, s3"), "{}", text(&out.stderr));
    let out = cobalt(dir.path(), &["server", "--config", "c.toml", "--process", "p0"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stderr).contains("cobalt format"), "{}", text(&out.stderr));
}

#[test]
fn nothing_listens_beyond_loopback_without_tls() {
    let dir = tempfile::tempdir().unwrap();
    let out = cobalt(dir.path(), &["dev", "--s3-listen", "0.0.0.0:9000"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(text(&out.stderr).contains("TLS"), "{}", text(&out.stderr));
    assert!(!dir.path().join("cobalt-data").exists(), "nothing was made");
}

#[test]
fn completions_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(&cobalt(dir.path(), &["completions", "bash"]).stdout);
    for command in ["dev", "server", "format", "config", "key", "status", "health", "df", "fsck", "dump"] {
        assert!(out.contains(command), "{command}");
    }
    assert_eq!(
        cobalt(dir.path(), &["top"]).status.code(),
        Some(2),
        "commands of later versions are not there"
    );
}
