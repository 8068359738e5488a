//! Objects go in and come out, in every framing, by range, by part, under conditions.

use super::wire::{Chunks, Reply, Server, Wire, sha256};
use base64::{Engine, engine::general_purpose::STANDARD};
use md5::{Digest, Md5};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn put(server: &Server, path: &str, body: &[u8]) -> Reply {
    server.send(&Wire::new("PUT", path).body(body))
}

fn get(server: &Server, path: &str) -> Reply {
    server.send(&Wire::new("GET", path))
}

#[test]
fn what_is_put_comes_back_whatever_its_size() {
    let server = Server::start().bucket("bucket");
    for len in [0, 1, 65_535, 65_536, 65_537, 300_000] {
        let body = bytes(len);
        let reply = put(&server, "/bucket/a key+%", &body);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let etag = format!("\"{}\"", hex::encode(Md5::digest(&body)));
        assert_eq!(reply.header("etag"), Some(etag.as_str()));
        assert!(reply.header("x-amz-checksum-crc64nvme").is_some());
        assert!(reply.header("x-amz-request-id").is_some());
        let reply = get(&server, "/bucket/a key+%");
        assert_eq!((reply.status, reply.header("etag")), (200, Some(etag.as_str())));
        assert!(reply.body == body, "{len} bytes");
    }
    assert_eq!(server.double.record("bucket", "a key+%").unwrap().size, 300_000);
}

#[test]
fn every_framing_gives_the_same_object() {
    let server = Server::start().bucket("bucket");
    let body = bytes(200_000);
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc);
    crc.update(&body);
    let crc = STANDARD.encode((crc.finalize() as u32).to_be_bytes());
    let trailer = Some(("x-amz-checksum-crc32".to_owned(), crc.clone()));
    for (signed, trailer) in [(true, None), (true, trailer.clone()), (false, trailer)] {
        let chunks = Chunks { size: 70_000, signed, trailer: trailer.clone(), ..Chunks::default() };
        let reply = server.send(&Wire::new("PUT", "/bucket/k").body(&body).with(|w| w.chunks = Some(chunks)));
        assert_eq!(reply.status, 200, "{signed} {trailer:?}: {}", reply.text());
        if trailer.is_some() {
            assert_eq!(reply.header("x-amz-checksum-crc32"), Some(crc.as_str()));
        }
        let reply = get(&server, "/bucket/k");
        assert!(reply.body == body);
        assert_eq!(reply.header("content-encoding"), None, "aws-chunked is not stored");
    }
    let signed = Wire::new("PUT", "/bucket/k").body(&body).with(|w| w.payload = sha256(&body));
    assert_eq!(server.send(&signed).status, 200);
}

#[test]
fn ranges_answer_with_what_they_name() {
    let server = Server::start().bucket("bucket");
    let body = bytes(200_000);
    put(&server, "/bucket/k", &body);
    let ranged = |range: &str| server.send(&Wire::new("GET", "/bucket/k").header("range", range));
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=65530-65540", 65_530, 65_541),
        ("bytes=199999-", 199_999, 200_000),
        ("bytes=-5", 199_995, 200_000),
        ("bytes=100-999999999", 100, 200_000),
    ] {
        let reply = ranged(range);
        assert_eq!(reply.status, 206, "{range}");
        assert!(reply.body == body[from..to], "{range}");
        let content = format!("bytes {from}-{}/200000", to - 1);
        assert_eq!(reply.header("content-range"), Some(content.as_str()));
        assert_eq!(reply.header("x-amz-checksum-crc64nvme"), None, "a piece has no checksum of the whole");
    }
    let reply = ranged("bytes=200000-");
    assert_eq!(reply.said(), (416, "InvalidRange".to_owned()));
    assert_eq!(reply.header("content-range"), Some("bytes */200000"));
}

