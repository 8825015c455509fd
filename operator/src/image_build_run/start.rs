//! A job that is about to be sent: whole only while it is, for its files and secrets may be megabytes.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kiln_agent_proto as proto;
use kiln_crds::image_build_run::PlatformStatus;
use kiln_crds::{BuilderPool, ImageBuildRun};
use kiln_registry::room::{Place, Room};
use kube::{Client, ResourceExt as _};

use super::dereference::Inputs;
use super::taken::spec_of;
use crate::agent::Whole;
use crate::context::whole;
use crate::trim;

/// What the job of one platform is made of.
pub(super) struct Start {
    pub client: Client,
    pub room: Arc<Room>,
    pub run: Arc<ImageBuildRun>,
    pub pool: Arc<BuilderPool>,
    pub inputs: Arc<Inputs>,
    pub id: String,
    pub platform: PlatformStatus,
    pub traceparent: String,
}

impl Whole for Start {
    fn job(&self) -> BoxFuture<'_, Result<Option<(proto::Job, Place)>, kube::Error>> {
        async move {
            let namespace = self.run.namespace().unwrap_or_default();
            let place = self.room.enter(&namespace).await;
            let make = |run: &ImageBuildRun| {
                let Self { pool, id, platform, traceparent, .. } = self;
                let spec = spec_of(run, &platform.name)?;
                Some(self.inputs.job(run, pool, id, spec, platform, traceparent.clone()))
            };
            if trim::has_whole_spec(&*self.run) {
                return Ok(make(&self.run).map(|job| (job, place)));
            }
            let found = whole(&self.client, &*self.run).await?;
            Ok(found.and_then(|found| make(&found)).map(|job| (job, place)))
        }
        .boxed()
    }
}
