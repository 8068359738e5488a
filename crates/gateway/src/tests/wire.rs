//! A client made by hand: it signs as SigV4 says and sends bytes as they are told, so that it can be wrong in every way.

use super::double::Double;
use crate::body::ChunkSigner;
use crate::{Gateway, GatewayConfig, Limits, SecretString};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub const KEY: &str = "AKIATEST";
pub const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
pub const REGION: &str = "eu-test-1";
pub const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// A gateway that runs until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    pub double: Double,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<usize>>,
}

pub fn limits() -> Limits {
    Limits {
        key_time: Duration::from_millis(50),
        stall_time: Duration::from_secs(2),
        drain_time: Duration::from_millis(300),
        chunk_bytes: 1 << 20,
        ..Limits::default()
    }
}

impl Server {
    pub fn start() -> Server {
        Server::with(limits(), Double::new())
    }

    pub fn with(limits: Limits, double: Double) -> Server {
        double.add_key(KEY, SECRET, "alice");
        double.add_key("AKIABOB", "bobs-secret", "bob");
        let config = GatewayConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            region: REGION.to_owned(),
            domain: Some("s3.test".to_owned()),
            threads: 1,
            allow_plaintext: false,
            limits,
        };
        let unseal = Arc::new(|record: &cobalt_rpc::proto::record::KeyRecord| {
            String::from_utf8(record.sealed_secret.clone()).ok().map(SecretString::new)
        });
        let gateway = Gateway::bind(config, double.clone(), unseal, Arc::new(|_| {})).unwrap();
        let address = gateway.local_addr();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let run = move || gateway.run(async { drop(stopped.await) }, Duration::from_secs(1));
        let thread = std::thread::Builder::new().spawn(run).unwrap();
        Server { address, double, stop: Some(stop), thread: Some(thread) }
    }

    /// Stops it, and says how many connections had to be cut.
    pub fn stop(mut self) -> usize {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap()
    }

    pub fn send(&self, request: &Wire) -> Reply {
        self.raw(&request.bytes(self.address))
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    pub fn raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        let _ = stream.write_all(bytes); // The server may have answered and closed before all was sent.
        Reply::read(&mut stream)
    }

    /// A bucket to work in.
    pub fn bucket(self, name: &str) -> Server {
        let reply = self.send(&Wire::new("PUT", &format!("/{name}")));
        assert_eq!(reply.status, 200, "{}", reply.text());
        self
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(stream: &mut TcpStream) -> Reply {
        let mut bytes = Vec::new();
        let mut chunk = [0; 65536];
        loop {
            if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
                let mut lines = head.lines();
                let status: u16 = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
                let mut body = bytes.split_off(at + 4);
                if status == 100 {
                    bytes = body;
                    continue;
                }
                let headers: Vec<_> = lines
                    .map(|line| line.split_once(": ").unwrap_or((line, "")))
                    .map(|(k, v)| (k.to_lowercase(), v.to_owned()))
                    .collect();
                let find = |name: &str| headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
                let chunked = find("transfer-encoding").is_some();
                let length = find("content-length").and_then(|v| v.parse::<usize>().ok());
                loop {
                    let done = match length {
                        Some(length) => body.len() >= length,
                        None if chunked => body.ends_with(b"0\r\n\r\n"),
                        None => true,
                    };
                    let n = if done { 0 } else { stream.read(&mut chunk).unwrap_or(0) };
                    if n == 0 {
                        return Reply { status, headers, body };
                    }
                    body.extend_from_slice(&chunk[..n]);
                }
            }
            match stream.read(&mut chunk) {
                Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
                _ => return Reply { status: 0, headers: Vec::new(), body: bytes },
            }
        }
    }

    /// A reply to HEAD, which has no body whatever it says.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn tag(&self, name: &str) -> Option<String> {
        let text = self.text();
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once(&format!("</{name}>"))?.0.to_owned())
    }
    /// Status and code, for comparison.
    pub fn said(&self) -> (u16, String) {
        (self.status, self.tag("Code").unwrap_or_default())
    }
}