#[test]
fn reads_obey_their_conditions() {
    let server = Server::start().bucket("bucket");
    let etag = put(&server, "/bucket/k", b"hello").header("etag").unwrap().to_owned();
    let ask = |name: &str, value: &str| server.send(&Wire::new("GET", "/bucket/k").header(name, value));
    assert_eq!(ask("if-match", &etag).status, 200);
    assert_eq!(ask("if-match", "\"x\"").said(), (412, "PreconditionFailed".to_owned()));
    let unchanged = ask("if-none-match", &etag);
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(unchanged.header("etag"), Some(etag.as_str()));
    assert_eq!(ask("if-none-match", "\"x\"").status, 200);
    assert_eq!(ask("if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT").status, 304);
    assert_eq!(ask("if-unmodified-since", "Thu, 01 Jan 2015 00:00:00 GMT").status, 412);
}

#[test]
fn writes_obey_their_conditions_before_the_body_and_in_the_commit() {
    let server = Server::start().bucket("bucket");
    let write =
        |name: &str, value: &str| server.send(&Wire::new("PUT", "/bucket/k").body("new").header(name, value));
    assert_eq!(write("if-match", "\"x\"").said(), (404, "NoSuchKey".to_owned()));
    let etag = write("if-none-match", "*").header("etag").unwrap().to_owned();
    assert_eq!(write("if-none-match", "*").said(), (412, "PreconditionFailed".to_owned()));
    assert_eq!(write("if-match", "\"x\"").said(), (412, "PreconditionFailed".to_owned()));
    assert_eq!(write("if-match", &etag).status, 200);
    assert_eq!(write("if-none-match", "\"x\"").status, 501);
    // The condition held when it was looked at, and not any more in the commit.
    let error = cobalt_rpc::proto::cas::CasError::PreconditionFailed;
    server.double.fail_commit(error.into());
    assert_eq!(write("if-match", &etag).said(), (409, "ConditionalRequestConflict".to_owned()));
}

