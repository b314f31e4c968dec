//! kubeapi.
