//! nginx in front of a service: it keeps connections, speaks HTTP/1.0, HTTP/2 and WebSockets, and takes a prefix away.

use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

/// A running nginx. It is ended when it is dropped.
pub struct Nginx {
    process: Child,
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
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {};\n", path(kind)))
            .concat();
        let keeps = keeps.as_millis();
        let (certificate, key) = (path("certificate"), path("key"));
        let configuration = format!(
            "daemon off; master_process off; pid {pid}; error_log stderr crit;
             events {{ worker_connections 1024; }}
             http {{
               access_log off;
               {temporary}
               upstream service {{ server {service}; keepalive 100; keepalive_timeout {keeps}ms; }}
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
               }}
             }}",
            pid = path("pid"),
        );
        fs::write(path("nginx.conf"), configuration).expect("written");
        let search = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("nginx");
        command.env("PATH", search).args(["-c", &path("nginx.conf"), "-e", "stderr"]).stdin(Stdio::null());
        let process = command.spawn().expect("nginx (make test-tools installs it)");
        let nginx = Self { process, plain, tls, _places: [first, second], _folder: folder };
        super::eventually(async || TcpStream::connect(tls).await.is_ok()).await;
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