#[test]
fn head_tells_what_get_would() {
    let server = Server::start().bucket("bucket");
    let wire = Wire::new("PUT", "/bucket/k")
        .body("hello")
        .header("content-type", "text/plain")
        .header("cache-control", "no-cache")
        .header("x-amz-meta-color", "blue");
    assert_eq!(server.send(&wire).status, 200);
    let mut stream = server.connect();
    let head =
        Wire::new("HEAD", "/bucket/k").header("x-amz-checksum-mode", "ENABLED").header("connection", "close");
    std::io::Write::write_all(
        &mut stream,
        &head.with(|w| w.length = Some(String::new())).bytes(server.address),
    )
    .unwrap();
    let reply = Reply::read(&mut stream);
    assert_eq!((reply.status, reply.body.len()), (200, 0));
    for (name, value) in [
        ("content-length", "5"),
        ("content-type", "text/plain"),
        ("cache-control", "no-cache"),
        ("x-amz-meta-color", "blue"),
        ("accept-ranges", "bytes"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert!(reply.header("x-amz-checksum-crc64nvme").is_some() && reply.header("last-modified").is_some());
    let reply = get(&server, "/bucket/k?response-content-type=image/png&response-cache-control=private");
    assert_eq!(reply.header("content-type"), Some("image/png"));
    assert_eq!(reply.header("cache-control"), Some("private"));
}

#[test]
fn wrong_checksums_leave_nothing() {
    let server = Server::start().bucket("bucket");
    let wrong = |name: &str, value: &str| {
        server.send(&Wire::new("PUT", "/bucket/k").body(bytes(100_000)).header(name, value)).said()
    };
    let bad = |code: &str| (400, code.to_owned());
    assert_eq!(wrong("content-md5", &STANDARD.encode([0; 16])), bad("BadDigest"));
    assert_eq!(wrong("content-md5", "nonsense"), bad("InvalidDigest"));
    assert_eq!(wrong("x-amz-checksum-crc32", "AAAAAA=="), bad("BadDigest"));
    assert_eq!(wrong("x-amz-checksum-crc64nvme", "AAAAAAAAAAA="), bad("BadDigest"));
    assert_eq!(wrong("x-amz-checksum-sha256", &STANDARD.encode([0; 32])), bad("BadDigest"));
    assert_eq!(wrong("x-amz-checksum-sha1", &STANDARD.encode([0; 20])), bad("BadDigest"));
    assert_eq!(wrong("x-amz-checksum-crc32", "AAAA"), bad("InvalidRequest"));
    let other = Wire::new("PUT", "/bucket/k").body("x").with(|w| w.payload = sha256(b"y"));
    assert_eq!(server.send(&other).said(), bad("XAmzContentSHA256Mismatch"));
    let trailer = Some(("x-amz-checksum-crc32".to_owned(), "AAAAAA==".to_owned()));
    let chunks = Chunks { size: 10, trailer, ..Chunks::default() };
    let trailed = Wire::new("PUT", "/bucket/k").body("hello").with(|w| w.chunks = Some(chunks));
    assert_eq!(server.send(&trailed).said(), bad("BadDigest"));
    assert!(server.double.record("bucket", "k").is_none());
    assert_eq!(server.double.held(), 0, "every unit came back");
}

#[test]
fn a_client_that_goes_away_leaves_nothing() {
    let server = Server::start().bucket("bucket");
    let wire =
        Wire::new("PUT", "/bucket/k").body(bytes(100_000)).with(|w| w.length = Some("200000".to_owned()));
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, &wire.bytes(server.address)).unwrap();
    stream.shutdown(std::net::Shutdown::Both).unwrap();
    drop(stream);
    let server_double = server.double.clone();
    server.stop();
    assert!(server_double.record("bucket", "k").is_none());
    assert_eq!(server_double.held(), 0);
}

#[test]
fn a_body_is_asked_for_only_when_it_can_be_taken() {
    let server = Server::start().bucket("bucket");
    let wire = Wire::new("PUT", "/bucket/k").body("hello").header("expect", "100-continue");
    let all = wire.bytes(server.address);
    let (head, body) = all.split_at(all.len() - 5);
    let mut stream = server.connect();
    let hogged = server.double.hog();
    std::io::Write::write_all(&mut stream, head).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let mut chunk = [0; 256];
    assert!(std::io::Read::read(&mut stream, &mut chunk).is_err(), "no memory, no 100-continue");
    drop(hogged);
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let n = std::io::Read::read(&mut stream, &mut chunk).unwrap();
    assert!(chunk[..n].starts_with(b"HTTP/1.1 100 Continue"));
    std::io::Write::write_all(&mut stream, body).unwrap();
    assert_eq!(Reply::read(&mut stream).status, 200);
    // A refused one is answered without its body.
    let refused = Wire::new("PUT", "/nowhere/k").body("hello").header("expect", "100-continue");
    let all = refused.bytes(server.address);
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, &all[..all.len() - 5]).unwrap();
    let n = std::io::Read::read(&mut stream, &mut chunk).unwrap();
    assert!(chunk[..n].starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&chunk[..n]));
}

#[test]
fn the_cluster_s_refusals_have_their_codes() {
    use cobalt_client::ClientError;
    let server = Server::start().bucket("bucket");
    let failed = |error| {
        server.double.fail_put(error);
        put(&server, "/bucket/k", b"hello")
    };
    let reply = failed(ClientError::Unavailable { what: "target t2 is down".to_owned() });
    assert_eq!(reply.said(), (503, "ServiceUnavailable".to_owned()));
    assert!(reply.text().contains("target t2 is down"), "the target is named");
    let reply = failed(ClientError::NoSpace { what: "target t1".to_owned() });
    assert_eq!(reply.said(), (507, "InsufficientStorage".to_owned()));
    assert_eq!(failed(ClientError::Busy).said(), (503, "SlowDown".to_owned()));
    assert_eq!(put(&server, "/nowhere/k", b"x").said(), (404, "NoSuchBucket".to_owned()));
    assert_eq!(get(&server, "/bucket/nothing").said(), (404, "NoSuchKey".to_owned()));
}

