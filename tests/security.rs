//! The broker's configuration that ships (deploy/nats-server.conf), on a real server with TLS: each may do what it is there for, and
//! nothing else.

mod harness;

use async_nats::jetstream;
use harness::{Broker, Daemon, Home, PATIENCE, Server, png, servers, until};
use nkeys::KeyPair;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// How long a refusal is waited for that the broker does not send.
const SILENCE: Duration = Duration::from_millis(300);

/// Files of the certificates and of everyone's secret.
struct Site {
    dir: TempDir,
    broker: Broker,
}

impl Site {
    async fn new(server: &Server) -> Self {
        let dir = TempDir::new().expect("temporary folders can be made");
        certificates(dir.path());
        let users = ["ADMIN", "DAEMON", "OPERATOR", "CAMERA"].map(|user| {
            let pair = KeyPair::new_user();
            let seed = pair.seed().expect("a new pair has its seed");
            std::fs::write(dir.path().join(user), format!("{seed}\n")).expect("the temporary folder takes files");
            (format!("UNDRIFT_{user}"), pair.public_key())
        });
        let file = |name: &str| dir.path().join(name).display().to_string();
        let files = [("NATS_CERTIFICATE".to_owned(), file("server.pem")), ("NATS_KEY".to_owned(), file("server.key"))];
        let variables: Vec<(String, String)> = users.into_iter().chain(files).collect();
        let variables: Vec<(&str, String)> = variables.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats-server.conf");
        let broker = Broker::start_with(server, &configuration, &variables).await;
        Self { dir, broker }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self) -> String {
        format!("tls://localhost:{}", self.broker.port)
    }

    async fn client(&self, user: &str, inbox_prefix: &str) -> async_nats::Client {
        let seed = std::fs::read_to_string(self.file(user)).expect("the file was written");
        let options = async_nats::ConnectOptions::with_nkey(seed.trim().to_owned()).custom_inbox_prefix(inbox_prefix);
        let options = options.add_root_certificates(self.file("ca.pem")).require_tls(true).request_timeout(Some(SILENCE));
        options.connect(self.url()).await.expect("the broker lets the user in")
    }

    fn undrift(&self, user: &str, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undrift"));
        command.arg(arguments[0]).args(["--url", &self.url(), "--nkey"]).arg(self.file(user)).arg("--ca").arg(self.file("ca.pem"));
        command.args(&arguments[1..]).output().expect("the program runs")
    }
}

