//! Artifact, execution and context types.

use std::collections::BTreeMap;

use kfp_proto::ml_metadata as pb;
use prost_reflect::{DynamicMessage, ReflectMessage as _};

use crate::database::{Param, Row, Tx, id_lists, text_lists};
use crate::failure::{Failure, Outcome};
use crate::model::Kind;
use crate::schema::SIMPLE_TYPES;

/// A type of any kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Type {
    /// Set by the store.
    pub id: i64,
    /// Unique with the version among the types of the kind.
    pub name: String,
    /// Unset and empty are the same.
    pub version: Option<String>,
    /// Free text, kept from the first put.
    pub description: Option<String>,
    /// Unique among types.
    pub external_id: Option<String>,
    /// Declared properties, by the numbers of `PropertyType`.
    pub properties: BTreeMap<String, i32>,
    /// Executions only.
    pub input: Option<pb::ArtifactStructType>,
    /// Executions only.
    pub output: Option<pb::ArtifactStructType>,
    /// The number of the kind's `SystemDefinedBaseType`.
    pub base: Option<i32>,
}

/// The simple types that types of a kind can extend, in the order of the enum's numbers from 1 on.
fn bases(kind: Kind) -> impl Iterator<Item = (i32, &'static str)> {
    let of_kind = SIMPLE_TYPES.iter().filter(move |(_, of)| *of == kind);
    (1..).zip(of_kind.map(|(name, _)| *name))
}

impl From<pb::ArtifactType> for Type {
    fn from(t: pb::ArtifactType) -> Self {
        Self {
            id: t.id.unwrap_or_default(),
            name: t.name.unwrap_or_default(),
            version: t.version.filter(|v| !v.is_empty()),
            description: t.description,
            external_id: t.external_id,
            properties: t.properties,
            input: None,
            output: None,
            base: t.base_type,
        }
    }
}

impl From<pb::ContextType> for Type {
    fn from(t: pb::ContextType) -> Self {
        Self {
            id: t.id.unwrap_or_default(),
            name: t.name.unwrap_or_default(),
            version: t.version.filter(|v| !v.is_empty()),
            description: t.description,
            external_id: t.external_id,
            properties: t.properties,
            input: None,
            output: None,
            base: t.base_type,
        }
    }
}

impl From<pb::ExecutionType> for Type {
    fn from(t: pb::ExecutionType) -> Self {
        Self {
            id: t.id.unwrap_or_default(),
            name: t.name.unwrap_or_default(),
            version: t.version.filter(|v| !v.is_empty()),
            description: t.description,
            external_id: t.external_id,
            properties: t.properties,
            input: t.input_type,
            output: t.output_type,
            base: t.base_type,
        }
    }
}

impl From<Type> for pb::ArtifactType {
    fn from(t: Type) -> Self {
        Self {
            id: Some(t.id),
            name: Some(t.name),
            version: t.version,
            description: t.description,
            external_id: t.external_id,
            properties: t.properties,
            base_type: t.base,
        }
    }
}

impl From<Type> for pb::ContextType {
    fn from(t: Type) -> Self {
        Self {
            id: Some(t.id),
            name: Some(t.name),
            version: t.version,
            description: t.description,
            external_id: t.external_id,
            properties: t.properties,
            base_type: t.base,
        }
    }
}

impl From<Type> for pb::ExecutionType {
    fn from(t: Type) -> Self {
        Self {
            id: Some(t.id),
            name: Some(t.name),
            version: t.version,
            description: t.description,
            external_id: t.external_id,
            properties: t.properties,
            input_type: t.input,
            output_type: t.output,
            base_type: t.base,
        }
    }
}

fn struct_type_json(value: Option<&pb::ArtifactStructType>) -> Outcome<Option<String>> {
    let broken = |error: String| Failure::internal(format!("cannot encode an input or output type: {error}"));
    let Some(value) = value else { return Ok(None) };
    let descriptor = kfp_proto::POOL
        .get_message_by_name("ml_metadata.ArtifactStructType")
        .ok_or_else(|| broken("its descriptor is missing".to_owned()))?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(value).map_err(|error| broken(error.to_string()))?;
    serde_json::to_string(&dynamic).map(Some).map_err(|error| broken(error.to_string()))
}