#[test]
fn listings_fold_continue_and_encode() {
    let mut double = super::double::Double::new();
    double.page = 3;
    let server = Server::with(super::wire::limits(), double).bucket("bucket");
    for key in ["a", "b/1", "b/2", "b/3", "c d", "e/1", "f", "g", "h"] {
        assert_eq!(put(&server, &format!("/bucket/{key}"), b"x").status, 200);
    }
    let keys = |text: &str, tag: &str| -> Vec<String> {
        let open = format!("<{tag}>");
        text.split(&open).skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
    };
    let all = get(&server, "/bucket?list-type=2").text();
    assert_eq!(keys(&all, "Key").len(), 9, "a page is filled from many small ones");
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let wire = Wire::new("GET", "/bucket?list-type=2&delimiter=/&max-keys=2").with(|w| {
            if !token.is_empty() {
                w.query.push(("continuation-token".to_owned(), token.clone()));
            }
        });
        let reply = server.send(&wire);
        let text = reply.text();
        seen.extend(keys(&text, "Key"));
        seen.extend(text.split("<CommonPrefixes>").skip(1).map(|rest| keys(rest, "Prefix")[0].clone()));
        match reply.tag("NextContinuationToken") {
            Some(next) => token = next,
            None => break,
        }
    }
    seen.sort();
    assert_eq!(seen, ["a", "b/", "c d", "e/", "f", "g", "h"]);
    let encoded = get(&server, "/bucket?list-type=2&prefix=c&encoding-type=url");
    assert_eq!(keys(&encoded.text(), "Key"), ["c%20d"]);
    assert_eq!(encoded.tag("EncodingType").as_deref(), Some("url"));
    let v1 = get(&server, "/bucket?delimiter=/&max-keys=2");
    assert_eq!(
        (v1.tag("NextMarker").as_deref(), v1.tag("IsTruncated").as_deref()),
        (Some("b/"), Some("true"))
    );
    let next = get(&server, "/bucket?delimiter=/&max-keys=2&marker=b/").text();
    assert_eq!((keys(&next, "Key"), keys(&next, "CommonPrefixes").len()), (vec!["c d".to_owned()], 1));
    let owned = get(&server, "/bucket?list-type=2&max-keys=1&fetch-owner=true");
    assert_eq!(owned.tag("ID").as_deref(), Some("alice"));
    assert_eq!(get(&server, "/bucket?list-type=2&max-keys=0").tag("IsTruncated").as_deref(), Some("false"));
    let bad = get(&server, "/bucket?list-type=2&continuation-token=x");
    assert_eq!(bad.said(), (400, "InvalidArgument".to_owned()));
}

#[test]
fn parts_make_an_object() {
    let mut double = super::double::Double::new();
    double.page = 2;
    let server = Server::with(super::wire::limits(), double).bucket("bucket");
    let reply = server.send(&Wire::new("POST", "/bucket/k?uploads").header("x-amz-meta-a", "b"));
    let id = reply.tag("UploadId").unwrap();
    assert!(get(&server, "/bucket?uploads").text().contains(&id));
    let parts = [bytes(5 << 20), bytes(5 << 20), bytes(5 << 20), bytes(1000)];
    let mut list = String::new();
    let mut digest = Md5::new();
    for (at, part) in parts.iter().enumerate() {
        let n = at + 1;
        let reply = put(&server, &format!("/bucket/k?partNumber={n}&uploadId={id}"), part);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let etag = reply.header("etag").unwrap();
        list += &format!("<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>");
        digest.update(Md5::digest(part));
    }
    let shown = get(&server, &format!("/bucket/k?uploadId={id}&max-parts=3"));
    assert_eq!(
        (shown.text().matches("<Part>").count(), shown.tag("IsTruncated").as_deref()),
        (3, Some("true"))
    );
    let complete = |list: &str| {
        let xml = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
        server.send(&Wire::new("POST", &format!("/bucket/k?uploadId={id}")).body(xml))
    };
    assert_eq!(complete("<Part><PartNumber>1</PartNumber><ETag>\"x\"</ETag></Part>").said().1, "InvalidPart");
    let reply = complete(&list);
    let etag = format!("{}-4", hex::encode(digest.finalize()));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(server.double.record("bucket", "k").unwrap().etag, etag);
    assert_eq!(complete(&list).status, 200, "a repeat gets the same answer");
    let whole = parts.concat();
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    crc.update(&whole);
    let stored = &server.double.record("bucket", "k").unwrap().checksums[0];
    assert_eq!(stored.value, STANDARD.encode(crc.finalize().to_be_bytes()), "the parts' CRCs combine");
    assert!(get(&server, "/bucket/k").body == whole);
    let part = get(&server, "/bucket/k?partNumber=4");
    assert!(part.status == 206 && part.body == parts[3]);
    assert_eq!(part.header("x-amz-mp-parts-count"), Some("4"));
    assert_eq!(get(&server, "/bucket/k?partNumber=5").status, 416);
    assert_eq!(get(&server, "/bucket/k").header("x-amz-meta-a"), Some("b"));
    let gone = server.send(&Wire::new("DELETE", &format!("/bucket/k?uploadId={id}")));
    assert_eq!(gone.said(), (404, "NoSuchUpload".to_owned()));
}

