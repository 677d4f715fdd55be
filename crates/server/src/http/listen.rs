//! Listening, serving connections, ending.

use super::patience::Patient;
use crate::{
    api::{self, App},
    config::ServerConfig,
    service::Service,
};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

/// Why a server could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("{address}: cannot listen: {error}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        error: io::Error,
    },
    /// The runtime cannot be made.
    #[error("no threads to serve with: {0}")]
    Runtime(#[source] io::Error),
}

/// A server that listens.
pub struct Server {
    listener: TcpListener,
    app: Arc<App>,
}

/// Bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;

impl Server {
    /// Listens on `host` and `port`; port 0 takes any that is free.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(
        service: Service,
        config: ServerConfig,
        host: &str,
        port: u16,
    ) -> Result<Self, ServeError> {
        let failed = |error| ServeError::Listen { address: format!("{host}:{port}"), error };
        let listener = TcpListener::bind((host, port)).await.map_err(failed)?;
        Ok(Self { listener, app: Arc::new(App::new(service, config)) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` is ready. Then no connection is accepted any more; answers that have begun may end in the time
    /// that the limits give them, and are ended after that.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { listener, app } = self;
        let limits = app.service.limits().clone();
        let router = api::router(app.clone());
        let places = Arc::new(Semaphore::new(limits.connections));
        let (ending, end) = watch::channel(false);
        let mut stop = pin!(stop);
        loop {
            let accepted = async {
                // Who finds no place waits in the system's own queue.
                let place = places.clone().acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = &mut stop => break,
                accepted = accepted => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection =
                        serve(stream, router.clone(), end.clone(), limits.read_time, limits.write_time);
                    tokio::spawn(async move {
                        connection.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    // Too many open files, or a client that was gone at once.
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        tracing::info!("no more connections; answers that have begun may end");
        let _ = ending.send(true);
        let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
        if tokio::time::timeout(limits.grace, places.acquire_many(all)).await.is_err() {
            tracing::warn!("answers that have not ended are ended now");
        }
        // Joins the engine's thread; connections then send what is left, or an error.
        let ended = app.clone();
        let _ = tokio::task::spawn_blocking(move || ended.service.stop()).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), places.acquire_many(all)).await;
    }
}

async fn serve(
    stream: TcpStream,
    router: Router,
    mut end: watch::Receiver<bool>,
    read_time: Duration,
    write_time: Duration,
) {
    // Tokens are small and to be seen at once.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(Patient::new(stream, write_time));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_time)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let result = tokio::select! {
            result = connection.as_mut() => result,
    () = async { drop(end.wait_for(|end| *end).await) } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}