fn struct_type(json: Option<String>) -> Outcome<Option<pb::ArtifactStructType>> {
    let broken = |error: String| Failure::internal(format!("cannot decode an input or output type: {error}"));
    let Some(json) = json.filter(|json| !json.is_empty()) else { return Ok(None) };
    let descriptor = kfp_proto::POOL
        .get_message_by_name("ml_metadata.ArtifactStructType")
        .ok_or_else(|| broken("its descriptor is missing".to_owned()))?;
    let mut reader = serde_json::Deserializer::from_str(&json);
    let dynamic = DynamicMessage::deserialize(descriptor, &mut reader).map_err(|error| broken(error.to_string()))?;
    debug_assert_eq!(dynamic.descriptor().name(), "ArtifactStructType");
    dynamic.transcode_to().map(Some).map_err(|error| broken(error.to_string()))
}

const SELECT: &str = "SELECT T.`id`, T.`name`, T.`version`, T.`description`, T.`external_id`, T.`input_type`, \
     T.`output_type`, B.`name`, P.`name`, P.`data_type` FROM `Type` T \
     LEFT JOIN `ParentType` PT ON PT.`type_id` = T.`id` LEFT JOIN `Type` B ON B.`id` = PT.`parent_type_id` \
     LEFT JOIN `TypeProperty` P ON P.`type_id` = T.`id`";

/// Types of a kind that satisfy a condition on `T`, ascending by id.
async fn select(tx: &mut Tx, kind: Kind, condition: &str, mut params: Vec<Param>) -> Outcome<Vec<Type>> {
    let sql = format!("{SELECT} WHERE {condition} AND T.`type_kind` = ? ORDER BY T.`id`");
    params.push(kind.number().into());
    let mut found: Vec<Type> = Vec::new();
    for row in tx.query(sql, params).await? {
        let id = row.int(0)?;
        if found.last().is_none_or(|last| last.id != id) {
            found.push(read(kind, id, &row)?);
        }
        if let (Some(last), Some(name)) = (found.last_mut(), row.text_or_null(8)?) {
            let number = row.int_or_null(9)?.unwrap_or_default();
            last.properties.insert(name, i32::try_from(number).unwrap_or_default());
        }
    }
    Ok(found)
}

fn read(kind: Kind, id: i64, row: &Row) -> Outcome<Type> {
    let base = row.text_or_null(7)?;
    Ok(Type {
        id,
        name: row.text(1)?,
        version: row.text_or_null(2)?,
        description: row.text_or_null(3)?,
        external_id: row.text_or_null(4)?,
        properties: BTreeMap::new(),
        input: struct_type(row.text_or_null(5)?)?,
        output: struct_type(row.text_or_null(6)?)?,
        base: base.and_then(|base| bases(kind).find(|(_, name)| *name == base).map(|(number, _)| number)),
    })
}

/// All types of a kind, without the hidden simple types.
///
/// # Errors
/// The database's.
pub async fn all(tx: &mut Tx, kind: Kind) -> Outcome<Vec<Type>> {
    let mut found = select(tx, kind, "1 = 1", vec![]).await?;
    found.retain(|t| !SIMPLE_TYPES.iter().any(|(name, _)| *name == t.name));
    Ok(found)
}

/// The types of a kind with these ids that exist, by id.
///
/// # Errors
/// The database's.
pub async fn by_id(tx: &mut Tx, kind: Kind, ids: &[i64]) -> Outcome<BTreeMap<i64, Type>> {
    let mut found = BTreeMap::new();
    for (list, params) in id_lists(ids) {
        let types = select(tx, kind, &format!("T.`id` IN {list}"), params).await?;
        found.extend(types.into_iter().map(|t| (t.id, t)));
    }
    Ok(found)
}

