//! Drivers: containers whose work is done within this process. Most tasks of a pipeline have a pod for one, so such a
//! pod has no directory, no thread of its own and, while nothing is said, no file for its log.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use crate::init::SETUP_FAILED;
use crate::job::{Job, TERMINATED};
use crate::kubelet::Kubelet;
use crate::options::{DriverExit, Invocation};
use crate::outputs;
use crate::paths::Paths;
use crate::process::{Exit, Order};
use crate::spec::{Container, Pod};

/// First word of a driver's command.
pub(crate) const PROGRAM: &str = "driver";

impl Pod {
    /// Whether all it does is done by the driver within this process. Such a pod may be run twice.
    pub(crate) fn is_driver(&self) -> bool {
        let driver = |c: &Container| c.command.first().is_some_and(|word| word == PROGRAM);
        self.spec.init_containers.is_empty() && self.spec.containers.iter().all(driver)
    }

    /// Whether it needs a directory.
    pub(crate) fn needs_place(&self) -> bool {
        !self.is_driver() || !self.spec.volumes.is_empty()
    }
}

impl Kubelet {
    /// Slots for pods like this one: drivers wait for others mostly, so that more of them run at once.
    pub(crate) fn slots_for(&self, pod: &Pod) -> Arc<Semaphore> {
        if pod.is_driver() { self.drivers.clone() } else { self.processes.clone() }
    }
}

impl Job {
    /// Runs the driver.
    pub(crate) async fn drive(
        &self,
        args: Vec<String>,
        env: BTreeMap<String, String>,
        paths: Paths,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Exit {
        let invocation = Invocation {
            args,
            env,
            namespace: self.pod.metadata.namespace.clone(),
            pod: self.pod.metadata.name.clone(),
            paths,
            log: self.log.clone(),
        };
        let mut driver = tokio::spawn((self.kubelet.options.driver)(invocation));
        tokio::select! {
            end = &mut driver => match end {
                Ok(end) => self.driven(end),
                Err(e) => {
                    let message = format!("the driver ended abnormally: {e}");
                    self.log.line(&message);
                    Exit { message, ..Exit::with_code(2) }
                }
            },
            Some(_) = orders.recv() => {
                driver.abort();
                Exit::with_code(TERMINATED)
            }
        }
    }

    fn driven(&self, end: DriverExit) -> Exit {
        let contract = self.contract.as_deref();
        match contract.map(|contract| outputs::in_memory(contract, &end.files)).transpose() {
            Ok(parameters) => {
                let parameters = parameters.unwrap_or_default();
                Exit { message: end.message, parameters, ..Exit::with_code(end.code) }
            }
            Err(message) => {
                self.log.line(&message);
                Exit { message, ..Exit::with_code(if end.code == 0 { SETUP_FAILED } else { end.code }) }
            }
        }
    }
}