/// A certificate for localhost, and the one that signed it.
fn certificates(dir: &Path) {
    std::fs::write(dir.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").expect("the temporary folder takes files");
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let steps = [
        [&["req", "-x509", "-subj", "/CN=test"][..], &key, &["-keyout", "ca.key", "-out", "ca.pem"]].concat(),
        [&["req", "-subj", "/CN=localhost"][..], &key, &["-keyout", "server.key", "-out", "server.csr"]].concat(),
        [
            &["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"][..],
            &["-extfile", "names", "-out", "server.pem"],
        ]
        .concat(),
    ];
    for step in steps {
        let made = Command::new("openssl").args(&step).current_dir(dir).output().expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// Whether someone who hears everything hears what `user` publishes on `subject`.
async fn is_heard(site: &Site, user: &str, subject: &str) -> bool {
    use futures_util::StreamExt;
    let mut all = site.client("ADMIN", "_INBOX").await.subscribe(subject.to_owned()).await.expect("the connection is open");
    let client = site.client(user, "_INBOX").await;
    client.publish(subject.to_owned(), "forged".into()).await.expect("the connection is open");
    // The broker has dealt with the message when it answers.
    client.flush().await.expect("the connection is open");
    tokio::time::timeout(SILENCE, all.next()).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn everyone_may_do_what_they_are_there_for_and_nothing_else() {
    for server in servers() {
        let site = Site::new(&server).await;
        let admin = jetstream::new(site.client("ADMIN", "_INBOX").await);
        for (name, subject) in [("UNDRIFT_V1_FRAMES", "undrift.v1.frames.*"), ("UNDRIFT_V1_PREDICTIONS", "undrift.v1.predictions.*")] {
            let config = jetstream::stream::Config { name: name.to_owned(), subjects: vec![subject.to_owned()], ..Default::default() };
            admin.create_stream(config).await.expect("the admin makes streams");
            assert!(site.broker.folder_of(name).is_dir(), "{name} lies in NATS_STORE");
        }
        let home = Home::new();
        let sets = [
            format!("nats.urls={}", site.url()),
            format!("nats.nkey_file={}", site.file("DAEMON").display()),
            format!("nats.ca_file={}", site.file("ca.pem").display()),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).chain(["nats.mode=jetstream"]).collect();
        let mut daemon = Daemon::start(&home, &site.broker, &sets).await;

        // What must work: frames are answered, the answers stored; the operator is obeyed; a restart goes on.
        let camera = site.client("CAMERA", "_INBOX").await;
        for frame in 1..=22 {
            camera.publish("undrift.v1.frames.cam1", png(frame).into()).await.expect("the connection is open");
        }
        camera.flush().await.expect("the connection is open");
        let stored = || async {
            let stream = admin.get_stream("UNDRIFT_V1_PREDICTIONS").await.expect("the stream is there");
            (stream.cached_info().state.messages == 22).then_some(())
        };
        until("answers are stored", stored).await;
        let operator = ["ctl", "--inbox-prefix", "_INBOX_operator"];
        let off = site.undrift("OPERATOR", &[&operator[..], &["adapt", "off"]].concat());
        assert!(off.status.success(), "{}", String::from_utf8_lossy(&off.stderr));
        daemon.kill();
        let mut daemon = Daemon::start(&home, &site.broker, &sets).await;
        until("the replay is through", || async { (daemon.status()["sequence"] == 22).then_some(()) }).await;
        assert_eq!(daemon.status()["adapt"], "off");
        assert!(daemon.metric("undrift_replayed_predictions_total{outcome=\"proven\"}") > 0.0);

        // What must not.
        let forbidden = [
            ("CAMERA", "undrift.v1.frames.cam2"),
            ("CAMERA", "undrift.v1.labels.cam2"),
            ("CAMERA", "undrift.v1.predictions.cam1"),
            ("CAMERA", "undrift.v1.control.adapt"),
            ("CAMERA", "$SRV.PING"),
            ("OPERATOR", "undrift.v1.frames.cam1"),
            ("OPERATOR", "undrift.v1.predictions.cam1"),
            ("OPERATOR", "undrift.v1.labels.cam1"),
            ("DAEMON", "undrift.v1.frames.cam1"),
            ("DAEMON", "undrift.v1.control.reset"),
            ("DAEMON", "undrift.v1.labels.cam1"),
        ];
        for (user, subject) in forbidden {
            assert!(!is_heard(&site, user, subject).await, "{user} on {subject}");
        }
        assert!(is_heard(&site, "CAMERA", "undrift.v1.labels.cam1").await, "the test hears what is allowed");
        for user in ["DAEMON", "OPERATOR", "CAMERA"] {
            let context = jetstream::new(site.client(user, "_INBOX").await);
            assert!(context.delete_stream("UNDRIFT_V1_PREDICTIONS").await.is_err(), "{user}");
            assert!(context.create_stream(jetstream::stream::Config { name: "OTHER".to_owned(), ..Default::default() }).await.is_err());
        }
        let purge = jetstream::new(site.client("DAEMON", "_INBOX").await).get_stream("UNDRIFT_V1_FRAMES").await;
        assert!(purge.expect("the daemon reads the stream").purge().await.is_err());

        // Who is nobody, or speaks in the clear, is not let in.
        let nobody = KeyPair::new_user().seed().expect("a new pair has its seed");
        let options = async_nats::ConnectOptions::with_nkey(nobody).add_root_certificates(site.file("ca.pem"));
        assert!(options.connect(site.url()).await.is_err());
        let seed = std::fs::read_to_string(site.file("CAMERA")).expect("the file was written");
        let unknown_authority = async_nats::ConnectOptions::with_nkey(seed.trim().to_owned()).connect(site.url()).await;
        assert!(unknown_authority.is_err(), "a certificate that nobody vouches for");
        tokio::time::timeout(PATIENCE, daemon.stop()).await.expect("the daemon ends");
    }
}

#[test]
fn a_broker_elsewhere_is_not_spoken_to_in_the_clear() {
    let home = Home::new();
    let check = |sets: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_undrift"));
        command.arg("check-config").arg("--config").arg(home.config());
        for set in sets {
            command.args(["--set", set]);
        }
        command.output().expect("the program runs")
    };
    let refused = check(&["nats.urls=nats://broker.example:4222"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(78) && text.contains("nats.urls") && text.contains("tls://"), "{text}");
    for accepted in ["nats://127.0.0.1:4222", "nats://localhost:4222", "nats://[::1]:4222", "tls://broker.example:4222"] {
        assert!(check(&[&format!("nats.urls={accepted}")]).status.success(), "{accepted}");
    }
    assert!(check(&["nats.urls=nats://broker.example:4222", "nats.allow_plaintext=true"]).status.success());
}

#[test]
fn what_a_command_sends_does_not_go_to_a_broker_elsewhere_in_the_clear() {
    // `--frames` names nothing: what is wrong with the address is said before anything is read.
    for (name, arguments) in [("ctl", &["status"][..]), ("publish", &["--frames", "none"])] {
        let run = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_undrift"));
            command.args([name, "--url", "nats://broker.invalid:4222"]).args(arguments).args(more).output().expect("the program runs")
        };
        let refused = run(&[]);
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(78) && text.contains("in the clear") && text.contains("tls://"), "{text}");
        assert_ne!(run(&["--allow-plaintext"]).status.code(), Some(78));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_or_certificate_that_is_none_ends_the_daemon_with_the_code_of_a_configuration() {
    let home = Home::new();
    for key in ["nats.nkey_file", "nats.credentials_file", "nats.ca_file"] {
        let file = home.path().join("typo");
        std::fs::write(&file, "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLN\n").expect("the temporary folder takes files");
        let mut daemon = Daemon::spawn(&home, harness::free_port(), &[&format!("{key}={}", file.display())]);
        assert_eq!(daemon.exit_code().await, 78, "{key}");
        assert!(daemon.log().contains("typo") && !daemon.log().contains("SUAIO"), "{}", daemon.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_cannot_be_reached_is_named_in_the_log_and_why_is_said_once() {
    let (home, port) = (Home::new(), harness::free_port());
    let daemon = Daemon::spawn(&home, port, &[]);
    let attempts = || async { (daemon.metric("undrift_nats_events_total{event=\"client_error\"}") >= 3.0).then_some(()) };
    until("HTTP is served", || async { daemon.get("/livez") }).await;
    until("it has tried three times", attempts).await;
    let log = daemon.log();
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines(&format!("waiting for NATS urls=[\"nats://127.0.0.1:{port}\"]")), 1, "{log}");
    assert_eq!(lines("NATS cannot be reached"), 1, "{log}");
}

/// A socket that names itself as a broker without TLS, and tells the first byte of what each who connects says.
fn peer() -> (u16, mpsc::Receiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let port = listener.local_addr().expect("it listens").port();
    let (heard, hears) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut first = [0];
            let info = b"INFO {\"server_id\":\"peer\",\"version\":\"2.10.0\",\"max_payload\":1048576,\"headers\":true}\r\n";
            if stream.write_all(info).and_then(|()| stream.read_exact(&mut first)).is_ok() && heard.send(first[0]).is_err() {
                return;
            }
        }
    });
    (port, hears)
}

/// The first line that a broker says to who connects.
fn greeting(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = [0; 4096];
    let length = stream.read(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text[..length]).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_only_another_broker_names_hears_nothing_in_the_clear() {
    // Method: two brokers make a cluster, the second under the address of a socket that listens to what is said to it. The first dies.
    const TLS_HANDSHAKE: u8 = 0x16;
    for server in servers() {
        for is_tls in [false, true] {
            let (home, dir) = (Home::new(), TempDir::new().expect("temporary folders can be made"));
            certificates(dir.path());
            let ((peer, hears), cluster) = (peer(), harness::free_port());
            let file = |name: &str| dir.path().join(name).display().to_string();
            let tls = format!("tls {{ cert_file: \"{}\", key_file: \"{}\" }}", file("server.pem"), file("server.key"));
            let first = format!("cluster {{ name: site, listen: \"127.0.0.1:{cluster}\" }}\n{}", if is_tls { &tls } else { "" });
            let second = format!(
                "client_advertise: \"127.0.0.1:{peer}\"\ncluster {{ name: site, listen: \"127.0.0.1:-1\", routes: [\"nats://127.0.0.1:{cluster}\"] }}"
            );
            let configuration = |name: &str, text: &str| {
                std::fs::write(dir.path().join(name), text).expect("the temporary folder takes files");
                dir.path().join(name)
            };
            let mut broker = Broker::start_with(&server, &configuration("first", &first), &[]).await;
            let _second = Broker::start_with(&server, &configuration("second", &second), &[]).await;
            let names_the_peer = || async { greeting(broker.port).filter(|info| info.contains(&format!("127.0.0.1:{peer}"))) };
            until("the first names the second", names_the_peer).await;
            let url = format!("nats.urls={}://localhost:{}", if is_tls { "tls" } else { "nats" }, broker.port);
            let authorities = format!("SSL_CERT_FILE={}", file("ca.pem"));
            let daemon = Daemon::spawn_under(&["env", &authorities], &home, broker.port, &[&url]);
            daemon.wait_until_ready().await;
            broker.kill();
            let tried = || async { (daemon.metric("undrift_nats_events_total{event=\"client_error\"}") >= 3.0).then_some(()) };
            until("it has tried to reach every broker three times", tried).await;
            let heard: Vec<u8> = hears.try_iter().collect();
            println!("by TLS: {is_tls}; first bytes to the peer: {heard:?}");
            assert!(heard.iter().all(|&byte| is_tls && byte == TLS_HANDSHAKE), "{heard:?}");
        }
    }
}