/// The types of a kind with these external ids.
///
/// # Errors
/// INVALID_ARGUMENT for an empty external id, NOT_FOUND when there is none.
pub async fn by_external_id(tx: &mut Tx, kind: Kind, ids: &[String]) -> Outcome<Vec<Type>> {
    if ids.iter().any(String::is_empty) {
        return Err(Failure::invalid("Invalid argument because at least one empty external_id exists."));
    }
    let mut found = Vec::new();
    for (list, params) in text_lists(ids) {
        found.extend(select(tx, kind, &format!("T.`external_id` IN {list}"), params).await?);
    }
    if found.is_empty() { Err(Failure::not_found("No types found for external_ids.")) } else { Ok(found) }
}

/// The type with a name and a version (none and empty are the same), if it exists.
///
/// # Errors
/// The database's.
pub async fn find(tx: &mut Tx, kind: Kind, name: &str, version: Option<&str>) -> Outcome<Option<Type>> {
    let found = match version.filter(|version| !version.is_empty()) {
        Some(version) => {
            let condition = "T.`name` = ? AND T.`version` = ?";
            select(tx, kind, condition, vec![name.into(), version.into()]).await?
        }
        None => select(tx, kind, "T.`name` = ? AND T.`version` IS NULL", vec![name.into()]).await?,
    };
    Ok(found.into_iter().next())
}

/// As [`find`].
///
/// # Errors
/// NOT_FOUND in upstream's words when there is no such type.
pub async fn get(tx: &mut Tx, kind: Kind, name: &str, version: Option<&str>) -> Outcome<Type> {
    find(tx, kind, name, version).await?.ok_or_else(|| {
        let version = version.filter(|version| !version.is_empty()).unwrap_or("nullopt");
        Failure::not_found(format!("No type found for query, name: `{name}`, version: `{version}`"))
    })
}

/// What a put may do to a stored type.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evolution {
    /// The given type may have properties that the stored one lacks; they are added.
    pub can_add: bool,
    /// The given type may lack properties that the stored one has; they stay.
    pub can_omit: bool,
}

/// Properties that the stored type must gain to hold the given ones.
fn additions(stored: &Type, given: &Type, evolution: Evolution) -> Outcome<BTreeMap<String, i32>> {
    let clash = |why: String| {
        let name = &given.name;
        Failure::exists(format!("Type already exists with different properties: type {name:?}: {why}"))
    };
    for (name, number) in &stored.properties {
        match given.properties.get(name) {
            Some(other) if other != number => {
                return Err(clash(format!("conflicting property value type of {name:?}")));
            }
            None if !evolution.can_omit => {
                return Err(clash(format!(
                    "can_omit_fields is false while the stored type has more properties: {name:?}"
                )));
            }
            _ => {}
        }
    }
    let more = given.properties.iter().filter(|(name, _)| !stored.properties.contains_key(*name));
    let more: BTreeMap<String, i32> = more.map(|(name, number)| (name.clone(), *number)).collect();
    match more.keys().next() {
        Some(name) if !evolution.can_add => {
            Err(clash(format!("can_add_fields is false while the given type has more properties: {name:?}")))
        }
        _ => Ok(more),
    }
}

/// Whether putting the type changes nothing, which is so for all but the first task of a kind.
fn is_same(stored: &Type, given: &Type) -> bool {
    given.properties == stored.properties
        && (given.external_id.is_none() || given.external_id == stored.external_id)
        && (given.base.is_none() || given.base == stored.base)
}

