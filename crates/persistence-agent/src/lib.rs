//! kfp-persistence-agent.
