//! nginx in front of a service: it keeps connections, speaks HTTP/1.0, HTTP/2 and WebSockets, and takes a prefix away. And
//! nginx behind one, as the edge of its upstream.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};
use url::Url;

use super::upstream::certificate::Certificate;

/// A running nginx. It is ended when it is dropped.
pub struct Nginx {
    _process: Process,
    /// Plain HTTP.
    pub plain: SocketAddr,
    /// TLS with HTTP/2, by a certificate of its own making.
    pub tls: SocketAddr,
    _places: [TcpSocket; 2],
    _folder: TempDir,
}

/// Bound and not listening, so that nobody else gets the port.
fn place() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a setting");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = socket.local_addr().expect("an address");
    (socket, address)
}

impl Nginx {
    /// Before that service, whose connections it keeps for so long.
    pub async fn before(service: SocketAddr, keeps: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        fs::write(path("certificate"), made.cert.pem()).expect("written");
        fs::write(path("key"), made.signing_key.serialize_pem()).expect("written");
        let ((first, plain), (second, tls)) = (place(), place());
        let keeps = keeps.as_millis();
        let (certificate, key) = (path("certificate"), path("key"));
        let configuration = format!(
            "upstream service {{ server {service}; keepalive 100; keepalive_timeout {keeps}ms; }}
             proxy_http_version 1.1;
             proxy_set_header Host $host;
             proxy_set_header Connection \"\";
             client_max_body_size 10m;
             server {{
               listen {plain};
               location / {{ proxy_pass http://service; }}
               location /ai/ {{ proxy_pass http://service/; }}
               location /old/ {{
                 proxy_http_version 1.0;
                 proxy_set_header Connection close;
                 proxy_pass http://service/;
               }}
               location /chat/ws {{
                 proxy_pass http://service;
                 proxy_set_header Upgrade $http_upgrade;
                 proxy_set_header Connection upgrade;
               }}
               location /ai/chat/ws {{
                 proxy_pass http://service/chat/ws;
                 proxy_set_header Upgrade $http_upgrade;
                 proxy_set_header Connection upgrade;
               }}
             }}
             server {{
               listen {tls} ssl http2;
               ssl_certificate {certificate};
               ssl_certificate_key {key};
               location / {{ proxy_pass http://service; }}
             }}"
        );
        let process = Process::start(&folder, &configuration);
        let nginx = Self { _process: process, plain, tls, _places: [first, second], _folder: folder };
        super::eventually(async || TcpStream::connect(tls).await.is_ok()).await;
        nginx
    }
}

/// nginx as the edge of an upstream: TLS with HTTP/2, and a connection ends after its thousandth request.
pub struct NginxEdge {
    _process: Process,
    pub address: SocketAddr,
    _place: TcpSocket,
    _folder: TempDir,
}

impl NginxEdge {
    /// Before that server, with so many streams a connection.
    pub async fn of(server: &Url, certificate: &Certificate, streams: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (chain, key) = certificate.pem();
        fs::write(path("certificate"), chain).expect("written");
        fs::write(path("key"), key).expect("written");
        let (place, address) = place();
        let (server, chain, key) = (server.authority(), path("certificate"), path("key"));
        let configuration = format!(
            "upstream server {{ server {server}; keepalive 256; }}
             server {{
               listen {address} ssl http2;
               ssl_certificate {chain};
               ssl_certificate_key {key};
               http2_max_concurrent_streams {streams};
               keepalive_requests 1000;
               location / {{
                 proxy_pass http://server;
                 proxy_http_version 1.1;
                 proxy_set_header Connection \"\";
                 proxy_buffering off;
                 proxy_read_timeout 300s;
               }}
             }}"
        );
        let process = Process::start(&folder, &configuration);
        super::eventually(async || TcpStream::connect(address).await.is_ok()).await;
        Self { _process: process, address, _place: place, _folder: folder }
    }
}

/// It ends when it is dropped.
struct Process(Child);

impl Process {
    /// With these lines in its `http` block; it writes to `folder` only.
    fn start(folder: &TempDir, http: &str) -> Self {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", path(kind)))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {pid}; error_log stderr crit;
             events {{ worker_connections 4096; }}
             http {{ access_log off; {temporary} {http} }}",
            pid = path("pid"),
        );
        fs::write(path("nginx.conf"), configuration).expect("written");
        let search = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("nginx");
        command.env("PATH", search).args(["-c", &path("nginx.conf"), "-e", "stderr"]).stdin(Stdio::null());
        Self(command.spawn().expect("nginx (make test-tools installs it)"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
