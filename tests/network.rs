//! The connection to the broker breaks in the middle of a message, again and again: no frame is lost, and none is answered twice.
//!
//! Method: the daemon reaches the broker through a proxy that closes each connection after a number of bytes from the broker,
//! drawn from UNDRIFT_SEED; frames are published past it.

mod harness;

use harness::{Broker, Daemon, Home, png, servers, until};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tokio::io::{AsyncReadExt, copy};
use tokio::net::{TcpListener, TcpStream};

const FRAMES: u64 = 400;
/// What a connection delivers before it is closed: a few frames at least.
const BYTES: std::ops::Range<u64> = 8_000..80_000;

/// Listens in front of the broker; gives its port, and counts the connections that it has closed.
async fn proxy(broker_port: u16, seed: u64) -> (u16, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("a bound socket").port();
    let closed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&closed);
    tokio::spawn(async move {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        while let Ok((client, _)) = listener.accept().await {
            let Ok(broker) = TcpStream::connect(("127.0.0.1", broker_port)).await else { continue };
            let (limit, count) = (random.random_range(BYTES), Arc::clone(&count));
            tokio::spawn(async move {
                let ((mut from_client, mut to_client), (from_broker, mut to_broker)) = (client.into_split(), broker.into_split());
                let mut from_broker = from_broker.take(limit);
                // What is cut off is what this is for.
                tokio::select! {
                    _ = copy(&mut from_broker, &mut to_client) => {}
                    _ = copy(&mut from_client, &mut to_broker) => {}
                }
                count.fetch_add(1, SeqCst);
            });
        }
    });
    (port, closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_in_the_middle_of_a_message_lose_no_frame() {
    let seed = std::env::var("UNDRIFT_SEED").map_or(1, |value| value.parse().expect("UNDRIFT_SEED is a number"));
    for server in servers() {
        println!("seed {seed}");
        let (home, broker) = (Home::new(), Broker::start(&server).await);
        let (port, closed) = proxy(broker.port, seed).await;
        let daemon = Daemon::spawn(&home, port, &["nats.mode=jetstream"]);
        let context = async_nats::jetstream::new(broker.client().await);
        let stored = |name: &'static str| {
            let context = context.clone();
            async move { Some(context.get_stream(name).await.ok()?.cached_info().state.last_sequence) }
        };
        until("the stream is made", || stored("UNDRIFT_V1_FRAMES")).await;
        for index in 0..FRAMES {
            let sent = context.publish("undrift.v1.frames.cam1", png(index as usize % 97).into()).await.expect("the connection is open");
            sent.await.expect("the frame is stored");
        }
        let answered = || async { stored("UNDRIFT_V1_PREDICTIONS").await.filter(|&stored| stored >= FRAMES) };
        assert_eq!(until("every frame is answered", answered).await, FRAMES, "once");
        until("the daemon has applied them", || async { (daemon.status()["frames"] == FRAMES).then_some(()) }).await;
        assert_eq!(daemon.metric("undrift_frames_missed_total"), 0.0);
        let closed = closed.load(SeqCst);
        println!("{closed} connections closed, {FRAMES} frames answered once");
        assert!(closed >= 5, "{closed}");
    }
}