/// A request, right unless told otherwise.
#[derive(Clone)]
pub struct Wire {
    pub method: String,
    pub path: String,
    /// Names and values, not encoded.
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub payload: String,
    pub key: String,
    pub secret: String,
    pub region: String,
    pub service: String,
    /// Headers that are sent and not signed.
    pub unsigned: Vec<String>,
    /// Seconds that the client's clock is ahead.
    pub skew: i64,
    /// Content-Length, where it is not the body's.
    pub length: Option<String>,
    /// Sent as they are, behind the others.
    pub more: Vec<Vec<u8>>,
    /// Whether an Authorization header is sent.
    pub signed: bool,
    /// Makes chunks of this size of the body.
    pub chunks: Option<Chunks>,
}

#[derive(Clone, Default)]
pub struct Chunks {
    pub size: usize,
    pub signed: bool,
    pub trailer: Option<(String, String)>,
    /// What is done to the framed body before it is sent.
    pub spoil: Option<fn(Vec<u8>) -> Vec<u8>>,
    pub decoded: Option<usize>,
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

pub fn encode(text: &str, slash: bool) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || (slash && b == b'/');
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Wire {
    pub fn new(method: &str, path: &str) -> Wire {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = query.split('&').filter(|pair| !pair.is_empty());
        Wire {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query
                .map(|p| p.split_once('=').unwrap_or((p, "")))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            headers: Vec::new(),
            body: Vec::new(),
            payload: UNSIGNED.to_owned(),
            key: KEY.to_owned(),
            secret: SECRET.to_owned(),
            region: REGION.to_owned(),
            service: "s3".to_owned(),
            unsigned: Vec::new(),
            skew: 0,
            length: None,
            more: Vec::new(),
            signed: true,
            chunks: None,
        }
    }
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Wire {
        self.body = body.as_ref().to_vec();
        self
    }
    pub fn header(mut self, name: &str, value: &str) -> Wire {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
    pub fn with(mut self, change: impl FnOnce(&mut Wire)) -> Wire {
        change(&mut self);
        self
    }

    fn date(&self) -> String {
        let at = time::OffsetDateTime::now_utc() + time::Duration::seconds(self.skew);
        let (y, m, d) = (at.year(), u8::from(at.month()), at.day());
        format!("{y:04}{m:02}{d:02}T{:02}{:02}{:02}Z", at.hour(), at.minute(), at.second())
    }

    fn scope(&self, date: &str) -> String {
        format!("{}/{}/{}/aws4_request", &date[..8], self.region, self.service)
    }

    fn signature(&self, date: &str, query: &str, headers: &[(String, String)], payload: &str) -> String {
        let mut headers: Vec<_> = headers.iter().map(|(k, v)| (k.to_lowercase(), v.trim())).collect();
        headers.sort();
        let lines: String = headers.iter().map(|(k, v)| format!("{k}:{v}\n")).collect();
        let names: Vec<_> = headers.iter().map(|(k, _)| k.as_str()).collect();
        let canonical = format!(
            "{}\n{}\n{query}\n{lines}\n{}\n{payload}",
            self.method,
            encode(&self.path, true),
            names.join(";")
        );
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{date}\n{}\n{}", self.scope(date), sha256(canonical.as_bytes()));
        let mut key = mac(format!("AWS4{}", self.secret).as_bytes(), &date[..8]);
        for step in [self.region.as_str(), &self.service, "aws4_request"] {
            key = mac(&key, step);
        }
        hex::encode(mac(&key, &to_sign))
    }

    fn canonical_query(&self) -> String {
        let mut pairs: Vec<_> =
            self.query.iter().map(|(k, v)| (encode(k, false), encode(v, false))).collect();
        pairs.sort();
        pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&")
    }

    /// As a presigned URL: path and query.
    pub fn presign(&self, address: SocketAddr, expires: &str) -> String {
        let date = self.date();
        let mut headers = vec![("host".to_owned(), address.to_string())];
        headers.extend(self.headers.iter().filter(|(name, _)| !self.unsigned.contains(name)).cloned());
        let mut names: Vec<_> = headers.iter().map(|(k, _)| k.to_lowercase()).collect();
        names.sort();
        let mut with = self.clone();
        for (name, value) in [
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", &format!("{}/{}", self.key, self.scope(&date))),
            ("X-Amz-Date", &date),
            ("X-Amz-Expires", expires),
            ("X-Amz-SignedHeaders", &names.join(";")),
        ] {
            with.query.push((name.to_owned(), value.to_owned()));
        }
        let query = with.canonical_query();
        let signature = self.signature(&date, &query, &headers, UNSIGNED);
        format!("{}?{query}&X-Amz-Signature={signature}", encode(&self.path, true))
    }

    pub fn bytes(&self, address: SocketAddr) -> Vec<u8> {
        let date = self.date();
        let mut wire = self.clone();
        if let Some(chunks) = &self.chunks {
            wire.payload = match (chunks.signed, chunks.trailer.is_some()) {
                (true, true) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
                (true, false) => "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
                (false, _) => "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            }
            .to_owned();
            let decoded = chunks.decoded.unwrap_or(self.body.len()).to_string();
            wire.headers.push(("x-amz-decoded-content-length".to_owned(), decoded));
            wire.headers.push(("content-encoding".to_owned(), "aws-chunked".to_owned()));
            if let Some((name, _)) = &chunks.trailer
                && !wire.headers.iter().any(|(k, _)| k == "x-amz-trailer")
            {
                wire.headers.push(("x-amz-trailer".to_owned(), name.clone()));
            }
        }
        let mut headers = vec![("host".to_owned(), address.to_string())];
        if self.signed {
            headers.push(("x-amz-date".to_owned(), date.clone()));
            headers.push(("x-amz-content-sha256".to_owned(), wire.payload.clone()));
        }
        headers.extend(wire.headers.iter().cloned());
        if let Some(host) = wire.headers.iter().position(|(k, _)| k == "host") {
            let host = wire.headers[host].clone();
            headers.retain(|(k, _)| k != "host");
            headers.push(host);
        }
        let signed: Vec<_> =
            headers.iter().filter(|(name, _)| !self.unsigned.contains(name)).cloned().collect();
        let query = wire.canonical_query();
        let signature = wire.signature(&date, &query, &signed, &wire.payload);
        let body = match &self.chunks {
            Some(chunks) => {
                frame(&self.body, chunks, &ChunkSigner::new(&self.secret, &date, &self.region, &signature))
            }
            None => self.body.clone(),
        };
        if self.signed {
            let mut names: Vec<_> = signed.iter().map(|(k, _)| k.to_lowercase()).collect();
            names.sort();
            let scope = self.scope(&date);
            headers.push((
                "authorization".to_owned(),
                format!(
                    "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={},Signature={signature}",
                    self.key,
                    names.join(";")
                ),
            ));
        }
        let question = if query.is_empty() { String::new() } else { format!("?{query}") };
        let mut out =
            format!("{} {}{question} HTTP/1.1\r\n", self.method, encode(&self.path, true)).into_bytes();
        let length = self.length.clone().unwrap_or(body.len().to_string());
        let bare = self.method == "GET" && body.is_empty();
        if !bare && !length.is_empty() {
            headers.push(("content-length".to_owned(), length));
        }
        for (name, value) in &headers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        for more in &self.more {
            out.extend_from_slice(more);
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body);
        out
    }
}

/// The body in chunks.
pub fn frame(body: &[u8], chunks: &Chunks, signer: &ChunkSigner) -> Vec<u8> {
    let mut signer = signer.again();
    let mut out = Vec::new();
    for piece in body.chunks(chunks.size.max(1)).chain([&[][..]]) {
        let signature = chunks.signed.then(|| signer.chunk(&Sha256::digest(piece)));
        let extension = signature.map_or(String::new(), |s| format!(";chunk-signature={s}"));
        out.extend_from_slice(format!("{:x}{extension}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        if !piece.is_empty() {
            out.extend_from_slice(b"\r\n");
        }
    }
    if let Some((name, value)) = &chunks.trailer {
        out.extend_from_slice(format!("{name}:{value}\r\n").as_bytes());
        if chunks.signed {
            let signature = signer.trailer(&format!("{name}:{value}\n"));
            out.extend_from_slice(format!("x-amz-trailer-signature:{signature}\r\n").as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    match chunks.spoil {
        Some(spoil) => spoil(out),
        None => out,
    }
}
