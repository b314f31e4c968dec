//! The time zone of cron schedules.

use std::str::FromStr as _;

pub use chrono_tz::Tz;

/// A name that the time zone database does not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown time zone {0}")]
pub struct Unknown(pub String);

/// The zone that `CRON_SCHEDULE_TIMEZONE` names; unset, empty and `Local` mean the process's own zone.
///
/// # Errors
/// When the name is not in the time zone database.
pub fn configured(name: &str, tz: Option<&str>) -> Result<Tz, Unknown> {
    match name {
        "" | "Local" => Ok(local(tz, std::fs::read_link("/etc/localtime").ok().as_deref())),
        name => Tz::from_str(name).map_err(|_| Unknown(name.to_owned())),
    }
}

/// The process's zone as Go finds it: the environment variable `TZ`, else the target of /etc/localtime, else UTC.
fn local(tz: Option<&str>, link: Option<&std::path::Path>) -> Tz {
    let named = match tz {
        Some(tz) => Some(tz.strip_prefix(':').unwrap_or(tz).to_owned()),
        None => link.map(|path| path.to_string_lossy().into_owned()),
    };
    let named = named.unwrap_or_default();
    let name = named.rsplit_once("zoneinfo/").map_or(named.as_str(), |(_, name)| name);
    Tz::from_str(name).unwrap_or(Tz::UTC)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn names_are_those_of_the_database() {
        assert_eq!(configured("UTC", None), Ok(Tz::UTC));
        assert_eq!(configured("Europe/Berlin", Some("UTC")), Ok(Tz::Europe__Berlin));
        assert_eq!(configured("Mars/Base", None).unwrap_err().to_string(), "unknown time zone Mars/Base");
    }

    #[test]
    fn local_zone_is_the_one_that_go_finds() {
        let link = Some(Path::new("../usr/share/zoneinfo/Asia/Kolkata"));
        for (tz, link, want) in [
            (Some("America/New_York"), link, Tz::America__New_York),
            (Some(":/usr/share/zoneinfo/Africa/Cairo"), None, Tz::Africa__Cairo),
            (Some(""), link, Tz::UTC),
            (Some("nonsense"), link, Tz::UTC),
            (None, link, Tz::Asia__Kolkata),
            (None, None, Tz::UTC),
        ] {
            assert_eq!(local(tz, link), want, "{tz:?}");
        }
    }
}
