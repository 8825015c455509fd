//! The way to the API server. Each request has a deadline, for nobody hears of an answer that is lost. Few requests are on
//! their way at once, and fewer while the API server is slow or asks to wait: who asks more of one that is overloaded gets
//! less of it.

mod reach;
mod room;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::{Client, Config};
use tokio::sync::Mutex;
use tower::{BoxError, Layer, Service};

pub use self::reach::Reach;
use self::room::Room;
use crate::delay::jittered;

/// How often a request is sent that it answers with 429.
const ATTEMPTS: u32 = 4;
/// The longest that it may ask to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", .0.as_secs())]
pub struct NoAnswer(Duration);

/// What a client is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// The Lease, which waits for nothing else.
    Lease,
    /// Everything else.
    Work,
}

/// A client for the API server that the program's surroundings name. `deadline`: how long that may take for an answer, its
/// body included; of a watch, for its first byte: how long that may be mute is [`crate::watches`]' to say. `reach` is told of
/// every answer.
///
/// # Errors
/// Where they name none, or its address or credential cannot be used.
pub async fn client(purpose: Purpose, deadline: Duration, reach: Reach) -> Result<Client, String> {
    let mut config = Config::infer().await.map_err(|error| error.to_string())?;
    let agent = concat!("kiln-operator/", env!("CARGO_PKG_VERSION"));
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static(agent)));
    build(config, purpose, reach, deadline).map_err(|error| error.to_string())
}

fn build(mut config: Config, purpose: Purpose, reach: Reach, deadline: Duration) -> kube::Result<Client> {
    // kube's own would wait as long as the server says, for as many as fifteen times.
    config.default_retry = false;
    let room = (purpose == Purpose::Work).then(Room::new);
    let traffic = Traffic { room, reach, deadline };
    Ok(ClientBuilder::try_from(config)?.with_layer(&traffic).build())
}

/// How requests are sent.
#[derive(Clone)]
struct Traffic {
    /// `None`: none waits for others.
    room: Option<Arc<Room>>,
    reach: Reach,
    deadline: Duration,
}

impl<S> Layer<S> for Traffic {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced { inner: Arc::new(Mutex::new(inner)), traffic: self.clone() }
    }
}

/// A service that sends requests so.
struct Paced<S> {
    inner: Arc<Mutex<S>>,
    traffic: Traffic,
}

type Answer = Response<Box<DynBody>>;

impl<S> Service<Request<Body>> for Paced<S>
where
    S: Service<Request<Body>, Response = Answer, Error = BoxError> + Send + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Each request waits for itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, traffic) = (self.inner.clone(), self.traffic.clone());
        Box::pin(async move { traffic.send(&inner, request).await })
    }
}

impl Traffic {
    async fn send<S>(&self, inner: &Mutex<S>, request: Request<Body>) -> Result<Answer, BoxError>
    where
        S: Service<Request<Body>, Response = Answer, Error = BoxError>,
    {
        let (parts, body) = request.into_parts();
        for attempt in 1..ATTEMPTS {
            let Some(body) = body.try_clone() else { break };
            let answer = self.once(inner, Request::from_parts(parts.clone(), body)).await?;
            if answer.status() != StatusCode::TOO_MANY_REQUESTS {
                return Ok(answer);
            }
            tokio::time::sleep(pause(answer.headers(), attempt)).await;
        }
        self.once(inner, Request::from_parts(parts, body)).await
    }

    async fn once<S>(&self, inner: &Mutex<S>, request: Request<Body>) -> Result<Answer, BoxError>
    where
        S: Service<Request<Body>, Response = Answer, Error = BoxError>,
    {
        let is_watch = is_watch(request.uri());
        // A watch lasts.
        let place = match &self.room {
            Some(room) if !is_watch => Some(room.place().await),
            _ => None,
        };
        let sent = Instant::now();
        let asked = async {
            let answer = {
                let mut inner = inner.lock().await;
                poll_fn(|context| inner.poll_ready(context)).await?;
                inner.call(request)
            };
            let answer = answer.await?;
            if is_watch { Ok(answer) } else { whole(answer).await }
        };
        let answer = match tokio::time::timeout(self.deadline, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer(self.deadline).into()),
        };
        // Who answers that something is forbidden or gone is there.
        let answered = answer.as_ref().is_ok_and(|answer| !answer.status().is_server_error());
        self.reach.told(answered, sent);
        if let Some(place) = place {
            let asks_to_wait = answer.as_ref().is_ok_and(|of| of.status() == StatusCode::TOO_MANY_REQUESTS);
            place.give_back(answered && !asks_to_wait);
        }
        answer
    }
}

fn is_watch(uri: &http::Uri) -> bool {
    uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"))
}

/// The answer with all of its body.
async fn whole(answer: Answer) -> Result<Answer, BoxError> {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    let body: Box<DynBody> = Box::new(Full::new(body).map_err(|never| match never {}));
    Ok(Response::from_parts(parts, body))
}

/// How long to wait before the next attempt: as long as the API server asks, and a little more, so that not all come at once.
fn pause(headers: &HeaderMap, attempt: u32) -> Duration {
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let pause = asked.map_or(Duration::from_millis(200 << attempt), Duration::from_secs);
    jittered(pause.min(LONGEST_WAIT))
}
