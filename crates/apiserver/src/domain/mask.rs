//! Field masks: which fields of a message an update changes.

use prost::Message as _;
use prost::Name;
use prost_reflect::{DynamicMessage, Kind, ReflectMessage as _};

use crate::error::{Error, Result};

/// `current` with the fields at `paths` taken from `given`; one that `given` does not set is cleared.
///
/// # Errors
/// Code 3 for a path that leads nowhere, or outside of the fields named in `changeable`.
pub fn merge<T: Name + Default>(current: &T, given: &T, paths: &[String], changeable: &[&str]) -> Result<T> {
    let failed = |error: String| Error::internal("cannot apply the field mask", error);
    let name = T::full_name();
    let descriptor = kfp_proto::POOL.get_message_by_name(&name).ok_or_else(|| failed(format!("no type {name}")))?;
    let dynamic = |message: &T| {
        DynamicMessage::decode(descriptor.clone(), message.encode_to_vec().as_slice())
            .map_err(|error| failed(error.to_string()))
    };
    let (mut merged, given) = (dynamic(current)?, dynamic(given)?);
    for path in paths {
        let first = path.split('.').next().unwrap_or_default();
        if !changeable.contains(&first) {
            return Err(Error::invalid(format!(
                "update_mask names {path:?}, which cannot be changed; what can is {}",
                changeable.join(", ")
            )));
        }
        copy(&mut merged, Some(&given), path).map_err(|()| {
            Error::invalid(format!("update_mask names {path:?}, which is no field of {}", descriptor.name()))
        })?;
    }
    T::decode(merged.encode_to_vec().as_slice()).map_err(|error| failed(error.to_string()))
}

fn copy(target: &mut DynamicMessage, source: Option<&DynamicMessage>, path: &str) -> std::result::Result<(), ()> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field = target.descriptor().get_field_by_name(name).ok_or(())?;
    let value = source.filter(|source| source.has_field(&field)).map(|source| source.get_field(&field).into_owned());
    let Some(rest) = rest else {
        match value {
            Some(value) => target.set_field(&field, value),
            None => target.clear_field(&field),
        }
        return Ok(());
    };
    if field.is_list() || field.is_map() || !matches!(field.kind(), Kind::Message(_)) {
        return Err(());
    }
    let inner = value.as_ref().and_then(prost_reflect::Value::as_message);
    copy(target.get_field_mut(&field).as_message_mut().ok_or(())?, inner, rest)
}

#[cfg(test)]
mod tests {
    use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
    use v2::trigger::Trigger as T;

    use super::*;

    const ALL: [&str; 4] = ["description", "trigger", "no_catchup", "runtime_config"];

    fn cron(text: &str, end: Option<i64>) -> Option<v2::Trigger> {
        let end_time = end.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 });
        let cron = v2::CronSchedule { cron: text.to_owned(), end_time, ..v2::CronSchedule::default() };
        Some(v2::Trigger { trigger: Some(T::CronSchedule(cron)) })
    }

    fn current() -> v2::RecurringRun {
        v2::RecurringRun {
            display_name: "name".into(),
            description: "old".into(),
            trigger: cron("0 * * * * *", Some(9)),
            no_catchup: true,
            ..v2::RecurringRun::default()
        }
    }

    fn merged(given: &v2::RecurringRun, paths: &[&str]) -> Result<v2::RecurringRun> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        merge(&current(), given, &paths, &ALL)
    }

    #[test]
    fn only_named_fields_change() {
        let given = v2::RecurringRun {
            display_name: "other".into(),
            description: "new".into(),
            trigger: cron("@daily", None),
            ..v2::RecurringRun::default()
        };
        let now = merged(&given, &["description"]).unwrap();
        assert_eq!(now, v2::RecurringRun { description: "new".into(), ..current() });
        // What is not set is cleared.
        let now = merged(&given, &["trigger", "no_catchup", "runtime_config.pipeline_root"]).unwrap();
        assert_eq!((now.trigger, now.no_catchup), (cron("@daily", None), false));
        let now = merged(&given, &["trigger.cron_schedule.cron"]).unwrap();
        assert_eq!(now.trigger, cron("@daily", Some(9)));
        let now = merged(&given, &["trigger.cron_schedule.end_time"]).unwrap();
        assert_eq!(now.trigger, cron("0 * * * * *", None));
        assert_eq!(merged(&given, &[]).unwrap(), current());
    }

    #[test]
    fn another_kind_of_a_choice_replaces_the_old_one() {
        let periodic = v2::PeriodicSchedule { interval_second: 5, ..v2::PeriodicSchedule::default() };
        let trigger = Some(v2::Trigger { trigger: Some(T::PeriodicSchedule(periodic)) });
        let given = v2::RecurringRun { trigger: trigger.clone(), ..v2::RecurringRun::default() };
        assert_eq!(merged(&given, &["trigger.periodic_schedule.interval_second"]).unwrap().trigger, trigger);
    }

    #[test]
    fn wrong_paths_are_refused() {
        for (path, why) in [
            ("display_name", "cannot be changed"),
            ("", "cannot be changed"),
            ("*", "cannot be changed"),
            ("trigger.x", "is no field of RecurringRun"),
            ("trigger.cron_schedule.cron.x", "is no field of RecurringRun"),
            ("runtime_config.parameters.x", "is no field of RecurringRun"),
            ("description.", "is no field of RecurringRun"),
        ] {
            let error = merged(&v2::RecurringRun::default(), &[path]).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