#[test]
fn copies_move_bytes_and_metadata() {
    let server = Server::start().bucket("bucket");
    let body = bytes(150_000);
    server.send(
        &Wire::new("PUT", "/bucket/a").body(&body).header("x-amz-meta-c", "1").header("content-type", "x/y"),
    );
    let copy = |to: &str, headers: &[(&str, &str)]| {
        let wire = Wire::new("PUT", to).header("x-amz-copy-source", "/bucket/a");
        server.send(&headers.iter().fold(wire, |wire, (name, value)| wire.header(name, value)))
    };
    let reply = copy("/bucket/b", &[]);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let back = get(&server, "/bucket/b");
    assert!(back.body == body);
    assert_eq!((back.header("x-amz-meta-c"), back.header("content-type")), (Some("1"), Some("x/y")));
    assert_eq!(copy("/bucket/a", &[]).said(), (400, "InvalidRequest".to_owned()));
    assert_eq!(
        copy("/bucket/a", &[("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-d", "2")]).status,
        200
    );
    let back = get(&server, "/bucket/a");
    assert_eq!((back.header("x-amz-meta-c"), back.header("x-amz-meta-d")), (None, Some("2")));
    assert_eq!(copy("/bucket/b", &[("x-amz-copy-source-if-match", "\"x\"")]).status, 412);
}

#[test]
fn a_part_may_be_a_piece_of_an_object() {
    let server = Server::start().bucket("bucket");
    let body = bytes(150_000);
    put(&server, "/bucket/a", &body);
    let id = server.send(&Wire::new("POST", "/bucket/b?uploads")).tag("UploadId").unwrap();
    let copy = |range: &str| {
        let wire = Wire::new("PUT", &format!("/bucket/b?partNumber=1&uploadId={id}"));
        server.send(&wire.header("x-amz-copy-source", "/bucket/a").header("x-amz-copy-source-range", range))
    };
    for range in ["bytes=0-150000", "bytes=5-4", "bytes=-5", "bytes=5-", "0-4"] {
        assert_eq!(copy(range).said(), (400, "InvalidArgument".to_owned()), "{range}");
    }
    let etag = copy("bytes=1000-100000").tag("ETag").unwrap();
    let part = format!("<Part><PartNumber>1</PartNumber><ETag>{etag}</ETag></Part>");
    let xml = format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>");
    let reply = server.send(&Wire::new("POST", &format!("/bucket/b?uploadId={id}")).body(xml));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(get(&server, "/bucket/b").body == body[1000..100_001]);
}

