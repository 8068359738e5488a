//! What the guard refuses, one rule after the other, as raw requests.

use super::wire::{Chunks, KEY, REGION, Server, Wire};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

fn said(server: &Server, wire: Wire) -> (u16, String) {
    server.send(&wire).said()
}
fn code(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}
fn list() -> Wire {
    Wire::new("GET", "/bucket")
}

#[test]
fn signatures_must_be_right() {
    let server = Server::start().bucket("bucket");
    assert_eq!(
        said(&server, list().with(|w| w.secret = "other".to_owned())),
        code(403, "SignatureDoesNotMatch")
    );
    assert_eq!(said(&server, list().with(|w| w.key = "NOBODY".to_owned())), code(403, "InvalidAccessKeyId"));
    assert_eq!(said(&server, list().with(|w| w.signed = false)), code(403, "AccessDenied"));
    assert_eq!(said(&server, list().with(|w| w.skew = 1000)), code(403, "RequestTimeTooSkewed"));
    assert_eq!(said(&server, list().with(|w| w.skew = -1000)), code(403, "RequestTimeTooSkewed"));
    assert_eq!(server.send(&list().with(|w| w.skew = -600)).status, 200);
}

#[test]
fn a_disabled_key_is_refused_within_a_moment() {
    let server = Server::start().bucket("bucket");
    assert_eq!(server.send(&list()).status, 200);
    server.double.enable_key(KEY, false);
    let start = tokio::time::Instant::now();
    let refused = std::iter::repeat_with(|| start.elapsed())
        .take_while(|t| *t < Duration::from_secs(10))
        .any(|_| said(&server, list()) == code(403, "InvalidAccessKeyId"));
    assert!(refused);
}

