//! A relay before a server, which cuts connections when it is told to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub struct Relay {
    pub address: SocketAddr,
    /// Pieces of the server's that still pass; at none the connection is cut instead.
    pub left: Arc<AtomicUsize>,
}

impl Relay {
    /// Before the server at `to`, with nothing cut yet.
    pub async fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let shared = left.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, to, shared.clone()));
            }
        });
        Self { address, left }
    }

    /// Cuts once after so many pieces; then everything passes again.
    pub fn cut_after(&self, pieces: usize) {
        self.left.store(pieces, Ordering::SeqCst);
    }

    pub fn cut_nothing(&self) {
        self.left.store(usize::MAX, Ordering::SeqCst);
    }

    /// Whether the cut has not come yet.
    pub fn is_waiting(&self) -> bool {
        self.left.load(Ordering::SeqCst) != usize::MAX
    }
}

async fn relay(client: TcpStream, to: SocketAddr, left: Arc<AtomicUsize>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async { tokio::io::copy(&mut from_client, &mut to_server).await.map(drop) };
    let back = async {
        let mut piece = vec![0; 1 << 16];
        loop {
            let read = from_server.read(&mut piece).await?;
            let all = usize::MAX;
            let step = |left: usize| if left == all { None } else { Some(left.checked_sub(1).unwrap_or(all)) };
            if read == 0 || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step) == Ok(0) {
                return Ok(());
            }
            to_client.write_all(&piece[..read]).await?;
        }
    };
    // Whichever ends first takes the other with it.
    let _: std::io::Result<()> = tokio::select! { done = there => done, done = back => done };
}
