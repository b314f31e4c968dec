//! Clients that stop in the middle of a request.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tower_http::timeout::TimeoutBody;

/// How long nothing may come of a body that is waited for. A large upload over a bad line takes long, but not in one pause.
const PAUSE: Duration = Duration::from_secs(60);

/// Gives up bodies that stop coming: whoever reads them sees an error, and the request is answered.
pub async fn bound(request: Request, next: Next) -> Response {
    next.run(paced(request, PAUSE)).await
}

fn paced(request: Request, pause: Duration) -> Request {
    request.map(|body| Body::new(TimeoutBody::new(pause, body)))
}

#[cfg(test)]
mod tests {
    use axum::body::{Bytes, to_bytes};
    use futures::{StreamExt as _, stream};

    use super::*;

    #[tokio::test]
    async fn a_body_that_stops_is_an_error() {
        let pieces = || stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"xy"))]);
        let whole = paced(Request::new(Body::from_stream(pieces())), PAUSE);
        assert_eq!(to_bytes(whole.into_body(), 9).await.unwrap(), "xy");
        let stops = pieces().chain(stream::pending());
        let part = paced(Request::new(Body::from_stream(stops)), Duration::from_millis(1));
        assert!(to_bytes(part.into_body(), 9).await.is_err());
    }
}
