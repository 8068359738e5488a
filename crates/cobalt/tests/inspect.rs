//! `fsck` and `dump` over real files: what is no target, or not the one that belongs there, or hurt, or in use, is refused with
//! what to do, and not one byte of it changes.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is the test's")]

use cobalt_base::checksum::xxh3;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const SIZE: u64 = 64 << 20;
const META: u64 = 32 << 20;

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

/// Three laid out targets of one cluster, in `cluster.toml`.
fn cluster(dir: &Path) {
    cluster_of(dir, "64MiB");
}

fn cluster_of(dir: &Path, size: &str) {
    fs::create_dir_all(dir).unwrap();
    let mut config =
        "[cluster]\nsecret_file = \"cluster.secret\"\n[[process]]\nname = \"p0\"\ncas = true\n".to_owned();
    for n in 0..3 {
        config.push_str(&format!(
            "[[process.target]]\nname = \"t{n}\"\ndevice = \"file:t{n}?size={size}&sparse=true\"\n"
        ));
    }
    fs::write(dir.join("cluster.toml"), config).unwrap();
    let out = cobalt(dir, &["format", "--config", "cluster.toml"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// All copies of the superblock.
fn superblocks() -> [u64; 4] {
    [0, 4096, META - 8192, META - 4096]
}

/// Raises the format version of every copy, with a checksum that fits.
fn newer(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    for at in superblocks() {
        let mut block = vec![0; 4096];
        file.read_exact_at(&mut block, at).unwrap();
        if block.starts_with(b"COBALTSB") {
            block[8..12].copy_from_slice(&2u32.to_le_bytes());
            block[16..24].fill(0);
            let sum = xxh3(0x636f_6261_6c74_5342, &block);
            block[16..24].copy_from_slice(&sum.to_le_bytes());
            file.write_all_at(&block, at).unwrap();
        }
    }
}

struct Case {
    /// The kind of the error in JSON.
    kind: &'static str,
    /// Words that are said.
    says: &'static [&'static str],
    spoil: fn(&Path, &Path),
}

/// What is done to t0 (and its directory), given the directory of another cluster.
const CASES: [Case; 11] = [
    Case {
        kind: "missing",
        says: &["t0 does not exist", "correct the path"],
        spoil: |t0, _| fs::remove_file(t0).unwrap(),
    },
    Case {
        kind: "not-a-device",
        says: &["is a directory", "name a file"],
        spoil: |t0, _| {
            fs::remove_file(t0).unwrap();
            fs::create_dir(t0).unwrap();
        },
    },
    Case {
        kind: "truncated",
        says: &["has 0 bytes", "size=64MiB", "restore it"],
        spoil: |t0, _| File::create(t0).map(drop).unwrap(),
    },
    Case {
        kind: "truncated",
        says: &["has 50000000 bytes", "cut short"],
        spoil: |t0, _| OpenOptions::new().write(true).open(t0).unwrap().set_len(50_000_000).unwrap(),
    },
    Case {
        kind: "not-a-target",
        says: &["it is blank", "`cobalt format`"],
        spoil: |t0, _| {
            let file = File::create(t0).unwrap();
            file.set_len(SIZE).unwrap();
        },
    },
    Case {
        kind: "not-a-target",
        says: &["it holds an ext2, ext3 or ext4 file system", "Check the path"],
        spoil: |t0, _| {
            let file = File::create(t0).unwrap();
            file.set_len(SIZE).unwrap();
            file.write_all_at(&[0x53, 0xef], 0x438).unwrap();
        },
    },
    Case {
        kind: "foreign-target",
        says: &["the device holds target", "belongs here: check the device path"],
        spoil: |t0, _| fs::copy(t0.with_file_name("t1"), t0).map(drop).unwrap(),
    },
    Case {
        kind: "foreign-cluster",
        says: &["belongs to cluster", "check the device path"],
        spoil: |t0, other| fs::copy(other.join("t0"), t0).map(drop).unwrap(),
    },
    Case { kind: "newer-format", says: &["format 2", "reads up to 1", "upgrade"], spoil: |t0, _| newer(t0) },
    Case {
        kind: "damaged",
        says: &["superblock at byte 0x", "expected one valid copy", "checksum is", "Do not format"],
        spoil: |t0, _| superblocks().iter().for_each(|at| patch(t0, at + 200, &[0xaa; 8])),
    },
    Case {
        kind: "not-a-target",
        says: &["it holds data of an unknown kind", "Check the path"],
        spoil: |t0, _| superblocks().iter().for_each(|at| patch(t0, *at, b"OTHERFS!")),
    },
];

#[test]
fn what_cannot_be_checked_is_refused_with_what_to_do_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("other");
    cluster(&other);
    let home = dir.path().join("home");
    cluster(&home);
    let whole = fs::read(home.join("t0")).unwrap();
    let t0 = home.join("t0");
    for case in &CASES {
        (case.spoil)(&t0, &other);
        let before = fs::read(&t0).ok();
        let out = cobalt(&home, &["fsck", "--config", "cluster.toml", "--json"]);
        assert_eq!(out.status.code(), Some(1), "{}", case.kind);
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!((&report["clean"], &report["schema_version"]), (&Value::from(false), &Value::from(1)));
        let target = &report["targets"][0];
        assert_eq!(target["error"]["kind"], case.kind, "{target}");
        assert_eq!((&target["target"], &target["verdict"]), (&Value::from("t0"), &Value::from("unreadable")));
        for others in 1..3 {
            assert_eq!(report["targets"][others]["verdict"], "clean", "{report}");
        }
        let said = text(&out.stderr);
        for word in ["error: 1 of 3 targets", "cause: t0: ", "hint: "].iter().chain(case.says) {
            assert!(said.contains(word), "{}: no `{word}` in {said}", case.kind);
        }
        let out = cobalt(&home, &["dump", "cob", "--config", "cluster.toml", "--target", "t0"]);
        let said = text(&out.stderr);
        // Whoever dumps a device does not say which target it must be.
        if !case.kind.starts_with("foreign") {
            assert_eq!(out.status.code(), Some(1), "{}: {said}", case.kind);
            assert!(said.contains("error: t0 cannot be read") && said.contains(case.says[0]), "{said}");
        }
        assert!(fs::read(&t0).ok() == before, "{}: it was written to", case.kind);
        if t0.is_dir() {
            fs::remove_dir(&t0).unwrap();
        }
        fs::write(&t0, &whole).unwrap();
    }
    assert!(cobalt(&home, &["fsck", "--config", "cluster.toml", "--data"]).status.success());
}

#[test]
fn a_device_that_changed_its_size_is_refused_before_anything_is_changed() {
    const MIB: u64 = 1 << 20;
    for (size, len, says) in [
        // Both regions are smaller then; the data region alone; and all are larger.
        (600, 500, "the device shrank, or the file was cut short"),
        (200, 150, "the device shrank, or the file was cut short"),
        (64, 1024, "the device grew"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        cluster_of(dir.path(), &format!("{size}MiB"));
        let t0 = dir.path().join("t0");
        let resize = |to: u64| OpenOptions::new().write(true).open(&t0).unwrap().set_len(to * MIB).unwrap();
        resize(len);
        let changed = fs::metadata(&t0).unwrap().modified().unwrap();
        let out = cobalt(dir.path(), &["fsck", "./t0", "--json"]);
        assert_eq!(out.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(report["targets"][0]["error"]["kind"], "wrong-size", "{report}");
        let said = text(&out.stderr);
        assert!(said.contains(says) && said.contains("give it its size back"), "{said}");
        assert_eq!(fs::metadata(&t0).unwrap().modified().unwrap(), changed);
        resize(size);
        let out = cobalt(dir.path(), &["fsck", "t0", "--config", "cluster.toml"]);
        assert!(out.status.success() || len < size, "{}", text(&out.stderr));
    }
}

#[test]
fn a_target_in_use_names_its_holder_at_once() {
    let dir = tempfile::tempdir().unwrap();
    cluster(dir.path());
    let held = OpenOptions::new().read(true).write(true).open(dir.path().join("t1")).unwrap();
    held.lock().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a command's time, as somebody waits for it")]
    let began = std::time::Instant::now();
    let out = cobalt(dir.path(), &["fsck", "t1", "t2", "--config", "cluster.toml", "--json"]);
    assert!(began.elapsed() < Duration::from_secs(8), "it does not wait for a living process");
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["targets"][0]["error"]["kind"], "in-use");
    assert_eq!(report["targets"][1]["verdict"], "clean");
    let holder = format!("is held by process {} (", std::process::id());
    assert!(text(&out.stderr).contains(&holder), "{}", text(&out.stderr));
    drop(held);
}

#[test]
fn damage_is_named_and_exits_with_1_and_a_lost_copy_with_0() {
    let dir = tempfile::tempdir().unwrap();
    cluster(dir.path());
    let t0 = dir.path().join("t0");
    // Generation 1 lies in slot 1: its second copy, at the end of the meta region.
    patch(&t0, META - 4096 + 130, &[0xff]);
    let out = cobalt(dir.path(), &["fsck", "t0", "--config", "cluster.toml"]);
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
    assert!(said.contains("superblock-copy at byte 0x1fff000 of the meta region (mends itself)"), "{said}");
    assert!(said.contains("expected  generation 1") && said.contains("found     checksum is"), "{said}");
    // The journal's only record, which names the superblock.
    patch(&t0, 0x4000 + 60, &[0xff]);
    let before = fs::read(&t0).unwrap();
    let out = cobalt(dir.path(), &["fsck", "t0", "--config", "cluster.toml", "--json", "--progress"]);
    assert_eq!(out.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    let target = &report["targets"][0];
    assert_eq!(
        (&target["verdict"], &target["found"], &target["fatal"]),
        (&"damaged".into(), &2.into(), &1.into())
    );
    let finding = &target["findings"][1];
    assert_eq!((&finding["kind"], &finding["region"]), (&"journal-unnamed".into(), &"meta".into()));
    assert_eq!(finding["address"], 0x4000, "{finding}");
    assert!(text(&out.stderr).contains("t0: "), "progress in lines where there is no terminal");
    assert!(fs::read(&t0).unwrap() == before);
}

#[test]
fn a_read_only_file_is_checked_and_keeps_its_times() {
    let dir = tempfile::tempdir().unwrap();
    cluster(dir.path());
    let t0 = dir.path().join("t0");
    let mut mode = fs::metadata(&t0).unwrap().permissions();
    mode.set_readonly(true);
    fs::set_permissions(&t0, mode).unwrap();
    let changed = fs::metadata(&t0).unwrap().modified().unwrap();
    for command in [
        &["fsck", "--data"][..],
        &["dump", "superblock", "--target", "t0"],
        &["dump", "space", "--target", "t0"],
    ] {
        let out = cobalt(dir.path(), &[command, &["--config", "cluster.toml"]].concat());
        assert!(out.status.success(), "{command:?}: {}", text(&out.stderr));
    }
    assert_eq!(fs::metadata(&t0).unwrap().modified().unwrap(), changed);
}

#[test]
fn what_is_typed_wrong_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    cluster(dir.path());
    for (args, says) in [
        (&["fsck", "t9", "--config", "cluster.toml"][..], "the configuration has t0, t1, t2"),
        (&["fsck", "mem:64MiB"], "holds nothing"),
        (&["fsck", "file:t0?colour=red"], "colour"),
        (&["fsck", "t0"], "holds no store"),
        (&["dump", "cob", "--target", "t0", "--config", "cluster.toml", "--fid", "zz"], "no number of a cob"),
        (
            &["dump", "ctg", "--target", "t0", "--config", "cluster.toml", "--ctg", "songs"],
            "no catalogue `songs`",
        ),
        (&["dump", "ctg", "--target", "t0", "--config", "cluster.toml", "--prefix", "a"], "add --ctg"),
    ] {
        let args: Vec<&str> = args.to_vec();
        // A bare name that is a file is taken as a path: from elsewhere it is none.
        let elsewhere = dir.path().join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        let here = if args == ["fsck", "t0"] { elsewhere } else { PathBuf::from(dir.path()) };
        let out = cobalt(&here, &args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(says) && said.contains("hint: "), "{args:?}: {said}");
        assert!(out.stdout.is_empty());
    }
    let help = text(&cobalt(dir.path(), &["fsck", "--help"]).stdout);
    for word in ["Exit codes:", "  0  clean", "  1  damage", "  2  the command line"] {
        assert!(help.contains(word), "{help}");
    }
}

#[test]
fn every_structure_can_be_dumped_in_words_and_in_json() {
    let dir = tempfile::tempdir().unwrap();
    cluster(dir.path());
    for what in ["superblock", "bitmap", "journal", "cob", "extmap", "balloc", "space", "ctg"] {
        let args = ["dump", what, "--config", "cluster.toml", "--target", "t2"];
        let out = cobalt(dir.path(), &args);
        assert!(out.status.success(), "{what}: {}", text(&out.stderr));
        let out = cobalt(dir.path(), &[&args[..], &["--json", "--limit", "3"]].concat());
        let dump: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(
            (&dump["schema_version"], &dump["dump"], &dump["target"]),
            (&1.into(), &what.into(), &"t2".into())
        );
        let rows = dump["rows"].as_array().unwrap();
        assert!(dump["skipped"].as_array().unwrap().is_empty());
        match what {
            "superblock" => assert_eq!(rows.last().unwrap()["superblock"]["name"], "t2"),
            "journal" => assert_eq!(rows[0]["intents"][0], "superblock 1 is durable"),
            "space" => assert_eq!((rows.len(), &dump["complete"]), (3, &Value::from(false))),
            _ => assert_eq!((rows.len(), &dump["complete"]), (0, &Value::from(true)), "{what}"),
        }
    }
    let args = ["dump", "cob", "--config", "cluster.toml", "--target", "t2", "--node", "5"];
    let said = text(&cobalt(dir.path(), &args).stdout);
    assert!(said.contains("node block 5 at ") && said.contains("magic is"), "{said}");
    let args = ["dump", "cob", "--config", "cluster.toml", "--target", "t2", "--node", "99999999"];
    let out = cobalt(dir.path(), &args);
    assert!(out.status.code() == Some(1) && text(&out.stderr).contains("there is no node block 99999999"));
}
