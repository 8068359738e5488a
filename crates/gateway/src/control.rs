//! The control socket: lines of JSON over a Unix socket that only the process's own user may open. `cobalt` the command line
//! speaks it to `cobalt` the daemon. `{"cmd": ..., "args": ...}` is answered by `{"ok": ...}` or `{"error": ...}`.

use crate::limits::CONTROL_LINE_MAX;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    cmd: String,
    #[serde(default)]
    args: Value,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// Does a command: its name and arguments in, a value or a reason out.
pub type Handler = Arc<dyn Fn(String, Value) -> BoxFuture<'static, Result<Value, String>> + Send + Sync>;

/// Why the control socket did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{path} belongs to a running process: is the daemon running already?")]
    InUse { path: PathBuf },
    #[error("nobody listens at {path}: is the daemon running?")]
    NotRunning { path: PathBuf, source: io::Error },
    #[error("the control socket {path} failed")]
    Io { path: PathBuf, source: io::Error },
    #[error("the daemon's answer is no answer: {0}")]
    Malformed(String),
    #[error("{0}")]
    Refused(String),
}

/// The control socket, bound. Its file is removed when this is dropped.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Binds with mode 0600. A file that a dead process left is replaced.
    ///
    /// # Errors
    /// [`ControlError::InUse`] when a living process has it.
    pub fn bind(path: &Path) -> Result<Control, ControlError> {
        let failed = |source| ControlError::Io { path: path.to_owned(), source };
        match UnixStream::connect(path) {
            Ok(_) => return Err(ControlError::InUse { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(_) => {}
        }
        let bound = || {
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
            socket.bind(&socket2::SockAddr::unix(path)?)?;
            // Before it listens: nobody can have connected yet.
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            socket.listen(16)?;
            socket.set_nonblocking(true)?;
            Ok(UnixListener::from(socket))
        };
        Ok(Control { listener: bound().map_err(failed)?, path: path.to_owned() })
    }

    /// Serves until it is dropped. Spawn it on the HTTP threads.
    ///
    /// # Errors
    /// The listening socket is of no use.
    pub async fn run(self, handler: Handler) -> io::Result<()> {
        let listener = tokio::net::UnixListener::from_std(self.listener.try_clone()?)?;
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let handler = handler.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(stream, handler).await {
                    tracing::debug!(%error, "a control connection ended early");
                }
                drop(permit);
            });
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket's file stays");
        }
    }
}

async fn serve(stream: tokio::net::UnixStream, handler: Handler) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        let max = CONTROL_LINE_MAX as u64;
        if (&mut reader).take(max).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let whole = line.last() == Some(&b'\n');
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(request) if whole => match handler(request.cmd, request.args).await {
                Ok(value) => Answer::Ok(value),
                Err(why) => Answer::Error(why),
            },
            Ok(_) => Answer::Error("the request does not end in a line break, or is too long".to_owned()),
            Err(error) => Answer::Error(format!("malformed request: {error}")),
        };
        let mut out = serde_json::to_vec(&answer)?;
        out.push(b'\n');
        writer.write_all(&out).await?;
        if !whole {
            return Ok(());
        }
    }
}

/// Asks the daemon at `path`, and waits up to `patience` for its answer. Blocks.
///
/// # Errors
/// Nobody listens, nobody answers, or the daemon refuses.
pub fn request(path: &Path, cmd: &str, args: Value, patience: Duration) -> Result<Value, ControlError> {
    let failed = |source| ControlError::Io { path: path.to_owned(), source };
    let stream = UnixStream::connect(path)
        .map_err(|source| ControlError::NotRunning { path: path.to_owned(), source })?;
    stream.set_read_timeout(Some(patience)).map_err(failed)?;
    stream.set_write_timeout(Some(patience)).map_err(failed)?;
    let malformed = |error: serde_json::Error| ControlError::Malformed(error.to_string());
    let mut line = serde_json::to_vec(&Request { cmd: cmd.to_owned(), args }).map_err(malformed)?;
    line.push(b'\n');
    (&stream).write_all(&line).map_err(failed)?;
    let mut answer = Vec::new();
    BufReader::new(&stream).take(CONTROL_LINE_MAX as u64).read_until(b'\n', &mut answer).map_err(failed)?;
    match serde_json::from_slice(&answer).map_err(malformed)? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(why) => Err(ControlError::Refused(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Control, ControlError, Handler, request};
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn commands_go_there_and_answers_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let runtime = crate::runtime(1).unwrap();
        let control = Control::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Control::bind(&path), Err(ControlError::InUse { .. })));
        let handler: Handler = Arc::new(|cmd, args| {
            Box::pin(async move { if cmd == "echo" { Ok(args) } else { Err(format!("no command {cmd}")) } })
        });
        runtime.spawn(control.run(handler));
        let ask = |cmd| request(&path, cmd, json!({"a": 1}), Duration::from_secs(10));
        assert_eq!(ask("echo").unwrap(), json!({"a": 1}));
        assert_eq!(ask("nothing").unwrap_err().to_string(), "no command nothing");
        drop(runtime);
        assert!(matches!(ask("echo"), Err(ControlError::NotRunning { .. })));
        assert!(!path.exists(), "the file goes with the server");
        // What a dead process leaves is no obstacle.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        Control::bind(&path).unwrap();
    }
}