#[test]
fn a_wrong_signature_takes_no_byte_of_the_body() {
    let server = Server::start().bucket("bucket");
    let wire = Wire::new("PUT", "/bucket/k").body(vec![7; 100_000]).with(|w| w.secret = "other".to_owned());
    assert_eq!(said(&server, wire), code(403, "SignatureDoesNotMatch"));
    assert_eq!(server.double.puts.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn every_amz_header_and_the_host_are_signed() {
    let server = Server::start().bucket("bucket");
    let unsigned = |name: &str| {
        let name = name.to_owned();
        list().header(&name, "x").with(|w| w.unsigned.push(name))
    };
    assert_eq!(said(&server, unsigned("x-amz-meta-a")), code(403, "AccessDenied"));
    assert_eq!(said(&server, unsigned("x-amz-anything")), code(403, "AccessDenied"));
    assert_eq!(said(&server, list().with(|w| w.unsigned.push("host".to_owned()))), code(403, "AccessDenied"));
    let exempt = list().with(|w| w.unsigned.push("x-amz-content-sha256".to_owned()));
    assert_eq!(server.send(&exempt).status, 200);
    // Signed, and not there.
    let absent = list().with(|w| w.more.push(b"".to_vec()));
    let text = String::from_utf8(absent.bytes(server.address)).unwrap();
    let without = text.replacen("SignedHeaders=host;", "SignedHeaders=a-ghost;host;", 1);
    assert_eq!(server.raw(without.as_bytes()).said(), code(403, "SignatureDoesNotMatch"));
}

#[test]
fn what_comes_twice_or_is_no_utf8_is_refused() {
    let server = Server::start().bucket("bucket");
    let more = |bytes: &[u8]| list().with(|w| w.more.push(bytes.to_vec()));
    assert_eq!(said(&server, more(b"authorization: AWS4-HMAC-SHA256 x\r\n")), code(400, "InvalidArgument"));
    assert_eq!(server.send(&more(b"host: other\r\n")).status, 400);
    assert_eq!(said(&server, more(b"x-amz-date: 20200101T000000Z\r\n")), code(400, "InvalidArgument"));
    assert_eq!(said(&server, more(b"x-amz-meta-a: \xff\xfe\r\n")), code(400, "InvalidArgument"));
}

#[test]
fn the_scope_names_this_region_and_service() {
    let server = Server::start().bucket("bucket");
    let wrong = server.send(&list().with(|w| w.region = "us-east-1".to_owned()));
    assert_eq!(wrong.said(), code(400, "AuthorizationHeaderMalformed"));
    assert_eq!(
        (wrong.tag("Region").as_deref(), wrong.header("x-amz-bucket-region")),
        (Some(REGION), Some(REGION))
    );
    let location = Wire::new("GET", "/bucket?location").with(|w| w.region = "us-east-1".to_owned());
    assert_eq!(server.send(&location).status, 200);
    let sneaky = Wire::new("PUT", "/bucket/k?location").with(|w| w.region = "us-east-1".to_owned());
    assert_eq!(said(&server, sneaky), code(400, "AuthorizationHeaderMalformed"));
    let sts = list().with(|w| w.service = "sts".to_owned());
    assert_eq!(said(&server, sts), code(400, "AuthorizationHeaderMalformed"));
}

#[test]
fn version_2_signatures_are_refused_in_any_form() {
    let server = Server::start().bucket("bucket");
    let header = list().with(|w| w.signed = false).header("authorization", "AWS AKIATEST:c2lnbmF0dXJl");
    assert_eq!(said(&server, header), code(400, "InvalidRequest"));
    for query in ["Signature=x", "%53ignature=x", "AWSAccessKeyId=x&Signature=x&Expires=1"] {
        let raw = format!("GET /bucket?{query} HTTP/1.1\r\nhost: {}\r\n\r\n", server.address);
        assert_eq!(server.raw(raw.as_bytes()).said(), code(400, "InvalidRequest"), "{query}");
    }
    assert_eq!(
        said(&server, list().with(|w| w.query.push(("Signature".into(), "x".into())))),
        code(400, "InvalidRequest")
    );
}

#[test]
fn presigned_urls_work_within_their_time_only() {
    let server = Server::start().bucket("bucket");
    server.send(&Wire::new("PUT", "/bucket/k").body("hello"));
    let fetch = |method: &str, url: &str, headers: &str, body: &str| {
        let length = body.len();
        let raw = format!(
            "{method} {url} HTTP/1.1\r\nhost: {}\r\n{headers}content-length: {length}\r\n\r\n{body}",
            server.address
        );
        server.raw(raw.as_bytes())
    };
    let get = Wire::new("GET", "/bucket/k");
    let url = get.presign(server.address, "60");
    assert_eq!(fetch("GET", &url, "", "").text(), "hello");
    let upload = Wire::new("PUT", "/bucket/p").presign(server.address, "60");
    assert_eq!(fetch("PUT", &upload, "", "up").status, 200);
    for expires in ["0", "604801", "-1", "x", "+60"] {
        let url = get.presign(server.address, expires);
        assert_eq!(
            fetch("GET", &url, "", "").said(),
            code(400, "AuthorizationQueryParametersError"),
            "{expires}"
        );
    }
    let old = get.clone().with(|w| w.skew = -100).presign(server.address, "60");
    assert_eq!(fetch("GET", &old, "", "").said(), code(403, "AccessDenied"));
    let early = get.clone().with(|w| w.skew = 1000).presign(server.address, "60");
    assert_eq!(fetch("GET", &early, "", "").said(), code(403, "RequestTimeTooSkewed"));
    let ahead = get.clone().with(|w| w.skew = 600).presign(server.address, "60");
    assert_eq!(fetch("GET", &ahead, "", "").status, 200);
    assert_eq!(fetch("GET", &url, "x-amz-meta-a: b\r\n", "").said(), code(403, "AccessDenied"));
    let elsewhere = get.clone().with(|w| w.region = "us-east-1".to_owned()).presign(server.address, "60");
    assert_eq!(fetch("GET", &elsewhere, "", "").said(), code(400, "AuthorizationQueryParametersError"));
    assert_eq!(fetch("GET", &format!("{url}&X-Amz-Expires=60"), "", "").status, 400);
    let flipped = url.replacen("X-Amz-Signature=", "X-Amz-Signature=0", 1);
    assert_eq!(fetch("GET", &flipped, "", "").said(), code(400, "AuthorizationQueryParametersError"));
    // Both ways at once.
    let both = list().with(|w| w.query.push(("X-Amz-Signature".into(), "x".into())));
    assert_eq!(said(&server, both), code(400, "InvalidArgument"));
}

#[test]
fn forms_are_refused_before_their_body() {
    let server = Server::start().bucket("bucket");
    for content in ["multipart/form-data; boundary=x", "Multipart/Form-Data"] {
        let wire = Wire::new("POST", "/bucket").body("--x").header("content-type", content);
        assert_eq!(said(&server, wire.clone()), code(501, "NotImplemented"));
        assert_eq!(said(&server, wire.with(|w| w.signed = false)), code(501, "NotImplemented"));
    }
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let server = Server::start().bucket("bucket");
    server.send(&Wire::new("PUT", "/bucket/k").body("kept"));
    for name in
        ["renameObject", "acl", "tagging", "retention", "legal-hold", "torrent", "encryption", "append"]
    {
        let wire = Wire::new("PUT", &format!("/bucket/k?{name}")).body("lost");
        let reply = server.send(&wire);
        assert_eq!(reply.status, 501, "{name}");
    }
    for name in ["versioning", "versions", "policy", "cors", "lifecycle", "acl", "object-lock", "website"] {
        assert_eq!(
            said(&server, Wire::new("GET", &format!("/bucket?{name}"))),
            code(501, "NotImplemented"),
            "{name}"
        );
    }
    for name in ["delete", "location", "uploads"] {
        let wire = Wire::new("PUT", &format!("/bucket/k?{name}")).body("lost");
        assert_eq!(said(&server, wire), code(405, "MethodNotAllowed"), "{name}");
    }
    for query in ["uploadId=x", "partNumber=1"] {
        let wire = Wire::new("PUT", &format!("/bucket/k?{query}")).body("lost");
        assert_eq!(said(&server, wire), code(400, "InvalidArgument"), "{query}");
    }
    for (name, value) in [
        ("x-amz-acl", "public-read"),
        ("x-amz-grant-read", "id=x"),
        ("x-amz-server-side-encryption", "AES256"),
        ("x-amz-server-side-encryption-customer-algorithm", "AES256"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-object-lock-mode", "COMPLIANCE"),
        ("x-amz-storage-class", "GLACIER"),
        ("x-amz-website-redirect-location", "/x"),
        ("x-amz-write-offset-bytes", "4"),
    ] {
        let wire = Wire::new("PUT", "/bucket/k").body("lost").header(name, value);
        assert_eq!(said(&server, wire), code(501, "NotImplemented"), "{name}");
    }
    let plain = Wire::new("PUT", "/bucket/p")
        .body("x")
        .header("x-amz-acl", "private")
        .header("x-amz-storage-class", "STANDARD");
    assert_eq!(server.send(&plain).status, 200);
    assert_eq!(server.send(&Wire::new("GET", "/bucket/k")).text(), "kept");
    assert_eq!(server.send(&Wire::new("GET", "/bucket/k?x-id=GetObject")).text(), "kept");
    let tags = server.send(&Wire::new("GET", "/bucket/k?tagging"));
    assert_eq!((tags.status, tags.text().contains("<Tag>")), (200, false));
}

#[test]
fn heads_are_bounded() {
    let server = Server::start().bucket("bucket");
    let long = list().header("x-amz-meta-long", &"x".repeat(17 << 10));
    assert_eq!(said(&server, long), code(431, "RequestHeaderSectionTooLarge"));
    let many = (0..90).fold(list(), |wire, n| wire.header(&format!("a{n}"), &"y".repeat(180)));
    assert_eq!(server.send(&many).status, 431);
}

#[test]
fn lengths_are_needed_and_bounded() {
    let server = Server::start().bucket("bucket");
    let open = Wire::new("PUT", "/bucket/k").with(|w| {
        w.length = Some(String::new());
        w.more.push(b"transfer-encoding: chunked\r\n".to_vec());
    });
    assert_eq!(said(&server, open), code(411, "MissingContentLength"));
    let huge = Wire::new("PUT", "/bucket/k").with(|w| w.length = Some((6u64 << 30).to_string()));
    assert_eq!(said(&server, huge), code(400, "EntityTooLarge"));
    let xml = Wire::new("POST", "/bucket?delete").with(|w| w.length = Some((5 << 20).to_string()));
    assert_eq!(said(&server, xml), code(400, "MaxMessageLengthExceeded"));
}

fn chunked(chunks: Chunks) -> Wire {
    Wire::new("PUT", "/bucket/k").body([7; 1000]).with(|w| w.chunks = Some(chunks))
}

fn trailer() -> Option<(String, String)> {
    let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32IsoHdlc);
    crc.update(&[7; 1000]);
    use base64::{Engine, engine::general_purpose::STANDARD};
    Some(("x-amz-checksum-crc32".to_owned(), STANDARD.encode((crc.finalize() as u32).to_be_bytes())))
}

#[test]
fn chunks_must_be_framed_as_they_say() {
    let server = Server::start().bucket("bucket");
    let base = || Chunks { size: 300, signed: true, ..Chunks::default() };
    assert_eq!(server.send(&chunked(base())).status, 200);
    let spoiled = |spoil| said(&server, chunked(Chunks { spoil: Some(spoil), ..base() }));
    // Without the final chunk.
    assert_eq!(
        spoiled(|body| {
            let at = body.windows(4).rposition(|w| w == b"\r\n0;").unwrap();
            body[..at + 2].to_vec()
        }),
        code(400, "IncompleteBody")
    );
    // A byte of the data is another one.
    assert_eq!(
        spoiled(|mut body| {
            body[100] ^= 1;
            body
        }),
        code(403, "SignatureDoesNotMatch")
    );
    // A byte of the last chunk's signature.
    assert_eq!(
        spoiled(|mut body| {
            let at = body.len() - 6;
            body[at] = if body[at] == b'0' { b'1' } else { b'0' };
            body
        }),
        code(403, "SignatureDoesNotMatch")
    );
    assert_eq!(spoiled(|body| [&b"zz"[..], &body].concat()), code(400, "InvalidRequest"));
    // Trailers that nobody announced.
    assert_eq!(
        spoiled(|body| [&body[..body.len() - 2], b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n"].concat()),
        code(400, "MalformedTrailerError")
    );
    let length = |decoded| said(&server, chunked(Chunks { decoded: Some(decoded), ..base() }));
    assert_eq!(length(999), code(400, "InvalidRequest"));
    assert_eq!(length(1001), code(400, "IncompleteBody"));
    let big = Wire::new("PUT", "/bucket/k")
        .body(vec![0; (1 << 20) + 1])
        .with(|w| w.chunks = Some(Chunks { size: 2 << 20, signed: true, ..Chunks::default() }));
    assert_eq!(said(&server, big), code(400, "InvalidChunkSizeError"));
    // Chunks under a head that says nothing of them, and a chunked document.
    let plain = Wire::new("PUT", "/bucket/k").body("0\r\n\r\n").header("content-encoding", "aws-chunked");
    assert_eq!(said(&server, plain), code(400, "InvalidRequest"));
    let document = Wire::new("POST", "/bucket?delete").body("x").with(|w| w.chunks = Some(base()));
    assert_eq!(said(&server, document), code(501, "NotImplemented"));
}

#[test]
fn trailers_are_those_announced() {
    let server = Server::start().bucket("bucket");
    for signed in [true, false] {
        let base = || Chunks { size: 300, signed, trailer: trailer(), ..Chunks::default() };
        assert_eq!(server.send(&chunked(base())).status, 200, "signed {signed}");
        let spoiled = |spoil| said(&server, chunked(Chunks { spoil: Some(spoil), ..base() }));
        // None at all.
        let none = |body: Vec<u8>| {
            let at = body.windows(6).rposition(|w| w == b"x-amz-").unwrap();
            let at = body[..at].windows(15).rposition(|w| w == b"x-amz-checksum-").unwrap_or(at);
            [&body[..at], b"\r\n"].concat()
        };
        assert_eq!(spoiled(none), code(400, "MalformedTrailerError"), "signed {signed}");
        // Another one than was announced.
        let other = chunked(base()).header("x-amz-trailer", "x-amz-checksum-sha1");
        assert_eq!(said(&server, other), code(400, "MalformedTrailerError"), "signed {signed}");
        // One too many.
        let more = |body: Vec<u8>| [&body[..body.len() - 2], b"x-amz-meta-a:b\r\n\r\n"].concat();
        assert_eq!(spoiled(more), code(400, "MalformedTrailerError"), "signed {signed}");
    }
    let forged = |mut body: Vec<u8>| {
        let at = body.len() - 5;
        body[at] = if body[at] == b'0' { b'1' } else { b'0' };
        body
    };
    let base = Chunks { size: 300, signed: true, trailer: trailer(), spoil: Some(forged), decoded: None };
    assert_eq!(said(&server, chunked(base)), code(403, "SignatureDoesNotMatch"));
    let unknown = chunked(Chunks {
        size: 300,
        trailer: Some(("x-amz-meta-a".into(), "b".into())),
        ..Chunks::default()
    });
    assert_eq!(said(&server, unknown), code(400, "InvalidRequest"));
}

#[test]
fn a_refused_body_is_drained_so_far_that_the_answer_is_seen() {
    let server = Server::start().bucket("bucket");
    // Small: the connection goes on.
    let mut stream = server.connect();
    for _ in 0..2 {
        let wire = Wire::new("PUT", "/nowhere/k").body(vec![0; 100_000]);
        std::io::Write::write_all(&mut stream, &wire.bytes(server.address)).unwrap();
        assert_eq!(super::wire::Reply::read(&mut stream).said(), code(404, "NoSuchBucket"));
    }
    // Endless: the answer comes, and the connection ends.
    let wire =
        Wire::new("PUT", "/nowhere/k").body(vec![0; 1000]).with(|w| w.length = Some("100000000".to_owned()));
    let reply = server.send(&wire);
    assert_eq!((reply.status, reply.header("connection")), (404, Some("close")));
}

#[test]
fn connections_beyond_the_limit_wait() {
    let limits =
        crate::Limits { connections: 2, header_time: Duration::from_millis(500), ..super::wire::limits() };
    let server = Server::with(limits, super::double::Double::new());
    let idle = [server.connect(), server.connect()];
    // Both are closed for their silence, and then the third is served.
    assert_eq!(server.send(&Wire::new("GET", "/")).status, 200);
    drop(idle);
}

#[test]
fn a_client_that_trickles_or_sends_nothing_is_cut() {
    let server = Server::start().bucket("bucket");
    let put = Wire::new("PUT", "/bucket/k");
    let delete = Wire::new("POST", "/bucket?delete").header("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==");
    for (wire, trickles) in [(put, true), (delete, false)] {
        let wire = wire.with(|w| w.length = Some("100000".to_owned()));
        let mut stream = server.connect();
        std::io::Write::write_all(&mut stream, &wire.bytes(server.address)).unwrap();
        let mut sender = stream.try_clone().unwrap();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let trickle = std::thread::Builder::new().spawn(move || {
            while is_done.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
                if trickles && std::io::Write::write_all(&mut sender, b"x").is_err() {
                    return;
                }
            }
        });
        // The reader waits 20 s, the server's patience is 2 s.
        let reply = super::wire::Reply::read(&mut stream);
        assert_eq!(reply.said(), code(400, "RequestTimeout"));
        drop(done);
        trickle.unwrap().join().unwrap();
    }
}
