//! `RecurringRunService`: reading exists, creation and changes answer UNIMPLEMENTED for now.

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use v2::recurring_run_service_server::RecurringRunService;

use super::Handle;

/// Serves recurring runs.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

impl RecurringRunService for Service {}