/// Creates a type or evolves the stored one of that name and version; returns its id.
///
/// # Errors
/// ALREADY_EXISTS when the properties do not fit, INVALID_ARGUMENT without a name or with a property of unknown kind,
/// UNIMPLEMENTED for a change of the base type.
pub async fn put(tx: &mut Tx, kind: Kind, given: Type, evolution: Evolution) -> Outcome<i64> {
    if given.name.is_empty() {
        return Err(Failure::invalid("No type name is specified."));
    }
    let mut stored = find(tx, kind, &given.name, given.version.as_deref()).await?;
    if !stored.as_ref().is_some_and(|stored| is_same(stored, &given)) {
        // No unique key keeps two callers from creating the same type.
        tx.lock_rules().await?;
        if !tx.dialect().writes_alone() {
            stored = find(tx, kind, &given.name, given.version.as_deref()).await?;
        }
    }
    let new = match &stored {
        Some(stored) => additions(stored, &given, evolution)?,
        None => given.properties.clone(),
    };
    if let Some((name, _)) = new.iter().find(|(_, number)| !(1..=6).contains(*number)) {
        return Err(Failure::invalid(format!("Property {name} is UNKNOWN.")));
    }
    let taken = || format!("a type with external_id {:?} exists", given.external_id.as_deref().unwrap_or_default());
    let id = match &stored {
        Some(stored) => {
            if given.external_id.is_some() && given.external_id != stored.external_id {
                let params = vec![given.external_id.clone().into(), stored.id.into()];
                let update = tx.execute("UPDATE `Type` SET `external_id` = ? WHERE `id` = ?", params).await;
                update.map_err(|failure| failure.naming(taken))?;
            }
            stored.id
        }
        None => {
            let columns = ["name", "type_kind", "version", "description", "input_type", "output_type", "external_id"];
            let params = vec![
                given.name.as_str().into(),
                kind.number().into(),
                given.version.clone().into(),
                given.description.clone().into(),
                struct_type_json(given.input.as_ref())?.into(),
                struct_type_json(given.output.as_ref())?.into(),
                given.external_id.clone().into(),
            ];
            tx.insert("Type", &columns, params).await.map_err(|failure| failure.naming(taken))?
        }
    };
    let rows = new.into_iter().map(|(name, number)| vec![id.into(), name.into(), number.into()]).collect();
    tx.insert_rows("INTO `TypeProperty`(`type_id`, `name`, `data_type`)", rows).await?;
    link_base(tx, kind, id, given.base, stored.and_then(|stored| stored.base)).await?;
    Ok(id)
}

async fn link_base(tx: &mut Tx, kind: Kind, id: i64, given: Option<i32>, stored: Option<i32>) -> Outcome<()> {
    match (given, stored) {
        (None, _) => Ok(()),
        (Some(0), _) => Err(Failure::unimplemented("base_type deletion is not supported yet")),
        (Some(given), Some(stored)) if given == stored => Ok(()),
        (Some(_), Some(_)) => Err(Failure::unimplemented("base_type update is not supported yet")),
        (Some(given), None) => {
            let Some((_, base)) = bases(kind).find(|(number, _)| *number == given) else {
                return Err(Failure::invalid(format!("unknown base_type {given}")));
            };
            let parent = get(tx, kind, base, None).await?.id;
            let sql = "INSERT INTO `ParentType`(`type_id`, `parent_type_id`) VALUES (?,?)";
            tx.execute(sql, vec![id.into(), parent.into()]).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(properties: &[(&str, i32)]) -> Type {
        let properties = properties.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect();
        Type { name: "t".to_owned(), properties, ..Type::default() }
    }

    #[test]
    fn properties_evolve_only_as_allowed() {
        let (add, omit) = (Evolution { can_add: true, can_omit: false }, Evolution { can_add: false, can_omit: true });
        let stored = of(&[("a", 1)]);
        assert_eq!(additions(&stored, &of(&[("a", 1)]), Evolution::default()), Ok(BTreeMap::new()));
        assert_eq!(additions(&stored, &of(&[("a", 1), ("b", 3)]), add), Ok(of(&[("b", 3)]).properties));
        assert_eq!(additions(&stored, &of(&[]), omit), Ok(BTreeMap::new()));
        for (given, evolution) in [
            (of(&[("a", 1), ("b", 3)]), omit),
            (of(&[]), add),
            (of(&[("a", 2)]), Evolution { can_add: true, can_omit: true }),
        ] {
            let refused = additions(&stored, &given, evolution).map_err(|failure| failure.code);
            assert_eq!(refused, Err(tonic::Code::AlreadyExists));
        }
    }
}
