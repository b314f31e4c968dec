//! A server process that cannot outlive this one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// How long a server may take until it is ready.
const START: Duration = Duration::from_secs(120);

/// Runs the server beside a shell that reads from us: when we end, even by SIGKILL, its input ends, and it ends the
/// server and removes the folder ($1). $2 is the signal that ends the server. The shell closes its standard error so that
/// the server's end is the end of that stream.
const GUARD: &str = r#"
folder=$1 signal=$2
shift 2
trap : INT TERM HUP
"$@" &
server=$!
exec 2>/dev/null
read -r word
kill -s "$signal" "$server"
wait "$server"
[ "$word" = keep ] || rm -rf "$folder"
"#;

#[derive(Debug)]
pub struct Guarded {
    shell: Child,
    input: ChildStdin,
}

impl Guarded {
    /// Starts the program and waits for the line that says it is ready; the error is what it printed instead.
    pub fn start(words: &[String], signal: &str, folder: &Path, ready: &'static str) -> Result<Self, String> {
        let mut shell = Command::new("sh")
            .args(["-c", GUARD, "sh"])
            .arg(folder)
            .arg(signal)
            .args(words)
            .env("LC_ALL", "C")
            .env("TMPDIR", folder)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = shell.stdin.take().unwrap();
        let log = BufReader::new(shell.stderr.take().unwrap());
        let (tell, told) = mpsc::channel();
        // Reads to the end, as a server with a full pipe would stand still.
        std::thread::spawn(move || {
            let mut printed = String::new();
            let mut lines = log.lines().map_while(Result::ok);
            for line in lines.by_ref() {
                let is_ready = line.contains(ready);
                printed.push_str(&line);
                printed.push('\n');
                if is_ready {
                    let _ = tell.send(Ok(()));
                    break;
                }
            }
            let _ = tell.send(Err(printed));
            lines.for_each(drop);
        });
        let running = Self { shell, input };
        match told.recv_timeout(START) {
            Ok(Ok(())) => Ok(running),
            Ok(Err(printed)) => {
                running.stop();
                Err(printed)
            }
            Err(_) => {
                running.stop();
                Err(format!("it was not ready within {START:?}"))
            }
        }
    }

    /// Ends the server and waits for its end; the folder stays.
    pub fn stop(mut self) {
        let _ = self.input.write_all(b"keep\n");
        let _ = self.shell.wait();
    }
}
