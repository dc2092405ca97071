//! A way to a server that fails as a test says: refused, silent, or gone for those who were on it.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Whoever came before is left hanging.
    PassNew,
    Hang,
    Refuse,
}

/// The way. It ends when it is dropped.
pub struct WeakLink {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
    /// Bound and not listening: while nobody listens, connections are refused, and nobody else gets the port.
    _place: TcpSocket,
}

impl WeakLink {
    pub async fn to(server: SocketAddr) -> Self {
        let place = socket("127.0.0.1:0".parse().expect("an address"));
        let address = place.local_addr().expect("an address");
        let (mode, modes) = watch::channel(Mode::Pass);
        let task = tokio::spawn(serve(address, server, modes));
        let link = Self { address, mode, task, _place: place };
        link.until(true).await;
        link
    }

    /// Breaks what is open, and refuses what is new.
    pub async fn refuse(&self) {
        self.mode.send_replace(Mode::Refuse);
        self.until(false).await;
    }

    /// Takes connections, and lets nothing pass on any.
    pub async fn hang(&self) {
        self.mode.send_replace(Mode::Hang);
        self.until(true).await;
    }

    /// Lets everything pass again, also what waits.
    pub async fn mend(&self) {
        self.mode.send_replace(Mode::Pass);
        self.until(true).await;
    }

    /// Lets new connections pass. Those that hang do so for ever, as if the machine at their other end were gone.
    pub async fn replace(&self) {
        self.mode.send_replace(Mode::PassNew);
        self.until(true).await;
    }

    /// Breaks what is open, once.
    pub async fn break_off(&self) {
        self.refuse().await;
        self.mend().await;
    }

    /// Waits until connections are taken, or not.
    async fn until(&self, is_open: bool) {
        while TcpStream::connect(self.address).await.is_ok() != is_open {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for WeakLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Two may have a port, as long as at most one of them listens.
    socket.set_reuseaddr(true).expect("a setting");
    socket.bind(address).expect("the port");
    socket
}

async fn serve(address: SocketAddr, server: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let mut listener: Option<TcpListener> = None;
    loop {
        let is_open = *modes.borrow_and_update() != Mode::Refuse;
        if is_open != listener.is_some() {
            listener = is_open.then(|| socket(address).listen(1024).expect("listening"));
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await.expect("a connection").0,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            client = accept => {
                // However a connection ends: both sides see it.
                tokio::spawn(pass(client, server, modes.clone()));
            }
        }
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut modes: watch::Receiver<Mode>) -> io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (mut up, mut down) = ([0; 8192], [0; 8192]);
    let mut is_hanging = false;
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Refuse => {
                for stream in [&client, &server] {
                    // With nothing to linger for, closing sends RST.
                    stream.set_zero_linger()?;
                }
                return Ok(());
            }
            Mode::Hang => is_hanging = true,
            Mode::Pass => is_hanging = false,
            Mode::PassNew => {}
        }
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return Ok(()) },
            read = client.read(&mut up), if !is_hanging => match read? {
                0 => return Ok(()),
                n => server.write_all(&up[..n]).await?,
            },
            read = server.read(&mut down), if !is_hanging => match read? {
                0 => return Ok(()),
                n => client.write_all(&down[..n]).await?,
            },
        }
    }
}