#[test]
fn many_keys_are_deleted_at_once() {
    let server = Server::start().bucket("bucket");
    for n in 0..3 {
        put(&server, &format!("/bucket/{n}"), b"x");
    }
    let keys: String = (0..250).map(|n| format!("<Object><Key>{n}</Key></Object>")).collect();
    let xml = format!("<Delete>{keys}</Delete>");
    let md5 = STANDARD.encode(Md5::digest(&xml));
    let wire = Wire::new("POST", "/bucket?delete").body(&xml);
    let reply = server.send(&wire.clone().header("content-md5", &md5));
    assert_eq!((reply.status, reply.text().matches("<Deleted>").count()), (200, 250));
    assert!(server.double.record("bucket", "1").is_none());
    let wrong = server.send(&wire.clone().header("content-md5", &STANDARD.encode([0; 16])));
    assert_eq!(wrong.said(), (400, "BadDigest".to_owned()));
    let wrong = server.send(&wire.header("x-amz-checksum-crc32", "AAAAAA=="));
    assert_eq!(wrong.said(), (400, "BadDigest".to_owned()));
}

#[test]
fn buckets_are_their_owner_s() {
    let server = Server::start().bucket("bucket");
    put(&server, "/bucket/k", b"x");
    let bob = |method: &str, path: &str| {
        server.send(&Wire::new(method, path).with(|w| {
            w.key = "AKIABOB".to_owned();
            w.secret = "bobs-secret".to_owned();
        }))
    };
    for (method, path) in
        [("GET", "/bucket/k"), ("GET", "/bucket"), ("DELETE", "/bucket/k"), ("PUT", "/bucket/k")]
    {
        assert_eq!(bob(method, path).said(), (403, "AccessDenied".to_owned()), "{method} {path}");
    }
    assert_eq!(bob("PUT", "/bucket").said(), (409, "BucketAlreadyExists".to_owned()));
    assert_eq!(bob("GET", "/").text().matches("<Bucket>").count(), 0);
    assert_eq!(get(&server, "/").text().matches("<Bucket>").count(), 1);
    let again = server.send(&Wire::new("PUT", "/bucket"));
    assert_eq!(again.said(), (409, "BucketAlreadyOwnedByYou".to_owned()));
    assert_eq!(server.send(&Wire::new("PUT", "/Bad_Name")).said(), (400, "InvalidBucketName".to_owned()));
    let place = "<CreateBucketConfiguration><LocationConstraint>mars</LocationConstraint></CreateBucketConfiguration>";
    let elsewhere = server.send(&Wire::new("PUT", "/other").body(place));
    assert_eq!(elsewhere.said(), (400, "InvalidLocationConstraint".to_owned()));
    let location = get(&server, "/bucket?location");
    assert_eq!(location.status, 200);
    assert!(location.text().contains("eu-test-1"));
    assert_eq!(server.send(&Wire::new("DELETE", "/bucket")).said(), (409, "BucketNotEmpty".to_owned()));
    assert_eq!(server.send(&Wire::new("DELETE", "/bucket/k")).status, 204);
    assert_eq!(server.send(&Wire::new("DELETE", "/bucket/k")).status, 204, "what is not there is deleted");
    assert_eq!(server.send(&Wire::new("DELETE", "/bucket")).status, 204);
}

#[test]
fn a_bucket_may_be_a_host_and_an_unknown_host_is_path_style() {
    let server = Server::start().bucket("bucket");
    put(&server, "/bucket/k", b"hello");
    let host = |host: &str, path: &str| server.send(&Wire::new("GET", path).header("host", host));
    assert_eq!(host("bucket.s3.test:9000", "/k").text(), "hello");
    assert_eq!(host("s3.test", "/bucket/k").text(), "hello");
    assert_eq!(host("somewhere.example.com", "/bucket/k").text(), "hello");
}

#[test]
fn the_end_is_orderly() {
    let server = Server::start().bucket("bucket");
    let mut idle = server.connect();
    std::io::Write::write_all(&mut idle, &Wire::new("GET", "/").bytes(server.address)).unwrap();
    assert_eq!(Reply::read(&mut idle).status, 200);
    assert_eq!(server.stop(), 0, "an idle connection is no reason to wait");
}
