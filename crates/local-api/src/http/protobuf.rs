//! The few bodies that Kubernetes' Go client and with it kubectl send as protobuf whatever the server says it accepts: those of
//! typed requests for built-in kinds (`create configmap`, `create namespace`, `auth can-i`, …), which never fall back to JSON.
//!
//! Only the messages behind those requests are known; field numbers are those of Kubernetes'
//! published protobuf definitions. Everything else is refused by name.

use base64::Engine as _;
use serde_json::{Map, Value};

/// First bytes of every such body.
const MAGIC: &[u8] = b"k8s\0";

/// How deep messages may nest; the known ones need five.
const MAX_DEPTH: usize = 16;

/// What a field holds.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Base64 in JSON.
    Bytes,
    Integer,
    Bool,
    Message(Fields),
    /// Repeated; the field is a list in JSON.
    List(&'static Kind),
    /// `map<string, …>`.
    Map(&'static Kind),
    /// Seconds since the epoch, a date text in JSON.
    Time,
    /// A text of its own message, e.g. `5Mi`.
    Quantity,
}

/// Number, name in JSON, kind.
type Fields = &'static [(u64, &'static str, Kind)];

const OWNER: Fields = &[
    (1, "kind", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
    (5, "apiVersion", Kind::Text),
    (6, "controller", Kind::Bool),
    (7, "blockOwnerDeletion", Kind::Bool),
];

const METADATA: Fields = &[
    (1, "name", Kind::Text),
    (2, "generateName", Kind::Text),
    (3, "namespace", Kind::Text),
    (5, "uid", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (7, "generation", Kind::Integer),
    (8, "creationTimestamp", Kind::Time),
    (11, "labels", Kind::Map(&Kind::Text)),
    (12, "annotations", Kind::Map(&Kind::Text)),
    (13, "ownerReferences", Kind::List(&Kind::Message(OWNER))),
    (14, "finalizers", Kind::List(&Kind::Text)),
];

const META: (u64, &str, Kind) = (1, "metadata", Kind::Message(METADATA));

const RESOURCE_ATTRIBUTES: Fields = &[
    (1, "namespace", Kind::Text),
    (2, "verb", Kind::Text),
    (3, "group", Kind::Text),
    (4, "version", Kind::Text),
    (5, "resource", Kind::Text),
    (6, "subresource", Kind::Text),
    (7, "name", Kind::Text),
];

const PATH_ATTRIBUTES: Fields = &[(1, "path", Kind::Text), (2, "verb", Kind::Text)];

const SELF_ACCESS: Fields = &[
    (1, "resourceAttributes", Kind::Message(RESOURCE_ATTRIBUTES)),
    (2, "nonResourceAttributes", Kind::Message(PATH_ATTRIBUTES)),
];

const ACCESS: Fields = &[
    (1, "resourceAttributes", Kind::Message(RESOURCE_ATTRIBUTES)),
    (2, "nonResourceAttributes", Kind::Message(PATH_ATTRIBUTES)),
    (3, "user", Kind::Text),
    (4, "groups", Kind::List(&Kind::Text)),
    (6, "uid", Kind::Text),
];

const OBJECT_REFERENCE: Fields = &[
    (1, "kind", Kind::Text),
    (2, "namespace", Kind::Text),
    (3, "name", Kind::Text),
    (4, "uid", Kind::Text),
    (5, "apiVersion", Kind::Text),
    (6, "resourceVersion", Kind::Text),
    (7, "fieldPath", Kind::Text),
];

const RULE: Fields = &[
    (1, "verbs", Kind::List(&Kind::Text)),
    (2, "apiGroups", Kind::List(&Kind::Text)),
    (3, "resources", Kind::List(&Kind::Text)),
    (4, "resourceNames", Kind::List(&Kind::Text)),
    (5, "nonResourceURLs", Kind::List(&Kind::Text)),
];

const SUBJECT: Fields =
    &[(1, "kind", Kind::Text), (2, "apiGroup", Kind::Text), (3, "name", Kind::Text), (4, "namespace", Kind::Text)];

const ROLE_REF: Fields = &[(1, "apiGroup", Kind::Text), (2, "kind", Kind::Text), (3, "name", Kind::Text)];

const BINDING: Fields =
    &[META, (2, "subjects", Kind::List(&Kind::Message(SUBJECT))), (3, "roleRef", Kind::Message(ROLE_REF))];

const ROLE: Fields = &[META, (2, "rules", Kind::List(&Kind::Message(RULE)))];

const SELECTOR: Fields = &[
    (1, "matchLabels", Kind::Map(&Kind::Text)),
    (
        2,
        "matchExpressions",
        Kind::List(&Kind::Message(&[
            (1, "key", Kind::Text),
            (2, "operator", Kind::Text),
            (3, "values", Kind::List(&Kind::Text)),
        ])),
    ),
];

const DATA_SOURCE: Fields =
    &[(1, "apiGroup", Kind::Text), (2, "kind", Kind::Text), (3, "name", Kind::Text), (4, "namespace", Kind::Text)];

const CLAIM: Fields = &[
    (1, "accessModes", Kind::List(&Kind::Text)),
    (
        2,
        "resources",
        Kind::Message(&[(1, "limits", Kind::Map(&Kind::Quantity)), (2, "requests", Kind::Map(&Kind::Quantity))]),
    ),
    (3, "volumeName", Kind::Text),
    (4, "selector", Kind::Message(SELECTOR)),
    (5, "storageClassName", Kind::Text),
    (6, "volumeMode", Kind::Text),
    (7, "dataSource", Kind::Message(DATA_SOURCE)),
    (8, "dataSourceRef", Kind::Message(DATA_SOURCE)),
    (9, "volumeAttributesClassName", Kind::Text),
];

const TOKEN_REVIEW: Fields = &[(1, "token", Kind::Text), (2, "audiences", Kind::List(&Kind::Text))];

const PRECONDITIONS: Fields = &[(1, "uid", Kind::Text), (2, "resourceVersion", Kind::Text)];

/// Messages by kind.
const MESSAGES: &[(&str, Fields)] = &[
    ("Namespace", &[META]),
    (
        "ConfigMap",
        &[
            META,
            (2, "data", Kind::Map(&Kind::Text)),
            (3, "binaryData", Kind::Map(&Kind::Bytes)),
            (4, "immutable", Kind::Bool),
        ],
    ),
    (
        "Secret",
        &[
            META,
            (2, "data", Kind::Map(&Kind::Bytes)),
            (3, "type", Kind::Text),
            (4, "stringData", Kind::Map(&Kind::Text)),
            (5, "immutable", Kind::Bool),
        ],
    ),
    (
        "ServiceAccount",
        &[
            META,
            (2, "secrets", Kind::List(&Kind::Message(OBJECT_REFERENCE))),
            (4, "automountServiceAccountToken", Kind::Bool),
        ],
    ),
    ("PersistentVolumeClaim", &[META, (2, "spec", Kind::Message(CLAIM))]),
    ("Role", ROLE),
    ("ClusterRole", ROLE),
    ("RoleBinding", BINDING),
    ("ClusterRoleBinding", BINDING),
    ("SelfSubjectAccessReview", &[META, (2, "spec", Kind::Message(SELF_ACCESS))]),
    ("SubjectAccessReview", &[META, (2, "spec", Kind::Message(ACCESS))]),
    ("LocalSubjectAccessReview", &[META, (2, "spec", Kind::Message(ACCESS))]),
    ("SelfSubjectRulesReview", &[META, (2, "spec", Kind::Message(&[(1, "namespace", Kind::Text)]))]),
    ("SelfSubjectReview", &[META]),
    ("TokenReview", &[META, (2, "spec", Kind::Message(TOKEN_REVIEW))]),
    (
        "DeleteOptions",
        &[
            (1, "gracePeriodSeconds", Kind::Integer),
            (2, "preconditions", Kind::Message(PRECONDITIONS)),
            (3, "orphanDependents", Kind::Bool),
            (4, "propagationPolicy", Kind::Text),
            (5, "dryRun", Kind::List(&Kind::Text)),
        ],
    ),
];

/// Why a body was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The bytes are not such a message.
    Malformed,
    /// The kind is not among the known ones.
    Unknown(String),
}

/// The body as JSON.
pub(super) fn decode(bytes: &[u8]) -> Result<Value, Refusal> {
    let body = bytes.strip_prefix(MAGIC).ok_or(Refusal::Malformed)?;
    let (mut type_meta, mut raw) = (Map::new(), &[][..]);
    const TYPE_META: Fields = &[(1, "apiVersion", Kind::Text), (2, "kind", Kind::Text)];
    for field in Reader(body) {
        match field.ok_or(Refusal::Malformed)? {
            (1, Wire::Bytes(bytes)) => type_meta = message(TYPE_META, bytes, 0)?,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let kind = type_meta.get("kind").and_then(Value::as_str).unwrap_or_default();
    let (_, fields) =
        MESSAGES.iter().find(|(name, _)| *name == kind).ok_or_else(|| Refusal::Unknown(kind.to_string()))?;
    let mut object = message(fields, raw, 0)?;
    object.extend(type_meta);
    Ok(Value::Object(object))
}

fn message(fields: Fields, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, Refusal> {
    if depth > MAX_DEPTH {
        return Err(Refusal::Malformed);
    }
    let mut object = Map::new();
    for field in Reader(bytes) {
        let (number, wire) = field.ok_or(Refusal::Malformed)?;
        let Some((_, name, kind)) = fields.iter().find(|(n, _, _)| *n == number) else { continue };
        match kind {
            Kind::List(item) => {
                let item = value(item, wire, depth)?;
                if let Some(list) = object.entry(*name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut() {
                    list.push(item);
                }
            }
            Kind::Map(item) => {
                let Wire::Bytes(entry) = wire else { return Err(Refusal::Malformed) };
                let (mut key, mut content) = (String::new(), Wire::Bytes(&[]));
                for part in Reader(entry) {
                    match part.ok_or(Refusal::Malformed)? {
                        (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                        (2, wire) => content = wire,
                        _ => {}
                    }
                }
                let content = value(item, content, depth)?;
                if let Some(map) = object.entry(*name).or_insert_with(|| Value::Object(Map::new())).as_object_mut() {
                    map.insert(key, content);
                }
            }
            kind => {
                let value = value(kind, wire, depth)?;
                // Kubernetes writes unset texts and moments as empty ones.
                if value != "" && !value.is_null() {
                    object.insert((*name).to_string(), value);
                }
            }
        }
    }
    Ok(object)
}

fn value(kind: &Kind, wire: Wire<'_>, depth: usize) -> Result<Value, Refusal> {
    match (kind, wire) {
        (Kind::Text, Wire::Bytes(bytes)) => Ok(Value::String(text(bytes)?)),
        (Kind::Bytes, Wire::Bytes(bytes)) => Ok(base64::engine::general_purpose::STANDARD.encode(bytes).into()),
        (Kind::Integer, Wire::Varint(number)) => Ok(number.cast_signed().into()),
        (Kind::Bool, Wire::Varint(number)) => Ok((number != 0).into()),
        (Kind::Message(fields), Wire::Bytes(bytes)) => message(fields, bytes, depth + 1).map(Value::Object),
        (Kind::Quantity, Wire::Bytes(bytes)) => {
            let mut quantity = message(&[(1, "quantity", Kind::Text)], bytes, depth + 1)?;
            quantity.remove("quantity").ok_or(Refusal::Malformed)
        }
        (Kind::Time, Wire::Bytes(bytes)) => {
            let seconds = Reader(bytes).flatten().find_map(|(number, wire)| match wire {
                Wire::Varint(seconds) if number == 1 => Some(seconds.cast_signed()),
                _ => None,
            });
            let moment = seconds.and_then(|seconds| chrono::DateTime::from_timestamp(seconds, 0));
            Ok(moment.map_or(Value::Null, |moment| moment.format("%Y-%m-%dT%H:%M:%SZ").to_string().into()))
        }
        _ => Err(Refusal::Malformed),
    }
}

fn text(bytes: &[u8]) -> Result<String, Refusal> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Refusal::Malformed)
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// A fixed-size number; none of the known fields is one.
    Fixed,
}

/// Fields of a message in order; `None` inside means malformed, after which it ends.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => self.take(8).map(|_| Wire::Fixed)?,
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Wire::Fixed)?,
            _ => return None,
        };
        Some((tag >> 3, wire))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()][..], content].concat()
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [MAGIC, &field(1, &type_meta), &field(2, raw), &field(3, b""), &field(4, b"")].concat()
    }

    #[test]
    fn a_config_map_is_read() {
        let metadata = [field(1, b"c"), field(2, b""), field(11, &[field(1, b"k"), field(2, b"v")].concat())].concat();
        let data = field(2, &[field(1, b"a"), field(2, b"b")].concat());
        let raw = [field(1, &metadata), data, vec![4 << 3, 1]].concat();
        assert_eq!(
            decode(&body("ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"k": "v"}},
                "data": {"a": "b"}, "immutable": true})
        );
    }

    #[test]
    fn a_claim_is_read() {
        let entry = [field(1, b"storage"), field(2, &field(1, b"5Mi"))].concat();
        let spec = [field(1, b"ReadWriteOnce"), field(2, &field(2, &entry)), field(3, b""), field(5, b"standard")];
        let raw = [field(1, &field(1, b"c")), field(2, &spec.concat()), field(3, &field(1, b""))].concat();
        assert_eq!(
            decode(&body("PersistentVolumeClaim", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Mi"}},
                "storageClassName": "standard"}})
        );
    }

    #[test]
    fn others_are_refused_by_name() {
        assert_eq!(decode(&body("Job", b"")), Err(Refusal::Unknown("Job".into())));
        assert_eq!(decode(b"{}"), Err(Refusal::Malformed));
        assert_eq!(decode(&body("ConfigMap", &[0x0a, 200])), Err(Refusal::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&body("Role", &raw));
            let _ = decode(&[MAGIC, &raw].concat());
        }
    }
}
