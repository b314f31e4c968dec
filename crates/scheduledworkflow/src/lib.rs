//! kfp-scheduledworkflow.
