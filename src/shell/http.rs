//! HTTP: metrics, probes, the status, and a page that shows it.
//!
//! Reads only [`Shared`] and the metrics; nothing here changes anything, and no request reaches the device thread.
//! Invariants: GET only; at most [`CONNECTIONS_MAX`] connections, with a limit on the head's size and on the time to send
//! it, so that a slow client costs little; the page asks no other host for anything.

use super::status::Shared;
use super::telemetry;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

const CONNECTIONS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Of the whole connection, requests on it included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The page's own script and style, and its requests to this host.
const PAGE_POLICY: &str = "default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'";

#[derive(Clone)]
struct Facts {
    shared: Arc<Shared>,
    metrics: PrometheusHandle,
}

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, source })
}

/// Serves for ever.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, metrics: PrometheusHandle) {
    let service = TowerToHyperService::new(router(Facts { shared, metrics }));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, or a peer that left early: the next may be better.
                tracing::debug!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES_MAX);
        let connection = protocol.serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            let _permit = permit;
            // A connection that breaks or takes too long is the client's affair.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
        });
    }
}

fn router(facts: Facts) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/startupz", get(startup))
        .route("/readyz", get(ready))
        .with_state(facts)
}

async fn page() -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, PAGE_POLICY)], include_str!("page.html"))
}

async fn status(State(facts): State<Facts>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")], facts.shared.report().to_string())
}

async fn metrics(State(facts): State<Facts>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::render(&facts.metrics))
}

async fn startup(State(facts): State<Facts>) -> impl IntoResponse {
    match facts.shared.has_started() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
    }
}

async fn ready(State(facts): State<Facts>) -> impl IntoResponse {
    match facts.shared.obstacle() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}
