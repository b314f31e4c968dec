//! Routes: the compiled form of `google.api.http` rules, and finding one for a path.

use http::{Method, Uri};
use percent_encoding::percent_decode_str;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value,
};

use crate::Error;

/// The type of the field that tells an update what to change.
pub(crate) const FIELD_MASK: &str = "google.protobuf.FieldMask";

/// One part of a path between slashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(String),
    /// Index into [`Route::variables`].
    Variable,
}

/// What the HTTP body holds.
#[derive(Clone, Debug)]
pub(crate) enum BodyField {
    None,
    Whole,
    Field(FieldDescriptor),
}

/// One HTTP binding of an RPC.
#[derive(Clone, Debug)]
pub struct Route {
    /// HTTP method.
    pub method: Method,
    /// Path template as annotated, such as `/apis/v2beta1/runs/{run_id}:archive`.
    pub template: String,
    /// The RPC's path on the gRPC server.
    pub grpc_path: Uri,
    pub(crate) segments: Vec<Segment>,
    /// Field paths of the variables in the order in which they stand in the template.
    pub(crate) variables: Vec<Vec<FieldDescriptor>>,
    pub(crate) verb: Option<String>,
    pub(crate) body: BodyField,
    /// Of an update: the field that names what changes, with its type.
    pub(crate) mask: Option<(FieldDescriptor, MessageDescriptor)>,
    pub(crate) input: MessageDescriptor,
    pub(crate) output: MessageDescriptor,
}

impl Route {
    /// How specific the template is: a literal beats a variable at the first place where two templates differ.
    fn rank(&self) -> Vec<u8> {
        self.segments.iter().map(|s| u8::from(*s == Segment::Variable)).chain([u8::from(self.verb.is_none())]).collect()
    }
}

/// The routes of all services of `packages`, most specific first.
pub(crate) fn routes(pool: &DescriptorPool, packages: &[&str]) -> Result<Vec<Route>, Error> {
    let http = pool.get_extension_by_name("google.api.http").ok_or(Error::NoAnnotations)?;
    let mut found = Vec::new();
    for service in pool.services().filter(|s| packages.contains(&s.package_name())) {
        for method in service.methods() {
            let options = method.options();
            if !options.has_extension(&http) {
                continue;
            }
            if let Value::Message(rule) = options.get_extension(&http).as_ref() {
                collect(&method, rule, &mut found)?;
            }
        }
    }
    found.sort_by_key(Route::rank);
    Ok(found)
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message.get_field_by_name(field).and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn collect(method: &MethodDescriptor, rule: &DynamicMessage, found: &mut Vec<Route>) -> Result<(), Error> {
    let wrong = |reason: String| Error::Rule { method: method.full_name().to_owned(), reason };
    let (verb, template) = [
        ("get", Method::GET),
        ("put", Method::PUT),
        ("post", Method::POST),
        ("delete", Method::DELETE),
        ("patch", Method::PATCH),
    ]
    .into_iter()
    .find_map(|(name, verb)| Some(text(rule, name)).filter(|t| !t.is_empty()).map(|t| (verb, t)))
    .ok_or_else(|| wrong("no pattern".to_owned()))?;
    let input = method.input();
    let (path, custom) = match template.rsplit_once(':') {
        Some((path, custom)) if !custom.contains(['}', '/']) => (path.to_owned(), Some(custom.to_owned())),
        _ => (template.clone(), None),
    };
    let mut segments = Vec::new();
    let mut variables = Vec::new();
    for part in path.trim_start_matches('/').split('/') {
        match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
            Some(name) if name.contains('=') => return Err(wrong(format!("pattern {part} is not supported"))),
            Some(name) => {
                variables.push(field_path(&input, name).ok_or_else(|| wrong(format!("no field {name}")))?);
                segments.push(Segment::Variable);
            }
            None => segments.push(Segment::Literal(part.to_owned())),
        }
    }
    let body = match text(rule, "body").as_str() {
        "" => BodyField::None,
        "*" => BodyField::Whole,
        name => BodyField::Field(input.get_field_by_name(name).ok_or_else(|| wrong(format!("no body field {name}")))?),
    };
    let grpc_path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let grpc_path = grpc_path.parse().map_err(|e| wrong(format!("{e}")))?;
    let mask = input.fields().find_map(|field| match field.kind() {
        Kind::Message(inner) if verb == Method::PATCH && inner.full_name() == FIELD_MASK => Some((field, inner)),
        _ => None,
    });
    found.push(Route {
        method: verb,
        template,
        grpc_path,
        segments,
        variables,
        verb: custom,
        body,
        mask,
        input,
        output: method.output(),
    });
    if let Some(Value::List(more)) = rule.get_field_by_name("additional_bindings").as_deref() {
        for rule in more {
            if let Value::Message(rule) = rule {
                collect(method, rule, found)?;
            }
        }
    }
    Ok(())
}

/// Resolves `a.b` in either spelling; `None` when a part is unknown or leads through something that is no message.
pub(crate) fn field_path(message: &MessageDescriptor, path: &str) -> Option<Vec<FieldDescriptor>> {
    let mut fields = Vec::new();
    let mut at = Some(message.clone());
    for name in path.split('.') {
        let here = at?;
        let field = here.get_field_by_name(name).or_else(|| here.get_field_by_json_name(name))?;
        at = match field.kind() {
            Kind::Message(inner) if !field.is_list() && !field.is_map() => Some(inner),
            _ => None,
        };
        fields.push(field);
    }
    Some(fields)
}

/// What a path leads to.
pub(crate) enum Found<'a> {
    /// A route with the decoded values of its variables.
    Match(&'a Route, Vec<String>),
    /// The path exists, but not with this method.
    OtherMethod,
    Nothing,
}

/// Finds the route of a request.
pub(crate) fn find<'a>(routes: &'a [Route], method: &Method, path: &str) -> Found<'a> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let verb = parts.last().and_then(|last| last.rsplit_once(':'));
    let mut other = false;
    // A custom verb binds tighter than a variable that happens to hold a colon.
    for with_verb in [true, false] {
        for route in routes {
            let last = match (&route.verb, verb, with_verb) {
                (Some(wanted), Some((head, given)), true) if wanted == given => Some(head),
                (None, _, false) => None,
                _ => continue,
            };
            if let Some(values) = matches(route, &parts, last) {
                if route.method == *method {
                    return Found::Match(route, values);
                }
                other = true;
            }
        }
    }
    if other { Found::OtherMethod } else { Found::Nothing }
}

fn matches(route: &Route, parts: &[&str], last: Option<&str>) -> Option<Vec<String>> {
    if parts.len() != route.segments.len() {
        return None;
    }
    let mut values = Vec::new();
    for (index, (segment, part)) in route.segments.iter().zip(parts).enumerate() {
        let part = if index + 1 == parts.len() { last.unwrap_or(part) } else { part };
        match segment {
            Segment::Literal(wanted) if wanted == part => {}
            Segment::Literal(_) => return None,
            // As grpc-gateway has it: clients write the empty namespace of a visualization so.
            Segment::Variable if part.is_empty() && index + 1 < parts.len() => return None,
            Segment::Variable => values.push(percent_decode_str(part).decode_utf8().ok()?.into_owned()),
        }
    }
    Some(values)
}
