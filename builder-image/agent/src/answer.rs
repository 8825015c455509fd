//! Whether buildkitd answers. One that takes connections and says nothing is hung: no job is given to it, and after a while it
//! is ended, so that the kubelet starts it anew. (A probe of the kubelet would end honest builds on a node that has no time
//! for its answer.)

use std::{io, sync::Arc, time::Duration};

use kiln_agent_proto::buildkitd::{ListWorkersRequest, control_client::ControlClient};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use tonic::transport::Endpoint;

use crate::{
    jobs::Registry,
    reasons::{JobFailure, Reason},
};

/// How long an answer may take. It takes a millisecond, and longer where all processors are busy.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after an answer.
const PAUSE: Duration = Duration::from_secs(5);
/// How many questions in a row have no answer, each for [`PATIENCE`], before buildkitd is ended: a minute's. Counted and not
/// timed: an agent that was given no time itself has asked nothing meanwhile.
const MOST: u32 = 12;
/// For how long it is ended for not answering.
pub const LONGEST: Duration = Duration::from_secs(PATIENCE.as_secs() * MOST as u64);

/// What comes of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It answers.
    Answers,
    /// It does not listen: it starts, or has ended. Its container's matter, and a job's that waits for it.
    Away,
    /// It takes connections, and nothing comes back.
    Silent,
}

/// Asks the buildkitd that listens at `socket`, for at most `patience`.
pub async fn ask(socket: &str, patience: Duration) -> Answer {
    match timeout(patience, question(socket)).await {
        Ok(answer) => answer,
        Err(_) => Answer::Silent,
    }
}

async fn question(socket: &str) -> Answer {
    match UnixStream::connect(socket).await {
        Ok(_) => {}
        // More wait to be let in than the kernel keeps, which it says at once. The question takes its time all the same: twelve
        // of them are a minute.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::future::pending().await,
        Err(_) => return Answer::Away,
    }
    let answered = async {
        let channel = Endpoint::from_shared(format!("unix://{socket}"))?.connect().await?;
        // None has this id: nothing is looked up for the answer.
        let request = ListWorkersRequest { filter: vec!["id==none".to_owned()] };
        // What it says does not matter, and one that ended meanwhile is not hung.
        let _ = ControlClient::new(channel).list_workers(request).await;
        Ok::<_, tonic::transport::Error>(())
    };
    if answered.await.is_ok() { Answer::Answers } else { Answer::Away }
}

/// The failure of a job whose buildkitd has not answered for so long; `failure` tells what ran.
#[must_use]
pub fn hung(silence: Duration, failure: JobFailure) -> JobFailure {
    JobFailure {
        reason: Reason::BuildkitUnavailable,
        message: format!(
            "buildkitd takes connections and has not answered for {} s; if it repeats, see the log of the builder pod's \
             container \"buildkitd\", and its node",
            silence.as_secs()
        ),
        ..failure
    }
}

/// Asks buildkitd time and again, and where it has not answered for a minute, ends its builds and itself.
pub async fn guard(registry: Arc<Registry>) {
    let mut unanswered = Unanswered::default();
    loop {
        let answer = registry.buildkit().ask().await;
        if unanswered.after(answer) {
            tracing::error!("buildkitd has not answered for {} s: it is ended", LONGEST.as_secs());
            registry.give_up();
            if let Err(error) = registry.buildkit().end() {
                tracing::error!(%error, "buildkitd cannot be ended");
            }
        }
        if answer != Answer::Silent {
            sleep(PAUSE).await;
        }
    }
}

/// How many questions in a row had no answer.
#[derive(Debug, Default)]
struct Unanswered(u32);

impl Unanswered {
    /// Whether buildkitd is to be ended after this answer.
    fn after(&mut self, answer: Answer) -> bool {
        self.0 = if answer == Answer::Silent { self.0 + 1 } else { 0 };
        let too_many = self.0 >= MOST;
        if too_many {
            // It has as long again to come back.
            self.0 = 0;
        }
        too_many
    }
}

#[cfg(test)]
mod tests {
    use kiln_agent_proto::buildkitd::{
        ListWorkersResponse,
        control_server::{Control, ControlServer},
    };
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;

    struct Buildkitd;

    #[tonic::async_trait]
    impl Control for Buildkitd {
        async fn list_workers(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
            Ok(Response::new(ListWorkersResponse {}))
        }
    }

    #[tokio::test]
    async fn one_that_lives_one_that_hangs_and_one_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        assert_eq!(ask(&path("none"), PATIENCE).await, Answer::Away);

        // As a stopped process does: the kernel takes connections for it.
        let hung = UnixListener::bind(path("hung")).unwrap();
        assert_eq!(ask(&path("hung"), Duration::from_millis(50)).await, Answer::Silent);
        drop(hung);
        assert_eq!(ask(&path("hung"), PATIENCE).await, Answer::Away, "nobody listens there any more");

        let listener = UnixListener::bind(path("lives")).unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(ControlServer::new(Buildkitd))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(serving);
        assert_eq!(ask(&path("lives"), PATIENCE).await, Answer::Answers);
    }

    /// Each question that counts as unanswered has had its time: twelve of them are a minute, and no busy loop.
    #[tokio::test]
    async fn one_that_lets_nobody_in_is_given_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("full").display().to_string();
        let socket = tokio::net::UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let _full = socket.listen(1).unwrap();
        let mut waiting = Vec::new();
        while let Ok(taken) = UnixStream::connect(&path).await {
            waiting.push(taken);
        }
        let (begun, patience) = (std::time::Instant::now(), Duration::from_millis(200));
        assert_eq!(ask(&path, patience).await, Answer::Silent);
        assert!(begun.elapsed() >= patience, "answered after {:?}", begun.elapsed());
    }

    #[test]
    fn it_is_ended_after_a_minute_without_an_answer_and_never_for_being_away() {
        let ended_after = |answers: &[Answer]| {
            let mut unanswered = Unanswered::default();
            answers.iter().position(|answer| unanswered.after(*answer))
        };
        let silent = [Answer::Silent; 40];
        assert_eq!(ended_after(&silent), Some(11));
        for other in [Answer::Answers, Answer::Away] {
            assert_eq!(ended_after(&[&silent[..11], &[other], &silent[..11]].concat()), None, "{other:?}");
        }
        assert_eq!(ended_after(&[Answer::Away; 100]), None);
        let mut unanswered = Unanswered::default();
        let ends = silent.iter().filter(|answer| unanswered.after(**answer)).count();
        assert_eq!(ends, 3, "each time it has a minute to come back");
    }
}
