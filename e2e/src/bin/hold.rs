//! Stands in for every container image of the tests, nginx included: answers any HTTP request on port 80 with
//! the pod's name, and leaves at once with status 0 when told to, so that deleting a pod costs no grace period.
//! Called as `hold pause` it only waits, which is all a pod's sandbox has to do; as `hold sleep <seconds>` it ends
//! by itself, as a Job's container does.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    // The first process of a pid namespace gets only the signals it handles.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut arguments = std::env::args().skip(1);
    let mut sleep = Duration::MAX;
    match arguments.next().as_deref() {
        Some("pause") => {}
        Some("sleep") => {
            let seconds = arguments.next().and_then(|text| text.parse().ok());
            sleep = Duration::from_secs(seconds.ok_or(std::io::ErrorKind::InvalidInput)?);
        }
        _ => drop(std::thread::spawn(serve)),
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = tokio::time::sleep(sleep) => {}
    }
    Ok(())
}

fn serve() -> std::io::Result<()> {
    let name = std::env::var("HOSTNAME").unwrap_or_default();
    for stream in TcpListener::bind("[::]:80")?.incoming() {
        // A client that went away is no reason to stop serving the others.
        let _ = stream.and_then(|stream| answer(stream, &name));
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let length = name.len() + 1;
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{name}\n")
}
