//! Removes the oldest of the pods that have ended, as a cluster's garbage collector for terminated pods does.
//!
//! Otherwise each task would take memory until its Workflow expires, a day after it ended. Pods of a Workflow that goes
//! on stay: the engine looks at them.

use std::collections::HashSet;
use std::sync::Arc;

use futures::StreamExt as _;
use kfp_core::argo::names::{LABEL_COMPLETED, LABEL_WORKFLOW};
use kfp_core::shutdown::CancellationToken;

use crate::api::RawObject;
use crate::api::resources::{PODS, WORKFLOWS};
use crate::kubelet::{Kubelet, is_over};

/// Deletions under way at the same time.
const AT_ONCE: usize = 16;

/// Sweeps whenever an eighth more pods have ended than may stay.
pub(crate) async fn collect(kubelet: &Arc<Kubelet>, shutdown: &CancellationToken) {
    let step = (kubelet.options.ended_pods / 8).max(1);
    let mut ended = kubelet.ended.subscribe();
    loop {
        let next = *ended.borrow_and_update() + step;
        sweep(kubelet).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            waited = ended.wait_for(|ended| *ended >= next) => if waited.is_err() { return },
        }
    }
}

async fn sweep(kubelet: &Kubelet) {
    let mut over: Vec<RawObject> = kubelet.api.list(&PODS).0.into_iter().filter(is_over).collect();
    let excess = over.len().saturating_sub(kubelet.options.ended_pods);
    if excess == 0 {
        return;
    }
    let workflows = kubelet.api.list(&WORKFLOWS).0;
    let going_on = workflows.iter().filter(|workflow| workflow.label(LABEL_COMPLETED) != Some("true"));
    let going_on: HashSet<(&str, &str)> = going_on.map(|workflow| (workflow.namespace(), workflow.name())).collect();
    over.retain(|pod| pod.label(LABEL_WORKFLOW).is_none_or(|name| !going_on.contains(&(pod.namespace(), name))));
    // Their end was their last change.
    over.sort_by_key(RawObject::version);
    over.truncate(excess);
    let delete = |pod: RawObject| async move {
        // A retry of the run may have given the name to another pod meanwhile.
        match kubelet.api.delete(&PODS, pod.namespace(), pod.name(), pod.uid()).await {
            Err(error) if !matches!(error.code, 404 | 409) => {
                tracing::warn!(pod = pod.name(), %error, "cannot remove an ended pod")
            }
            _ => {}
        }
    };
    futures::stream::iter(over).for_each_concurrent(AT_ONCE, delete).await;
}
