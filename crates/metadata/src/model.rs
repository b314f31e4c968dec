//! Artifacts, executions and contexts as one shape.

use std::collections::BTreeMap;

use kfp_proto::ml_metadata as pb;

/// The three families of types and nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Executions and their types.
    Execution,
    /// Artifacts and their types.
    Artifact,
    /// Contexts and their types.
    Context,
}

impl Kind {
    /// The value of the column `type_kind`.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Execution => 0,
            Self::Artifact => 1,
            Self::Context => 2,
        }
    }

    /// The node's table.
    #[must_use]
    pub fn table(self) -> &'static str {
        match self {
            Self::Execution => "Execution",
            Self::Artifact => "Artifact",
            Self::Context => "Context",
        }
    }

    /// The column of other tables that names a node of this kind.
    #[must_use]
    pub fn id_column(self) -> &'static str {
        match self {
            Self::Execution => "execution_id",
            Self::Artifact => "artifact_id",
            Self::Context => "context_id",
        }
    }

    /// The column (and field) of the state, if nodes of this kind have one.
    #[must_use]
    pub fn state_column(self) -> Option<&'static str> {
        match self {
            Self::Execution => Some("last_known_state"),
            Self::Artifact => Some("state"),
            Self::Context => None,
        }
    }

    /// The table that links nodes of this kind to contexts.
    #[must_use]
    pub fn context_link(self) -> Option<&'static str> {
        match self {
            Self::Execution => Some("Association"),
            Self::Artifact => Some("Attribution"),
            Self::Context => None,
        }
    }
}

/// Properties by name.
pub type Properties = BTreeMap<String, pb::Value>;

/// An artifact, execution or context; fields that a kind does not have stay empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Unset: to be created.
    pub id: Option<i64>,
    /// The type's id.
    pub type_id: Option<i64>,
    /// The type's name; filled in on reads.
    pub type_name: Option<String>,
    /// Unique among the nodes of the type.
    pub name: Option<String>,
    /// Artifacts only.
    pub uri: Option<String>,
    /// Artifacts and executions only.
    pub state: Option<i32>,
    /// Unique among the nodes of the kind.
    pub external_id: Option<String>,
    /// Declared by the type.
    pub properties: Properties,
    /// Free.
    pub custom: Properties,
    /// Unix milliseconds.
    pub created: Option<i64>,
    /// Unix milliseconds.
    pub updated: Option<i64>,
}

impl Node {
    /// Names the node in messages.
    #[must_use]
    pub fn label(&self) -> String {
        let mut parts = Vec::new();
        if let Some(id) = self.id {
            parts.push(format!("id: {id}"));
        }
        if let Some(id) = self.type_id {
            parts.push(format!("type_id: {id}"));
        }
        if let Some(name) = &self.name {
            parts.push(format!("name: {name:?}"));
        }
        if let Some(id) = &self.external_id {
            parts.push(format!("external_id: {id:?}"));
        }
        parts.join(" ")
    }
}

impl From<pb::Artifact> for Node {
    fn from(node: pb::Artifact) -> Self {
        Self {
            id: node.id,
            type_id: node.type_id,
            type_name: node.r#type,
            name: node.name,
            uri: node.uri,
            state: node.state,
            external_id: node.external_id,
            properties: node.properties,
            custom: node.custom_properties,
            created: node.create_time_since_epoch,
            updated: node.last_update_time_since_epoch,
        }
    }
}

impl From<Node> for pb::Artifact {
    fn from(node: Node) -> Self {
        Self {
            id: node.id,
            type_id: node.type_id,
            r#type: node.type_name,
            name: node.name,
            uri: node.uri,
            state: node.state,
            external_id: node.external_id,
            properties: node.properties,
            custom_properties: node.custom,
            create_time_since_epoch: node.created,
            last_update_time_since_epoch: node.updated,
            system_metadata: None,
        }
    }
}

impl From<pb::Execution> for Node {
    fn from(node: pb::Execution) -> Self {
        Self {
            id: node.id,
            type_id: node.type_id,
            type_name: node.r#type,
            name: node.name,
            uri: None,
            state: node.last_known_state,
            external_id: node.external_id,
            properties: node.properties,
            custom: node.custom_properties,
            created: node.create_time_since_epoch,
            updated: node.last_update_time_since_epoch,
        }
    }
}

impl From<Node> for pb::Execution {
    fn from(node: Node) -> Self {
        Self {
            id: node.id,
            type_id: node.type_id,
            r#type: node.type_name,
            name: node.name,
            last_known_state: node.state,
            external_id: node.external_id,
            properties: node.properties,
            custom_properties: node.custom,
            create_time_since_epoch: node.created,
            last_update_time_since_epoch: node.updated,
            system_metadata: None,
        }
    }
}

impl From<pb::Context> for Node {
    fn from(node: pb::Context) -> Self {
        Self {
            id: node.id,
            type_id: node.type_id,
            type_name: node.r#type,
            name: node.name,
            uri: None,
            state: None,
            external_id: node.external_id,
            properties: node.properties,
            custom: node.custom_properties,
            created: node.create_time_since_epoch,
            updated: node.last_update_time_since_epoch,
        }
    }
}

impl From<Node> for pb::Context {
    fn from(node: Node) -> Self {
        Self {
            id: node.id,
            type_id: node.type_id,
            r#type: node.type_name,
            name: node.name,
            external_id: node.external_id,
            properties: node.properties,
            custom_properties: node.custom,
            create_time_since_epoch: node.created,
            last_update_time_since_epoch: node.updated,
            system_metadata: None,
        }
    }
}

/// Converts a list of nodes to or from messages.
pub fn convert<T, U: From<T>>(items: Vec<T>) -> Vec<U> {
    items.into_iter().map(U::from).collect()
}
