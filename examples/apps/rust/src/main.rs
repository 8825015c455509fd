//! Throws dice: `GET /roll?dice=2d6` answers with the throws and their sum.

mod dice;

use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{signal, SignalKind};

use crate::dice::{Dice, Roll};

#[derive(Deserialize)]
struct Parameters {
    #[serde(default)]
    dice: Option<String>,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let app = Router::new()
        .route("/", get(|| async { "dice: GET /roll?dice=2d6\n" }))
        .route("/healthz", get(|| async { StatusCode::NO_CONTENT }))
        .route("/roll", get(roll));
    let listener = TcpListener::bind("0.0.0.0:8080").await?;
    println!("listening on {}", listener.local_addr()?);
    let mut stop = signal(SignalKind::terminate())?;
    axum::serve(listener, app)
        .with_graceful_shutdown(async move {
            stop.recv().await;
        })
        .await
}

async fn roll(Query(parameters): Query<Parameters>) -> Result<Json<Roll>, (StatusCode, String)> {
    let text = parameters.dice.as_deref().unwrap_or("1d6");
    let dice: Dice = text.parse().map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    Ok(Json(dice.roll()))
}
