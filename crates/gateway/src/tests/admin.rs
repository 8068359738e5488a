//! The admin address: three pages, and no more.

use super::wire::Reply;
use crate::admin::{Admin, AdminView};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn it_says_whether_the_process_lives_and_can_serve() {
    let runtime = crate::runtime(1).unwrap();
    let ready = Arc::new(AtomicBool::new(false));
    let told = ready.clone();
    let view = AdminView {
        ready: Arc::new(move || {
            let ready = told.load(Ordering::Relaxed);
            Box::pin(async move { if ready { Ok(()) } else { Err("target t1 recovers".to_owned()) } })
        }),
        metrics: Arc::new(|| {
            let mut registry = Registry::default();
            let puts: Counter = Counter::default();
            puts.inc_by(7);
            registry.register("puts", "PUTs that were acknowledged", puts);
            registry
        }),
    };
    let admin = Admin::bind("127.0.0.1:0".parse().unwrap(), view).unwrap();
    let address = admin.local_addr().unwrap();
    runtime.spawn(admin.run());
    let ask = |method: &str, path: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        Reply::read(&mut stream)
    };
    assert_eq!(ask("GET", "/healthz").status, 200);
    let waiting = ask("GET", "/readyz");
    assert!(waiting.status == 503 && waiting.text().contains("target t1 recovers"));
    ready.store(true, Ordering::Relaxed);
    assert_eq!(ask("GET", "/readyz").status, 200);
    assert!(ask("GET", "/metrics").text().contains("puts_total 7"));
    assert_eq!(ask("GET", "/").status, 404);
    assert_eq!(ask("POST", "/healthz").status, 405);
}
