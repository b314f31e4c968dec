//! Rules and state machines of the API's resources, free of I/O.

pub mod argo;
pub mod details;
pub mod fires;
pub mod logs;
pub mod macros;
pub mod mask;
pub mod names;
pub mod nodes;
pub mod plugins;
pub mod retry;
pub mod reuse;
pub mod slim;
pub mod state;
